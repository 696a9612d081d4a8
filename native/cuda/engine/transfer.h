// Copies between host memory of any kind and the device, through pinned memory in two halves, so
// that the one is filled or emptied while the other is under way.
#pragma once

#include <cstdint>

#include "cuda/engine/memory.h"

namespace longsight::cuda {

class Transfer {
 public:
  // All copies are ordered with the stream's other work, and done when the calls return.
  explicit Transfer(cudaStream_t stream) : stream_(stream) {}

  // Rows of `rowBytes`, `devicePitch` apart on the device and `hostPitch` on the host.
  struct Rows {
    uint64_t count = 0;
    uint64_t rowBytes = 0;
    uint64_t devicePitch = 0;
    uint64_t hostPitch = 0;
  };
  void toHost(void* host, const char* device, const Rows& rows);
  void toHost(void* host, const char* device, uint64_t bytes);
  void toDevice(char* device, const void* host, uint64_t bytes);

 private:
  static constexpr uint64_t kHalfBytes = uint64_t{8} << 20;
  char* half(int index);

  cudaStream_t stream_;
  PinnedBlock pinned_;
  Event done_[2] = {Event{cudaEventDisableTiming}, Event{cudaEventDisableTiming}};
};

}  // namespace longsight::cuda
