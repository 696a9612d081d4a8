// Stage 2: bit masks of votes become sorted lists with counts, statistics and the order of work.
#include <cstdint>

#include "chunk_layout.h"
#include "filter/block_sums.cuh"

namespace longsight::cuda {
namespace {

constexpr int kListThreads = 512;
constexpr int kMaxSortedUnits = 4096;

// Pairs that the rows of a sparse segment keep, given the counts of its list.
__device__ int64_t keptPairs(const SegmentLayout& segment, const int32_t* before) {
  int64_t kept = 0;
  for (int tile = threadIdx.x; tile < segment.tiles; tile += kListThreads) {
    const int64_t tileRow = segment.firstTileRow + int64_t(tile) * kTileRows;
    const int64_t rowBegin = max(int64_t(segment.begin), tileRow);
    const int64_t rowEnd = min(int64_t(segment.end), tileRow + kTileRows);
    const int64_t window = windowStart(tileRow, segment.windowTokens);
    kept += causalPairCount(rowBegin, rowEnd) - (rowEnd - rowBegin) * window +
            (rowEnd - rowBegin) * int64_t(before[window / kTileRows]);
  }
  const int64_t counted[1] = {kept};
  return *blockSums<int64_t, kListThreads>(counted);
}

// One block a (head, segment). A list that turns out too long is abandoned: the head is dense.
__global__ __launch_bounds__(kListThreads) void buildLists(
    const __grid_constant__ ChunkLayout layout, const Workspace workspace) {
  const int head = blockIdx.x;
  const int segmentIndex = blockIdx.y;
  const SegmentLayout& segment = layout.segments[segmentIndex];
  HeadStats& stats = workspace.stats[segmentIndex * layout.heads + head];
  const int64_t causalPairs = causalPairCount(segment.begin, segment.end);
  if (segment.stride == 0) {
    if (threadIdx.x == 0) stats = {causalPairs, causalPairs, 0, 1};
    return;
  }
  const uint32_t* votes =
      workspace.votes + segment.maskBegin + int64_t(head) * segment.remoteBlocks * 4;
  int32_t* list = workspace.indices + segment.listBegin + int64_t(head) * segment.listCapacity;
  int32_t* before = workspace.before + segment.countBegin + int64_t(head) * (segment.blocks + 1);

  int entries = 0;
  const int words = segment.remoteBlocks * 4;
  for (int base = 0; base < words; base += kListThreads) {
    const int word = base + threadIdx.x;
    uint32_t bits = word < words ? votes[word] : 0;
    const int column = word * 32;
    // Sinks are members of the list, whatever the votes say.
    const int sinkBits = word < words ? min(max(layout.sinkTokens - column, 0), 32) : 0;
    if (sinkBits > 0) bits |= sinkBits == 32 ? ~0u : (1u << sinkBits) - 1;
    int total;
    const int place = entries + exclusiveSum<kListThreads>(__popc(bits), total);
    if (word < words && word % 4 == 0) before[word / 4] = place;
    // A warp writes one word after the other, so that its stores are consecutive.
    const int lane = threadIdx.x % 32;
#pragma unroll 8
    for (int source = 0; source < 32; ++source) {
      const uint32_t wordBits = __shfl_sync(~0u, bits, source);
      const int target = __shfl_sync(~0u, place, source) + __popc(wordBits & ((1u << lane) - 1));
      if (wordBits >> lane & 1 && target < segment.listCapacity) {
        list[target] = (word - lane + source) * 32 + lane;
      }
    }
    entries += total;
  }
  for (int block = segment.remoteBlocks + threadIdx.x; block <= segment.blocks;
       block += kListThreads) {
    before[block] = entries;
  }
  __syncthreads();
  const int sinks = segment.remoteBlocks > 0 ? layout.sinkTokens : 0;
  const int listLength = entries - sinks;
  const bool dense = double(listLength) > layout.maxListShare * double(segment.end);
  const int64_t kept = dense ? causalPairs : keptPairs(segment, before);
  if (threadIdx.x == 0) stats = {kept, causalPairs, listLength, dense ? 1 : 0};
}

// Sorts the (segment, KV head) units by kept pairs, most first, so that the last blocks to start
// are short ones. Ties go by index: the order repeats. Beyond kMaxSortedUnits it is by index from
// the last segment backwards, which is nearly the same.
__global__ __launch_bounds__(1024) void orderUnits(const __grid_constant__ ChunkLayout layout,
                                                   const Workspace workspace) {
  __shared__ uint64_t keys[kMaxSortedUnits];
  const int units = layout.segmentCount * layout.kvHeads;
  if (units > kMaxSortedUnits) {
    for (int i = threadIdx.x; i < units; i += blockDim.x) workspace.unitOrder[i] = units - 1 - i;
    return;
  }
  int padded = 1;
  while (padded < units) padded *= 2;
  for (int unit = threadIdx.x; unit < padded; unit += blockDim.x) {
    uint64_t key = ~uint64_t(0);
    if (unit < units) {
      int64_t pairs = 0;
      const HeadStats* stats = workspace.stats + int64_t(unit) * layout.group;
      for (int i = 0; i < layout.group; ++i) pairs += stats[i].keptPairs;
      // 48 bits of work, complemented, above 12 bits of index.
      key = ((~uint64_t(pairs) & ((uint64_t(1) << 48) - 1)) << 12) | uint64_t(unit);
    }
    keys[unit] = key;
  }
  __syncthreads();
  for (int size = 2; size <= padded; size *= 2) {
    for (int step = size / 2; step > 0; step /= 2) {
      for (int i = threadIdx.x; i < padded; i += blockDim.x) {
        const int partner = i ^ step;
        if (partner > i && (keys[i] > keys[partner]) == ((i & size) == 0)) {
          const uint64_t swap = keys[i];
          keys[i] = keys[partner];
          keys[partner] = swap;
        }
      }
      __syncthreads();
    }
  }
  for (int i = threadIdx.x; i < units; i += blockDim.x) {
    workspace.unitOrder[i] = static_cast<int32_t>(keys[i] & 0xFFF);
  }
}

}  // namespace

cudaError_t launchFilter(const LaunchContext& context) {
  const ChunkLayout& layout = context.layout;
  buildLists<<<dim3(layout.heads, layout.segmentCount), kListThreads, 0, context.stream>>>(
      layout, context.workspace);
  if (const cudaError_t error = cudaGetLastError(); error != cudaSuccess) return error;
  if (layout.allDense) return cudaSuccess;
  orderUnits<<<1, 1024, 0, context.stream>>>(layout, context.workspace);
  return cudaGetLastError();
}

}  // namespace longsight::cuda
