// Stage 3 of SampleAttention, the audit of what it keeps, and the entry to all stages.
#include "cpu/attention.h"

#include <cmath>
#include <stdexcept>
#include <string>

#include "cpu/segment_run.h"

namespace longsight {
namespace {

// When there are at most this many (tile, KV head) items, columns are cut into chunks as well.
constexpr int64_t kFewItems = 16;
constexpr int64_t kMinChunkColumns = 1024;

}  // namespace

bool SegmentRun::attendAll() {
  const int32_t kvHeads = task_.kv.kvHeads;
  const int64_t tiles =
      outputBegin_ < task_.segment.end ? lastTile_ - outputBegin_ / kTileRows + 1 : 0;
  if (task_.segment.dense && tiles * kvHeads <= kFewItems &&
      task_.segment.end >= 2 * kMinChunkColumns && tiles > 0) {
    return attendInChunks();
  }
  // Heads of a group share packed tiles unless that leaves threads without work.
  const int32_t itemHeads = tiles * kvHeads < 4 * int64_t{pool_.threads()} ? 1 : groupHeads_;
  const int64_t tileItems = task_.heads / itemHeads;
  const int64_t auditItems = audits_.empty() ? 0 : kvHeads;
  pool_.forEach(auditItems + tiles * tileItems, [&](int64_t item, int32_t thread) {
    if (cancel_.isSet()) return;
    ThreadScratch& s = scratch_.threads[static_cast<size_t>(thread)];
    if (item < auditItems) return audit(static_cast<int32_t>(item), s);
    item -= auditItems;
    const auto head = static_cast<int32_t>(item % tileItems) * itemHeads;
    // Later rows see more columns: they come first.
    attendRows(lastTile_ - item / tileItems, head, head + itemHeads, s);
  });
  return !cancel_.isSet();
}

void SegmentRun::attendRows(int64_t tile, int32_t headBegin, int32_t headEnd, ThreadScratch& s) {
  const RowRange rows = wantedRows(tile);
  const int64_t window = windowOf(tile * kTileRows);
  const int32_t kvHead = headBegin / groupHeads_;
  auto headSlots = static_cast<int32_t>(rows.end - rows.begin);
  // Heads with lists of their own start on a block of their own.
  if (window > 0) headSlots = static_cast<int32_t>(roundUp(headSlots, blockRows()));
  const int32_t blocks = placeTile(s, rows, headBegin, headEnd, headSlots);
  if (window > 0) {
    startRows(s, blocks, true);
  } else {
    startDenseRows(s, blocks, (headEnd - headBegin) * headSlots);
  }

  for (int32_t head = headBegin; window > 0 && head < headEnd; ++head) {
    const int32_t first = (head - headBegin) * headSlots / blockRows();
    const Blocks own{first, first + headSlots / blockRows()};
    if (scratch_.isDense[static_cast<size_t>(head)]) {
      visit(s, kvHead, {nullptr, 0, window}, own, true);
    } else {
      // Listed columns lie before every row: positions in the list never reach a row's own column.
      visit(s, kvHead, {columnsOf(head), 0, countBefore(head, window)}, own, true);
    }
  }
  visit(s, kvHead, {nullptr, window, rows.end}, {0, blocks}, true);
  if (cancel_.isSet()) return;

  for (int32_t head = headBegin; head < headEnd; ++head) {
    for (int64_t row = rows.begin; row < rows.end; ++row) {
      const int64_t slot = int64_t{head - headBegin} * headSlots + (row - rows.begin);
      const float factor = 1.0f / s.sum.data()[slot];
      const float* from = s.output.data() + slot * paddedDim_;
      float* to = task_.output + ((row - task_.segment.begin) * task_.heads + head) * dim_;
      for (int32_t dim = 0; dim < dim_; ++dim) to[dim] = from[dim] * factor;
    }
  }
}

// Few dense rows and many columns (decode above all): threads share the columns of a row. The cuts
// depend on the task alone, so that the bits do not depend on the threads.
bool SegmentRun::attendInChunks() {
  const int32_t kvHeads = task_.kv.kvHeads;
  const int64_t firstTile = outputBegin_ / kTileRows;
  const int64_t pairs = (lastTile_ - firstTile + 1) * kvHeads;
  const int64_t wanted = std::min(kMaxChunkItems / pairs, task_.segment.end / kMinChunkColumns);
  chunkColumns_ = roundUp((task_.segment.end + wanted - 1) / wanted, kTileKeys);
  const int64_t chunks = (task_.segment.end + chunkColumns_ - 1) / chunkColumns_;
  const int64_t slots = maxSlots(groupHeads_, blockRows());
  scratch_.partialMaximum.reserve(pairs * chunks * slots);
  scratch_.partialSum.reserve(pairs * chunks * slots);
  scratch_.partialOutput.reserve(pairs * chunks * slots * paddedDim_);

  pool_.forEach(pairs * chunks, [&](int64_t item, int32_t thread) {
    if (cancel_.isSet()) return;
    const int64_t pair = item / chunks;
    attendChunk(firstTile + pair / kvHeads, static_cast<int32_t>(pair % kvHeads), item % chunks,
                scratch_.threads[static_cast<size_t>(thread)]);
  });
  if (cancel_.isSet()) return false;
  pool_.forEach(pairs, [&](int64_t pair, int32_t) {
    joinChunks(firstTile + pair / kvHeads, static_cast<int32_t>(pair % kvHeads));
  });
  return !cancel_.isSet();
}

void SegmentRun::attendChunk(int64_t tile, int32_t kvHead, int64_t chunk, ThreadScratch& s) {
  const RowRange rows = wantedRows(tile);
  const auto headSlots = static_cast<int32_t>(rows.end - rows.begin);
  const int32_t headBegin = kvHead * groupHeads_;
  const int32_t blocks = placeTile(s, rows, headBegin, headBegin + groupHeads_, headSlots);
  startDenseRows(s, blocks, groupHeads_ * headSlots);
  const int64_t begin = chunk * chunkColumns_;
  visit(s, kvHead, {nullptr, begin, std::min(begin + chunkColumns_, rows.end)}, {0, blocks}, true);

  const int64_t chunks = (task_.segment.end + chunkColumns_ - 1) / chunkColumns_;
  const int64_t slots = maxSlots(groupHeads_, blockRows());
  const int64_t pair = (tile - outputBegin_ / kTileRows) * task_.kv.kvHeads + kvHead;
  const int64_t to = (pair * chunks + chunk) * slots;
  const int64_t used = int64_t{groupHeads_} * headSlots;
  std::copy_n(s.maximum.data(), used, scratch_.partialMaximum.data() + to);
  std::copy_n(s.sum.data(), used, scratch_.partialSum.data() + to);
  std::copy_n(s.output.data(), used * paddedDim_, scratch_.partialOutput.data() + to * paddedDim_);
}

void SegmentRun::joinChunks(int64_t tile, int32_t kvHead) {
  const RowRange rows = wantedRows(tile);
  const int64_t headSlots = rows.end - rows.begin;
  const int64_t chunks = (task_.segment.end + chunkColumns_ - 1) / chunkColumns_;
  const int64_t slots = maxSlots(groupHeads_, blockRows());
  const int64_t pair = (tile - outputBegin_ / kTileRows) * task_.kv.kvHeads + kvHead;

  for (int64_t slot = 0; slot < groupHeads_ * headSlots; ++slot) {
    const int64_t row = rows.begin + slot % headSlots;
    const int64_t head = kvHead * groupHeads_ + slot / headSlots;
    float* to = task_.output + ((row - task_.segment.begin) * task_.heads + head) * dim_;
    const float* maximum = scratch_.partialMaximum.data() + pair * chunks * slots + slot;
    const float* sum = scratch_.partialSum.data() + pair * chunks * slots + slot;
    float most = -kInfinity;
    for (int64_t chunk = 0; chunk < chunks; ++chunk) most = std::max(most, maximum[chunk * slots]);
    float total = 0.0f;
    std::fill_n(to, dim_, 0.0f);
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
      // A chunk that starts after the row has seen nothing: its weight is 0.
      const float weight = std::exp2(maximum[chunk * slots] - most);
      const float* from =
          scratch_.partialOutput.data() + ((pair * chunks + chunk) * slots + slot) * paddedDim_;
      total += weight * sum[chunk * slots];
      for (int32_t dim = 0; dim < dim_; ++dim) to[dim] += weight * from[dim];
    }
    for (int32_t dim = 0; dim < dim_; ++dim) to[dim] /= total;
  }
}

