// Positions and tiles of SampleAttention, for host and device alike (specification section 1).
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define LONGSIGHT_HOST_DEVICE __host__ __device__
#else
#define LONGSIGHT_HOST_DEVICE
#endif

namespace longsight {

// Rows of a tile, and the grid on which tiles and windows start.
inline constexpr int64_t kTileRows = 128;

// The largest multiple of 128 that is <= position; position >= 0.
LONGSIGHT_HOST_DEVICE constexpr int64_t floor128(int64_t position) {
  return position / kTileRows * kTileRows;
}

// First column of the window of row's tile: all columns >= it and <= row are seen.
LONGSIGHT_HOST_DEVICE constexpr int64_t windowStart(int64_t row, int64_t windowTokens) {
  const int64_t first = floor128(row) - windowTokens + 1;
  return first > 0 ? floor128(first) : 0;
}

// Whether column is neither a sink nor in the window of row: then only a column list shows it.
LONGSIGHT_HOST_DEVICE constexpr bool isRemote(int64_t row, int64_t column, int64_t windowTokens,
                                              int32_t sinkTokens) {
  return column >= sinkTokens && column < windowStart(row, windowTokens);
}

// Pairs (row, column <= row) of rows [begin, end).
LONGSIGHT_HOST_DEVICE constexpr int64_t causalPairCount(int64_t begin, int64_t end) {
  return (end * (end + 1) - begin * (begin + 1)) / 2;
}

// Whether row of a segment that ends at segmentEnd votes for the column lists; stride >= 1.
LONGSIGHT_HOST_DEVICE constexpr bool votes(int64_t row, int64_t segmentEnd, int32_t stride) {
  return (segmentEnd - 1 - row) % stride == 0;
}

}  // namespace longsight
