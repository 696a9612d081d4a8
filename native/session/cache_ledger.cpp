#include "session/cache_ledger.h"

#include <algorithm>

namespace longsight {

const CacheLedger::Run* CacheLedger::runAt(int64_t row) const {
  const auto after = std::upper_bound(
      runs_.begin(), runs_.end(), row,
      [](int64_t position, const Run& run) { return position < run.segment.begin; });
  if (after == runs_.begin()) return nullptr;
  const Run& run = *std::prev(after);
  return row < run.segment.end ? &run : nullptr;
}

int64_t CacheLedger::reusableRows(std::span<const int32_t> tokens,
                                  std::span<const Segment> segments,
                                  const SampleAttentionParams& params, int64_t limit) const {
  const int64_t most = std::min({rows(), static_cast<int64_t>(tokens.size()), limit});
  int64_t same = 0;
  while (same < most && tokens_[static_cast<size_t>(same)] == tokens[static_cast<size_t>(same)])
    ++same;

  int64_t row = 0;
  for (const Segment& segment : segments) {
    if (segment.dense) {
      while (row < std::min(segment.end, same)) {
        const Run* run = runAt(row);
        if (!run || !run->segment.dense) return row;
        row = std::min({run->segment.end, segment.end, same});
      }
      if (row < segment.end) return row;
    } else {
      const Run* run = runAt(row);
      if (!run || run->segment != segment || run->params != params || segment.end > same)
        return row;
      row = segment.end;
    }
  }
  return row;
}

void CacheLedger::truncate(int64_t rowCount) {
  while (!runs_.empty() && runs_.back().segment.end > rowCount) {
    Run& run = runs_.back();
    if (run.segment.dense && run.segment.begin < rowCount) {
      run.segment.end = rowCount;
      run.lastLayerBegin = std::min(run.lastLayerBegin, rowCount);
    } else {
      rowCount = std::min(rowCount, run.segment.begin);
      runs_.pop_back();
    }
  }
  if (rowCount < rows()) tokens_.resize(static_cast<size_t>(rowCount));
}

void CacheLedger::append(const Segment& segment, std::span<const int32_t> tokens,
                         const SampleAttentionParams& params, int64_t lastLayerBegin,
                         SegmentAttention attention) {
  tokens_.insert(tokens_.end(), tokens.begin(), tokens.end());
  if (segment.dense) {
    attention.clear();
    // Decoding adds a row at a time: one run, as long as the last layer was computed throughout.
    if (!runs_.empty()) {
      Run& last = runs_.back();
      if (last.segment.dense && last.lastLayerBegin <= last.segment.begin &&
          lastLayerBegin <= segment.begin) {
        last.segment.end = segment.end;
        return;
      }
    }
  }
  runs_.push_back({segment, params, lastLayerBegin, std::move(attention)});
}

AttentionStats CacheLedger::stats(int64_t rowCount, int32_t layers, int32_t heads) const {
  AttentionCounter counter(layers, heads);
  for (const Run& run : runs_) {
    if (run.segment.begin >= rowCount) break;
    if (run.segment.dense)
      counter.addDense(run.segment.begin, std::min(run.segment.end, rowCount), run.lastLayerBegin);
    else
      counter.addSparse(run.attention);
  }
  return counter.result();
}

}  // namespace longsight
