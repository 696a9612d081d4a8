// Policy `mass`, stage 1, first pass on mma.sync: each voter's log sum over all columns it sees.
// On sm_90a it repairs the rows whose sum overflowed (see masses_sm90.cu).
#include "head_dispatch.cuh"
#include "sample/row_log_sum.cuh"
#include "sample/voters.cuh"

namespace longsight::cuda {
namespace {

// Block (chunk of kSumRows packed rows, KV head, segment); rows are packed [voter][head of the
// group], so that those of a block see nearly the same columns.
template <class T, int kDim>
__global__ __launch_bounds__(kSumThreads) void voterLogSums(
    const __grid_constant__ ChunkLayout layout, const Workspace workspace, const T* queries,
    const T* keys, int64_t capacityRows, float scale, bool overflowedOnly) {
  extern __shared__ char sharedBytes[];
  auto& shared = *reinterpret_cast<RowSumSharedMemory<T, kDim>*>(sharedBytes);
  const SegmentLayout& segment = layout.segments[gridDim.z - 1 - blockIdx.z];
  if (segment.stride == 0) return;
  const int kvHead = blockIdx.y;
  const int packedBegin = blockIdx.x * kSumRows;
  const int packedRows = min(kSumRows, segment.voters * layout.group - packedBegin);
  if (packedRows <= 0) return;

  const auto voterOf = [&](int i) { return (packedBegin + i) / layout.group; };
  const auto headOf = [&](int i) {
    return kvHead * layout.group + (packedBegin + i) % layout.group;
  };
  const auto valueOf = [&](int i) -> float& {
    return workspace.voterValues[voterValuesBegin(segment, headOf(i)) + voterOf(i)];
  };
  if (overflowedOnly) {
    const bool overflowed = threadIdx.x < packedRows && valueOf(threadIdx.x) == INFINITY;
    if (!__syncthreads_or(overflowed)) return;
  }
  const auto position = [&](int i) {
    return i < packedRows ? voterPosition(segment, voterOf(i)) : -1;
  };
  const auto query = [&](int i) -> const T* {
    if (i >= packedRows) return nullptr;
    return voterQueries(layout, segment, queries, headOf(i), kDim, voterOf(i)).first;
  };
  RowSum sums[2];
  sumRows<T, kDim>(shared, query, position, keys + int64_t(kvHead) * capacityRows * kDim,
                   ColumnRange{0, 0}, ColumnRange{0, position(0) + 1}, scale * kLog2E, sums);
  if (threadIdx.x % 4 != 0) return;
  for (int half = 0; half < 2; ++half) {
    const int i = threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4 + half * 8;
    if (i >= packedRows || (overflowedOnly && valueOf(i) != INFINITY)) continue;
    valueOf(i) = sums[half].maximum + log2f(sums[half].sum);
  }
}

template <class T, int kDim>
cudaError_t launch(const LaunchContext& context, bool overflowedOnly) {
  const ChunkLayout& layout = context.layout;
  int mostVoters = 0;
  for (int i = 0; i < layout.segmentCount; ++i) {
    mostVoters = max(mostVoters, layout.segments[i].voters);
  }
  constexpr int kBytes = sizeof(RowSumSharedMemory<T, kDim>);
  const cudaError_t error = allowShared(voterLogSums<T, kDim>, kBytes);
  if (error != cudaSuccess) return error;
  const int chunks = (mostVoters * layout.group + kSumRows - 1) / kSumRows;
  voterLogSums<T, kDim>
      <<<dim3(chunks, layout.kvHeads, layout.segmentCount), kSumThreads, kBytes, context.stream>>>(
          layout, context.workspace, static_cast<const T*>(context.tensors.queries),
          static_cast<const T*>(context.tensors.keys), context.tensors.capacityRows,
          context.tensors.scale, overflowedOnly);
  return cudaGetLastError();
}

}  // namespace

cudaError_t launchVoterLogSums(const LaunchContext& context, bool overflowedOnly) {
  return dispatchHead(context.chunk.shape, [&]<class T, int kDim>() {
    return launch<T, kDim>(context, overflowedOnly);
  });
}

}  // namespace longsight::cuda
