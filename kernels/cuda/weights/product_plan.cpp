#include "weights/product_plan.h"

#include <algorithm>
#include <bit>

#include "weights/matrix_layout.h"

namespace longsight::cuda {
namespace {

// Facts about a part that do not depend on the plan.
struct PartShape {
  int64_t tiles = 0;
  int64_t columnBlocks = 0;
  int32_t unitsPerBlock = 1;
  int32_t unitBytes = 0;
  int32_t blockColumns = 0;
};

PartShape shapeOf(const DeviceMatrix& matrix) {
  PartShape shape;
  shape.tiles = matrixTiles(matrix);
  // Plain types: units of 4096 bytes (fragments.cuh).
  shape.unitBytes = 4096;
  shape.blockColumns = 128;
  shape.unitsPerBlock = matrix.type == kTypeF32 ? 2 : 1;
  dispatchBlocks(matrix.type, [&]<int32_t kType>() {
    shape.unitBytes = BlockFormat<kType>::kUnitBytes;
    shape.blockColumns = BlockFormat<kType>::kUnitColumns;
  });
  shape.columnBlocks = ceilDiv(matrix.columns, shape.blockColumns);
  return shape;
}

// Rows as the sums have them, a power of two.
int32_t paddedRows(int32_t rows) {
  return static_cast<int32_t>(std::bit_ceil(static_cast<uint32_t>(rows)));
}

// Two buffers; the slots of a batch are one a tile and one a warp (product.cu).
int32_t sumsBytes(int32_t batchTiles, int32_t rows) {
  return 2 * (batchTiles + kProductWarps) * kTileRows * paddedRows(rows) *
         static_cast<int32_t>(sizeof(float));
}

constexpr int32_t kMaxSumsBytes = 16 << 10;
// Below this the rings hide too little of the way to the memory.
constexpr int32_t kMinRingBytes = 48 << 10;

int32_t maxBatchTiles(int32_t rows) {
  int32_t tiles = kMaxBatchTiles;
  while (tiles > 1 && sumsBytes(tiles, rows) > kMaxSumsBytes) --tiles;
  return tiles;
}

int32_t minRingBytes(const PartShape& shape) {
  return std::max(kMinRingBytes, kProductWarps * 2 * shape.unitBytes);
}

struct Split {
  int32_t splits = 1;
  // Bytes that the busiest block reads, with what the split costs: the measure of time.
  double cost = 0.0;
};

// The best number of splits for a part on `ctas` blocks.
Split bestSplit(const PartShape& shape, int32_t rows, int32_t ctas, int32_t inputBudget) {
  // What combining costs: about 3 us of one block's share of the bandwidth, and the sums.
  constexpr double kCombineBytes = 64 << 10;
  Split best;
  bool found = false;
  const auto most = static_cast<int32_t>(
      std::min<int64_t>({int64_t{kMaxSplits}, shape.columnBlocks, int64_t{ctas}}));
  for (int32_t splits = 1; splits <= most; ++splits) {
    const int64_t blocks = ceilDiv(shape.columnBlocks, splits);
    const bool fits = blocks * shape.blockColumns * rows * 2 <= inputBudget;
    const int64_t tiles = ceilDiv(shape.tiles, ctas / splits);
    double cost = static_cast<double>(tiles * blocks * shape.unitsPerBlock * shape.unitBytes);
    if (splits > 1) {
      cost += kCombineBytes + static_cast<double>(tiles * kTileRows * rows) * 2.0 * sizeof(float);
    }
    // A split whose input does not fit is taken only while none does.
    const bool better = !found || cost < best.cost;
    if (fits && better) {
      best = {splits, cost};
      found = true;
    } else if (!found) {
      best = {splits, cost};
    }
  }
  return best;
}

}  // namespace

cudaError_t productDevice(ProductDevice& device) {
  int ordinal = 0, perProcessor = 0, reserved = 0, optIn = 0;
  const auto attribute = [&](int* value, cudaDeviceAttr name) {
    return cudaDeviceGetAttribute(value, name, ordinal);
  };
  cudaError_t error = cudaGetDevice(&ordinal);
  if (error == cudaSuccess)
    error = attribute(&perProcessor, cudaDevAttrMaxSharedMemoryPerMultiprocessor);
  if (error == cudaSuccess) error = attribute(&reserved, cudaDevAttrReservedSharedMemoryPerBlock);
  if (error == cudaSuccess) error = attribute(&optIn, cudaDevAttrMaxSharedMemoryPerBlockOptin);
  if (error == cudaSuccess) error = attribute(&device.processors, cudaDevAttrMultiProcessorCount);
  if (error != cudaSuccess) return error;
  // The kernel has some static shared memory besides.
  constexpr int kStaticBytes = 2 << 10;
  device.sharedBytesAlone = optIn - kStaticBytes;
  device.sharedBytes =
      std::min(device.sharedBytesAlone, perProcessor / 2 - reserved - kStaticBytes);
  return cudaSuccess;
}

namespace {

// Blocks and splits of the parts with a budget of shared memory, and what they cost.
struct Sharing {
  int32_t sharedBytes = 0;
  int32_t ctas[kMaxProductParts] = {};
  Split splits[kMaxProductParts];
  double cost = 0.0;
};

Sharing shareOut(const ProductTask& task, const PartShape* shapes, int32_t processors,
                 int32_t sharedBytes) {
  const int32_t parts = task.partCount, rows = task.rows;
  double bytes[kMaxProductParts] = {};
  double allBytes = 0.0;
  int32_t ring = 0;
  for (int32_t i = 0; i < parts; ++i) {
    const PartShape& shape = shapes[i];
    bytes[i] = static_cast<double>(shape.tiles * shape.columnBlocks * shape.unitsPerBlock) *
               shape.unitBytes;
    allBytes += bytes[i];
    ring = std::max(ring, minRingBytes(shape));
  }
  const int32_t inputBudget = sharedBytes - ring - sumsBytes(maxBatchTiles(rows), rows);

  // In proportion to the bytes, then moved to the slowest part while that helps.
  Sharing best;
  best.sharedBytes = sharedBytes;
  int32_t left = processors;
  for (int32_t i = 0; i < parts; ++i) {
    const auto share = static_cast<int32_t>(processors * bytes[i] / allBytes + 0.5);
    best.ctas[i] = i == parts - 1 ? left : std::clamp(share, 1, left - (parts - 1 - i));
    left -= best.ctas[i];
  }
  const auto evaluate = [&](Sharing& sharing) {
    sharing.cost = 0.0;
    for (int32_t i = 0; i < parts; ++i) {
      sharing.splits[i] = bestSplit(shapes[i], rows, sharing.ctas[i], inputBudget);
      sharing.cost = std::max(sharing.cost, sharing.splits[i].cost);
    }
  };
  evaluate(best);
  for (bool improved = parts > 1; improved;) {
    improved = false;
    for (int32_t from = 0; from < parts && !improved; ++from) {
      for (int32_t to = 0; to < parts && !improved; ++to) {
        for (int32_t count = 1; count <= 8 && count < best.ctas[from] && from != to; ++count) {
          Sharing moved = best;
          moved.ctas[from] -= count;
          moved.ctas[to] += count;
          evaluate(moved);
          if (moved.cost >= best.cost) continue;
          best = moved;
          improved = true;
          break;
        }
      }
    }
  }
  return best;
}

}  // namespace

ProductPlan planProduct(const ProductTask& task, const ProductDevice& device) {
  const int32_t parts = task.partCount, rows = task.rows;
  PartShape shapes[kMaxProductParts];
  for (int32_t i = 0; i < parts; ++i) shapes[i] = shapeOf(task.parts[i].matrix);
  // What it costs that the next launch has no room: about 2 us.
  constexpr double kAloneBytes = 40 << 10;
  Sharing sharing = shareOut(task, shapes, device.processors, device.sharedBytes);
  const Sharing alone = shareOut(task, shapes, device.processors, device.sharedBytesAlone);
  if (alone.cost + kAloneBytes < sharing.cost) sharing = alone;
  const int32_t* ctas = sharing.ctas;
  const Split* splits = sharing.splits;
  const int32_t batch = maxBatchTiles(rows);

  ProductPlan plan;
  int32_t usedBatch = 1;
  int64_t inputBytes = 0, counters = 0, partials = 0;
  for (int32_t i = 0; i < parts; ++i) {
    PartPlan& part = plan.parts[i];
    const PartShape& shape = shapes[i];
    part.firstCta = plan.ctas;
    part.splits = splits[i].splits;
    part.ctasPerSplit = static_cast<int32_t>(std::min<int64_t>(ctas[i] / part.splits, shape.tiles));
    plan.ctas += part.splits * part.ctasPerSplit;
    part.tiles = static_cast<int32_t>(shape.tiles);
    part.columnBlocks = static_cast<int32_t>(shape.columnBlocks);
    part.unitsPerBlock = shape.unitsPerBlock;
    const int64_t tilesOfCta = ceilDiv(shape.tiles, part.ctasPerSplit);
    const int64_t batches = ceilDiv(tilesOfCta, batch);
    part.batchTiles = static_cast<int32_t>(ceilDiv(tilesOfCta, batches));
    usedBatch = std::max(usedBatch, part.batchTiles);
    inputBytes =
        std::max(inputBytes, ceilDiv(shape.columnBlocks, part.splits) * shape.blockColumns * 2);
    if (part.splits > 1) {
      part.firstCounter = static_cast<int32_t>(counters);
      part.firstPartial = partials;
      counters += shape.tiles;
      partials += shape.tiles * part.splits * paddedRows(rows) * kTileRows;
    }
  }
  plan.inputRowBytes = static_cast<int32_t>(inputBytes);
  const int32_t behindRing = plan.inputRowBytes * rows + sumsBytes(usedBatch, rows);
  // The rings get what is left.
  const int32_t ringBytes = std::max(sharing.sharedBytes - behindRing, 0);
  int32_t usedRing = 0;
  for (int32_t i = 0; i < parts; ++i) {
    PartPlan& part = plan.parts[i];
    const int32_t stageBytes = shapes[i].unitBytes * kProductWarps;
    part.stages = std::clamp(ringBytes / stageBytes, 2, kMaxStages);
    usedRing = std::max(usedRing, part.stages * stageBytes);
  }
  plan.inputOffset = usedRing;
  plan.sumsOffset = usedRing + plan.inputRowBytes * rows;
  plan.sharedBytes = usedRing + behindRing;
  plan.workspaceBytes = kCounterBytes + partials * static_cast<int64_t>(sizeof(float));
  return plan;
}

}  // namespace longsight::cuda
