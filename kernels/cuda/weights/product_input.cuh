// The input of a product of few rows on its way to shared memory: norm, rounding, zeros beyond the
// matrix.
#pragma once

#include <type_traits>

#include "device/dependent_launch.cuh"
#include "weights/product_arguments.cuh"

namespace longsight::cuda {

// Eight activations of a row as f32.
__device__ __forceinline__ void loadInput8(const ProductArguments& arguments, int row, int column,
                                           float (&values)[8]) {
  const int64_t index = row * arguments.inputStride + column;
  if (arguments.inputIsBf16) {
    const uint4 packed =
        __ldcg(reinterpret_cast<const uint4*>(static_cast<const Bf16*>(arguments.input) + index));
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      values[2 * i] = __uint_as_float(wordOf(packed, i) << 16);
      values[2 * i + 1] = __uint_as_float(wordOf(packed, i) & 0xFFFF0000u);
    }
  } else {
    const auto* source =
        reinterpret_cast<const float4*>(static_cast<const float*>(arguments.input) + index);
    const float4 a = __ldcg(source), b = __ldcg(source + 1);
    const float all[8] = {a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w};
#pragma unroll
    for (int i = 0; i < 8; ++i) values[i] = all[i];
  }
}

__device__ __forceinline__ void loadNorm8(const ProductArguments& arguments, int column,
                                          float (&norms)[8]) {
  const auto* weights = reinterpret_cast<const float4*>(arguments.normWeights + column);
  const float4 a = __ldg(weights), b = __ldg(weights + 1);
  const float all[8] = {a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w};
#pragma unroll
  for (int i = 0; i < 8; ++i) norms[i] = all[i];
}

// Byte offset, in a row of the input in shared memory, of the 8 columns 32 t + 8 piece of a block
// of 128: permuted so that the lanes that read at a time meet different groups of banks.
__device__ __forceinline__ int inputOffset(int row, int block, int t, int piece) {
  return block * 256 + t * 64 + (piece ^ (t >> 1) ^ ((row & 1) << 1)) * 16;
}

// Activations are multiplied by this on their way to fp16: what exceeds 500,000 is cut off there,
// and what is below 0.0005 loses digits.
template <class Operand>
inline constexpr float kInputScale = std::is_same_v<Operand, F16> ? 0.125f : 1.0f;

template <class Operand>
__device__ __forceinline__ uint32_t packInput(float low, float high) {
  uint32_t pair = packPair<Operand>(low * kInputScale<Operand>, high * kInputScale<Operand>);
  if constexpr (std::is_same_v<Operand, F16>) {
    const __half2 most = __half2half2(__ushort_as_half(0x7BFF));
    pair = asBits(__hmax2_nan(__hmin2_nan(asHalf2(pair), most), __hneg2(most)));
  }
  return pair;
}

// Waits for the launch before, then brings columns [begin, end) of all rows of the input, times the
// weights of the norm, into shared memory, with zeros beyond the matrix, and the rows' squares. A
// thread has the same columns of kRows rows at a time, and all its loads go out together: this is a
// wait for the level-2 cache before anything can be multiplied.
template <class Operand, int kRows>
__device__ __noinline__ void stageInput(const ProductArguments& arguments, int begin, int end,
                                        char* target, BlockScratch& scratch) {
  constexpr int kPieces = kRows == 4 ? 1 : 2;
  constexpr int kStep = 8 * kProductThreads;
  const bool norm = arguments.normWeights != nullptr;
  // The mean square is of all columns.
  const int from = norm ? 0 : begin;
  const int columns = arguments.columns;
  const int to = norm ? max(columns, end) : end;
  const int first = from + static_cast<int>(threadIdx.x) * 8;
  for (int firstRow = 0; firstRow < arguments.rows; firstRow += kRows) {
    float squares[kRows] = {};
    for (int start = first; start < to || start == first; start += kPieces * kStep) {
      float norms[kPieces][8];
#pragma unroll
      for (int k = 0; k < kPieces; ++k) {
        if (norm) loadNorm8(arguments, min(start + k * kStep, columns - 8), norms[k]);
      }
      if (firstRow == 0 && start == first) waitForPrevious();
      float values[kRows][kPieces][8];
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
#pragma unroll
        for (int k = 0; k < kPieces; ++k) {
          loadInput8(arguments, min(firstRow + r, arguments.rows - 1),
                     min(start + k * kStep, columns - 8), values[r][k]);
        }
      }
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        const int row = firstRow + r;
#pragma unroll
        for (int k = 0; k < kPieces; ++k) {
          const int column = start + k * kStep;
          float(&v)[8] = values[r][k];
#pragma unroll
          for (int i = 0; i < 8; ++i) {
            v[i] = column < columns ? v[i] : 0.0f;
            squares[r] += v[i] * v[i];
            if (norm) v[i] *= norms[k][i];
          }
          if (column >= begin && column < end && row < arguments.rows) {
            const int piece = (column - begin) / 8;
            *reinterpret_cast<uint4*>(target + row * arguments.inputRowBytes +
                                      inputOffset(row, piece / 16, piece / 4 % 4, piece % 4)) =
                make_uint4(packInput<Operand>(v[0], v[1]), packInput<Operand>(v[2], v[3]),
                           packInput<Operand>(v[4], v[5]), packInput<Operand>(v[6], v[7]));
          }
        }
      }
    }
    if (!norm) continue;
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
#pragma unroll
      for (int step = 16; step > 0; step /= 2) {
        squares[r] += __shfl_xor_sync(~0u, squares[r], step);
      }
      if (threadIdx.x % 32 == 0 && firstRow + r < arguments.rows) {
        scratch.squares[firstRow + r][threadIdx.x / 32] = squares[r];
      }
    }
  }
}

// After the squares are there: the factors of the rows.
template <class Operand>
__device__ __forceinline__ void computeOutScale(const ProductArguments& arguments, int row,
                                                float weightScale, BlockScratch& scratch) {
  float factor = 1.0f / (weightScale * kInputScale<Operand>);
  if (arguments.normWeights != nullptr) {
    float squares = 0.0f;
#pragma unroll
    for (int i = 0; i < kProductWarps; ++i) squares += scratch.squares[row][i];
    factor *= rsqrtf(squares / static_cast<float>(arguments.columns) + arguments.normEpsilon);
  }
  scratch.outScale[row] = factor;
}

}  // namespace longsight::cuda
