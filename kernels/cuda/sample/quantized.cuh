// Where the score pass of policy `peak` finds its operands: the cache and the queries as they are,
// or, with int8 scores, what quantize.cu made of them.
#pragma once

#include <type_traits>

#include "chunk_layout.h"

namespace longsight::cuda {

// Score dim i is dim i of the first range, or of the second beyond its end.
struct ScoreDimsMap {
  int firstBegin;
  int firstCount;
  int secondBegin;
  __device__ __forceinline__ int dimOf(int scoreDim) const {
    return scoreDim < firstCount ? firstBegin + scoreDim : secondBegin + scoreDim - firstCount;
  }
};

inline ScoreDimsMap scoreDimsMap(const DimRanges& dims) {
  const int firstCount = dims.ranges[0].end - dims.ranges[0].begin;
  return {dims.ranges[0].begin, firstCount, dims.ranges[1].begin};
}

struct VoteOperands {
  const char* keys;  // [kvHead][row]
  int64_t keyRowBytes;
  int64_t keyHeadBytes;
  // 16-bit scores: [row - chunk begin][head]; int8: like the voter values.
  const char* voters;
  int64_t voterRowBytes;
  const float* keyScales;  // int8: [kvHead][128-block]
  int keyScalesPerHead;
  ScoreDimsMap map;

  // Of the 16-byte piece `piece` of a row of score dims.
  template <class S>
  __device__ __forceinline__ int pieceOffset(int piece) const {
    return std::is_same_v<S, int8_t> ? piece * 16 : map.dimOf(piece * 8) * 2;
  }
};

template <class S>
VoteOperands voteOperands(const LaunchContext& context) {
  const Tensors& tensors = context.tensors;
  VoteOperands operands{};
  operands.map = scoreDimsMap(context.chunk.options.scoreDims);
  if (std::is_same_v<S, int8_t>) {
    const int dims = context.chunk.options.scoreDims.count();
    const int blocks = mostRemoteBlocks(context.layout);
    operands.keys = reinterpret_cast<const char*>(context.workspace.quantizedKeys);
    operands.keyRowBytes = dims;
    operands.keyHeadBytes = int64_t{blocks} * kTileRows * dims;
    operands.voters = reinterpret_cast<const char*>(context.workspace.quantizedVoters);
    operands.voterRowBytes = dims;
    operands.keyScales = context.workspace.keyScales;
    operands.keyScalesPerHead = blocks;
  } else {
    const int64_t rowBytes = int64_t{context.chunk.shape.headDim} * 2;
    operands.keys = static_cast<const char*>(tensors.keys);
    operands.keyRowBytes = rowBytes;
    operands.keyHeadBytes = tensors.capacityRows * rowBytes;
    operands.voters = static_cast<const char*>(tensors.queries);
    operands.voterRowBytes = rowBytes;
  }
  return operands;
}

}  // namespace longsight::cuda
