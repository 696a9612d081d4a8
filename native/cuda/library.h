// longsight-cuda.so: the CUDA engine, opened when somebody asks for a GPU and not before.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "cuda/api.h"

namespace longsight {

class CudaLibrary {
 public:
  // Opens the library on the first call; it stays open. Throws Error deviceUnavailable where it is
  // missing, does not load or is another version than this build.
  static const CudaLibrary& get();
  // Beside the binary with this code, or what LONGSIGHT_CUDA_LIBRARY names.
  static std::string path();

  // As get(), of any file. For get() and tests.
  explicit CudaLibrary(const std::string& path);
  CudaLibrary(const CudaLibrary&) = delete;
  CudaLibrary& operator=(const CudaLibrary&) = delete;

  const LsCudaApi* operator->() const { return api_; }
  // The same for the same binary, by the build id that its linker gave it.
  uint64_t identity() const;

 private:
  const LsCudaApi* api_ = nullptr;
};

// What the driver knows, usable or not.
struct CudaDevices {
  struct Device {
    LsDevice facts;
    // Why a model cannot run there; empty where it can.
    std::string refusal;
  };
  // Empty on a machine with a driver and no GPU.
  std::vector<Device> all;

  // The one with this ordinal, or for -1 the usable one with the most free memory. Throws Error
  // deviceUnavailable where there is none, or it is too old.
  const LsDevice& choose(int32_t ordinal) const;
};

// Throws Error deviceUnavailable where the driver is missing, too old or does not start.
CudaDevices cudaDevices(const CudaLibrary& library);

// Throws what the status stands for as an Error; LS_OK returns.
void checkCuda(LsStatus status, const LsError& error);

// Calls a function of the library whose last parameter is an LsError, and throws as checkCuda does.
template <typename Function, typename... Arguments>
void callCuda(Function function, Arguments... arguments) {
  LsError error{};
  checkCuda(function(arguments..., &error), error);
}

}  // namespace longsight
