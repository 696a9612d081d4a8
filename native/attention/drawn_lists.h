// Column lists drawn at random in place of found ones, for measurements with weights that have no
// structure: stage 3 then meets lists of a wanted density. The one rule for host and devices.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "attention/geometry.h"
#include "attention/plan.h"

namespace longsight {

struct ListDraw {
  // Wanted share of the causal pairs that the sparse segments of a chunk keep, window and sinks
  // included. Where these alone are more, lists are empty.
  double density = 0.13;
  uint64_t seed = 1;
  int32_t layer = 0;
};

// splitmix64's mixing function (Steele, Lea, Flood 2014).
LONGSIGHT_HOST_DEVICE constexpr uint64_t mixBits(uint64_t x) {
  x += 0x9E3779B97F4A7C15ull;
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ull;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBull;
  return x ^ (x >> 31);
}

// Of (segment, head). Segments are told apart by their first row, so that it does not matter how a
// prompt is cut into chunks.
LONGSIGHT_HOST_DEVICE constexpr uint64_t listSeed(uint64_t seed, int32_t layer,
                                                  int64_t segmentBegin, int32_t head) {
  return mixBits(mixBits(mixBits(seed) + static_cast<uint64_t>(layer)) +
                 (static_cast<uint64_t>(segmentBegin) << 16 | static_cast<uint64_t>(head)));
}

// Bit 0: whether the list holds `evenColumn`; bit 1: whether it holds the next.
LONGSIGHT_HOST_DEVICE constexpr uint32_t drawnPair(uint64_t listSeed, uint64_t evenColumn,
                                                   uint32_t limit) {
  const uint64_t random = mixBits(listSeed + evenColumn);
  return (static_cast<uint32_t>(random) < limit ? 1u : 0u) |
         (static_cast<uint32_t>(random >> 32) < limit ? 2u : 0u);
}

// The limits of drawnPair, [segment][head]; 0 for dense segments. The shares of remote columns that
// the lists hold are log-normal with sigma 0.8, scaled until all pairs of the chunk together have
// the wanted density, but none so long that it falls back to dense; head 0 of the middle segment
// keeps 0.55 of its remote pairs.
std::vector<uint32_t> drawnLimits(std::span<const Segment> chunk, int32_t heads, int32_t sinkTokens,
                                  double maxListShare, const ListDraw& draw);

}  // namespace longsight
