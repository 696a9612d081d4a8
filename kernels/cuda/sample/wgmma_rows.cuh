// Stage 1 on wgmma: a warpgroup keeps rows in registers, 64 a product, and multiplies them with
// tiles of 128 rows in shared memory.
#pragma once

#include "device/mbarrier.cuh"
#include "device/wgmma_sm90.cuh"

namespace longsight::cuda {

inline constexpr int kProductRows = 64;

// The fragments of 64 rows. [32 bytes][4]
template <int kRowBytes>
using RowFragments = uint32_t[kRowBytes / 32][4];

// From rows [firstRow, firstRow + 64) of a swizzled tile of kRows rows.
template <int kRowBytes, int kRows>
__device__ __forceinline__ void loadRowFragments(RowFragments<kRowBytes>& a, uint32_t tile,
                                                 int firstRow) {
  const int lane = threadIdx.x % 32;
  const int row = firstRow + threadIdx.x % 128 / 32 * 16 + lane % 16;
#pragma unroll
  for (int k = 0; k < kRowBytes / 32; ++k) {
    loadMatrix4(a[k], tile + tileByteOffset<kRowBytes, kRows>(row, k * 2 + lane / 16));
  }
}

// sums = rows (64 x dims) * tile^T (128 x dims); `add` to what they hold.
template <class S, int kRowBytes, class Sum>
__device__ __forceinline__ void issueRowScores(Sum (&sums)[64], const RowFragments<kRowBytes>& a,
                                               uint32_t tile, bool add = false) {
  wgmmaFence();
#pragma unroll
  for (int k = 0; k < kRowBytes / 32; ++k) {
    if constexpr (kRowBytes == 32) {
      wgmmaRegisters(S{}, sums, a[k], smallRowsDescriptor(tile), add);
    } else if constexpr (kRowBytes == 64) {
      wgmmaRegisters(S{}, sums, a[k], narrowRowsDescriptor(tile + k * 32), add || k > 0);
    } else {
      const uint32_t offset = k / 4 * (128 * 128) + k % 4 * 32;
      wgmmaRegisters(S{}, sums, a[k], wideRowsDescriptor(tile + offset), add || k > 0);
    }
  }
  wgmmaCommit();
}

}  // namespace longsight::cuda
