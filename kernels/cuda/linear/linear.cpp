// Checks and the choice of implementation.
#include "linear/linear.h"

#include "linear/linear_launch.h"

namespace longsight::cuda {
namespace {

std::string text(int64_t value) { return std::to_string(value); }

bool aligned(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; }

}  // namespace

std::string validate(const LinearTask& task) {
  if (task.rows < 1 || task.rows > (int64_t{1} << 30)) {
    return "a linear layer of " + text(task.rows) + " rows: 1 to 2^30 are possible";
  }
  const int32_t step = task.epilogue == LinearEpilogue::swigluBf16 ? 16 : 8;
  if (task.outputs < step || task.outputs % step != 0) {
    return text(task.outputs) + " outputs are no positive multiple of " + text(step);
  }
  const int32_t innerStep = task.numbers == LinearNumbers::e4m3 ? 16 : 8;
  if (task.inner < innerStep || task.inner % innerStep != 0) {
    return "an inner dimension of " + text(task.inner) + " is no positive multiple of " +
           text(innerStep);
  }
  return {};
}

int64_t linearWorkspaceBytes(const LinearTask& task) { return mmaSyncWorkspaceBytes(task); }

cudaError_t launchLinear(const LinearTask& task, void* workspace, Path path, cudaStream_t stream) {
  if (!validate(task).empty() || task.input == nullptr || task.weight == nullptr ||
      task.output == nullptr || !aligned(task.input) || !aligned(task.weight) ||
      !aligned(task.bias) || !aligned(task.output) || !aligned(workspace) ||
      (workspace == nullptr && linearWorkspaceBytes(task) > 0)) {
    return cudaErrorInvalidValue;
  }
  const bool e4m3 = task.numbers == LinearNumbers::e4m3;
  if (e4m3 && (task.inputScales == nullptr || task.weightScales == nullptr)) {
    return cudaErrorInvalidValue;
  }
  DeviceTraits device{};
  if (const cudaError_t error = deviceTraits(device); error != cudaSuccess) return error;
  if (e4m3 && device.computeCapability < 89) return cudaErrorNotSupported;
  return path == Path::best && device.computeCapability == 90
             ? launchLinearWgmma(task, device, chooseTiling(task, device), stream)
             : launchLinearMmaSync(task, device, workspace, stream);
}

}  // namespace longsight::cuda
