// Stage 3 where the columns were split: the parts of a row become its output, in a fixed order.
#include "attend/tile_work.cuh"
#include "device/dependent_launch.cuh"
#include "device/mma_sm80.cuh"
#include "head_dispatch.cuh"

namespace longsight::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kDimsAThread = 4;

template <class T, int kDim>
__global__ __launch_bounds__(kThreads) void combine(const __grid_constant__ ChunkLayout layout,
                                                    const Workspace workspace,
                                                    const __grid_constant__ Tensors tensors) {
  waitForPrevious();
  constexpr int kPieces = kDim / kDimsAThread;
  const int64_t at = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  const int64_t rows = layout.end - layout.begin;
  const int64_t pair = at / kPieces;
  const int dim = static_cast<int>(at % kPieces) * kDimsAThread;
  if (pair >= rows * layout.heads) return;
  const int64_t row = pair / layout.heads;
  const int head = static_cast<int>(pair % layout.heads);
  const float scaleLog2 = tensors.scale * kLog2E;
  float best = -INFINITY;
  for (int split = 0; split < layout.columnSplits; ++split) {
    best = fmaxf(best, workspace.partialSums[partialSlot(layout, split, row, head)].x);
  }
  float4 sums = {};
  float total = 0.0f;
  for (int split = 0; split < layout.columnSplits; ++split) {
    const int64_t slot = partialSlot(layout, split, row, head);
    const float2 part = workspace.partialSums[slot];
    const float weight = exp2f((part.x - best) * scaleLog2);
    const float4 output =
        *reinterpret_cast<const float4*>(workspace.partialOutputs + slot * kDim + dim);
    sums.x += weight * output.x;
    sums.y += weight * output.y;
    sums.z += weight * output.z;
    sums.w += weight * output.w;
    total += weight * part.y;
  }
  const float inverse = 1.0f / total;
  *reinterpret_cast<uint2*>(static_cast<T*>(tensors.output) + pair * kDim + dim) =
      make_uint2(packPair<T>(sums.x * inverse, sums.y * inverse),
                 packPair<T>(sums.z * inverse, sums.w * inverse));
  if (tensors.logSumExp != nullptr && dim == 0) {
    tensors.logSumExp[head * rows + row] = (best * scaleLog2 + log2f(total)) * kLn2;
  }
}

}  // namespace

cudaError_t launchCombine(const LaunchContext& context) {
  const ChunkLayout& layout = context.layout;
  return dispatchHead(context.chunk.shape, [&]<class T, int kDim>() {
    const int64_t threads =
        int64_t{layout.end - layout.begin} * layout.heads * (kDim / kDimsAThread);
    const dim3 grid(static_cast<unsigned>((threads + kThreads - 1) / kThreads));
    return launchDependent(combine<T, kDim>, grid, kThreads, 0, context.stream, layout,
                           context.workspace, context.tensors);
  });
}

}  // namespace longsight::cuda
