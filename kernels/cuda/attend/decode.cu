// Decode: 1 to 16 rows over a long cache, bound by reading it. The columns are split over blocks
// and within a block over warps, each with its own pipeline of 16 columns a step; partial outputs
// meet in shared memory, then in a second kernel, in a fixed order. How a step lies in shared
// memory and becomes operands of mma.sync depends on the cache: decode_steps.cuh.
#include <algorithm>
#include <type_traits>

#include "attend/decode_steps.cuh"
#include "chunk_layout.h"
#include "device/dependent_launch.cuh"
#include "head_dispatch.cuh"

namespace longsight::cuda {
namespace {

constexpr int kStages = 3;
constexpr int kColumns = kStepColumns;
// (row, head of the group) pairs are packed into tiles of 16; a block takes one tile or two, so
// that keys and values of up to 32 pairs are read, and made elements, once.
constexpr int kPackedTile = 16;
// Two blocks on each processor of a large card: more take no longer and no less, only the speed
// depends on it.
constexpr int kWantedBlocks = 264;
// Steps of a warp in a split at least: the pipeline has to fill, and making q8 elements takes
// longer than reading them. Measured at 1,024 and 4,096 columns.
constexpr int leastSteps(KvStorage storage) { return storage == KvStorage::q8 ? 2 : 4; }
// Short splits are asked for while the kernel in front ends: elements of a side of a block.
constexpr int kPrefetchedElements = 32 << 10;

// As many as fit with their stages in kSharedBytesEverywhere.
LONGSIGHT_HOST_DEVICE constexpr int warpsOf(int headDim) { return headDim > 128 ? 2 : 4; }

// With 256 dimensions one tile takes all registers.
LONGSIGHT_HOST_DEVICE constexpr int mostTiles(int headDim) { return headDim > 128 ? 1 : 2; }

// What does not depend on the position of the first row.
struct DecodeLayout {
  int rows;
  int heads;
  int kvHeads;
  int group;
  int tiles;  // of a block
  int packedBlocks;
  int firstRow;  // unless it is read on the device
  const int32_t* firstRowOnDevice;
  int wantedSplits;
  int step;          // columns that the warps of a block take at a time
  int leastColumns;  // of a split, whole steps
  int maxSplits;     // blocks in a row of the grid, of which those without columns do nothing
};

// How the columns are split once the position is known; the same whoever knew it.
struct DecodeSplits {
  int firstRow;
  int columns;
  int columnsPerSplit;
  int count;
};

LONGSIGHT_HOST_DEVICE inline DecodeSplits splitColumns(const DecodeLayout& layout, int firstRow) {
  DecodeSplits splits{};
  splits.firstRow = firstRow;
  splits.columns = firstRow + layout.rows;
  const int perSplit = (splits.columns + layout.wantedSplits - 1) / layout.wantedSplits;
  const int whole = (perSplit + layout.step - 1) / layout.step * layout.step;
  splits.columnsPerSplit = whole > layout.leastColumns ? whole : layout.leastColumns;
  splits.count = (splits.columns + splits.columnsPerSplit - 1) / splits.columnsPerSplit;
  return splits;
}

__device__ __forceinline__ DecodeSplits splitColumns(const DecodeLayout& layout) {
  // The host's bound keeps a wrong position inside grid and workspace.
  return splitColumns(layout, layout.firstRowOnDevice == nullptr
                                  ? layout.firstRow
                                  : min(max(*layout.firstRowOnDevice, 0), layout.firstRow));
}

DecodeLayout decodeLayout(const DecodeTask& task) {
  DecodeLayout layout{};
  layout.rows = task.rows;
  layout.heads = task.shape.heads;
  layout.kvHeads = task.shape.kvHeads;
  layout.group = layout.heads / layout.kvHeads;
  const int packed = task.rows * layout.group;
  layout.tiles = packed > kPackedTile ? mostTiles(task.shape.headDim) : 1;
  const int perBlock = layout.tiles * kPackedTile;
  layout.packedBlocks = (packed + perBlock - 1) / perBlock;
  layout.firstRow = static_cast<int>(task.firstRow);
  layout.firstRowOnDevice = task.firstRowOnDevice;
  layout.wantedSplits = std::max(1, kWantedBlocks / (layout.kvHeads * layout.packedBlocks));
  layout.step = kColumns * warpsOf(task.shape.headDim);
  layout.leastColumns = leastSteps(task.shape.storage) * layout.step;
  layout.maxSplits =
      std::min(layout.wantedSplits,
               (layout.firstRow + layout.rows + layout.leastColumns - 1) / layout.leastColumns);
  return layout;
}

template <class Step, int kDim, int kTiles>
union SharedMemoryPlan {
  static constexpr int kWarps = warpsOf(kDim);
  static constexpr int kRows = kTiles * kPackedTile;
  Step steps[kWarps][kStages];
  struct {
    alignas(16) float output[kWarps][kRows][Step::kOutputStride];
    float maximum[kWarps][kRows];  // then by what the warp's output is multiplied
    float sum[kWarps][kRows];
  } merge;
};

// Partial results of (split, row, head): the output not yet divided, then its maximum and sum.
struct Partials {
  float* output;
  float2* sums;
};

// What a thread holds of a tile of packed rows; it has a part of two of them.
template <int kDim>
struct RowTile {
  static constexpr int kGroups = (kDim + 31) / 32;
  uint32_t queries[kDim / 16][4];  // matrix A
  int position[2];
  float output[kGroups][4][4] = {};
  float maximum[2] = {-INFINITY, -INFINITY};
  float sum[2] = {0.0f, 0.0f};