// Exact share of the probability that the kept columns hold, in all dimensions.
void SegmentRun::audit(int32_t kvHead, ThreadScratch& s) {
  const int32_t headBegin = kvHead * groupHeads_;
  const auto headEnd = headBegin + groupHeads_;
  for (size_t firstAudit = 0; firstAudit < audits_.size(); firstAudit += kTileRows) {
    const auto count =
        static_cast<int32_t>(std::min<size_t>(kTileRows, audits_.size() - firstAudit));
    const int64_t* rows = audits_.data() + firstAudit;
    const auto headSlots = static_cast<int32_t>(roundUp(count, blockRows()));
    const int32_t blocks = groupHeads_ * headSlots / blockRows();
    const int64_t slots = int64_t{groupHeads_} * headSlots;
    const auto forSlots = [&](auto&& body) {
      for (int64_t slot = 0; slot < slots; ++slot) {
        const int64_t i = slot % headSlots;
        body(slot, i < count ? rows[i] : -1, static_cast<int32_t>(headBegin + slot / headSlots));
      }
    };

    forSlots([&](int64_t slot, int64_t row, int32_t head) {
      s.rows.data()[slot] = row >= 0 ? query(row, head) : nullptr;
      s.seesFrom.data()[slot] = 0;
      s.seesTo.data()[slot] = row >= 0 ? row + 1 : task_.segment.end;
    });
    startRows(s, blocks, false);
    visit(s, kvHead, {nullptr, 0, rows[count - 1] + 1}, {0, blocks}, false);
    // The part of `output` is free here, and has room for two numbers a slot.
    float* allMaximum = s.output.data();
    float* allSum = allMaximum + slots;
    std::copy_n(s.maximum.data(), slots, allMaximum);
    std::copy_n(s.sum.data(), slots, allSum);

    startRows(s, blocks, false);
    forSlots([&](int64_t slot, int64_t row, int32_t head) {
      if (row >= 0) s.seesTo.data()[slot] = countBefore(head, windowOf(row));
    });
    for (int32_t head = headBegin; head < headEnd; ++head) {
      const int32_t first = (head - headBegin) * headSlots / blockRows();
      const int64_t seen = countBefore(head, windowOf(rows[count - 1]));
      visit(s, kvHead, {columnsOf(head), 0, seen}, {first, first + headSlots / blockRows()}, false);
    }
    forSlots([&](int64_t slot, int64_t row, int32_t) {
      if (row < 0) return;
      s.seesFrom.data()[slot] = windowOf(row);
      s.seesTo.data()[slot] = row + 1;
    });
    visit(s, kvHead, {nullptr, windowOf(rows[0]), rows[count - 1] + 1}, {0, blocks}, false);
    if (cancel_.isSet()) return;

    forSlots([&](int64_t slot, int64_t row, int32_t head) {
      if (row < 0) return;
      const bool isDense = scratch_.isDense[static_cast<size_t>(head)];
      const float kept = s.sum.data()[slot] * std::exp2(s.maximum.data()[slot] - allMaximum[slot]);
      const float share = isDense ? 1.0f : std::min(1.0f, kept / allSum[slot]);
      heads_[static_cast<size_t>(head)].coverage.push_back(share);
    });
  }
}

