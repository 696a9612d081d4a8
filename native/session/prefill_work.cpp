#include "session/prefill_work.h"

#include <algorithm>

namespace longsight {

PrefillWork planWork(std::span<const Segment> segments, int64_t reused,
                     const Backend::Chunking& chunking) {
  PrefillWork work{reused, {}};
  auto add = [&](const Segment& piece) {
    const bool fits = !work.chunks.empty() && work.chunks.back().size() < chunking.segments &&
                      piece.end - work.chunks.back().front().begin <= chunking.rows;
    if (fits)
      work.chunks.back().push_back(piece);
    else
      work.chunks.push_back({piece});
  };
  for (const Segment& segment : segments) {
    if (segment.end <= reused) continue;
    if (!segment.dense) {
      add(segment);
      continue;
    }
    for (int64_t row = std::max(segment.begin, reused); row < segment.end;) {
      Segment piece = segment;
      piece.begin = row;
      piece.end = std::min(segment.end, (row / chunking.denseRows + 1) * chunking.denseRows);
      add(piece);
      row = piece.end;
    }
  }
  return work;
}

}  // namespace longsight
