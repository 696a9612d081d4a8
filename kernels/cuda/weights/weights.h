// Weights in their GGUF type on a CUDA device: their layout, the way there from the rows of a file,
// expansion to bf16 for matrix products, embedding rows, and the products of a few rows of
// activations that decoding and the verification of drafts are made of.
//
// Launchers only enqueue work on the caller's stream and current device: they never synchronise,
// allocate or copy, and can be captured into a graph. They return cudaErrorInvalidValue when the
// validate() that belongs to them finds fault with the arguments, otherwise the launch's error.
//
// docs/kernels.md draws the layouts. A matrix holds the same numbers as in the file, bit by bit.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <string>

namespace longsight::cuda {

// A matrix of `rows` x `columns` weights, out = weights x input.
//
// BF16, F16 and F32 are plain: [rows][columns] without gaps, so a product in bf16 may read BF16
// directly. Other types are in blocks of 16 rows whose bits are ordered for the kernels.
struct DeviceMatrix {
  // Device memory of deviceMatrixBytes(), 256-byte aligned.
  const void* data = nullptr;
  // Number of the ggml_type.
  int32_t type = -1;
  int64_t rows = 0;
  int64_t columns = 0;
};

// F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4_K, Q5_K, Q6_K, IQ4_XS.
bool isDeviceWeightType(int32_t type);

// Empty when a matrix of this type and these sizes can be held; else one sentence with the value
// and the rule: columns are multiples of 256 for the K types and IQ4_XS, of 32 for the other types
// in blocks, of 8 for F32, F16 and BF16.
std::string validateMatrix(int32_t type, int64_t rows, int64_t columns);

// Bytes on the device: the file's, with the rows rounded up to multiples of 16 and the columns to
// multiples of 128 for the types in blocks. 0 when validateMatrix() finds fault.
int64_t deviceMatrixBytes(int32_t type, int64_t rows, int64_t columns);

// Bytes of one row as a file has it.
int64_t fileRowBytes(int32_t type, int64_t columns);

// Puts `rowCount` whole rows in the file's layout (device memory, 16-byte aligned) into rows
// firstRow, firstRow + rowStep, ... of the matrix. rowStep 2 makes gate and up take turns.
// Writing all rows defines all that the kernels read.
cudaError_t launchPlace(const void* fileRows, int64_t rowCount, const DeviceMatrix& matrix,
                        int64_t firstRow, int64_t rowStep, cudaStream_t stream);

// Rows [firstRow, firstRow + rows) as bf16, rounded to nearest even from the values that ggml's
// to_float defines. `out`: device, 16-byte aligned; rowStride: elements between rows of it, a
// multiple of 8.
cudaError_t launchExpand(const DeviceMatrix& matrix, int64_t firstRow, int64_t rows, void* out,
                         int64_t rowStride, cudaStream_t stream);

// out[i] = row tokens[i] of the matrix as f32, [count][columns]; zeros where the token is not a row
// of the matrix. Tokens lie in device memory.
cudaError_t launchEmbed(const DeviceMatrix& matrix, const int32_t* tokens, int64_t count,
                        float* out, cudaStream_t stream);

// Valid random blocks: weights with mean about 0 and deviation about 1 / sqrt(columns). The same
// seed makes the same bits; give every matrix its own.
cudaError_t launchFillRandom(const DeviceMatrix& matrix, uint64_t seed, cudaStream_t stream);
// f32 values evenly distributed in mean +- deviation * sqrt(3), for norms and biases.
cudaError_t launchFillRandomVector(float* values, int64_t count, float mean, float deviation,
                                   uint64_t seed, cudaStream_t stream);

inline constexpr int32_t kMaxProductRows = 8;
inline constexpr int32_t kMaxProductParts = 3;

enum class ProductInput { f32, bf16 };

// What becomes of a product, after the bias is added:
enum class ProductEpilogue {
  storeF32,   // out = product
  storeBf16,  // out = bf16(product)
  addF32,     // out += product, f32: the residual stream
  swigluF32,  // rows 2 i and 2 i + 1 are gate and up; out[i] = silu(gate) * up
  swigluBf16,
};

// One matrix of a launch and where its product goes.
struct ProductPart {
  DeviceMatrix matrix;
  // f32 [matrix.rows], or null.
  const float* bias = nullptr;
  // [rows][outStride], matrix.rows (swiglu: half of them) of each are written.
  void* out = nullptr;
  int64_t outStride = 0;
};

// Products of 1 to 8 rows of activations with up to three matrices of the same columns and any
// types, such as q, k and v. Each row's result depends on that row alone, not on the others nor on
// how many there are, but for the last bits; the same call gives the same bits. Sums are f32. The
// input is rounded to bf16 beside BF16 and F32 weights, elsewhere to fp16 of an eighth of it, which
// cuts off what exceeds 500,000.
struct ProductTask {
  int32_t rows = 0;
  ProductInput inputType = ProductInput::f32;
  // [rows][inputStride], the first `columns` of each; 16-byte aligned, stride a multiple of 8.
  const void* input = nullptr;
  int64_t inputStride = 0;
  // f32 [columns]: the input is first divided by its root mean square and multiplied by these.
  // Null: it is taken as it is. Needs f32 input.
  const float* normWeights = nullptr;
  float normEpsilon = 0.0f;
  ProductEpilogue epilogue = ProductEpilogue::storeF32;
  int32_t partCount = 0;
  ProductPart parts[kMaxProductParts];
};
std::string validate(const ProductTask& task);

// Bytes of scratch that launchProduct needs for the task on the current device. Tasks that run one
// after the other share one workspace of the largest size. It must be zeroed once, before the first
// launch; every launch leaves it ready for the next.
int64_t productWorkspaceBytes(const ProductTask& task);

// Begins to read weights while the work before it in the stream still runs (programmatic dependent
// launch), and lets the launch after it do so. So the weights must have been placed by work that
// the host has waited for; input, bias, norm and output may come from the launch right before.
cudaError_t launchProduct(const ProductTask& task, void* workspace, cudaStream_t stream);

}  // namespace longsight::cuda
