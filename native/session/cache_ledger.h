// What the rows of the KV cache are: their tokens, and how each run of them was computed.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "attention/params.h"
#include "attention/plan.h"
#include "session/attention_stats.h"

namespace longsight {

class CacheLedger {
 public:
  int64_t rows() const { return static_cast<int64_t>(tokens_.size()); }
  std::span<const int32_t> tokens() const { return tokens_; }

  struct Run {
    Segment segment;
    SampleAttentionParams params;
    // First row for which the last layer's attention was computed.
    int64_t lastLayerBegin;
    // Of sparse segments.
    SegmentAttention attention;
  };
  // In order, without gaps.
  std::span<const Run> runs() const { return runs_; }

  // Rows from 0 that a prompt planned as `segments` may take over, at most `limit`: whole sparse
  // segments made from the same tokens, borders and parameters; dense rows token by token; each
  // only when everything before it is taken over too.
  int64_t reusableRows(std::span<const int32_t> tokens, std::span<const Segment> segments,
                       const SampleAttentionParams& params, int64_t limit) const;

  // Forgets rows >= `rows`. A sparse segment that is cut is forgotten whole.
  void truncate(int64_t rows);

  // Rows [segment.begin, segment.end) were computed; segment.begin must be rows(). `lastLayerBegin`
  // is the first row for which the last layer's attention was computed. `attention` is kept for
  // sparse segments.
  void append(const Segment& segment, std::span<const int32_t> tokens,
              const SampleAttentionParams& params, int64_t lastLayerBegin,
              SegmentAttention attention);

  // Of the first `rows` rows.
  AttentionStats stats(int64_t rows, int32_t layers, int32_t heads) const;

 private:
  const Run* runAt(int64_t row) const;

  std::vector<int32_t> tokens_;
  std::vector<Run> runs_;
};

}  // namespace longsight
