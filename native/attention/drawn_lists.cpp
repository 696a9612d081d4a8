#include "attention/drawn_lists.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace longsight {
namespace {

constexpr double kSigma = 0.8;
constexpr double kRaisedShare = 0.55;
// A list this much shorter than the longest that is not given up stays so with its sinks and with
// the luck of the draw.
constexpr double kLongestOfLimit = 0.96;

// Before it is scaled.
double drawnShare(uint64_t seed) {
  const double u = (static_cast<double>(mixBits(seed ^ 1) >> 11) + 0.5) * 0x1p-53;
  const double v = static_cast<double>(mixBits(seed ^ 2) >> 11) * 0x1p-53;
  return std::exp(kSigma * std::sqrt(-2.0 * std::log(u)) * std::cos(2.0 * std::numbers::pi * v));
}

// Pairs of a sparse segment that only a list shows.
double listedPairs(const Segment& segment, int32_t sinkTokens) {
  int64_t pairs = 0;
  for (int64_t tile = floor128(segment.begin); tile < segment.end; tile += kTileRows) {
    const int64_t rows = std::min(segment.end, tile + kTileRows) - std::max(segment.begin, tile);
    pairs += rows * std::max<int64_t>(0, windowStart(tile, segment.windowTokens) - sinkTokens);
  }
  return static_cast<double>(pairs);
}

}  // namespace

std::vector<uint32_t> drawnLimits(std::span<const Segment> chunk, int32_t heads, int32_t sinkTokens,
                                  double maxListShare, const ListDraw& draw) {
  const auto headCount = static_cast<size_t>(heads);
  const double longest = kLongestOfLimit * maxListShare;
  const size_t raised = chunk.size() / 2 * headCount;
  std::vector<double> drawn(chunk.size() * headCount), listed(chunk.size());
  double causal = 0, always = 0;
  for (size_t s = 0; s < chunk.size(); ++s) {
    const Segment& segment = chunk[s];
    if (segment.dense) continue;
    listed[s] = listedPairs(segment, sinkTokens);
    const auto all = static_cast<double>(causalPairCount(segment.begin, segment.end));
    causal += heads * all;
    always += heads * (all - listed[s]);
    for (int32_t head = 0; head < heads; ++head)
      drawn[s * headCount + static_cast<size_t>(head)] =
          drawnShare(listSeed(draw.seed, draw.layer, segment.begin, head));
  }

  // Scales the shares until the kept pairs are as many as wanted. What they sum to grows with the
  // scale, so that halving an interval of it finds it.
  const auto shareOf = [&](size_t unit, double scale) {
    return std::min(unit == raised ? kRaisedShare : scale * drawn[unit], longest);
  };
  double low = 0, high = 64;
  for (int step = 0; step < 40; ++step) {
    const double scale = (low + high) / 2;
    double kept = always;
    for (size_t unit = 0; unit < drawn.size(); ++unit)
      kept += shareOf(unit, scale) * listed[unit / headCount];
    (kept < draw.density * causal ? low : high) = scale;
  }
  std::vector<uint32_t> limits(drawn.size());
  for (size_t unit = 0; unit < drawn.size(); ++unit)
    if (!chunk[unit / headCount].dense)
      limits[unit] = static_cast<uint32_t>(shareOf(unit, high) * 4294967295.0);
  return limits;
}

}  // namespace longsight
