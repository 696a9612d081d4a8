// What a launch of the product of few rows is told, and what the warps of its blocks share.
#pragma once

#include "weights/fragments.cuh"
#include "weights/product_plan.h"
#include "weights/weights.h"

namespace longsight::cuda {

struct PartArguments {
  PartPlan plan;
  MatrixSource source;
  int32_t type;
  const float* bias;
  void* out;
  int64_t outStride;
};

struct alignas(16) ProductArguments {
  PartArguments parts[kMaxProductParts];
  int32_t partCount;
  int32_t rows;
  int32_t columns;
  bool inputIsBf16;
  const void* input;
  int64_t inputStride;
  const float* normWeights;
  float normEpsilon;
  ProductEpilogue epilogue;
  int32_t inputOffset;
  int32_t sumsOffset;
  int32_t inputRowBytes;
  uint32_t* counters;
  float* partials;
};

// What the warps of a block tell each other, besides the rings and sums.
struct BlockScratch {
  // Of each row of the input, by warp.
  float squares[kMaxProductRows][kProductWarps];
  // What a sum with this row is multiplied by.
  float outScale[kMaxProductRows];
  // Of each tile of a batch, the warps that have sums of it; two batches take turns.
  uint8_t firstWarp[2][kMaxBatchTiles];
  uint8_t lastWarp[2][kMaxBatchTiles];
  // Of tiles that are combined, whether the other splits are there.
  bool lastOfTile[kProductThreads];
};

}  // namespace longsight::cuda
