#include "cpu/attention.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>
#include <string>

#include "attention/geometry.h"
#include "cpu/attention_scratch.h"

namespace longsight {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr double kLog2E = 1.4426950408889634;
// When there are at most this many (tile, KV head) items, columns are cut into chunks as well.
constexpr int64_t kFewItems = 16;
constexpr int64_t kMinChunkColumns = 1024;

// A slice of the columns: listed ones, or consecutive ones [begin, end).
struct Columns {
  const int32_t* list = nullptr;
  int64_t begin = 0;
  int64_t end = 0;
};

// Blocks [begin, end) of the rows of a work item.
struct Blocks {
  int32_t begin = 0;
  int32_t end = 0;
};

class SegmentRun {
 public:
  SegmentRun(const AttentionTask& task, AttentionScratch::State& scratch, ThreadPool& pool,
             const CancelFlag& cancel, std::vector<HeadAttention>& heads);
  bool run();

 private:
  int64_t tileCount() const { return lastTile_ - firstTile_ + 1; }
  int64_t windowOf(int64_t row) const {
    return task_.segment.dense ? 0 : windowStart(row, task_.segment.windowTokens);
  }
  const float* query(int64_t row, int32_t head) const {
    return task_.queries + ((row - task_.segment.begin) * task_.heads + head) * dim_;
  }
  const uint16_t* matrix(const uint16_t* base, int32_t kvHead) const {
    return base + int64_t{kvHead} * task_.kv.capacityRows * dim_;
  }
  int32_t blockRows() const { return kernels_.blockRows; }
  const int32_t* columnsOf(int32_t head) const {
    return scratch_.columns.data() + head * scratch_.columnStride;
  }
  // Sinks and listed columns before `column`, a multiple of 128.
  int64_t countBefore(int32_t head, int64_t column) const {
    return scratch_.countBefore.data()[head * scratch_.blockStride + column / kTileRows];
  }

  void packVoters(int32_t head);
  void anchorVoters(int64_t tile, int32_t kvHead, ThreadScratch& s);
  void scorePeaks(int64_t block, int32_t kvHead, ThreadScratch& s);
  void listColumns(int32_t head);
  void attendRows(int64_t tile, int32_t headBegin, int32_t headEnd, ThreadScratch& s);
  void attendChunk(int64_t tile, int32_t kvHead, int64_t chunk, ThreadScratch& s);
  void joinChunks(int64_t tile, int32_t kvHead);
  void audit(int32_t kvHead, ThreadScratch& s);
  void countPairs(int32_t head);

  bool selectColumns();
  bool attendAll();
  bool attendInChunks();

  struct RowRange {
    int64_t begin;
    int64_t end;
  };
  // Rows of the tile whose output is wanted.
  RowRange wantedRows(int64_t tile) const {
    return {std::max(tile * kTileRows, outputBegin_),
            std::min((tile + 1) * kTileRows, task_.segment.end)};
  }

  void startRows(ThreadScratch& s, int32_t blocks, bool wantsOutput) const;
  void startDenseRows(ThreadScratch& s, int32_t blocks, int32_t used) const;
  void visit(ThreadScratch& s, int32_t kvHead, const Columns& columns, Blocks blocks,
             bool wantsOutput) const;
  int32_t placeTile(ThreadScratch& s, RowRange rows, int32_t headBegin, int32_t headEnd,
                    int32_t headSlots) const;

  const AttentionTask& task_;
  AttentionScratch::State& scratch_;
  const AttentionKernels& kernels_;
  ThreadPool& pool_;
  const CancelFlag& cancel_;
  std::vector<HeadAttention>& heads_;

