// Stages 1 and 2 of SampleAttention: which columns a head keeps for a segment.
#include <cmath>

#include "cpu/segment_run.h"

namespace longsight {

bool SegmentRun::selectColumns() {
  const int32_t kvHeads = task_.kv.kvHeads;
  const int64_t blocks = remoteEnd_ / kTileRows;
  scratch_.sinkTokens = task_.params->sinkTokens;
  scratch_.columnStride = remoteEnd_ + scratch_.sinkTokens;
  scratch_.blockStride = blocks + 1;
  scratch_.columns.reserve(task_.heads * scratch_.columnStride);
  scratch_.countBefore.reserve(task_.heads * scratch_.blockStride);
  scratch_.voterQueries.reserve(task_.heads * voterSlots_ * kernels_.rowBytes(scoreDims_.count()));
  scratch_.anchors.reserve(task_.heads * voterSlots_);
  scratch_.peaks.reserve(task_.heads * remoteEnd_);
  std::fill_n(scratch_.anchors.data(), task_.heads * voterSlots_, kInfinity);

  if (remoteEnd_ > scratch_.sinkTokens) {
    pool_.forEach(task_.heads + tileCount() * kvHeads, [&](int64_t item, int32_t thread) {
      if (cancel_.isSet()) return;
      if (item < task_.heads) return packVoters(static_cast<int32_t>(item));
      item -= task_.heads;
      anchorVoters(firstTile_ + item / kvHeads, static_cast<int32_t>(item % kvHeads),
                   scratch_.threads[static_cast<size_t>(thread)]);
    });
    pool_.forEach(blocks * kvHeads, [&](int64_t item, int32_t thread) {
      if (cancel_.isSet()) return;
      scorePeaks(item / kvHeads, static_cast<int32_t>(item % kvHeads),
                 scratch_.threads[static_cast<size_t>(thread)]);
    });
  }
  if (cancel_.isSet()) return false;
  pool_.forEach(task_.heads,
                [&](int64_t head, int32_t) { listColumns(static_cast<int32_t>(head)); });
  return !cancel_.isSet();
}

void SegmentRun::packVoters(int32_t head) {
  const int64_t rowBytes = kernels_.rowBytes(scoreDims_.count());
  std::byte* packed = scratch_.voterQueries.data() + head * voterSlots_ * rowBytes;
  const float* rows[16];
  for (int64_t first = 0; first < voterSlots_; first += blockRows()) {
    for (int64_t i = 0; i < blockRows(); ++i) {
      const auto voter = static_cast<size_t>(first + i);
      rows[i] = voter < voters_.size() ? query(voters_[voter], head) : nullptr;
    }
    kernels_.packQueries(rows, 1, scoreDims_, scale_, packed + first * rowBytes);
  }
}

// Log-sum-exp (base 2) of the exact scores over window and sinks.
void SegmentRun::anchorVoters(int64_t tile, int32_t kvHead, ThreadScratch& s) {
  const int64_t window = windowOf(tile * kTileRows);
  if (window <= scratch_.sinkTokens) return;  // nothing is remote for these rows
  const auto begin = std::lower_bound(voters_.begin(), voters_.end(), tile * kTileRows);
  const auto end = std::lower_bound(begin, voters_.end(), (tile + 1) * kTileRows);
  const int64_t count = end - begin;
  if (count == 0) return;

  int64_t slot = 0;
  for (int32_t head = kvHead * groupHeads_; head < (kvHead + 1) * groupHeads_; ++head) {
    for (auto voter = begin; voter != end; ++voter, ++slot) {
      s.rows.data()[slot] = query(*voter, head);
      s.seesFrom.data()[slot] = 0;
      s.seesTo.data()[slot] = *voter + 1;
    }
  }
  const auto blocks = static_cast<int32_t>(roundUp(slot, blockRows()) / blockRows());
  for (; slot < int64_t{blocks} * blockRows(); ++slot) {
    s.rows.data()[slot] = nullptr;
    s.seesFrom.data()[slot] = 0;
    s.seesTo.data()[slot] = task_.segment.end;
  }
  startRows(s, blocks, false);
  visit(s, kvHead, {nullptr, 0, scratch_.sinkTokens}, {0, blocks}, false);
  visit(s, kvHead, {nullptr, window, *(end - 1) + 1}, {0, blocks}, false);
  for (int32_t i = 0; i < groupHeads_; ++i) {
    float* anchors = scratch_.anchors.data() + (kvHead * groupHeads_ + i) * voterSlots_ +
                     (begin - voters_.begin());
    for (int64_t voter = 0; voter < count; ++voter) {
      const int64_t from = i * count + voter;
      anchors[voter] = s.maximum.data()[from] + std::log2(s.sum.data()[from]);
    }
  }
}

void SegmentRun::scorePeaks(int64_t block, int32_t kvHead, ThreadScratch& s) {
  const int32_t dims = scoreDims_.count();
  const int64_t rowBytes = kernels_.rowBytes(dims);
  // Windows start later in later rows: the voters from this one on see the block as remote.
  const auto first = std::partition_point(voters_.begin(), voters_.end(), [&](int64_t row) {
    return windowOf(row) <= block * kTileRows;
  });
  const int64_t firstVoter = first - voters_.begin();
  const int64_t firstSlot = firstVoter / blockRows() * blockRows();
  const auto blocks = static_cast<int32_t>((voterSlots_ - firstSlot) / blockRows());

  for (int64_t column = block * kTileRows; column < (block + 1) * kTileRows; column += kTileKeys) {
    if (cancel_.isSet()) return;
    const KeyRows keys{matrix(task_.kv.keys, kvHead), dim_, nullptr, column, kTileKeys};
    kernels_.packKeys(keys, scoreDims_, s.keys.data());
    for (int32_t head = kvHead * groupHeads_; head < (kvHead + 1) * groupHeads_; ++head) {
      const float* anchors = scratch_.anchors.data() + head * voterSlots_ + firstSlot;
      float* peaks = scratch_.peaks.data() + head * remoteEnd_ + column;
      std::fill_n(peaks, kTileKeys, -kInfinity);
      float firstAnchors[16];
      for (int32_t i = 0; i < blockRows(); ++i) {
        firstAnchors[i] = firstSlot + i < firstVoter ? kInfinity : anchors[i];
      }
      const std::byte* queries =
          scratch_.voterQueries.data() + (head * voterSlots_ + firstSlot) * rowBytes;
      kernels_.peaks({queries, 1, dims, scale_, firstAnchors, s.keys.data(), peaks});
      kernels_.peaks({queries + blockRows() * rowBytes, blocks - 1, dims, scale_,
                      anchors + blockRows(), s.keys.data(), peaks});
    }
  }
}

void SegmentRun::listColumns(int32_t head) {
  const int32_t sinks = scratch_.sinkTokens;
  const double cut = std::log2(task_.params->epsilon);
  const float* peaks = scratch_.peaks.data() + head * remoteEnd_;
  int32_t* columns = scratch_.columns.data() + head * scratch_.columnStride;
  int32_t* before = scratch_.countBefore.data() + head * scratch_.blockStride;

  int32_t count = 0;
  for (; count < sinks; ++count) columns[count] = count;
  before[0] = 0;
  for (int64_t column = 0; column < remoteEnd_; ++column) {
    if (column >= sinks && static_cast<double>(peaks[column]) >= cut) {
      columns[count++] = static_cast<int32_t>(column);
    }
    if ((column + 1) % kTileRows == 0) before[(column + 1) / kTileRows] = count;
  }
  const int64_t length = count - sinks;
  HeadAttention& result = heads_[static_cast<size_t>(head)];
  result.listLength = length;
  result.denseFallback = static_cast<double>(length) >
                         task_.params->maxListShare * static_cast<double>(task_.segment.end);
  scratch_.isDense[static_cast<size_t>(head)] = result.denseFallback;
  scratch_.listLength[static_cast<size_t>(head)] = length;
}

}  // namespace longsight
