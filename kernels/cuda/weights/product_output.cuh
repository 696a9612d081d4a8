// The sums of a product of few rows on their way out: those of the warps of a block, then those of
// the splits of the columns, each in one order; bias and epilogue.
#pragma once

#include "weights/product_arguments.cuh"

namespace longsight::cuda {

// One output to where it belongs.
__device__ __forceinline__ void storeOutput(const ProductArguments& arguments,
                                            const PartArguments& part, int64_t index, float value) {
  switch (arguments.epilogue) {
    case ProductEpilogue::addF32:
      value += __ldcg(static_cast<float*>(part.out) + index);
      [[fallthrough]];
    case ProductEpilogue::storeF32:
    case ProductEpilogue::swigluF32:
      static_cast<float*>(part.out)[index] = value;
      break;
    case ProductEpilogue::storeBf16:
    case ProductEpilogue::swigluBf16:
      static_cast<Bf16*>(part.out)[index] = __float2bfloat16_rn(value);
  }
}

// Four neighbouring rows of the matrix, with their bias.
__device__ __forceinline__ void storeOutputs(const ProductArguments& arguments,
                                             const PartArguments& part, int matrixRow, int row,
                                             float4 sums) {
  float values[4] = {sums.x, sums.y, sums.z, sums.w};
  if (part.bias != nullptr) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (matrixRow + i < part.source.rows) values[i] += __ldg(part.bias + matrixRow + i);
    }
  }
  const bool gated = arguments.epilogue == ProductEpilogue::swigluF32 ||
                     arguments.epilogue == ProductEpilogue::swigluBf16;
  const int64_t first = row * part.outStride + (gated ? matrixRow / 2 : matrixRow);
  if (gated) {
#pragma unroll
    for (int i = 0; i < 4; i += 2) {
      if (matrixRow + i >= part.source.rows) return;
      const float gate = values[i];
      storeOutput(arguments, part, first + i / 2, gate / (1.0f + __expf(-gate)) * values[i + 1]);
    }
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (matrixRow + i < part.source.rows) storeOutput(arguments, part, first + i, values[i]);
    }
  }
}

__device__ __forceinline__ void addTo(float4& sum, const float4& value) {
  sum.x += value.x;
  sum.y += value.y;
  sum.z += value.z;
  sum.w += value.w;
}

// Sums of a tile, rows filled up to a power of two: index = tile << shift | row << 4 | row of the
// tile. A thread has four at a time.
__device__ __forceinline__ int outputShift(int rows) {
  return rows == 1 ? 4 : rows == 2 ? 5 : rows <= 4 ? 6 : 7;
}

// Where the sums of a warp for a tile of a batch lie: the shares of the warps follow each other, so
// tile + warp occurs once. Two batches take turns.
__device__ __forceinline__ float* sumsOf(const ProductArguments& arguments, char* shared,
                                         int batchTiles, int turn, int tile, int warp, int shift) {
  return reinterpret_cast<float*>(shared + arguments.sumsOffset) +
         ((turn * (batchTiles + kProductWarps) + tile + warp) << shift);
}

// The outputs of a batch, after all warps have stored their sums: done, or left for the block that
// combines the splits. All threads.
static __device__ __noinline__ void finishBatch(const ProductArguments& arguments,
                                                const PartArguments& part, int split, int batch,
                                                int tiles, int turn, char* shared,
                                                const BlockScratch& scratch) {
  const int shift = outputShift(arguments.rows);
  auto* partials = reinterpret_cast<float4*>(arguments.partials + part.plan.firstPartial);
  for (int index = threadIdx.x; index < tiles << (shift - 2); index += kProductThreads) {
    const int tile = index >> (shift - 2);
    const int offset = index << 2 & ((1 << shift) - 1);
    const int row = offset / kTileRows;
    if (row >= arguments.rows) continue;
    const int first = scratch.firstWarp[turn][tile], last = scratch.lastWarp[turn][tile];
    const float* slot =
        sumsOf(arguments, shared, part.plan.batchTiles, turn, tile, first, shift) + offset;
    float4 sum = {};
    for (int warp = first; warp <= last; ++warp, slot += 1 << shift) {
      addTo(sum, *reinterpret_cast<const float4*>(slot));
    }
    const float scale = scratch.outScale[row];
    sum = make_float4(sum.x * scale, sum.y * scale, sum.z * scale, sum.w * scale);
    if (part.plan.splits == 1) {
      storeOutputs(arguments, part, (batch + tile) * kTileRows + offset % kTileRows, row, sum);
    } else {
      partials[(((int64_t{batch + tile} * part.plan.splits + split) << shift) + offset) / 4] = sum;
    }
  }
}

// For each tile of the block, if the other splits of it are there: their sum. All threads.
static __device__ __noinline__ void combineSplits(const ProductArguments& arguments,
                                                  const PartArguments& part, int tileBegin,
                                                  int tileEnd, BlockScratch& scratch) {
  const PartPlan& plan = part.plan;
  const int shift = outputShift(arguments.rows);
  const auto* partials = reinterpret_cast<const float4*>(arguments.partials + plan.firstPartial);
  __threadfence();
  for (int begin = tileBegin; begin < tileEnd; begin += kProductThreads) {
    __syncthreads();
    const int tiles = min(kProductThreads, tileEnd - begin);
    if (static_cast<int>(threadIdx.x) < tiles) {
      uint32_t* counter = arguments.counters + plan.firstCounter + begin + threadIdx.x;
      const bool last = atomicAdd(counter, 1u) == static_cast<uint32_t>(plan.splits - 1);
      if (last) *counter = 0;
      scratch.lastOfTile[threadIdx.x] = last;
      __threadfence();
    }
    __syncthreads();
    for (int index = threadIdx.x; index < tiles << (shift - 2); index += kProductThreads) {
      const int tile = index >> (shift - 2);
      const int offset = index << 2 & ((1 << shift) - 1);
      const int row = offset / kTileRows;
      if (row >= arguments.rows || !scratch.lastOfTile[tile]) continue;
      const float4* first =
          partials + (((int64_t{begin + tile} * plan.splits) << shift) + offset) / 4;
      float4 sum = {};
#pragma unroll 4
      for (int i = 0; i < plan.splits; ++i) addTo(sum, __ldcg(first + (i << (shift - 2))));
      storeOutputs(arguments, part, (begin + tile) * kTileRows + offset % kTileRows, row, sum);
    }
  }
}

}  // namespace longsight::cuda
