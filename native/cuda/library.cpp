#include "cuda/library.h"

#include <dlfcn.h>

#include <algorithm>
#include <cstdlib>
#include <mutex>

#include "error.h"
#include "session/build_identity.h"

namespace longsight {
namespace {

constexpr const char* kUseCpu = "Use the CPU backend.";

Error unavailable(const std::string& message, const std::string& action) {
  return Error(ErrorCode::deviceUnavailable, message, action);
}

const char* usualRemedy(LsStatus status) {
  switch (status) {
    case LS_NO_DRIVER:
      return "Install the NVIDIA driver, version 580 or newer, or use the CPU backend.";
    case LS_DRIVER_TOO_OLD:
      return "Update the NVIDIA driver to version 580 or newer, or use the CPU backend.";
    case LS_DEVICE_TOO_OLD:
      return "Use a GPU of compute capability 8.0 or newer (Ampere, 2020), or the CPU backend.";
    case LS_OUT_OF_MEMORY:
      return "Choose a smaller model or quantization, or close other programs that use the GPU.";
    case LS_DEVICE_LOST:
      return "Restart the engine; if it happens again, look into the log of the NVIDIA driver.";
    case LS_NO_DEVICE:
    case LS_UNSUPPORTED:
      return kUseCpu;
    default:
      return "Try again, or use the CPU backend.";
  }
}

ErrorCode codeOf(LsStatus status) {
  switch (status) {
    case LS_NO_DRIVER:
    case LS_DRIVER_TOO_OLD:
    case LS_NO_DEVICE:
    case LS_DEVICE_TOO_OLD:
    case LS_UNSUPPORTED:
    case LS_DEVICE_LOST:
      return ErrorCode::deviceUnavailable;
    case LS_OUT_OF_MEMORY:
      return ErrorCode::notEnoughMemory;
    default:
      return ErrorCode::internal;
  }
}

std::string capabilityText(int32_t capability) {
  return std::to_string(capability / 10) + "." + std::to_string(capability % 10);
}

std::string refusalOf(const LsDevice& device) {
  if (device.status == LS_OK) return "";
  if (device.status == LS_DEVICE_TOO_OLD)
    return "compute capability " + capabilityText(device.computeCapability) +
           ", 8.0 or newer is needed";
  return "it does not start (status " + std::to_string(device.status) + ")";
}

}  // namespace

std::string CudaLibrary::path() {
  if (const char* chosen = std::getenv("LONGSIGHT_CUDA_LIBRARY"); chosen && *chosen) return chosen;
  Dl_info info{};
  const std::string own =
      dladdr(reinterpret_cast<const void*>(&usualRemedy), &info) ? info.dli_fname : "";
  const size_t slash = own.rfind('/');
  return (slash == std::string::npos ? "." : own.substr(0, slash)) + "/longsight-cuda.so";
}

const CudaLibrary& CudaLibrary::get() {
  // Never destroyed: handles may outlive everything.
  static std::mutex guard;
  static const CudaLibrary* library = nullptr;
  const std::lock_guard lock(guard);
  if (!library) library = new CudaLibrary(path());
  return *library;
}

CudaLibrary::CudaLibrary(const std::string& path) {
  // Not closed, not even after a failure: a CUDA runtime does not survive that.
  void* handle = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (!handle) {
    const char* reason = dlerror();
    throw unavailable("The CUDA engine cannot be loaded: " +
                          std::string(reason ? reason : "no reason given") + ".",
                      "Install Longsight again for computing on a GPU, or use the CPU backend.");
  }
  const auto entry = reinterpret_cast<LsCudaApiFunction>(dlsym(handle, LS_CUDA_API_SYMBOL));
  if (entry) api_ = entry(LS_CUDA_API_VERSION);
  if (!api_ || api_->version != LS_CUDA_API_VERSION)
    throw unavailable(
        "\"" + path + "\" " +
            (!entry  ? "is not the CUDA engine of Longsight."
             : !api_ ? "does not speak version " + std::to_string(LS_CUDA_API_VERSION) +
                           " of the interface."
                     : "speaks version " + std::to_string(api_->version) +
                           " of the interface, expected is " + std::to_string(LS_CUDA_API_VERSION) +
                           "."),
        "Install Longsight again, so that all its files are of one version, or use the CPU "
        "backend.");
}

uint64_t CudaLibrary::identity() const {
  return binaryIdentity(reinterpret_cast<uintptr_t>(api_->devices));
}

const LsDevice& CudaDevices::choose(int32_t ordinal) const {
  const Device* best = nullptr;
  for (const Device& device : all) {
    if (ordinal >= 0 ? device.facts.ordinal != ordinal : !device.refusal.empty()) continue;
    if (!best || device.facts.freeBytes > best->facts.freeBytes) best = &device;
  }
  std::string list;
  for (const Device& device : all)
    list += (list.empty() ? "" : "; ") + std::to_string(device.facts.ordinal) + ": " +
            device.facts.name + (device.refusal.empty() ? "" : " (" + device.refusal + ")");
  if (!best)
    throw unavailable(
        (ordinal >= 0 ? "There is no GPU " + std::to_string(ordinal)
                      : std::string("There is no GPU that can be used")) +
            (list.empty() ? "." : "; found are " + list + "."),
        ordinal >= 0 && !all.empty() ? "Choose one of these, or the CPU backend." : kUseCpu);
  if (!best->refusal.empty())
    throw unavailable("GPU " + std::to_string(ordinal) + ", " + best->facts.name +
                          ", cannot be used: " + best->refusal + ".",
                      "Choose another GPU, or the CPU backend.");
  return best->facts;
}

CudaDevices cudaDevices(const CudaLibrary& library) {
  std::vector<LsDevice> found(16);
  int32_t count = 0;
  LsStatus status = LS_OK;
  LsError error{};
  // Once more where there are more than there was room for.
  for (int round = 0; round < 2; ++round) {
    error = {};
    status = library->devices(found.data(), static_cast<int32_t>(found.size()), &count, &error);
    if (count <= static_cast<int32_t>(found.size())) break;
    found.resize(static_cast<size_t>(count));
  }
  CudaDevices devices;
  if (status == LS_NO_DEVICE) return devices;
  if (status != LS_DEVICE_TOO_OLD) checkCuda(status, error);
  found.resize(std::min(found.size(), static_cast<size_t>(std::max(0, count))));
  for (const LsDevice& device : found) devices.all.push_back({device, refusalOf(device)});
  return devices;
}

void checkCuda(LsStatus status, const LsError& error) {
  if (status == LS_OK) return;
  if (status == LS_CANCELLED) throw cancelledError();
  const std::string message =
      error.message[0] ? error.message
                       : "The CUDA engine failed with status " + std::to_string(status) + ".";
  std::string action = error.remedy[0] ? error.remedy : usualRemedy(status);
  if (status == LS_OUT_OF_MEMORY && error.largestContextRows > 0)
    action = "Use a context of at most " + std::to_string(error.largestContextRows) + " tokens.";
  throw Error(codeOf(status), message, action);
}

}  // namespace longsight
