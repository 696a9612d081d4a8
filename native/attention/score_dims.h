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

// Pairs turn slower as their index grows, also after rope_freqs and YaRN, so the slower half of the
// pairs is the second half of each run of pairs. headDim is a multiple of 4, all of it rotated.
constexpr DimRanges scoreDimRanges(ScoreDims dims, RopeStyle style, int32_t headDim) {
  if (dims == ScoreDims::all) return allDims(headDim);
  if (style == RopeStyle::interleaved) return {{{{headDim / 2, headDim}, {headDim, headDim}}}};
  return {{{{headDim / 4, headDim / 2}, {headDim / 4 * 3, headDim}}}};
}

}  // namespace longsight
