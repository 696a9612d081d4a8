// What the launchers ask of a device, and set on a kernel, before they launch.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace longsight::cuda {

// The device's own numbers, asked once a device.
struct DeviceTraits {
  int32_t computeCapability;  // 10 * major + minor
  int32_t processors;
  int32_t sharedBytesPerBlock;  // with opt-in
};
cudaError_t deviceTraits(DeviceTraits& traits);

// Shared memory that a block may take on every architecture from sm_80 on (sm_86, sm_89, sm_120).
inline constexpr int kSharedBytesEverywhere = 99 * 1024;

// Sets the dynamic shared memory a kernel may take.
template <class Kernel>
cudaError_t allowShared(Kernel kernel, int bytes) {
  return cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                              cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
}

}  // namespace longsight::cuda
