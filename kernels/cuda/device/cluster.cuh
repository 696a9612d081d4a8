// Thread block clusters (sm_90): barriers between blocks, one another's shared memory, and copies
// of the bulk tensor engine to several blocks and back to global memory.
#pragma once

#include <cuda.h>

#include <cstdint>

namespace longsight::cuda {

__device__ __forceinline__ uint32_t clusterRank() {
  uint32_t rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}

// All threads of all blocks of the cluster; what they wrote before is visible after.
__device__ __forceinline__ void clusterSync() {
  asm volatile(
      "barrier.cluster.arrive.release.aligned;\n"
      "barrier.cluster.wait.acquire.aligned;" ::
          : "memory");
}

// The address of this block's `address` in the shared memory of another block of the cluster.
__device__ __forceinline__ uint32_t addressInBlock(uint32_t address, uint32_t rank) {
  uint32_t mapped;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(mapped) : "r"(address), "r"(rank));
  return mapped;
}

__device__ __forceinline__ float4 loadFromCluster(uint32_t address) {
  float4 value;
  asm volatile("ld.shared::cluster.v4.f32 {%0, %1, %2, %3}, [%4];"
               : "=f"(value.x), "=f"(value.y), "=f"(value.z), "=f"(value.w)
               : "r"(address));
  return value;
}

// Orders nothing but what wgmma has read: a release at the scope of the cluster would wait for all
// of the warp's memory traffic, a microsecond each time.
__device__ __forceinline__ void barrierArriveInCluster(uint32_t address) {
  asm volatile("mbarrier.arrive.shared::cluster.b64 _, [%0];" ::"r"(address) : "memory");
}

// Copies a box of a map to the same place of every block in `blocks` (a bit each); the barrier at
// the same place of each of them counts its bytes.
__device__ __forceinline__ void copyBoxToBlocks(uint32_t target, const CUtensorMap* map,
                                                uint32_t barrier, uint16_t blocks, int x, int y) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes"
      ".multicast::cluster [%0], [%1, {%4, %5}], [%2], %3;" ::"r"(target),
      "l"(map), "r"(barrier), "h"(blocks), "r"(x), "r"(y)
      : "memory");
}

__device__ __forceinline__ void copyBox(uint32_t target, const CUtensorMap* map, uint32_t barrier,
                                        int x, int y) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%3, %4}], [%2];" ::"r"(target),
      "l"(map), "r"(barrier), "r"(x), "r"(y)
      : "memory");
}

__device__ __forceinline__ void copyBox(uint32_t target, const CUtensorMap* map, uint32_t barrier,
                                        int x, int y, int z, int w) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%3, %4, %5, %6}], [%2];" ::"r"(target),
      "l"(map), "r"(barrier), "r"(x), "r"(y), "r"(z), "r"(w)
      : "memory");
}

// A box of shared memory to global memory; what lies outside of the map is dropped.
__device__ __forceinline__ void storeBox(const CUtensorMap* map, uint32_t source, int x, int y) {
  asm volatile(
      "cp.async.bulk.tensor.2d.global.shared::cta.tile.bulk_group [%0, {%2, %3}], [%1];" ::"l"(map),
      "r"(source), "r"(x), "r"(y)
      : "memory");
}

// The same, added to what is there.
__device__ __forceinline__ void addBox(const CUtensorMap* map, uint32_t source, int x, int y) {
  asm volatile(
      "cp.reduce.async.bulk.tensor.2d.global.shared::cta.add.tile.bulk_group "
      "[%0, {%2, %3}], [%1];" ::"l"(map),
      "r"(source), "r"(x), "r"(y)
      : "memory");
}

__device__ __forceinline__ void storeCommit() {
  asm volatile("cp.async.bulk.commit_group;" ::: "memory");
}

// Waits until all but kPending of this thread's committed stores have read their source.
template <int kPending>
__device__ __forceinline__ void storeWaitRead() {
  asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(kPending) : "memory");
}

// Waits until all of this thread's committed stores are done.
__device__ __forceinline__ void storeWait() {
  asm volatile("cp.async.bulk.wait_group 0;" ::: "memory");
}

// Four 8 x 8 matrices of 16-bit elements, transposed: lane l gives the address of row l % 8 of
// matrix l / 8 and holds, of each, elements (2 (l % 4) + {0, 1}, l / 4).
__device__ __forceinline__ void storeMatrix4Transposed(uint32_t address, uint32_t r0, uint32_t r1,
                                                       uint32_t r2, uint32_t r3) {
  asm volatile(
      "stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(address),
      "r"(r0), "r"(r1), "r"(r2), "r"(r3)
      : "memory");
}

}  // namespace longsight::cuda
