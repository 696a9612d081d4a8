// Which GPUs there are, and who uses them.
#pragma once

#include <cstdint>

#include "cuda/api.h"

namespace longsight::cuda {

// As LsCudaApi::devices; throws Failure.
void listDevices(LsDevice* out, int32_t capacity, int32_t* count);

// Checks driver and device and makes the device current. Throws Failure.
void open(int32_t device);

struct DeviceBytes {
  uint64_t free = 0;
  uint64_t total = 0;
};
// Of the current device.
DeviceBytes deviceBytes();

// While one lives, listDevices() leaves the device's context alone.
class DeviceUse {
 public:
  explicit DeviceUse(int32_t device);
  ~DeviceUse();
  DeviceUse(const DeviceUse&) = delete;
  DeviceUse& operator=(const DeviceUse&) = delete;
  int32_t device() const { return device_; }

 private:
  int32_t device_;
};

}  // namespace longsight::cuda