  template <class Step, class T>
  __device__ __forceinline__ void load(const DecodeLayout& layout, const T* queriesOfAll,
                                       int firstRow, int kvHead, int packedBegin) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int packed = packedBegin + lane / 4 + half * 8;
      const bool valid = packed < layout.rows * layout.group;
      const int row = packed / layout.group;
      const int head = kvHead * layout.group + packed % layout.group;
      position[half] = valid ? firstRow + row : -1;
      const T* query = queriesOfAll + (valid ? (int64_t(row) * layout.heads + head) * kDim : 0);
#pragma unroll
      for (int k = 0; k < kDim / 16; ++k) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const T* pair = query + k * 16 + Step::keyDim(lane, i);
          queries[k][half + 2 * i] = valid ? *reinterpret_cast<const uint32_t*>(pair) : 0;
        }
      }
    }
  }

  // Scores of 16 columns from `column` on become weights, `rescale` what older sums and outputs
  // have to be multiplied by.
  template <class T>
  __device__ __forceinline__ void weigh(float (&scores)[2][4], int column, int columnsEnd,
                                        float scaleLog2, float (&rescale)[2],
                                        uint32_t (&weights)[4]) {
    const int firstColumn = column + threadIdx.x % 4 * 2;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int end = min(position[half] + 1, columnsEnd);
      float best = maximum[half];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        float& score = scores[i / 2][half * 2 + i % 2];
        if (firstColumn + i / 2 * 8 + i % 2 >= end) score = -INFINITY;
        best = fmaxf(best, score);
      }
      best = fmaxf(best, __shfl_xor_sync(~0u, best, 1));
      best = fmaxf(best, __shfl_xor_sync(~0u, best, 2));
      const bool blind = best == -INFINITY;
      const float base = blind ? 0.0f : best * scaleLog2;
      // Exactly 1 where the maximum stays, so that no error piles up over thousands of steps.
      rescale[half] = blind ? 1.0f : exp2Fast((maximum[half] - best) * scaleLog2);
      maximum[half] = best;
      float added = 0.0f;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        float& score = scores[i / 2][half * 2 + i % 2];
        score = exp2Fast(fmaf(score, scaleLog2, -base));
        added += score;
      }
      sum[half] = fmaf(sum[half], rescale[half], added);
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      weights[i] = packPair<T>(scores[i / 2][i % 2 * 2], scores[i / 2][i % 2 * 2 + 1]);
    }
  }

  __device__ __forceinline__ void rescaleGroup(int group, const float (&rescale)[2]) {
#pragma unroll
    for (int n = 0; n < 4; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) output[group][n][i] *= rescale[i / 2];
    }
  }
};

