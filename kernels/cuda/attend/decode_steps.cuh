// The 16 columns of a warp's step of decode in shared memory, and how they become operands of
// mma.sync: matrix B of the product with keys (16 dimensions x 8 columns, twice) and with values
// (16 columns x 8 dimensions, four times for a group of 32 dimensions). Which dimension stands
// where in a matrix is free as long as queries and output agree, so q8 rows are read four bytes at
// a time.
#pragma once

#include "device/dependent_launch.cuh"
#include "device/q8.cuh"
#include "sample_attention.h"

namespace longsight::cuda {

inline constexpr int kStepColumns = 16;

// A cache of elements, swizzled for ldmatrix.
template <class T, int kDim>
struct ElementStep {
  alignas(1024) T keys[kStepColumns * kTileDim<kDim>];
  alignas(1024) T values[kStepColumns * kTileDim<kDim>];

  // Dimension, within a step of 16, of element 0 of the thread's pair i of a query.
  __device__ static int keyDim(int lane, int i) { return lane % 4 * 2 + i * 8; }
  // Floats from a row of outputs to the next, so that storeOutput() meets no bank conflict.
  static constexpr int kOutputStride = kDim + 8;
  // Writes what the thread holds of a row in the matrices of a group, of its two rows that of
  // `half`: dimensions n * 8 + lane % 4 * 2 + i of the group are element 2 half + i of matrix n.
  __device__ static void storeOutput(float* row, int lane, int group, int half,
                                     const float (&output)[4][4]) {
#pragma unroll
    for (int n = 0; n < 4; ++n) {
      const int dim = group * 32 + n * 8 + lane % 4 * 2;
      if (kDim % 32 != 0 && dim >= kDim) continue;
      *reinterpret_cast<float2*>(row + dim) =
          make_float2(output[n][2 * half], output[n][2 * half + 1]);
    }
  }

  // Asks for cache rows [row, row + rows); a multiple of 16.
  __device__ static void prefetch(const Tensors& tensors, int64_t row, int rows) {
    prefetchToL2(static_cast<const T*>(tensors.keys) + row * kDim, rows * kDim * 2);
    prefetchToL2(static_cast<const T*>(tensors.values) + row * kDim, rows * kDim * 2);
  }

  // Copies cache rows [row, row + 16), of which the first `valid` exist; the others become zeros.
  __device__ void copy(const Tensors& tensors, int64_t row, int valid, int lane) {
    constexpr int kPieces = kDim / 8;
    const T* sourceKeys = static_cast<const T*>(tensors.keys) + row * kDim;
    const T* sourceValues = static_cast<const T*>(tensors.values) + row * kDim;
    const uint32_t keyTile = sharedAddress(keys);
    const uint32_t valueTile = sharedAddress(values);
#pragma unroll
    for (int i = lane; i < kStepColumns * kPieces; i += 32) {
      const bool exists = i / kPieces < valid;
      const int source = exists ? i * 8 : 0;
      const uint32_t place = tileOffset<kDim, kStepColumns>(i / kPieces, i % kPieces);
      copyAsync16(keyTile + place, sourceKeys + source, exists);
      copyAsync16(valueTile + place, sourceValues + source, exists);
    }
  }

  // Dimensions [16 k, 16 k + 16) of columns 0 to 7 in b[0] and b[1], of the others in b[2], b[3].
  __device__ void loadKeys(int k, int lane, uint32_t (&b)[4]) const {
    loadMatrix4(b, sharedAddress(keys) + tileOffset<kDim, kStepColumns>(lane % 8 + lane / 16 * 8,
                                                                        k * 2 + lane / 8 % 2));
  }

  // Dimensions [32 group, 32 group + 32). With 80 dimensions the last 16 are whatever lies there:
  // the caller drops their outputs.
  __device__ void loadValues(int group, int lane, uint32_t (&b)[4][2]) const {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      uint32_t r[4];
      loadMatrix4Transposed(
          r, sharedAddress(values) +
                 tileOffset<kDim, kStepColumns>(lane % 16, group * 4 + half * 2 + lane / 16));
      b[2 * half][0] = r[0];
      b[2 * half][1] = r[1];
      b[2 * half + 1][0] = r[2];
      b[2 * half + 1][1] = r[3];
    }
  }
};

