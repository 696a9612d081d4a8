#include <algorithm>
#include <cmath>
#include <vector>

#include "chunk_layout.h"
#include "filter/drawn_votes.h"

namespace longsight::cuda {
namespace {

constexpr int kThreads = 256;
constexpr double kSigma = 0.8;
constexpr double kRaisedShare = 0.55;
// A list this much shorter than the longest that is not given up stays so with its sinks and with
// the luck of the draw.
constexpr double kLongestOfLimit = 0.96;

// splitmix64's mixing function (Steele, Lea, Flood 2014).
LONGSIGHT_HOST_DEVICE inline uint64_t mix(uint64_t x) {
  x += 0x9E3779B97F4A7C15ull;
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ull;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBull;
  return x ^ (x >> 31);
}

// Of (segment, head). Segments are told apart by their first row, so that it does not matter how a
// prompt is cut into chunks.
LONGSIGHT_HOST_DEVICE inline uint64_t unitSeed(uint64_t seed, int32_t layer, int32_t segmentBegin,
                                               int32_t head) {
  return mix(mix(mix(seed) + uint64_t(layer)) + (uint64_t(segmentBegin) << 16 | uint64_t(head)));
}

// Before it is scaled.
double drawnShare(uint64_t seed) {
  const double u = (static_cast<double>(mix(seed ^ 1) >> 11) + 0.5) * 0x1p-53;
  const double v = static_cast<double>(mix(seed ^ 2) >> 11) * 0x1p-53;
  return std::exp(kSigma * std::sqrt(-2.0 * std::log(u)) * std::cos(2.0 * M_PI * v));
}

// Pairs of a sparse segment that only a list shows.
double listedPairs(const SegmentLayout& segment, int32_t sinkTokens) {
  int64_t pairs = 0;
  for (int64_t tile = 0; tile < segment.tiles; ++tile) {
    const int64_t tileRow = segment.firstTileRow + tile * kTileRows;
    const int64_t rows = std::min<int64_t>(segment.end, tileRow + kTileRows) -
                         std::max<int64_t>(segment.begin, tileRow);
    pairs += rows * std::max<int64_t>(0, windowStart(tileRow, segment.windowTokens) - sinkTokens);
  }
  return static_cast<double>(pairs);
}

// Head shares of a segment, as thresholds of 32 bits that a column's random number has to be below.
struct SegmentDraw {
  uint32_t limits[128];
};
constexpr int32_t kHeadsAtOnce = 128;

// Block (part of the mask, head): the votes of one segment.
__global__ __launch_bounds__(kThreads) void drawVotes(const __grid_constant__ SegmentDraw draw,
                                                      uint32_t* votes, int words, uint64_t seed,
                                                      int32_t layer, int32_t segmentBegin,
                                                      int32_t firstHead) {
  const int word = blockIdx.x * kThreads + threadIdx.x;
  if (word >= words) return;
  const uint32_t limit = draw.limits[blockIdx.y];
  const int32_t head = firstHead + static_cast<int32_t>(blockIdx.y);
  const uint64_t unit = unitSeed(seed, layer, segmentBegin, head);
  uint32_t bits = 0;
#pragma unroll 4
  for (int bit = 0; bit < 32; bit += 2) {
    const uint64_t random = mix(unit + uint64_t(word) * 32 + bit);
    bits |= (uint32_t(random) < limit ? 1u : 0u) << bit;
    bits |= (uint32_t(random >> 32) < limit ? 1u : 0u) << (bit + 1);
  }
  votes[int64_t(head) * words + word] = bits;
}

}  // namespace

cudaError_t launchDrawnVotes(const Chunk& chunk, const VoteDraw& draw, void* workspace,
                             cudaStream_t stream) {
  if (!validate(chunk).empty() || workspace == nullptr || !(draw.density >= 0)) {
    return cudaErrorInvalidValue;
  }
  const WorkspacePlan plan = planWorkspace(chunk);
  const ChunkLayout& layout = plan.layout;
  const double longest = kLongestOfLimit * layout.maxListShare;
  const int32_t raisedSegment = layout.segmentCount / 2;

  std::vector<double> drawn, pairs;
  double causal = 0, always = 0;
  for (int32_t s = 0; s < layout.segmentCount; ++s) {
    const SegmentLayout& segment = layout.segments[s];
    if (segment.stride == 0) continue;
    const double listed = listedPairs(segment, layout.sinkTokens);
    const auto all = static_cast<double>(causalPairCount(segment.begin, segment.end));
    causal += layout.heads * all;
    always += layout.heads * (all - listed);
    for (int32_t head = 0; head < layout.heads; ++head) {
      drawn.push_back(drawnShare(unitSeed(draw.seed, draw.layer, segment.begin, head)));
      pairs.push_back(listed);
    }
  }
  if (drawn.empty()) return cudaSuccess;

  // Scales the shares until the kept pairs are as many as wanted. What they sum to grows with the
  // scale, so that halving an interval of it finds it.
  const auto shareOf = [&](bool raised, double share) {
    return std::min(raised ? kRaisedShare : share, longest);
  };
  size_t raisedUnit = 0;
  for (int32_t s = 0; s < raisedSegment; ++s) {
    if (layout.segments[s].stride > 0) raisedUnit += static_cast<size_t>(layout.heads);
  }
  const bool raises = layout.segments[raisedSegment].stride > 0;
  double low = 0, high = 64;
  for (int step = 0; step < 40; ++step) {
    const double scale = (low + high) / 2;
    double kept = always;
    for (size_t i = 0; i < drawn.size(); ++i) {
      kept += shareOf(raises && i == raisedUnit, scale * drawn[i]) * pairs[i];
    }
    (kept < draw.density * causal ? low : high) = scale;
  }

  size_t unit = 0;
  for (int32_t s = 0; s < layout.segmentCount; ++s) {
    const SegmentLayout& segment = layout.segments[s];
    if (segment.stride == 0) continue;
    const int words = segment.remoteBlocks * 4;
    for (int32_t firstHead = 0; firstHead < layout.heads; firstHead += kHeadsAtOnce) {
      const int32_t heads = std::min(kHeadsAtOnce, layout.heads - firstHead);
      SegmentDraw limits{};
      for (int32_t i = 0; i < heads; ++i, ++unit) {
        const double share = shareOf(raises && unit == raisedUnit, high * drawn[unit]);
        limits.limits[i] = static_cast<uint32_t>(share * 4294967295.0);
      }
      if (words == 0) continue;
      drawVotes<<<dim3((words + kThreads - 1) / kThreads, heads), kThreads, 0, stream>>>(
          limits, plan.at(workspace).votes + segment.maskBegin, words, draw.seed, draw.layer,
          segment.begin, firstHead);
      if (const cudaError_t error = cudaGetLastError(); error != cudaSuccess) return error;
    }
  }
  return cudaSuccess;
}

}  // namespace longsight::cuda
