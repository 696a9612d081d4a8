#include "cpu/segment_run.h"

namespace longsight {
namespace {

constexpr double kLog2E = 1.4426950408889634;

}  // namespace

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
      scoreDims_(scoreDimRanges(usesMass() ? ScoreDims::all : task.params->scoreDims,
                                task.ropeStyle, task.kv.headDim, task.rotatedDims)),
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
  kernels_.packFewQueries(s.rows.data(), used, dim_, scale_, s.fewQueries.data());
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
    const KeyRows keys{task_.kv.keysOf(kvHead), list, begin, count};
    const KeyRows values{task_.kv.valuesOf(kvHead), list, begin, count};
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
          {s.fewQueries.data(), s.fewRows, keys, values, visibleEnd, state, s.scores.data()});
      continue;
    }
    kernels_.packKeys(keys, allDims(dim_), s.keys.data());
    if (wantsOutput) kernels_.packValues(values, s.values.data());
    AttendTile tile;
    tile.queries = s.queries.data() + firstSlot * kernels_.rowBytes(dim_);
    tile.blocks = blocks.end - blocks.begin;
    tile.dims = dim_;
    tile.scale = scale_;
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

}  // namespace longsight
