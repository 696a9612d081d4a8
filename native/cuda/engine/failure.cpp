#include "cuda/engine/failure.h"

#include <array>
#include <atomic>
#include <cstdio>

namespace longsight::cuda {
namespace {

constexpr int kMostDevices = 64;
std::array<std::atomic<bool>, kMostDevices> lostDevices{};

constexpr const char* kRestart = "Restart the engine; if it happens again, use the CPU backend.";

Failure lost(int device) {
  return {LS_DEVICE_LOST,
          "GPU " + std::to_string(device) +
              " is in no state to go on after an earlier error of this process.",
          kRestart, 0};
}

}  // namespace

void check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  const std::string name = cudaGetErrorName(error);
  const std::string text =
      std::string(what) + " failed: " + name + ", " + cudaGetErrorString(error) + ".";
  // Reading the last error clears it, unless it is one that stays with the context.
  cudaGetLastError();
  if (error == cudaErrorMemoryAllocation) {
    throw Failure{LS_OUT_OF_MEMORY, text,
                  "Use a smaller context, or close other programs that use the GPU.", 0};
  }
  int device = 0;
  const bool known = cudaGetDevice(&device) == cudaSuccess && device < kMostDevices;
  if (cudaDeviceSynchronize() != cudaSuccess) {
    if (known) lostDevices[static_cast<size_t>(device)] = true;
    throw Failure{LS_DEVICE_LOST, text, kRestart, 0};
  }
  throw Failure{LS_CUDA_ERROR, text, kRestart, 0};
}

bool isLost(int device) {
  return device >= 0 && device < kMostDevices && lostDevices[static_cast<size_t>(device)];
}

void use(int device) {
  if (isLost(device)) throw lost(device);
  check(cudaSetDevice(device), "Choosing the GPU");
}

LsStatus report(LsError* error, const Failure& failure) {
  if (error != nullptr) {
    error->status = failure.status;
    error->largestContextRows = failure.largestContextRows;
    std::snprintf(error->message, sizeof error->message, "%s", failure.message.c_str());
    std::snprintf(error->remedy, sizeof error->remedy, "%s", failure.remedy.c_str());
  }
  return failure.status;
}

}  // namespace longsight::cuda