  int32_t dim_;
  int32_t paddedDim_;
  int32_t groupHeads_;
  float scale_;
  int64_t outputBegin_;
  int64_t firstTile_;
  int64_t lastTile_;
  DimRanges scoreDims_;
  std::vector<int64_t> voters_;
  int64_t voterSlots_ = 0;
  std::vector<int64_t> audits_;
  // Columns at or after this are in the window of every row.
  int64_t remoteEnd_ = 0;
  int64_t chunkColumns_ = 0;
};

SegmentRun::SegmentRun(const AttentionTask& task, AttentionScratch::State& scratch,
                       ThreadPool& pool, const CancelFlag& cancel,
                       std::vector<HeadAttention>& heads)
    : task_(task),
      scratch_(scratch),
      kernels_(*scratch.kernels),
      pool_(pool),
      cancel_(cancel),
      heads_(heads),
      dim_(task.kv.headDim),
      paddedDim_(static_cast<int32_t>(roundUp(task.kv.headDim, kDimMultiple))),
      groupHeads_(task.heads / task.kv.kvHeads),
      scale_(static_cast<float>(task.scale * kLog2E)),
      outputBegin_(std::clamp(task.outputBegin, task.segment.begin, task.segment.end)),
      firstTile_(task.segment.begin / kTileRows),
      lastTile_((task.segment.end - 1) / kTileRows),
      scoreDims_(scoreDimRanges(task.params->scoreDims, task.ropeStyle, task.kv.headDim)),
      voters_(votingRows(task.segment)),
      audits_(auditRows(task.segment, *task.params)) {
  if (!task.segment.dense) remoteEnd_ = windowOf(task.segment.end - 1);
  voterSlots_ = roundUp(static_cast<int64_t>(voters_.size()), blockRows());
  scratch_.threads.resize(std::max(scratch_.threads.size(), static_cast<size_t>(pool.threads())));
  const int64_t slots = maxSlots(groupHeads_, blockRows());
  for (int32_t i = 0; i < pool.threads(); ++i) {
    scratch_.threads[static_cast<size_t>(i)].reserve(slots, dim_, paddedDim_, kernels_);
  }
  scratch_.listLength.assign(static_cast<size_t>(task.heads), 0);
  scratch_.isDense.assign(static_cast<size_t>(task.heads), task.segment.dense);
  heads_.assign(static_cast<size_t>(task.heads), {});
}

bool SegmentRun::run() {
  const int64_t unwanted = (outputBegin_ - task_.segment.begin) * task_.heads * dim_;
  std::fill_n(task_.output, unwanted, 0.0f);
  if (!task_.segment.dense && !selectColumns()) return false;
  if (!attendAll()) return false;
  for (int32_t head = 0; head < task_.heads; ++head) countPairs(head);
  return true;
}

// Stages 1 and 2.
bool SegmentRun::selectColumns() {
  const int32_t kvHeads = task_.kv.kvHeads;
  const int64_t blocks = remoteEnd_ / kTileRows;
  scratch_.sinkTokens = task_.params->sinkTokens;
  scratch_.columnStride = remoteEnd_ + scratch_.sinkTokens;
  scratch_.blockStride = blocks + 1;
  scratch_.columns.reserve(task_.heads * scratch_.columnStride);
  scratch_.countBefore.reserve(task_.heads * scratch_.blockStride);
  scratch_.voterQueries.reserve(task_.heads * voterSlots_ * scoreDims_.count());
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
  float* packed = scratch_.voterQueries.data() + head * voterSlots_ * scoreDims_.count();
  const float* rows[16];
  for (int64_t first = 0; first < voterSlots_; first += blockRows()) {
    for (int64_t i = 0; i < blockRows(); ++i) {
      const auto voter = static_cast<size_t>(first + i);
      rows[i] = voter < voters_.size() ? query(voters_[voter], head) : nullptr;
    }
    kernels_.packQueries(rows, 1, scoreDims_, scale_, packed + first * scoreDims_.count());
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
      const float* queries = scratch_.voterQueries.data() + (head * voterSlots_ + firstSlot) * dims;
      kernels_.peaks({queries, 1, dims, firstAnchors, s.keys.data(), peaks});
      kernels_.peaks({queries + blockRows() * dims, blocks - 1, dims, anchors + blockRows(),
                      s.keys.data(), peaks});
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

// Stage 3 and the audit.
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

// Slots [head][row] for a tile of rows; returns the number of blocks.
int32_t SegmentRun::placeTile(ThreadScratch& s, RowRange rows, int32_t headBegin, int32_t headEnd,
                              int32_t headSlots) const {
  const int64_t used = int64_t{headEnd - headBegin} * headSlots;
  const auto blocks = static_cast<int32_t>(roundUp(used, blockRows()) / blockRows());
  for (int64_t slot = 0; slot < int64_t{blocks} * blockRows(); ++slot) {
    const int64_t row = rows.begin + slot % headSlots;
    const bool isRow = slot < used && row < rows.end;
    const auto head = static_cast<int32_t>(headBegin + slot / headSlots);
    s.rows.data()[slot] = isRow ? query(row, head) : nullptr;
    s.seesFrom.data()[slot] = 0;
    s.seesTo.data()[slot] = isRow ? row + 1 : task_.segment.end;
  }
  return blocks;
}

void SegmentRun::startRows(ThreadScratch& s, int32_t blocks, bool wantsOutput) const {
  const int64_t slots = int64_t{blocks} * blockRows();
  s.fewRows = 0;
  kernels_.packQueries(s.rows.data(), blocks, allDims(dim_), scale_, s.queries.data());
  std::fill_n(s.maximum.data(), slots, -kInfinity);
  std::fill_n(s.sum.data(), slots, 0.0f);
  if (wantsOutput) std::fill_n(s.output.data(), slots * paddedDim_, 0.0f);
}

// The same for the first `used` slots, which will visit consecutive columns only.
void SegmentRun::startDenseRows(ThreadScratch& s, int32_t blocks, int32_t used) const {
  startRows(s, blocks, true);
  if (used > kFewRows || dim_ % kDimMultiple != 0) return;
  s.fewRows = used;
  for (int64_t row = 0; row < used; ++row) {
    for (int64_t dim = 0; dim < dim_; ++dim) {
      s.queries.data()[row * dim_ + dim] = s.rows.data()[row][dim] * scale_;
    }
  }
}

// Adds the columns to the softmax of the rows.
void SegmentRun::visit(ThreadScratch& s, int32_t kvHead, const Columns& columns, Blocks blocks,
                       bool wantsOutput) const {
  const int64_t firstSlot = int64_t{blocks.begin} * blockRows();
  const int64_t slots = int64_t{blocks.end - blocks.begin} * blockRows();
  const int64_t* from = s.seesFrom.data() + firstSlot;
  const int64_t* to = s.seesTo.data() + firstSlot;
  int64_t allFrom = 0;
  int64_t allTo = std::numeric_limits<int64_t>::max();
  for (int64_t slot = 0; slot < slots; ++slot) {
    allFrom = std::max(allFrom, from[slot]);
    allTo = std::min(allTo, to[slot]);
  }

  for (int64_t begin = columns.begin; begin < columns.end; begin += kTileKeys) {
    if (cancel_.isSet()) return;
    const auto count = static_cast<int32_t>(std::min<int64_t>(kTileKeys, columns.end - begin));
    const int32_t* list = columns.list != nullptr ? columns.list + begin : nullptr;
    const KeyRows keys{matrix(task_.kv.keys, kvHead), dim_, list, begin, count};
    const KeyRows values{matrix(task_.kv.values, kvHead), dim_, list, begin, count};
    const bool masked = begin < allFrom || begin + count > allTo;
    if (masked) {
      for (int64_t slot = 0; slot < slots; ++slot) {
        s.visibleBegin.data()[slot] =
            static_cast<int32_t>(std::clamp<int64_t>(from[slot] - begin, 0, count));
        s.visibleEnd.data()[slot] =
            static_cast<int32_t>(std::clamp<int64_t>(to[slot] - begin, 0, count));
      }
    }
    const RowState state{s.maximum.data() + firstSlot, s.sum.data() + firstSlot,
                         wantsOutput ? s.output.data() + firstSlot * paddedDim_ : nullptr,
                         paddedDim_};
    if (s.fewRows > 0) {
      const int32_t* visibleEnd = masked ? s.visibleEnd.data() : nullptr;
      kernels_.attendFew(
          {s.queries.data(), s.fewRows, keys, values, visibleEnd, state, s.scores.data()});
      continue;
    }
    kernels_.packKeys(keys, allDims(dim_), s.keys.data());
    if (wantsOutput) kernels_.packValues(values, s.values.data());
    AttendTile tile;
    tile.queries = s.queries.data() + firstSlot * dim_;
    tile.blocks = blocks.end - blocks.begin;
    tile.dims = dim_;
    tile.keys = s.keys.data();
    tile.values = wantsOutput ? s.values.data() : nullptr;
    tile.keyCount = count;
    tile.visibleBegin = masked ? s.visibleBegin.data() : nullptr;
    tile.visibleEnd = masked ? s.visibleEnd.data() : nullptr;
    tile.state = state;
    tile.scores = s.scores.data();
    kernels_.attend(tile);
  }
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

void SegmentRun::countPairs(int32_t head) {
  const Segment& segment = task_.segment;
  HeadAttention& result = heads_[static_cast<size_t>(head)];
  result.causalPairs = causalPairCount(segment.begin, segment.end);
  result.keptPairs = result.causalPairs;
  if (scratch_.isDense[static_cast<size_t>(head)]) return;
  for (int64_t tile = firstTile_; tile <= lastTile_; ++tile) {
    const int64_t window = windowOf(tile * kTileRows);
    const int64_t rows =
        std::min((tile + 1) * kTileRows, segment.end) - std::max(tile * kTileRows, segment.begin);
    result.keptPairs -= rows * (window - countBefore(head, window));
  }
}

}  // namespace

bool runAttention(const AttentionTask& task, ThreadPool& pool, const CancelFlag& cancel,
                  std::vector<HeadAttention>& heads) {
  const KvLayer& kv = task.kv;
  if (kv.kvHeads < 1 || task.heads < kv.kvHeads || task.heads % kv.kvHeads != 0) {
    throw std::invalid_argument("attention: " + std::to_string(task.heads) + " heads over " +
                                std::to_string(kv.kvHeads) + " KV heads do not form groups");
  }
  if (kv.headDim < 4 || kv.headDim % 4 != 0) {
    throw std::invalid_argument("attention: head dimension " + std::to_string(kv.headDim) +
                                " is not a multiple of 4");
  }
  if (task.segment.begin < 0 || task.segment.end > kv.capacityRows ||
      task.segment.begin > task.segment.end) {
    throw std::invalid_argument("attention: rows " + std::to_string(task.segment.begin) + " to " +
                                std::to_string(task.segment.end) + " in a cache of " +
                                std::to_string(kv.capacityRows));
  }
  if (!task.segment.dense && task.params->policy == Policy::mass) {
    throw std::invalid_argument("attention: policy mass is not available, use peak or dense");
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