template <class Step, class T, int kDim, int kTiles>
__global__ __launch_bounds__(warpsOf(kDim) * 32) void decodeSplit(const DecodeLayout layout,
                                                                  const Partials partials,
                                                                  const Tensors tensors) {
  extern __shared__ __align__(1024) unsigned char sharedBytes[];
  using Plan = SharedMemoryPlan<Step, kDim, kTiles>;
  auto& shared = *reinterpret_cast<Plan*>(sharedBytes);
  constexpr int kWarps = warpsOf(kDim);
  constexpr int kOutputGroups = RowTile<kDim>::kGroups;
  const int split = blockIdx.x;
  const int kvHead = blockIdx.y;
  const int packedBegin = blockIdx.z * Plan::kRows;
  const int lane = threadIdx.x % 32;
  const int warp = threadIdx.x / 32;
  const int64_t cacheRow = int64_t(kvHead) * tensors.capacityRows;
  letNextStart();
  if (threadIdx.x == 0 && blockIdx.z == 0) {
    // Rows that may be wrong, if the kernel in front sets the position, but are of the cache.
    const DecodeSplits early = splitColumns(layout);
    const int column = split * early.columnsPerSplit;
    const int columns = min(early.columns - column, early.columnsPerSplit);
    if (columns > 0 && early.columnsPerSplit * kDim <= kPrefetchedElements) {
      Step::prefetch(tensors, cacheRow + column, columns / kColumns * kColumns);
    }
  }
  waitForPrevious();
  const DecodeSplits splits = splitColumns(layout);
  if (split >= splits.count) return;
  const int columnsEnd = min(splits.columns, (split + 1) * splits.columnsPerSplit);

  const auto stepColumn = [&](int step) {
    return split * splits.columnsPerSplit + (step * kWarps + warp) * kColumns;
  };
  const int firstColumn = stepColumn(0);
  const int steps =
      max(0, (columnsEnd - firstColumn + kColumns * kWarps - 1) / (kColumns * kWarps));
  const auto copyStep = [&](int step) {
    if (step < steps) {
      const int column = stepColumn(step);
      shared.steps[warp][step % kStages].copy(tensors, cacheRow + column, columnsEnd - column,
                                              lane);
    }
    copyAsyncCommit();
  };
  for (int step = 0; step < kStages - 1; ++step) copyStep(step);

  RowTile<kDim> tiles[kTiles];
#pragma unroll
  for (int m = 0; m < kTiles; ++m) {
    tiles[m].template load<Step>(layout, static_cast<const T*>(tensors.queries), splits.firstRow,
                                 kvHead, packedBegin + m * kPackedTile);
  }
  const float scaleLog2 = tensors.scale * kLog2E;
  for (int step = 0; step < steps; ++step) {
    copyAsyncWait<kStages - 2>();
    __syncwarp();
    copyStep(step + kStages - 1);
    const Step& current = shared.steps[warp][step % kStages];
    float scores[kTiles][2][4] = {};
#pragma unroll
    for (int k = 0; k < kDim / 16; ++k) {
      uint32_t b[4];
      current.loadKeys(k, lane, b);
#pragma unroll
      for (int m = 0; m < kTiles; ++m) {
        mma16x8x16<T>(scores[m][0], tiles[m].queries[k], b[0], b[1]);
        mma16x8x16<T>(scores[m][1], tiles[m].queries[k], b[2], b[3]);
      }
    }
    float rescale[kTiles][2];
    uint32_t weights[kTiles][4];
    // After some steps a maximum seldom rises. Elements of 256 dimensions, on sm_120 also two tiles
    // of 128, leave no register to skip on.
#if __CUDA_ARCH__ >= 1200
    constexpr int kMostToSkip = 128;
#else
    constexpr int kMostToSkip = 256;
#endif
    constexpr bool kAlwaysRescales =
        std::is_same_v<Step, ElementStep<T, kDim>> && (kDim > 128 || kDim * kTiles > kMostToSkip);
#pragma unroll
    for (int m = 0; m < kTiles; ++m) {
      tiles[m].template weigh<T>(scores[m], stepColumn(step), columnsEnd, scaleLog2, rescale[m],
                                 weights[m]);
      if (kAlwaysRescales || !__any_sync(~0u, rescale[m][0] != 1.0f || rescale[m][1] != 1.0f)) {
        continue;
      }
#pragma unroll
      for (int group = 0; group < kOutputGroups; ++group) tiles[m].rescaleGroup(group, rescale[m]);
    }
#pragma unroll
    for (int group = 0; group < kOutputGroups; ++group) {
      uint32_t b[4][2];
      current.loadValues(group, lane, b);
#pragma unroll
      for (int m = 0; m < kTiles; ++m) {
        if (kAlwaysRescales) tiles[m].rescaleGroup(group, rescale[m]);
#pragma unroll
        for (int n = 0; n < 4; ++n) {
          mma16x8x16<T>(tiles[m].output[group][n], weights[m], b[n][0], b[n][1]);
        }
      }
    }
  }
  copyAsyncWait<0>();
  __syncthreads();

#pragma unroll
  for (int m = 0; m < kTiles; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float total = tiles[m].sum[half];
      total += __shfl_xor_sync(~0u, total, 1);
      total += __shfl_xor_sync(~0u, total, 2);
      const int row = m * kPackedTile + lane / 4 + half * 8;
      if (lane % 4 == 0) {
        shared.merge.maximum[warp][row] = tiles[m].maximum[half];
        shared.merge.sum[warp][row] = total;
      }
#pragma unroll
      for (int group = 0; group < kOutputGroups; ++group) {
        Step::storeOutput(shared.merge.output[warp][row], lane, group, half,
                          tiles[m].output[group]);
      }
    }
  }
  __syncthreads();
  const int packedRows = min(Plan::kRows, layout.rows * layout.group - packedBegin);
  const auto slotOf = [&](int row) {
    const int packed = packedBegin + row;
    const int head = kvHead * layout.group + packed % layout.group;
    return (int64_t(split) * layout.rows + packed / layout.group) * layout.heads + head;
  };
  if (const int row = threadIdx.x; row < packedRows) {
    float best = -INFINITY;
    for (int w = 0; w < kWarps; ++w) best = fmaxf(best, shared.merge.maximum[w][row]);
    const float base = best == -INFINITY ? 0.0f : best * scaleLog2;
    float total = 0.0f;
    for (int w = 0; w < kWarps; ++w) {
      float& weight = shared.merge.maximum[w][row];
      weight = exp2f(fmaf(weight, scaleLog2, -base));
      total += weight * shared.merge.sum[w][row];
    }
    partials.sums[slotOf(row)] = make_float2(best, total);
  }
  __syncthreads();
  for (int i = threadIdx.x; i < packedRows * (kDim / 4); i += kWarps * 32) {
    const int row = i / (kDim / 4);
    const int dim = i % (kDim / 4) * 4;
    float4 value = {};
#pragma unroll
    for (int w = 0; w < kWarps; ++w) {
      const float weight = shared.merge.maximum[w][row];
      const float4 part = *reinterpret_cast<const float4*>(&shared.merge.output[w][row][dim]);
      value.x += weight * part.x;
      value.y += weight * part.y;
      value.z += weight * part.z;
      value.w += weight * part.w;
    }
    *reinterpret_cast<float4*>(partials.output + slotOf(row) * kDim + dim) = value;
  }
}

