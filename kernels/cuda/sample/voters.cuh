// The voters of a segment: where their queries lie and which blocks of keys are remote to them.
#pragma once

#include "chunk_layout.h"
#include "device/mma_sm80.cuh"

namespace longsight::cuda {

// Rows that lie evenly in memory, `step` elements apart; a negative step walks backwards.
template <class T>
struct EvenRows {
  const T* first;
  int64_t step;
};

// Voter v is row end - 1 - v * stride: position falls as v grows.
__device__ __forceinline__ int voterPosition(const SegmentLayout& segment, int voter) {
  return segment.end - 1 - voter * segment.stride;
}

// 128-blocks of keys below this are remote to the voter as a whole, all others are not remote.
__device__ __forceinline__ int voterRemoteBlocks(const SegmentLayout& segment, int voter) {
  return static_cast<int>(windowStart(voterPosition(segment, voter), segment.windowTokens) /
                          kTileRows);
}

template <class T>
__device__ __forceinline__ EvenRows<T> voterQueries(const ChunkLayout& layout,
                                                    const SegmentLayout& segment, const T* queries,
                                                    int head, int headDim, int firstVoter) {
  const int row = voterPosition(segment, firstVoter) - layout.begin;
  return {queries + (int64_t(row) * layout.heads + head) * headDim,
          -int64_t(segment.stride) * layout.heads * headDim};
}

// First of the values of a head's voters in the workspace.
__device__ __forceinline__ int64_t voterValuesBegin(const SegmentLayout& segment, int head) {
  return segment.voterBegin + int64_t(head) * segment.voters;
}

// First of the masses of a head's columns in the workspace.
__device__ __forceinline__ int64_t massesBegin(const SegmentLayout& segment, int head) {
  return segment.maskBegin * 32 + int64_t(head) * segment.remoteBlocks * kTileRows;
}

}  // namespace longsight::cuda
