// What the two implementations of linear layers share: see linear.h for the task.
#pragma once

#include "device_traits.h"
#include "linear/linear.h"

namespace longsight::cuda {

// How the sm_90a kernels cut a product up.
struct LinearTiling {
  // Of a block: 64, 128, 192 or 256.
  int32_t tileRows;
  // Blocks that share the inner dimension: 1 to 4, at most one for 64 elements of it.
  int32_t splits;
  // Tiles of rows that are taken together, for all outputs, before the next ones are.
  int32_t bandTiles;
};
// The tiling that a model of the device says to be fastest.
LinearTiling chooseTiling(const LinearTask& task, const DeviceTraits& device);
// Needs no workspace.
cudaError_t launchLinearWgmma(const LinearTask& task, const DeviceTraits& device,
                              const LinearTiling& tiling, cudaStream_t stream);

// Every device.
cudaError_t launchLinearMmaSync(const LinearTask& task, const DeviceTraits& device, void* workspace,
                                cudaStream_t stream);
int64_t mmaSyncWorkspaceBytes(const LinearTask& task);

__host__ __device__ constexpr int64_t divideUp(int64_t value, int64_t step) {
  return (value + step - 1) / step;
}

}  // namespace longsight::cuda
