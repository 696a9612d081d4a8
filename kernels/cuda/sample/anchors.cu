// Stage 1, first half: the anchor of every voter, as the smallest raw score that reaches epsilon.
#include <cmath>

#include "chunk_layout.h"
#include "head_dispatch.cuh"
#include "sample/row_log_sum.cuh"

namespace longsight::cuda {
namespace {

// Block (tile of the segment * chunks + chunk, KV head, segment): the voters of one 128-row tile,
// with all heads of the group, packed [voter][head] in chunks of kSumRows.
template <class T, int kDim>
__global__ __launch_bounds__(kSumThreads,
                             4) void anchors(const __grid_constant__ ChunkLayout layout,
                                             const Workspace workspace, const T* queries,
                                             const T* keys, int64_t capacityRows, float scale,
                                             float lnEpsilon, const float* headEpsilons,
                                             int chunks) {
  extern __shared__ char sharedBytes[];
  auto& shared = *reinterpret_cast<RowSumSharedMemory<T, kDim>*>(sharedBytes);
  const SegmentLayout& segment = layout.segments[blockIdx.z];
  const int tile = blockIdx.x / chunks;
  if (segment.stride == 0 || tile >= segment.tiles) return;
  const int kvHead = blockIdx.y;
  const int tileRow = segment.firstTileRow + tile * int(kTileRows);
  const int rowEnd = min(segment.end, tileRow + int(kTileRows));
  const int rowBegin = max(segment.begin, tileRow);
  // Voter v is row end - 1 - v * stride.
  const int voterBegin = (segment.end - rowEnd + segment.stride - 1) / segment.stride;
  const int voterEnd = (segment.end - 1 - rowBegin) / segment.stride + 1;
  const int packedBegin = blockIdx.x % chunks * kSumRows;
  const int packedRows = (voterEnd - voterBegin) * layout.group - packedBegin;
  if (packedRows <= 0) return;

  const auto voterOf = [&](int i) { return voterBegin + (packedBegin + i) / layout.group; };
  const auto headOf = [&](int i) {
    return kvHead * layout.group + (packedBegin + i) % layout.group;
  };
  const auto position = [&](int i) {
    return i < packedRows ? segment.end - 1 - voterOf(i) * segment.stride : -1;
  };
  const auto query = [&](int i) -> const T* {
    if (i >= packedRows) return nullptr;
    return queries + (int64_t(position(i) - layout.begin) * layout.heads + headOf(i)) * kDim;
  };
  const int window = static_cast<int>(windowStart(tileRow, segment.windowTokens));
  RowSum sums[2];
  sumRows<T, kDim>(shared, query, position, keys + int64_t(kvHead) * capacityRows * kDim,
                   ColumnRange{0, window > 0 ? layout.sinkTokens : 0}, ColumnRange{window, rowEnd},
                   scale * kLog2E, sums);
  if (threadIdx.x % 4 != 0) return;
  for (int half = 0; half < 2; ++half) {
    const int i = packedRowOfSum<1>(half);
    if (i >= packedRows) continue;
    const float anchor = (sums[half].maximum + log2f(sums[half].sum)) * kLn2;
    const float cut = headEpsilons == nullptr ? lnEpsilon : logf(headEpsilons[headOf(i)]);
    workspace.voterValues[segment.voterBegin + int64_t(headOf(i)) * segment.voters + voterOf(i)] =
        (anchor + cut) / scale;
  }
}

template <class T, int kDim>
cudaError_t launch(const LaunchContext& context) {
  const ChunkLayout& layout = context.layout;
  int mostVoters = 0;
  for (int i = 0; i < layout.segmentCount; ++i) {
    const int stride = layout.segments[i].stride;
    if (stride > 0) mostVoters = max(mostVoters, (int(kTileRows) - 1) / stride + 1);
  }
  const int chunks = (mostVoters * layout.group + kSumRows - 1) / kSumRows;
  constexpr int kBytes = sizeof(RowSumSharedMemory<T, kDim>);
  static_assert(kBytes <= kSharedBytesEverywhere);
  const cudaError_t error = allowShared(anchors<T, kDim>, kBytes);
  if (error != cudaSuccess) return error;
  anchors<T, kDim><<<dim3(layout.maxTiles * chunks, layout.kvHeads, layout.segmentCount),
                     kSumThreads, kBytes, context.stream>>>(
      layout, context.workspace, static_cast<const T*>(context.tensors.queries),
      static_cast<const T*>(context.tensors.keys), context.tensors.capacityRows,
      context.tensors.scale, static_cast<float>(std::log(context.chunk.options.epsilon)),
      context.chunk.options.headEpsilons, chunks);
  return cudaGetLastError();
}

}  // namespace

cudaError_t launchAnchors(const LaunchContext& context) {
  return dispatchHead(context.chunk.shape,
                      [&]<class T, int kDim>() { return launch<T, kDim>(context); });
}

}  // namespace longsight::cuda
