// How a product of few rows is shared among the multiprocessors. Host code alone.
#pragma once

#include <cstdint>

#include "weights/weights.h"

namespace longsight::cuda {

inline constexpr int kProductWarps = 8;
inline constexpr int kProductThreads = 32 * kProductWarps;
// Tiles of 16 rows whose sums lie in shared memory at a time.
inline constexpr int kMaxBatchTiles = 16;
inline constexpr int kMaxStages = 8;
inline constexpr int kMaxSplits = 16;
// The counters have the beginning of the workspace for themselves, so that the next launch, with
// another plan, finds them zero.
inline constexpr int64_t kCounterBytes = 128 << 10;

// What the plan has to know of the device.
struct ProductDevice {
  int32_t processors = 0;
  // Shared memory that a block may take so that the block of the next launch, which begins to read
  // its weights early, has room beside it; and without that.
  int32_t sharedBytes = 0;
  int32_t sharedBytesAlone = 0;
};
cudaError_t productDevice(ProductDevice& device);

// The blocks [firstCta, firstCta + splits * ctasPerSplit) work on the part: block i of a split on
// tiles [i, i + 1) * tiles / ctasPerSplit, split s on column blocks [s, s + 1) * columnBlocks /
// splits.
struct PartPlan {
  int32_t firstCta = 0;
  int32_t ctasPerSplit = 0;
  int32_t splits = 0;
  int32_t tiles = 0;
  int32_t columnBlocks = 0;
  int32_t unitsPerBlock = 0;
  int32_t stages = 0;
  int32_t batchTiles = 0;
  // In the workspace, when splits > 1: first of one uint32 a tile; behind the counters first of the
  // floats [tile][split][rows, a power of two][16].
  int32_t firstCounter = 0;
  int64_t firstPartial = 0;
};

struct ProductPlan {
  PartPlan parts[kMaxProductParts];
  int32_t ctas = 0;
  // Byte offsets in shared memory: the rings of the warps, the input, the sums.
  int32_t inputOffset = 0;
  int32_t sumsOffset = 0;
  int32_t sharedBytes = 0;
  // Of the input in shared memory.
  int32_t inputRowBytes = 0;
  int64_t workspaceBytes = 0;
};

ProductPlan planProduct(const ProductTask& task, const ProductDevice& device);

}  // namespace longsight::cuda
