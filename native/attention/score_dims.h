// The dimensions of a head that stage 1 scores with (specification section 2, `scoreDims`).
#pragma once

#include <array>
#include <cstdint>

#include "attention/params.h"

namespace longsight {

// Which two dimensions RoPE rotates together: (2i, 2i + 1), or (i, i + d / 2).
enum class RopeStyle { interleaved, neox };

struct DimRange {
  int32_t begin = 0;
  int32_t end = 0;
};

// Two ranges, ascending, without overlap; the second may be empty.
struct DimRanges {
  std::array<DimRange, 2> ranges;

  constexpr int32_t count() const {
    return ranges[0].end - ranges[0].begin + ranges[1].end - ranges[1].begin;
  }
};

constexpr DimRanges allDims(int32_t headDim) { return {{{{0, headDim}, {headDim, headDim}}}}; }

// Pairs turn slower as their index grows, also after frequency factors and YaRN, and dimensions
// that are not rotated do not turn at all. So the slower half is, from the end of the head: the
// dimensions beyond `rotatedDims`, then the last of each run of pairs. headDim is a multiple of 4,
// rotatedDims even; 0 = the whole head.
constexpr DimRanges scoreDimRanges(ScoreDims dims, RopeStyle style, int32_t headDim,
                                   int32_t rotatedDims = 0) {
  if (dims == ScoreDims::all) return allDims(headDim);
  if (rotatedDims == 0) rotatedDims = headDim;
  const int32_t slowPairs = (2 * rotatedDims - headDim) / 4;
  if (style == RopeStyle::interleaved || slowPairs <= 0)
    return {{{{headDim / 2, headDim}, {headDim, headDim}}}};
  const int32_t half = rotatedDims / 2;
  return {{{{half - slowPairs, half}, {rotatedDims - slowPairs, headDim}}}};
}

}  // namespace longsight
