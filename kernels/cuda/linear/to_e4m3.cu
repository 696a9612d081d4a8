// Rows of bf16 to 8-bit floats, a scale each.
#include <cuda_fp8.h>

#include "device/mma_sm80.cuh"
#include "linear/linear.h"

namespace longsight::cuda {
namespace {

constexpr int kThreads = 256;
constexpr float kLargest = 448.0f;

struct Piece {
  float values[8];
};

__device__ Piece readPiece(const uint4& source) {
  Piece piece;
  const auto* pairs = reinterpret_cast<const __nv_bfloat162*>(&source);
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float2 pair = __bfloat1622float2(pairs[i]);
    piece.values[2 * i] = pair.x;
    piece.values[2 * i + 1] = pair.y;
  }
  return piece;
}

// The larger one; NaN when either is.
__device__ float largerOrNan(float a, float b) { return a > b || a != a ? a : b; }

// One block a row, which it reads twice: the second time from a cache.
__global__ __launch_bounds__(kThreads) void toE4m3(const uint4* __restrict__ source, int32_t pieces,
                                                   uint2* __restrict__ target, float* scales) {
  __shared__ float warpLargest[kThreads / 32];
  const int64_t row = blockIdx.x;
  source += row * pieces;
  target += row * pieces;
  float largest = 0.0f;
  for (int32_t i = threadIdx.x; i < pieces; i += kThreads) {
    const Piece piece = readPiece(source[i]);
#pragma unroll
    for (const float value : piece.values) largest = largerOrNan(fabsf(value), largest);
  }
#pragma unroll
  for (int step = 16; step > 0; step /= 2) {
    largest = largerOrNan(largest, __shfl_xor_sync(~0u, largest, step));
  }
  if (threadIdx.x % 32 == 0) warpLargest[threadIdx.x / 32] = largest;
  __syncthreads();
  largest = warpLargest[0];
#pragma unroll
  for (int warp = 1; warp < kThreads / 32; ++warp)
    largest = largerOrNan(largest, warpLargest[warp]);
  // A largest value so small that its scale would not be a normal number is taken for zero.
  const bool zero = largest < kLargest * 0x1p-126f;
  const float scale = zero ? 1.0f : largest / kLargest;
  const float inverse = 1.0f / scale;
  if (threadIdx.x == 0) scales[row] = scale;
  for (int32_t i = threadIdx.x; i < pieces; i += kThreads) {
    const Piece piece = readPiece(source[i]);
    __nv_fp8x2_storage_t pairs[4];
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      pairs[j] = __nv_cvt_float2_to_fp8x2(
          {piece.values[2 * j] * inverse, piece.values[2 * j + 1] * inverse}, __NV_SATFINITE,
          __NV_E4M3);
    }
    target[i] = {uint32_t{pairs[0]} | uint32_t{pairs[1]} << 16,
                 uint32_t{pairs[2]} | uint32_t{pairs[3]} << 16};
  }
}

}  // namespace

cudaError_t launchToE4m3(const void* source, int64_t rows, int32_t inner, void* target,
                         float* scales, cudaStream_t stream) {
  if (source == nullptr || target == nullptr || scales == nullptr || rows < 1 ||
      rows > (int64_t{1} << 30) || inner < 16 || inner % 16 != 0) {
    return cudaErrorInvalidValue;
  }
  toE4m3<<<static_cast<unsigned>(rows), kThreads, 0, stream>>>(
      static_cast<const uint4*>(source), inner / 8, static_cast<uint2*>(target), scales);
  return cudaGetLastError();
}

}  // namespace longsight::cuda
