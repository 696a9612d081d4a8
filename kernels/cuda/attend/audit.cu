// Coverage: the share of a row's exact attention probability that its kept columns hold.
#include "chunk_layout.h"
#include "head_dispatch.cuh"
#include "sample/row_log_sum.cuh"

namespace longsight::cuda {
namespace {

// What fits in shared memory.
template <int kDim>
inline constexpr int kRowBlocks = kDim > 128 ? 1 : 2;
template <int kDim>
inline constexpr int kRows = kRowBlocks<kDim> * kSumRows;

// The segment's audit row number i, or -1; the rule of auditRows() in attention/plan.h.
__device__ int auditRow(const SegmentLayout& segment, int auditRows, int i) {
  if (segment.stride <= 1) return -1;
  const auto candidate = [&](int index) {
    const int64_t length = segment.end - segment.begin;
    const int64_t row = segment.begin + (2 * index + 1) * length / (2 * int64_t(auditRows));
    return row - (votes(row, segment.end, segment.stride) ? 1 : 0);
  };
  // Candidates ascend, so a row is new unless the candidate before it is the same.
  const int64_t row = candidate(i);
  if (row < segment.begin || (i > 0 && candidate(i - 1) == row)) return -1;
  return static_cast<int>(row);
}

// Packed rows are [segment][audit row][head of the group], in chunks of kRows.
// Block (chunk, KV head, split of the columns).
template <class T, int kDim>
__global__ __launch_bounds__(kSumThreads, kDim > 128 ? 2 : 3) void auditSums(
    const __grid_constant__ ChunkLayout layout, const Workspace workspace, const T* queries,
    const T* keys, int64_t capacityRows, float scale) {
  extern __shared__ char sharedBytes[];
  auto& shared = *reinterpret_cast<RowSumSharedMemory<T, kDim, kRowBlocks<kDim>>*>(sharedBytes);
  const int kvHead = blockIdx.y;
  const int total = layout.segmentCount * layout.auditRows * layout.group;
  const int packedBegin = blockIdx.x * kRows<kDim>;
  const int packedEnd = min(total, packedBegin + kRows<kDim>);
  const int columnBegin = blockIdx.z * layout.auditSplitColumns;
  const int perSegment = layout.auditRows * layout.group;
  const SegmentLayout& last = layout.segments[(packedEnd - 1) / perSegment];
  const ColumnRange columns{columnBegin, min(columnBegin + layout.auditSplitColumns, last.end)};

  const auto position = [&](int i) {
    const int packed = packedBegin + i;
    if (packed >= total) return -1;
    return auditRow(layout.segments[packed / perSegment], layout.auditRows,
                    packed % perSegment / layout.group);
  };
  const auto query = [&](int i) -> const T* {
    const int row = position(i);
    if (row < 0) return nullptr;
    const int head = kvHead * layout.group + (packedBegin + i) % layout.group;
    return queries + (int64_t(row - layout.begin) * layout.heads + head) * kDim;
  };
  constexpr int kHalves = 2 * kRowBlocks<kDim>;
  RowSum sums[kHalves];
  sumRows<T, kDim>(shared, query, position, keys + int64_t(kvHead) * capacityRows * kDim, columns,
                   ColumnRange{0, 0}, scale * kLog2E, sums);
  if (threadIdx.x % 4 != 0) return;
#pragma unroll
  for (int half = 0; half < kHalves; ++half) {
    const int packed = packedBegin + packedRowOfSum<kRowBlocks<kDim>>(half);
    if (packed >= total) continue;
    const int64_t slot = (int64_t(blockIdx.z) * layout.kvHeads + kvHead) * total + packed;
    workspace.auditPartial[slot] = make_float2(sums[half].maximum, sums[half].sum);
  }
}

__global__ void coverage(const __grid_constant__ ChunkLayout layout, const Workspace workspace,
                         const float* logSumExp, int splits) {
  const int total = layout.segmentCount * layout.auditRows * layout.group;
  const int index = blockIdx.x * blockDim.x + threadIdx.x;
  if (index >= total * layout.kvHeads) return;
  const int kvHead = index / total;
  const int packed = index % total;
  const int segmentIndex = packed / (layout.auditRows * layout.group);
  const int i = packed / layout.group % layout.auditRows;
  const int head = kvHead * layout.group + packed % layout.group;
  const int row = auditRow(layout.segments[segmentIndex], layout.auditRows, i);
  float share = -1.0f;
  if (row >= 0) {
    float maximum = -INFINITY;
#pragma unroll 8
    for (int split = 0; split < splits; ++split) {
      const int64_t slot = (int64_t(split) * layout.kvHeads + kvHead) * total + packed;
      maximum = fmaxf(maximum, workspace.auditPartial[slot].x);
    }
    float sum = 0.0f;
#pragma unroll 8
    for (int split = 0; split < splits; ++split) {
      const int64_t slot = (int64_t(split) * layout.kvHeads + kvHead) * total + packed;
      const float2 partial = workspace.auditPartial[slot];
      sum += partial.y * exp2f(partial.x - maximum);
    }
    const float kept = logSumExp[int64_t(head) * (layout.end - layout.begin) + row - layout.begin];
    share = expf(kept - (maximum + log2f(sum)) * kLn2);
    share = fminf(share, 1.0f);
  }
  workspace.coverage[(int64_t(segmentIndex) * layout.auditRows + i) * layout.heads + head] = share;
}

template <class T, int kDim>
cudaError_t launch(const LaunchContext& context) {
  const ChunkLayout& layout = context.layout;
  const int total = layout.segmentCount * layout.auditRows * layout.group;
  const int splits = (layout.end + layout.auditSplitColumns - 1) / layout.auditSplitColumns;
  constexpr int kBytes = sizeof(RowSumSharedMemory<T, kDim, kRowBlocks<kDim>>);
  static_assert(kBytes <= kSharedBytesEverywhere);
  const cudaError_t error = allowShared(auditSums<T, kDim>, kBytes);
  if (error != cudaSuccess) return error;
  auditSums<T, kDim><<<dim3((total + kRows<kDim> - 1) / kRows<kDim>, layout.kvHeads, splits),
                       kSumThreads, kBytes, context.stream>>>(
      layout, context.workspace, static_cast<const T*>(context.tensors.queries),
      static_cast<const T*>(context.tensors.keys), context.tensors.capacityRows,
      context.tensors.scale);
  if (const cudaError_t failed = cudaGetLastError(); failed != cudaSuccess) return failed;
  const int samples = total * layout.kvHeads;
  coverage<<<(samples + 127) / 128, 128, 0, context.stream>>>(layout, context.workspace,
                                                              context.tensors.logSumExp, splits);
  return cudaGetLastError();
}

}  // namespace

cudaError_t launchAuditRows(const LaunchContext& context) {
  return dispatchHead(context.chunk.shape,
                      [&]<class T, int kDim>() { return launch<T, kDim>(context); });
}

}  // namespace longsight::cuda
