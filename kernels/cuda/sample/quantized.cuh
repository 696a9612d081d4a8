// Where the score pass of policy `peak` finds its operands: the cache and the queries as they are,
// or, with int8 scores, what quantize.cu made of them.
#pragma once

#include <type_traits>

#include "chunk_layout.h"

namespace longsight::cuda {

// The score dims as the kernels copy them, in pieces of 8 dims that begin at multiples of 8: what a
// piece has beyond its range counts as zero in the voters (with int8 in the keys too), so it adds
// nothing to a score. So do the pieces that fill up a row of 32, 64 or 128.
struct ScoreDimsMap {
  static constexpr int kMaxPieces = 16;
  int pieces;
  uint8_t firstPiece[kMaxPieces];  // of the head, in units of 8 dims
  uint8_t scored[kMaxPieces];      // bit i: dim i of the piece is a score dim

  int paddedDims() const { return pieces <= 4 ? 32 : pieces <= 8 ? 64 : 128; }
  __device__ __forceinline__ int dimOf(int piece) const { return firstPiece[piece] * 8; }
};

// validateScoreDims() says which dims fit.
inline ScoreDimsMap scoreDimsMap(const DimRanges& dims) {
  ScoreDimsMap map{};
  for (const DimRange& range : dims.ranges) {
    for (int piece = range.begin / 8; piece * 8 < range.end; ++piece) {
      if (map.pieces == ScoreDimsMap::kMaxPieces) return map;
      map.firstPiece[map.pieces] = static_cast<uint8_t>(piece);
      for (int i = 0; i < 8; ++i) {
        const int dim = piece * 8 + i;
        if (dim >= range.begin && dim < range.end) map.scored[map.pieces] |= 1 << i;
      }
      ++map.pieces;
    }
  }
  return map;
}

// Zeroes the 16-bit elements of a piece that are no score dims.
__device__ __forceinline__ uint4 keepScored(uint4 piece, uint32_t scored) {
  const auto bits = [&](int i) {
    return (scored >> (2 * i) & 1 ? 0xFFFFu : 0u) | (scored >> (2 * i) & 2 ? 0xFFFF0000u : 0u);
  };
  return {piece.x & bits(0), piece.y & bits(1), piece.z & bits(2), piece.w & bits(3)};
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
    return std::is_same_v<S, int8_t> ? piece * 16 : map.dimOf(piece) * 2;
  }
};

template <class S>
VoteOperands voteOperands(const LaunchContext& context) {
  const Tensors& tensors = context.tensors;
  VoteOperands operands{};
  operands.map = scoreDimsMap(context.chunk.options.scoreDims);
  if (std::is_same_v<S, int8_t>) {
    const int dims = operands.map.paddedDims();
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
