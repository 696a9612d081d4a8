// Programmatic dependent launch (sm_90 and later): a kernel may be started while the one in front
// of it in the stream still runs, so that its start costs no time. Kernels launched by
// launchDependent must call waitForPrevious() in every thread before they read or write global
// memory (prefetches aside). On older devices both functions do nothing and the launch is an
// ordinary one.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <utility>

#include "device_traits.h"

namespace longsight::cuda {

// Until all kernels in front have ended and what they wrote can be seen.
__device__ __forceinline__ void waitForPrevious() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// Lets the next kernel start as soon as all blocks of this one have said so and there is room.
__device__ __forceinline__ void letNextStart() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// Asks for memory that the kernel will read once it has waited, so that it is in L2 by then. Both
// are multiples of 16 bytes. One thread calls it.
__device__ __forceinline__ void prefetchToL2(const void* source, uint32_t bytes) {
#if __CUDA_ARCH__ >= 900
  if (bytes > 0) {
    asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(source), "r"(bytes) : "memory");
  }
#endif
}

template <class... Parameters, class... Arguments>
cudaError_t launchDependent(void (*kernel)(Parameters...), dim3 grid, unsigned threads,
                            size_t sharedBytes, cudaStream_t stream, Arguments&&... arguments) {
  DeviceTraits device{};
  if (const cudaError_t error = deviceTraits(device); error != cudaSuccess) return error;
  cudaLaunchAttribute overlap{};
  overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  overlap.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes = sharedBytes;
  config.stream = stream;
  config.attrs = &overlap;
  config.numAttrs = device.computeCapability >= 90 ? 1 : 0;
  return cudaLaunchKernelEx(&config, kernel, std::forward<Arguments>(arguments)...);
}

}  // namespace longsight::cuda
