// What stands between the matrix products of a layer: norms, the sum into the residual stream,
// RoPE with the writing of queries, keys and values. The arithmetic is that of the CPU backend
// (native/cpu/transformer_layers.cpp), in f32 with sums in a fixed order, so the same bits come
// twice.
//
// As in sample_attention.h a launcher only enqueues work on the caller's stream and device, one
// kernel each, and can be captured into a graph. It returns cudaErrorInvalidValue when validate()
// finds fault with its task, otherwise the launch's error. No rows is no work. On sm_90 and later a
// kernel may begin before the one in front of it has ended and waits for it before it touches
// memory (device/dependent_launch.cuh).
//
// Device pointers are 16-byte aligned. Matrices are row-major without gaps unless a stride says
// otherwise.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <string>

#include "attention/score_dims.h"
#include "sample_attention.h"

namespace longsight::cuda {

// Numbers of an activation.
enum class Number { f32, bf16 };

// output = x / sqrt(mean(x^2) + epsilon) * weight, row by row.
struct RmsNormTask {
  // [rows][width].
  const float* input = nullptr;
  // [width].
  const float* weight = nullptr;
  // [rows][width]; f32 may be `input` itself.
  void* output = nullptr;
  Number outputNumber = Number::bf16;
  int64_t rows = 0;
  // A multiple of 8, at most kMaxNormWidth.
  int32_t width = 0;
  float epsilon = 0.0f;
};
inline constexpr int32_t kMaxNormWidth = 16384;
std::string validate(const RmsNormTask& task);
cudaError_t launchRmsNorm(const RmsNormTask& task, cudaStream_t stream);

// residual += block + bias, or += norm(block + bias) in architectures that norm what a block adds;
// then, if wanted, the norm with which the next block begins, from the same read of the residual.
struct AddBlockTask {
  // [rows][width], changed in place.
  float* residual = nullptr;
  // What attention or feed-forward network made, [rows][width].
  const void* block = nullptr;
  Number blockNumber = Number::bf16;
  // [width], or null.
  const float* bias = nullptr;
  // Weight of the norm of the block's output [width], or null: no norm.
  const float* blockNorm = nullptr;
  // Weight of the norm of the next block [width], or null: `normed` is not written.
  const float* nextNorm = nullptr;
  // [rows][width], RMS norm of the new residual.
  void* normed = nullptr;
  Number normedNumber = Number::bf16;
  int64_t rows = 0;
  // As in RmsNormTask.
  int32_t width = 0;
  // Of both norms.
  float epsilon = 0.0f;
};
std::string validate(const AddBlockTask& task);
cudaError_t launchAddBlock(const AddBlockTask& task, cudaStream_t stream);

// How RoPE turns the first dimensions of a head.
struct RopeTable {
  RopeStyle style = RopeStyle::interleaved;
  // An even number <= headDim; the other dimensions stay as they are.
  int32_t rotatedDims = 0;
  // [rotatedDims / 2] on the device: the angle of pair i at position p is p * inverseFrequencies[i]
  // radians, whatever scaling made them. The product is taken and reduced in double precision.
  const double* inverseFrequencies = nullptr;
  // Rotated dimensions are multiplied by this.
  float magnitude = 1.0f;
};

// From the products of a layer to queries, keys and values: bias, RMS norm of each head of queries
// and keys, RoPE, and the write. Queries or keys and values may be left out.
struct RopeStoreTask {
  // element is bf16; storage is that of the cache.
  HeadShape shape;
  // First row of [rows][heads][headDim], or null: no queries are made.
  const void* projectedQueries = nullptr;
  // First rows of [rows][kvHeads][headDim], or both null: the cache is not touched.
  const void* projectedKeys = nullptr;
  const void* projectedValues = nullptr;
  Number number = Number::bf16;
  // Numbers from a row to the next, in all three; a multiple of 8. With one product of q, k and v
  // it is (heads + 2 kvHeads) * headDim.
  int64_t rowStride = 0;
  // [heads * headDim], [kvHeads * headDim] twice; null: none.
  const float* queryBias = nullptr;
  const float* keyBias = nullptr;
  const float* valueBias = nullptr;
  // [headDim], the same for all heads; null: none.
  const float* queryNorm = nullptr;
  const float* keyNorm = nullptr;
  // Of the head norms.
  float epsilon = 0.0f;
  RopeTable rope;
  int64_t rows = 0;
  // Row i is at position firstRow + i; at most 2^30 rows in all.
  int64_t firstRow = 0;
  // Where the position of row 0 is read when the kernel runs, or null: firstRow is it.
  const int32_t* firstRowOnDevice = nullptr;
  // bf16 [rows][heads][headDim]. May not overlap what is read.
  void* queries = nullptr;
  // The cache as in Tensors: [kvHead][capacityRows][headDim], written at the rows' positions. With
  // q8 values are rounded to bf16 first, so they are what launchQuantizeRows makes.
  void* keys = nullptr;
  void* values = nullptr;
  void* keyScales = nullptr;
  void* valueScales = nullptr;
  int64_t capacityRows = 0;
};
std::string validate(const RopeStoreTask& task);
cudaError_t launchRopeStore(const RopeStoreTask& task, cudaStream_t stream);

}  // namespace longsight::cuda