// A cache of q8, made into elements in registers. Rows begin at odd multiples of 16 bytes from one
// another: then neither product meets a bank conflict.
template <class T, int kDim>
struct Q8Step {
  static constexpr int kStride = (kDim / 16 | 1) * 16;
  static constexpr int kBlocks = q8Blocks(kDim);
  alignas(16) int8_t keys[kStepColumns * kStride];
  alignas(16) int8_t values[kStepColumns * kStride];
  alignas(16) __half keyScales[kStepColumns * kBlocks];
  alignas(16) __half valueScales[kStepColumns * kBlocks];

  __device__ static int keyDim(int lane, int i) { return lane % 4 * 4 + i * 2; }
  // Dimensions lane % 4 * 8 + i * 4 + n of a group.
  static constexpr int kOutputStride = kDim + 4;
  __device__ static void storeOutput(float* row, int lane, int group, int half,
                                     const float (&output)[4][4]) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int dim = group * 32 + lane % 4 * 8 + i * 4;
      if (kDim % 32 != 0 && dim >= kDim) continue;
      const int element = 2 * half + i;
      *reinterpret_cast<float4*>(row + dim) = make_float4(output[0][element], output[1][element],
                                                          output[2][element], output[3][element]);
    }
  }

  __device__ static void prefetch(const Tensors& tensors, int64_t row, int rows) {
    prefetchToL2(static_cast<const int8_t*>(tensors.keys) + row * kDim, rows * kDim);
    prefetchToL2(static_cast<const int8_t*>(tensors.values) + row * kDim, rows * kDim);
    prefetchToL2(static_cast<const __half*>(tensors.keyScales) + row * kBlocks, rows * kBlocks * 2);
    prefetchToL2(static_cast<const __half*>(tensors.valueScales) + row * kBlocks,
                 rows * kBlocks * 2);
  }

  __device__ void copy(const Tensors& tensors, int64_t row, int valid, int lane) {
    constexpr int kPieces = kDim / 16;
    const int8_t* sourceKeys = static_cast<const int8_t*>(tensors.keys) + row * kDim;
    const int8_t* sourceValues = static_cast<const int8_t*>(tensors.values) + row * kDim;
#pragma unroll
    for (int i = lane; i < kStepColumns * kPieces; i += 32) {
      const bool exists = i / kPieces < valid;
      const int source = exists ? i * 16 : 0;
      const int place = i / kPieces * kStride + i % kPieces * 16;
      copyAsync16(sharedAddress(keys + place), sourceKeys + source, exists);
      copyAsync16(sharedAddress(values + place), sourceValues + source, exists);
    }
    // The scales of 16 rows are one run of bytes.
    constexpr int kScalePieces = 2 * kBlocks;
    const int validBytes = min(valid, kStepColumns) * kBlocks * 2;
    const auto* sourceKeyScales = static_cast<const __half*>(tensors.keyScales) + row * kBlocks;
    const auto* sourceValueScales = static_cast<const __half*>(tensors.valueScales) + row * kBlocks;
#pragma unroll
    for (int i = lane; i < kScalePieces; i += 32) {
      const int bytes = min(max(validBytes - i * 16, 0), 16);
      const int source = bytes > 0 ? i * 8 : 0;
      copyAsyncPart(sharedAddress(keyScales + i * 8), sourceKeyScales + source, bytes);
      copyAsyncPart(sharedAddress(valueScales + i * 8), sourceValueScales + source, bytes);
    }
  }

  __device__ void loadKeys(int k, int lane, uint32_t (&b)[4]) const {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int column = half * 8 + lane / 4;
      const uint32_t integers =
          *reinterpret_cast<const uint32_t*>(keys + column * kStride + k * 16 + lane % 4 * 4);
      uint32_t pairs[2];
      dequantize4<T>(integers, __half2float(keyScales[column * kBlocks + k / 2]), pairs);
      b[2 * half] = pairs[0];
      b[2 * half + 1] = pairs[1];
    }
  }

  // Past the 80th dimension lies the next row or, after the last, a scale: an integer either way.
  __device__ void loadValues(int group, int lane, uint32_t (&b)[4][2]) const {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float columns[2][4];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int column = half * 8 + lane % 4 * 2 + i;
        const uint32_t integers = *reinterpret_cast<const uint32_t*>(values + column * kStride +
                                                                     group * 32 + lane / 4 * 4);
        dequantize4(integers, __half2float(valueScales[column * kBlocks + group]), columns[i]);
      }
#pragma unroll
      for (int n = 0; n < 4; ++n) b[n][half] = packPair<T>(columns[0][n], columns[1][n]);
    }
  }
};

}  // namespace longsight::cuda
