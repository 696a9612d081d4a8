// Sums over the threads of a block, in one order.
#pragma once

#include <cstdint>

namespace longsight::cuda {

// Sum over the threads before this one; `total` is the sum over all of them. Two syncs.
template <int kThreads>
__device__ int exclusiveSum(int value, int& total) {
  __shared__ int warpSums[kThreads / 32];
  const int lane = threadIdx.x % 32;
  const int warp = threadIdx.x / 32;
  int inclusive = value;
#pragma unroll
  for (int step = 1; step < 32; step *= 2) {
    const int other = __shfl_up_sync(~0u, inclusive, step);
    if (lane >= step) inclusive += other;
  }
  __syncthreads();
  if (lane == 31) warpSums[warp] = inclusive;
  __syncthreads();
  int prefix = 0;
  total = 0;
#pragma unroll
  for (int i = 0; i < kThreads / 32; ++i) {
    if (i == warp) prefix = total;
    total += warpSums[i];
  }
  return prefix + inclusive - value;
}

// Sums of kCount values of each thread, as Total; in shared memory until the next call. Three
// syncs.
template <class Total, int kThreads, int kCount, class T>
__device__ const Total* blockSums(const T (&values)[kCount]) {
  __shared__ Total warpSums[kThreads / 32][kCount];
  __shared__ Total sums[kCount];
  __syncthreads();
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    Total sum = values[i];
#pragma unroll
    for (int step = 16; step > 0; step /= 2) sum += __shfl_down_sync(~0u, sum, step);
    if (threadIdx.x % 32 == 0) warpSums[threadIdx.x / 32][i] = sum;
  }
  __syncthreads();
  if (threadIdx.x < kCount) {
    Total sum = 0;
    for (int warp = 0; warp < kThreads / 32; ++warp) sum += warpSums[warp][threadIdx.x];
    sums[threadIdx.x] = sum;
  }
  __syncthreads();
  return sums;
}

}  // namespace longsight::cuda