// One block a (row, head). A thread adds one dimension of every kCombineParts-th split, since so
// few blocks have to hide the latency of reading them; the parts meet in a fixed order.
constexpr int kCombineThreads = 512;
template <int kDim>
inline constexpr int kCombineParts = kCombineThreads / kDim;

template <class T, int kDim>
__global__ __launch_bounds__(kCombineThreads) void combineSplits(const DecodeLayout layout,
                                                                 const Partials partials,
                                                                 const Tensors tensors) {
  constexpr int kParts = kCombineParts<kDim>;
  __shared__ float weights[kWantedBlocks];
  __shared__ float sums[kWantedBlocks];
  __shared__ float values[kParts][kDim];
  waitForPrevious();
  letNextStart();
  const int splits = splitColumns(layout).count;
  const int64_t pair = blockIdx.x;
  const int64_t pairs = int64_t(layout.rows) * layout.heads;
  const float scaleLog2 = tensors.scale * kLog2E;
  for (int split = threadIdx.x; split < splits; split += kParts * kDim) {
    const float2 part = partials.sums[split * pairs + pair];
    weights[split] = part.x;
    sums[split] = part.y;
  }
  __syncthreads();
  float best = -INFINITY;
  for (int split = 0; split < splits; ++split) best = fmaxf(best, weights[split]);
  const int dim = threadIdx.x % kDim;
  const int part = threadIdx.x / kDim;
  float value = 0.0f;
#pragma unroll 4
  for (int split = part; split < splits; split += kParts) {
    value += exp2f((weights[split] - best) * scaleLog2) *
             partials.output[(split * pairs + pair) * kDim + dim];
  }
  values[part][dim] = value;
  __syncthreads();
  if (part != 0) return;
  float total = 0.0f;
  for (int split = 0; split < splits; ++split) {
    total += exp2f((weights[split] - best) * scaleLog2) * sums[split];
  }
#pragma unroll
  for (int i = 1; i < kParts; ++i) value += values[i][dim];
  static_cast<T*>(tensors.output)[pair * kDim + dim] = T(value / total);
  if (tensors.logSumExp != nullptr && dim == 0) {
    tensors.logSumExp[pair % layout.heads * layout.rows + pair / layout.heads] =
        (best * scaleLog2 + log2f(total)) * kLn2;
  }
}