bool runAttention(const AttentionTask& task, ThreadPool& pool, const CancelFlag& cancel,
                  std::vector<HeadAttention>& heads) {
  const KvLayer& kv = task.kv;
  if (kv.kvHeads < 1 || task.heads < kv.kvHeads || task.heads % kv.kvHeads != 0) {
    throw std::invalid_argument("attention: " + std::to_string(task.heads) + " heads over " +
                                std::to_string(kv.kvHeads) + " KV heads do not form groups");
  }
  if (kv.headDim < 4 || kv.headDim % 4 != 0 || kv.headDim > kMaxHeadDim) {
    throw std::invalid_argument("attention: head dimension " + std::to_string(kv.headDim) +
                                " is not a multiple of 4 up to " + std::to_string(kMaxHeadDim));
  }
  if (task.segment.begin < 0 || task.segment.end > kv.capacityRows ||
      task.segment.begin > task.segment.end) {
    throw std::invalid_argument("attention: rows " + std::to_string(task.segment.begin) + " to " +
                                std::to_string(task.segment.end) + " in a cache of " +
                                std::to_string(kv.capacityRows));
  }
  if (!(task.scale > 0.0f)) {
    throw std::invalid_argument("attention: scale " + std::to_string(task.scale) +
                                " is not positive");
  }
  if (task.segment.begin == task.segment.end) {
    heads.assign(static_cast<size_t>(task.heads), {});
    return !cancel.isSet();
  }
  if (task.scratch != nullptr) {
    return SegmentRun(task, task.scratch->state(), pool, cancel, heads).run();
  }
  AttentionScratch scratch;
  return SegmentRun(task, scratch.state(), pool, cancel, heads).run();
}

}  // namespace longsight
