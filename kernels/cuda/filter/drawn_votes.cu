#include <algorithm>
#include <vector>

#include "chunk_layout.h"
#include "filter/drawn_votes.h"

namespace longsight::cuda {
namespace {

constexpr int kThreads = 256;
// Head shares of a segment, as thresholds of 32 bits that a column's random number has to be below.
struct SegmentDraw {
  uint32_t limits[128];
};
constexpr int32_t kHeadsAtOnce = 128;

// Block (part of the mask, head): the votes of one segment.
__global__ __launch_bounds__(kThreads) void drawVotes(const __grid_constant__ SegmentDraw draw,
                                                      uint32_t* votes, int words, uint64_t seed,
                                                      int32_t layer, int64_t segmentBegin,
                                                      int32_t firstHead) {
  const int word = blockIdx.x * kThreads + threadIdx.x;
  if (word >= words) return;
  const uint32_t limit = draw.limits[blockIdx.y];
  const int32_t head = firstHead + static_cast<int32_t>(blockIdx.y);
  const uint64_t unit = listSeed(seed, layer, segmentBegin, head);
  uint32_t bits = 0;
#pragma unroll 4
  for (int bit = 0; bit < 32; bit += 2) {
    bits |= drawnPair(unit, uint64_t(word) * 32 + bit, limit) << bit;
  }
  votes[int64_t(head) * words + word] = bits;
}

}  // namespace

cudaError_t launchDrawnVotes(const Chunk& chunk, const ListDraw& draw, void* workspace,
                             cudaStream_t stream) {
  if (!validate(chunk).empty() || workspace == nullptr || !(draw.density >= 0)) {
    return cudaErrorInvalidValue;
  }
  const WorkspacePlan plan = planWorkspace(chunk);
  const ChunkLayout& layout = plan.layout;
  const std::vector<uint32_t> limits =
      drawnLimits(chunk.segments, layout.heads, layout.sinkTokens, layout.maxListShare, draw);
  for (int32_t s = 0; s < layout.segmentCount; ++s) {
    const SegmentLayout& segment = layout.segments[s];
    const int words = segment.remoteBlocks * 4;
    if (segment.stride == 0 || words == 0) continue;
    for (int32_t firstHead = 0; firstHead < layout.heads; firstHead += kHeadsAtOnce) {
      const int32_t heads = std::min(kHeadsAtOnce, layout.heads - firstHead);
      SegmentDraw some{};
      std::copy_n(limits.begin() + int64_t{s} * layout.heads + firstHead, heads, some.limits);
      drawVotes<<<dim3((words + kThreads - 1) / kThreads, heads), kThreads, 0, stream>>>(
          some, plan.at(workspace).votes + segment.maskBegin, words, draw.seed, draw.layer,
          segment.begin, firstHead);
      if (const cudaError_t error = cudaGetLastError(); error != cudaSuccess) return error;
    }
  }
  return cudaSuccess;
}

}  // namespace longsight::cuda
