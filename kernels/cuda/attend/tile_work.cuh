// What one block of stage 3 computes: 128 rows of one head over a run of columns and a list.
#pragma once

#include "chunk_layout.h"

namespace longsight::cuda {

struct TileWork {
  int head;
  int kvHead;
  int tileRow;   // first row of the tile
  int rowBegin;  // rows of the tile that belong to the segment
  int rowEnd;
  // The run of columns [runBegin, min(runEnd - 1, row)]; both are multiples of 128.
  int runBegin;
  int runEnd;
  int columnsEnd;  // of the run, beyond which no row of the tile sees: min(runEnd, rowEnd)
  int listed;      // entries of `list` before runBegin: the columns outside the run
  const int32_t* list;
  int split;  // which of the layout's columnSplits the run is
};

// Blocks are ordered by unit, most work first; in a unit by head and, last tile first, by tile.
// So the blocks that share a list, and those that share keys and values, run at the same time.
// False when the segment has no such tile.
__device__ inline bool findTileWork(const ChunkLayout& layout, const Workspace& workspace,
                                    TileWork& work) {
  const int perUnit = layout.group * layout.maxTiles;
  const int block = blockIdx.x / layout.columnSplits;
  const int place = block / perUnit;
  const int unit = layout.allDense ? layout.segmentCount * layout.kvHeads - 1 - place
                                   : workspace.unitOrder[place];
  const int inUnit = block % perUnit;
  const int segmentIndex = unit / layout.kvHeads;
  const SegmentLayout& segment = layout.segments[segmentIndex];
  const int tile = layout.maxTiles - 1 - inUnit % layout.maxTiles;
  if (tile >= segment.tiles) return false;
  work.kvHead = unit % layout.kvHeads;
  work.head = work.kvHead * layout.group + inUnit / layout.maxTiles;
  work.tileRow = segment.firstTileRow + tile * int(kTileRows);
  work.rowBegin = max(segment.begin, work.tileRow);
  work.rowEnd = min(segment.end, work.tileRow + int(kTileRows));
  work.runBegin = 0;
  work.listed = 0;
  work.list = nullptr;
  work.split = blockIdx.x % layout.columnSplits;
  if (segment.stride > 0 && workspace.stats[segmentIndex * layout.heads + work.head].dense == 0) {
    work.runBegin = static_cast<int>(windowStart(work.tileRow, segment.windowTokens));
    work.list = workspace.indices + segment.listBegin + int64_t(work.head) * segment.listCapacity;
    work.listed = workspace.before[segment.countBegin + int64_t(work.head) * (segment.blocks + 1) +
                                   work.runBegin / kTileRows];
  }
  const int blocksEnd = (work.rowEnd + int(kTileRows) - 1) / int(kTileRows);
  work.runEnd = blocksEnd * int(kTileRows);
  if (layout.columnSplits > 1) {
    work.runBegin = blocksEnd * work.split / layout.columnSplits * int(kTileRows);
    work.runEnd = blocksEnd * (work.split + 1) / layout.columnSplits * int(kTileRows);
  }
  work.columnsEnd = min(work.runEnd, work.rowEnd);
  return true;
}

inline unsigned attendBlocks(const ChunkLayout& layout) {
  return static_cast<unsigned>(layout.segmentCount) * layout.heads * layout.maxTiles *
         layout.columnSplits;
}

// Where a row of a split is in Workspace::partialSums, and times headDim in partialOutputs.
__device__ __forceinline__ int64_t partialSlot(const ChunkLayout& layout, int split, int64_t row,
                                               int head) {
  return (int64_t(split) * (layout.end - layout.begin) + row) * layout.heads + head;
}

}  // namespace longsight::cuda
