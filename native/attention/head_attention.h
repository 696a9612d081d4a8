// What attention did in a segment, as every backend reports it.
#pragma once

#include <cstdint>
#include <vector>

namespace longsight {

// What was computed for one (segment, layer, head).
struct HeadAttention {
  // Pairs (row, column) over all rows of the segment, whether their output was wanted or not.
  int64_t keptPairs = 0;
  int64_t causalPairs = 0;
  int64_t listLength = 0;
  // The list was longer than maxListShare allows: dense for this segment.
  bool denseFallback = false;
  // Exact share of attention probability kept, one value an audit row; empty for dense segments.
  std::vector<float> coverage;
};

// [layer][head]; a layer that computed no attention has no heads.
using SegmentAttention = std::vector<std::vector<HeadAttention>>;

}  // namespace longsight