template <class Step, class T, int kDim, int kTiles>
cudaError_t launchSplits(const DecodeLayout& layout, const Partials& partials,
                         const Tensors& tensors, cudaStream_t stream) {
  constexpr int kBytes = sizeof(SharedMemoryPlan<Step, kDim, kTiles>);
  static_assert(kBytes <= kSharedBytesEverywhere);
  const cudaError_t error = allowShared(decodeSplit<Step, T, kDim, kTiles>, kBytes);
  if (error != cudaSuccess) return error;
  return launchDependent(decodeSplit<Step, T, kDim, kTiles>,
                         dim3(layout.maxSplits, layout.kvHeads, layout.packedBlocks),
                         warpsOf(kDim) * 32, kBytes, stream, layout, partials, tensors);
}

template <class Step, class T, int kDim>
cudaError_t launch(const DecodeTask& task, void* workspace, cudaStream_t stream) {
  const DecodeLayout layout = decodeLayout(task);
  const int64_t slots = int64_t{layout.maxSplits} * layout.rows * layout.heads;
  auto* output = static_cast<float*>(workspace);
  const Partials partials{output, reinterpret_cast<float2*>(output + slots * kDim)};
  const cudaError_t error =
      layout.tiles == 1
          ? launchSplits<Step, T, kDim, 1>(layout, partials, task.tensors, stream)
          : launchSplits<Step, T, kDim, mostTiles(kDim)>(layout, partials, task.tensors, stream);
  if (error != cudaSuccess) return error;
  return launchDependent(combineSplits<T, kDim>, dim3(layout.rows * layout.heads),
                         kCombineParts<kDim> * kDim, 0, stream, layout, partials, task.tensors);
}

}  // namespace

int64_t decodeWorkspaceBytes(const DecodeTask& task) {
  const DecodeLayout layout = decodeLayout(task);
  return int64_t{layout.maxSplits} * layout.rows * layout.heads * (task.shape.headDim + 2) * 4;
}

cudaError_t launchDecode(const DecodeTask& task, void* workspace, cudaStream_t stream) {
  if (!validate(task).empty() || workspace == nullptr) return cudaErrorInvalidValue;
  return dispatchHead(task.shape, [&]<class T, int kDim>() {
    return task.shape.storage == KvStorage::q8
               ? launch<Q8Step<T, kDim>, T, kDim>(task, workspace, stream)
               : launch<ElementStep<T, kDim>, T, kDim>(task, workspace, stream);
  });
}

}  // namespace longsight::cuda
