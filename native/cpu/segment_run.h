// One run of attention over a segment and a layer: the state that its stages share.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <vector>

#include "attention/geometry.h"
#include "cpu/attention.h"
#include "cpu/attention_scratch.h"

namespace longsight {

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

// Work items place rows in slots of their thread's scratch, [head][row], in blocks of the kernels'
// size; then visit columns, which adds them to the rows' softmax.
class SegmentRun {
 public:
  SegmentRun(const AttentionTask& task, AttentionScratch::State& scratch, ThreadPool& pool,
             const CancelFlag& cancel, std::vector<HeadAttention>& heads);
  bool run();

 private:
  static constexpr float kInfinity = std::numeric_limits<float>::infinity();

  int64_t tileCount() const { return lastTile_ - firstTile_ + 1; }
  int64_t windowOf(int64_t row) const {
    return task_.segment.dense ? 0 : windowStart(row, task_.segment.windowTokens);
  }
  const float* query(int64_t row, int32_t head) const {
    return task_.queries + ((row - task_.segment.begin) * task_.heads + head) * dim_;
  }
  int32_t blockRows() const { return kernels_.blockRows; }
  const int32_t* columnsOf(int32_t head) const {
    return scratch_.columns.data() + head * scratch_.columnStride;
  }
  // Sinks and listed columns before `column`, a multiple of 128.
  int64_t countBefore(int32_t head, int64_t column) const {
    return scratch_.countBefore.data()[head * scratch_.blockStride + column / kTileRows];
  }

  // Voters [begin, end) by index, all on the work item of one KV head.
  struct VoterRange {
    int64_t begin;
    int64_t end;
  };
  // Columns whose vote is above `vote`, and of those that equal it the first `equal`.
  struct Cut {
    double vote;
    int64_t equal;
  };

  bool usesMass() const { return task_.params->policy == Policy::mass; }
  void packVoters(int32_t head);
  VoterRange votersOfTile(int64_t tile) const;
  int64_t firstVoterBeyond(int64_t column) const;
  int32_t placeVoters(ThreadScratch& s, VoterRange voters, int32_t kvHead) const;
  void keepReferences(const ThreadScratch& s, VoterRange voters, int32_t kvHead);
  void anchorVoters(VoterRange voters, int32_t kvHead, ThreadScratch& s);
  void sumVoters(VoterRange voters, int32_t kvHead, ThreadScratch& s);
  void vote(int64_t block, int32_t kvHead, ThreadScratch& s);
  Cut peakCut(int32_t head) const;
  Cut massCut(const float* masses) const;
  void listColumns(int32_t head);
  void drawVotes();
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
  // Of stage 1.
  DimRanges scoreDims_;
  std::vector<int64_t> voters_;
  int64_t voterSlots_ = 0;
  std::vector<int64_t> audits_;
  // The votes were replaced by drawn ones.
  bool isDrawn_ = false;
  // Columns at or after this are in the window of every row.
  int64_t remoteEnd_ = 0;
  int64_t chunkColumns_ = 0;
};

}  // namespace longsight
