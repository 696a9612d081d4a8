// Tiles of linear layers on sm_90a: their sizes, their shared memory, and their order.
#pragma once

#include <type_traits>

#include "device/wgmma_e4m3_sm90.cuh"
#include "linear/linear_launch.h"

namespace longsight::cuda {
namespace {

constexpr int kOutputs = 128;
// Blocks of a cluster that share the input.
constexpr int kPair = 2;
// Of the inner dimension; a cluster has at most 8 blocks.
constexpr int32_t kMostSplits = 4;
// Of a stage's rows of the inner dimension, one swizzle; of one product.
constexpr int kInnerBytes = 128;
constexpr int kProductBytes = 32;
template <class Number>
constexpr int kInner = std::is_same_v<Number, E4m3> ? kInnerBytes : kInnerBytes / 2;
constexpr int kProducerThreads = 128;
constexpr int kGroupThreads = 128;
constexpr int kGroups = 2;
constexpr int kConsumers = kGroups * kGroupThreads;
constexpr int kThreads = kProducerThreads + kConsumers;
constexpr int kProducerRegisters = 40;
constexpr int kConsumerRegisters = 232;
// Rows that a warpgroup stages at a time for the copy to global memory, and rows of one copy.
constexpr int kChunkRows = 32;
constexpr int kBoxRows = 16;
constexpr int kChunkBytes = kChunkRows * 64 * 4;

template <int kRows>
struct Tile {
  static constexpr int kStages = kRows > 128 ? 4 : kRows > 64 ? 6 : 8;
  static constexpr int kWeightBytes = kOutputs * kInnerBytes;
  static constexpr int kInputBytes = kRows * kInnerBytes;
  static constexpr int kAllBytes = kStages * (kWeightBytes + kInputBytes);
  // Of one consumer thread.
  static constexpr int kSums = kRows / 2;
};

template <int kRows>
struct SharedMemoryPlan {
  using T = Tile<kRows>;
  alignas(1024) unsigned char weight[T::kStages][T::kWeightBytes];
  alignas(1024) unsigned char input[T::kStages][T::kInputBytes];
  alignas(1024) unsigned char chunks[kGroups][2][kChunkBytes];
  // full: one arrival, of the producer, and the bytes of both copies.
  // empty: an arrival of each consumer warp of both blocks that the stage's copies reach.
  uint64_t full[T::kStages];
  uint64_t empty[T::kStages];

  // Split tiles: their sums, when all stages are read.
  __device__ float4* partialSums() { return reinterpret_cast<float4*>(weight); }
};

struct LinearWork {
  const float* bias;
  // Of e4m3 alone.
  const float* inputScales;
  const float* weightScales;
  LinearEpilogue epilogue;
  int32_t rows;
  int32_t outputs;
  int32_t steps;   // stages of the inner dimension
  int32_t splits;  // of it, over blocks of a cluster
  int32_t outputPairs;
  int32_t rowTiles;
  // Tiles of rows that are taken together, for all outputs, before the next ones are.
  int32_t bandTiles;
};

// The part of a tile that a block multiplies.
struct TilePart {
  int32_t output0;
  int32_t rowTile;
};

__device__ TilePart findTile(const LinearWork& work, int32_t unit, int32_t pairIndex) {
  const int32_t bandUnits = work.bandTiles * work.outputPairs;
  const int32_t band = unit / bandUnits;
  const int32_t inBand = unit % bandUnits;
  const int32_t width = min(work.bandTiles, work.rowTiles - band * work.bandTiles);
  return {(inBand / width * kPair + pairIndex) * kOutputs, band * work.bandTiles + inBand % width};
}

}  // namespace
}  // namespace longsight::cuda
