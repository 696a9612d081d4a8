#include "device_traits.h"

#include <array>
#include <atomic>
#include <utility>

namespace longsight::cuda {

cudaError_t deviceTraits(DeviceTraits& traits) {
  constexpr int kMaxDevices = 64;
  static std::array<std::atomic<uint64_t>, kMaxDevices> known{};
  int device = 0;
  if (const cudaError_t error = cudaGetDevice(&device); error != cudaSuccess) return error;
  if (device >= kMaxDevices) return cudaErrorInvalidDevice;
  uint64_t packed = known[device].load(std::memory_order_relaxed);
  if (packed == 0) {
    int major = 0, minor = 0, processors = 0, shared = 0;
    for (const auto& [attribute, value] :
         {std::pair{cudaDevAttrComputeCapabilityMajor, &major},
          std::pair{cudaDevAttrComputeCapabilityMinor, &minor},
          std::pair{cudaDevAttrMultiProcessorCount, &processors},
          std::pair{cudaDevAttrMaxSharedMemoryPerBlockOptin, &shared}}) {
      const cudaError_t error = cudaDeviceGetAttribute(value, attribute, device);
      if (error != cudaSuccess) return error;
    }
    packed = uint64_t(major * 10 + minor) << 48 | uint64_t(processors) << 32 | uint64_t(shared);
    known[device].store(packed, std::memory_order_relaxed);
  }
  traits.computeCapability = static_cast<int32_t>(packed >> 48);
  traits.processors = static_cast<int32_t>(packed >> 32 & 0xFFFF);
  traits.sharedBytesPerBlock = static_cast<int32_t>(packed);
  return cudaSuccess;
}

}  // namespace longsight::cuda
