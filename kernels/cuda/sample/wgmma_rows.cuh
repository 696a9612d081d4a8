// Stage 1 on wgmma: a warpgroup keeps 128 rows in registers, in two halves of 64, and multiplies
// them with tiles of 128 rows in shared memory.
#pragma once

#include "device/mbarrier.cuh"
#include "device/wgmma_sm90.cuh"

namespace longsight::cuda {

inline constexpr int kHalfRows = 64;

// The fragments of a warpgroup's rows, from a swizzled tile of 128 rows. [half][16 dims][4]
template <int kDims>
using RowFragments = uint32_t[2][kDims / 16][4];

template <int kDims>
__device__ __forceinline__ void loadRowFragments(RowFragments<kDims>& a, uint32_t tile) {
  const int lane = threadIdx.x % 32;
  const int warp = threadIdx.x % 128 / 32;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
#pragma unroll
    for (int k = 0; k < kDims / 16; ++k) {
      loadMatrix4(a[half][k],
                  tile + tileOffset<kDims, 128>(half * kHalfRows + warp * 16 + lane % 16,
                                                k * 2 + lane / 16));
    }
  }
}

// scores = rows of one half (64 x dims) * tile^T (128 x dims); `add` to what they hold.
template <class T, int kDims>
__device__ __forceinline__ void issueRowScores(float (&scores)[64],
                                               const uint32_t (&a)[kDims / 16][4], uint32_t tile,
                                               bool add = false) {
  wgmmaFence();
#pragma unroll
  for (int k = 0; k < kDims / 16; ++k) {
    if constexpr (kDims == 32) {
      wgmmaRegisters(T{}, scores, a[k], narrowRowsDescriptor(tile + k * 32), add || k > 0);
    } else {
      const uint32_t offset = k / 4 * (128 * 128) + k % 4 * 32;
      wgmmaRegisters(T{}, scores, a[k], wideRowsDescriptor(tile + offset), add || k > 0);
    }
  }
  wgmmaCommit();
}

}  // namespace longsight::cuda
