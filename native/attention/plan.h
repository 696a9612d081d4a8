// SampleAttention as a plan: which rows form a segment, which vote, where a window starts.
// No other place computes these (specification sections 1, 2 and 5).
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "attention/params.h"

namespace longsight {

// Consecutive rows [begin, end) that share one column list per head, or a run of dense rows.
struct Segment {
  int64_t begin = 0;
  int64_t end = 0;
  // Dense by policy, denseBelowTokens, a short part, or because the rows are >= denseFrom.
  bool dense = true;
  // Voters are the rows r with (end - 1 - r) % stride == 0; 0 for dense segments.
  int32_t stride = 0;
  // W of the specification; 0 for dense segments.
  int64_t windowTokens = 0;

  bool operator==(const Segment&) const = default;
};

// Segments of [0, tokens) in order, without gaps. `borders` are the ends of the parts, ascending;
// those outside (0, tokens) have no effect, and the last part ends at `tokens`. denseFrom is also a
// border and may lie anywhere, 0 and `tokens` included. Rows >= denseFrom come as dense segments of
// at most params.segmentRows rows (2048 when 0). segmentRows = 0 makes one segment of all rows
// below denseFrom, which borders do not cut. Segments that end at a border b are those of
// planSegments(b, ...): so several calls equal one.
std::vector<Segment> planSegments(int64_t tokens, std::span<const int64_t> borders,
                                  int64_t denseFrom, const SampleAttentionParams& params);

// Rows of the segment that vote, ascending; empty for dense segments.
std::vector<int64_t> votingRows(const Segment& segment);

// Audit rows of the segment, ascending, without repeats; none at stride 1 or for dense segments.
std::vector<int64_t> auditRows(const Segment& segment, const SampleAttentionParams& params);

}  // namespace longsight
