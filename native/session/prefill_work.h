// A prefill cut into what a backend takes through all layers at a time.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "attention/plan.h"
#include "session/backend.h"

namespace longsight {

struct PrefillWork {
  // Rows that are in the cache already.
  int64_t reused = 0;
  // Consecutive segments each; together all rows from `reused` on, in order.
  std::vector<std::vector<Segment>> chunks;
};

// `segments` cover the prompt from row 0 on without gaps; `reused` lies in a dense one or at a
// border. Dense segments are cut where their rows reach multiples of chunking.denseRows; sparse
// ones stay whole.
PrefillWork planWork(std::span<const Segment> segments, int64_t reused,
                     const Backend::Chunking& chunking);

}  // namespace longsight
