#include "cuda/engine/devices.h"

#include <cuda_runtime_api.h>

#include <cstdio>
#include <map>
#include <mutex>
#include <string>

#include "cuda/engine/failure.h"

namespace longsight::cuda {
namespace {

constexpr int kLeastDriver = 13000;
constexpr int kLeastCapability = 80;

// Guards the uses, and that no context goes away while another call makes one.
std::mutex deviceMutex;
std::map<int32_t, int32_t> uses;

std::string versionText(int version) {
  return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
}

// The driver's CUDA version.
int checkDriver() {
  int version = 0;
  if (cudaDriverGetVersion(&version) != cudaSuccess || version == 0) {
    cudaGetLastError();
    throw Failure{LS_NO_DRIVER, "There is no NVIDIA driver on this machine.",
                  "Install driver 580 or newer, or use the CPU backend.", 0};
  }
  if (version < kLeastDriver) {
    throw Failure{LS_DRIVER_TOO_OLD,
                  "The NVIDIA driver supports CUDA " + versionText(version) +
                      ", the CUDA backend needs " + versionText(kLeastDriver) +
                      " (driver 580 or newer).",
                  "Update the NVIDIA driver, or use the CPU backend.", 0};
  }
  return version;
}

int deviceCount() {
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error == cudaErrorNoDevice || (error == cudaSuccess && count == 0)) {
    cudaGetLastError();
    throw Failure{LS_NO_DEVICE, "The NVIDIA driver finds no GPU that this process may use.",
                  "See whether nvidia-smi lists one and CUDA_VISIBLE_DEVICES does not hide it.", 0};
  }
  if (error != cudaSuccess) {
    cudaGetLastError();
    throw Failure{LS_CUDA_ERROR,
                  std::string("The NVIDIA driver does not start: ") + cudaGetErrorName(error) +
                      ", " + cudaGetErrorString(error) + ".",
                  "See whether nvidia-smi works, or use the CPU backend.", 0};
  }
  return count;
}

Failure tooOld(const char* name, int capability) {
  return {LS_DEVICE_TOO_OLD,
          std::string(name) + " has compute capability " + std::to_string(capability / 10) + "." +
              std::to_string(capability % 10) + ", the CUDA backend needs 8.0 or higher.",
          "Use the CPU backend.", 0};
}

LsDevice describe(int ordinal, int driver) {
  LsDevice device{};
  device.ordinal = ordinal;
  device.driverVersion = driver;
  cudaDeviceProp properties{};
  if (cudaGetDeviceProperties(&properties, ordinal) != cudaSuccess) {
    cudaGetLastError();
    device.status = LS_CUDA_ERROR;
    return device;
  }
  std::snprintf(device.name, sizeof device.name, "%.127s", properties.name);
  device.computeCapability = properties.major * 10 + properties.minor;
  device.totalBytes = properties.totalGlobalMem;
  if (device.computeCapability < kLeastCapability) {
    device.status = LS_DEVICE_TOO_OLD;
    return device;
  }
  size_t free = 0, total = 0;
  if (isLost(ordinal) || cudaSetDevice(ordinal) != cudaSuccess ||
      cudaMemGetInfo(&free, &total) != cudaSuccess) {
    cudaGetLastError();
    device.status = isLost(ordinal) ? LS_DEVICE_LOST : LS_CUDA_ERROR;
    return device;
  }
  device.freeBytes = free;
  device.totalBytes = total;
  if (uses[ordinal] == 0) cudaDeviceReset();
  return device;
}

}  // namespace

void listDevices(LsDevice* out, int32_t capacity, int32_t* count) {
  if (count == nullptr || capacity < 0 || (out == nullptr && capacity > 0)) {
    throw invalid("devices() needs `count`, and `out` when there is a capacity.");
  }
  *count = 0;
  const std::lock_guard lock(deviceMutex);
  const int driver = checkDriver();
  *count = deviceCount();
  bool usable = false;
  LsDevice old{};
  for (int32_t i = 0; i < *count; ++i) {
    const LsDevice device = describe(i, driver);
    if (i < capacity) out[i] = device;
    if (device.status == LS_DEVICE_TOO_OLD) {
      old = device;
    } else {
      usable = true;
    }
  }
  if (!usable) throw tooOld(old.name, old.computeCapability);
}

void open(int32_t device) {
  const std::lock_guard lock(deviceMutex);
  checkDriver();
  const int count = deviceCount();
  if (device < 0 || device >= count) {
    throw Failure{LS_NO_DEVICE,
                  "There is no GPU " + std::to_string(device) + ": the driver lists " +
                      std::to_string(count) + ".",
                  "Choose one that `longsight doctor` lists.", 0};
  }
  cudaDeviceProp properties{};
  check(cudaGetDeviceProperties(&properties, device), "Reading the GPU's properties");
  const int capability = properties.major * 10 + properties.minor;
  if (capability < kLeastCapability) throw tooOld(properties.name, capability);
  use(device);
}

DeviceBytes deviceBytes() {
  size_t free = 0, total = 0;
  check(cudaMemGetInfo(&free, &total), "Asking for free GPU memory");
  return {free, total};
}

DeviceUse::DeviceUse(int32_t device) : device_(device) {
  const std::lock_guard lock(deviceMutex);
  ++uses[device];
}

DeviceUse::~DeviceUse() {
  const std::lock_guard lock(deviceMutex);
  --uses[device_];
}

}  // namespace longsight::cuda
