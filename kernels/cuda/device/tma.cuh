// The bulk tensor copy engine (sm_90): tiles of the KV cache into swizzled shared memory.
#pragma once

#include <cuda.h>

#include <cstdint>

namespace longsight::cuda {

// Copies the box at (element, row, head) of the map; the barrier counts its bytes. Rows beyond the
// map's extent arrive as zeros.
__device__ __forceinline__ void copyBox(uint32_t target, const CUtensorMap* map, uint32_t barrier,
                                        int element, int row, int head) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%3, %4, %5}], [%2];" ::"r"(target),
      "l"(map), "r"(barrier), "r"(element), "r"(row), "r"(head)
      : "memory");
}

__device__ __forceinline__ void prefetchMap(const CUtensorMap* map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}

}  // namespace longsight::cuda
