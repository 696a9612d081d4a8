// Decode: 1 to 16 rows over a long cache, bound by reading it. The columns are split over blocks
// and within a block over warps, each with its own pipeline of 16 columns a step; partial outputs
// meet in shared memory, then in a second kernel, in a fixed order.
#include <algorithm>

#include "chunk_layout.h"
#include "device/mma_sm80.cuh"

namespace longsight::cuda {
namespace {

constexpr int kWarps = 4;
constexpr int kThreads = kWarps * 32;
constexpr int kStages = 3;
constexpr int kColumns = 16;     // of a warp's step
constexpr int kPackedRows = 16;  // (row, head of the group) pairs of a block
// Two blocks on each processor of a large card; only the speed depends on it.
constexpr int kWantedBlocks = 264;

struct DecodeLayout {
  int rows;
  int firstRow;
  int heads;
  int kvHeads;
  int group;
  int packedBlocks;
  int splits;
  int columnsPerSplit;
};

DecodeLayout decodeLayout(const DecodeTask& task) {
  DecodeLayout layout{};
  layout.rows = task.rows;
  layout.firstRow = static_cast<int>(task.firstRow);
  layout.heads = task.shape.heads;
  layout.kvHeads = task.shape.kvHeads;
  layout.group = layout.heads / layout.kvHeads;
  layout.packedBlocks = (task.rows * layout.group + kPackedRows - 1) / kPackedRows;
  const int columns = layout.firstRow + task.rows;
  const int wanted = std::max(1, kWantedBlocks / (layout.kvHeads * layout.packedBlocks));
  constexpr int kStep = kColumns * kWarps;
  const int perSplit = (columns + wanted - 1) / wanted;
  layout.columnsPerSplit = std::max(4 * kStep, (perSplit + kStep - 1) / kStep * kStep);
  layout.splits = (columns + layout.columnsPerSplit - 1) / layout.columnsPerSplit;
  return layout;
}

template <class T, int kDim>
union SharedMemoryPlan {
  struct {
    T keys[kWarps][kStages][kColumns * kDim];
    T values[kWarps][kStages][kColumns * kDim];
  } tiles;
  struct {
    float output[kWarps][kPackedRows][kDim];
    float maximum[kWarps][kPackedRows];
    float sum[kWarps][kPackedRows];
  } merge;
};

// Partial results of (split, row, head): the output not yet divided, then its maximum and sum.
struct Partials {
  float* output;
  float2* sums;
};

template <class T, int kDim>
__global__ __launch_bounds__(kThreads) void decodeSplit(const DecodeLayout layout,
                                                        const Partials partials,
                                                        const Tensors tensors) {
  extern __shared__ __align__(1024) unsigned char sharedBytes[];
  auto& shared = *reinterpret_cast<SharedMemoryPlan<T, kDim>*>(sharedBytes);
  constexpr int kPieces = kDim / 8;
  const int split = blockIdx.x;
  const int kvHead = blockIdx.y;
  const int packedBegin = blockIdx.z * kPackedRows;
  const int lane = threadIdx.x % 32;
  const int warp = threadIdx.x / 32;
  const int columnsEnd = min(layout.firstRow + layout.rows, (split + 1) * layout.columnsPerSplit);
  const int64_t headOffset = int64_t(kvHead) * tensors.capacityRows * kDim;
  const T* keys = static_cast<const T*>(tensors.keys) + headOffset;
  const T* values = static_cast<const T*>(tensors.values) + headOffset;

  const auto stepColumn = [&](int step) {
    return split * layout.columnsPerSplit + (step * kWarps + warp) * kColumns;
  };
  const int firstColumn = stepColumn(0);
  const int steps =
      max(0, (columnsEnd - firstColumn + kColumns * kWarps - 1) / (kColumns * kWarps));
  const auto copyStep = [&](int step) {
    if (step < steps) {
      const uint32_t keyTile = sharedAddress(shared.tiles.keys[warp][step % kStages]);
      const uint32_t valueTile = sharedAddress(shared.tiles.values[warp][step % kStages]);
#pragma unroll
      for (int i = lane; i < kColumns * kPieces; i += 32) {
        const int row = i / kPieces;
        const int piece = i % kPieces;
        const int column = stepColumn(step) + row;
        const bool valid = column < columnsEnd;
        const int64_t source = valid ? int64_t(column) * kDim + piece * 8 : 0;
        const uint32_t place = tileOffset<kDim, kColumns>(row, piece);
        copyAsync16(keyTile + place, keys + source, valid);
        copyAsync16(valueTile + place, values + source, valid);
      }
    }
    copyAsyncCommit();
  };
  for (int step = 0; step < kStages - 1; ++step) copyStep(step);

  // Queries straight into the registers of matrix A.
  uint32_t q[kDim / 16][4];
  int position[2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int packed = packedBegin + lane / 4 + half * 8;
    const bool valid = packed < layout.rows * layout.group;
    const int row = packed / layout.group;
    const int head = kvHead * layout.group + packed % layout.group;
    position[half] = valid ? layout.firstRow + row : -1;
    const T* query = static_cast<const T*>(tensors.queries) +
                     (valid ? (int64_t(row) * layout.heads + head) * kDim + lane % 4 * 2 : 0);
#pragma unroll
    for (int k = 0; k < kDim / 16; ++k) {
      q[k][half] = valid ? *reinterpret_cast<const uint32_t*>(query + k * 16) : 0;
      q[k][half + 2] = valid ? *reinterpret_cast<const uint32_t*>(query + k * 16 + 8) : 0;
    }
  }

  float output[kDim / 8][4] = {};
  float maximum[2] = {-INFINITY, -INFINITY};
  float sum[2] = {0.0f, 0.0f};
  const float scaleLog2 = tensors.scale * kLog2E;
  for (int step = 0; step < steps; ++step) {
    copyAsyncWait<kStages - 2>();
    __syncwarp();
    copyStep(step + kStages - 1);
    const uint32_t keyTile = sharedAddress(shared.tiles.keys[warp][step % kStages]);
    const uint32_t valueTile = sharedAddress(shared.tiles.values[warp][step % kStages]);
    float scores[2][4] = {};
#pragma unroll
    for (int k = 0; k < kDim / 16; ++k) {
      uint32_t b[4];
      loadMatrix4(
          b, keyTile + tileOffset<kDim, kColumns>(lane % 8 + lane / 16 * 8, k * 2 + lane / 8 % 2));
      mma16x8x16<T>(scores[0], q[k], b[0], b[1]);
      mma16x8x16<T>(scores[1], q[k], b[2], b[3]);
    }
    float rescale[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float best = maximum[half];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int column = stepColumn(step) + i / 2 * 8 + lane % 4 * 2 + i % 2;
        float& score = scores[i / 2][half * 2 + i % 2];
        if (column > position[half] || column >= columnsEnd) score = -INFINITY;
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
    const uint32_t weights[4] = {
        packPair<T>(scores[0][0], scores[0][1]), packPair<T>(scores[0][2], scores[0][3]),
        packPair<T>(scores[1][0], scores[1][1]), packPair<T>(scores[1][2], scores[1][3])};
#pragma unroll
    for (int n = 0; n < kDim / 8; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) output[n][i] *= rescale[i / 2];
    }
#pragma unroll
    for (int n = 0; n < kDim / 16; ++n) {
      uint32_t b[4];
      loadMatrix4Transposed(b,
                            valueTile + tileOffset<kDim, kColumns>(lane % 16, n * 2 + lane / 16));
      mma16x8x16<T>(output[2 * n], weights, b[0], b[1]);
      mma16x8x16<T>(output[2 * n + 1], weights, b[2], b[3]);
    }
  }
  copyAsyncWait<0>();
  __syncthreads();

#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float total = sum[half];
    total += __shfl_xor_sync(~0u, total, 1);
    total += __shfl_xor_sync(~0u, total, 2);
    const int row = lane / 4 + half * 8;
    if (lane % 4 == 0) {
      shared.merge.maximum[warp][row] = maximum[half];
      shared.merge.sum[warp][row] = total;
    }
#pragma unroll
    for (int n = 0; n < kDim / 8; ++n) {
      *reinterpret_cast<float2*>(&shared.merge.output[warp][row][n * 8 + lane % 4 * 2]) =
          make_float2(output[n][2 * half], output[n][2 * half + 1]);
    }
  }
  __syncthreads();
  for (int i = threadIdx.x; i < kPackedRows * kDim; i += kThreads) {
    const int row = i / kDim;
    const int packed = packedBegin + row;
    if (packed >= layout.rows * layout.group) break;
    float best = -INFINITY;
    for (int w = 0; w < kWarps; ++w) best = fmaxf(best, shared.merge.maximum[w][row]);
    const float base = best == -INFINITY ? 0.0f : best * scaleLog2;
    float value = 0.0f;
    float total = 0.0f;
    for (int w = 0; w < kWarps; ++w) {
      const float weight = exp2f(fmaf(shared.merge.maximum[w][row], scaleLog2, -base));
      value += weight * shared.merge.output[w][row][i % kDim];
      total += weight * shared.merge.sum[w][row];
    }
    const int head = kvHead * layout.group + packed % layout.group;
    const int64_t slot =
        (int64_t(split) * layout.rows + packed / layout.group) * layout.heads + head;
    partials.output[slot * kDim + i % kDim] = value;
    if (i % kDim == 0) partials.sums[slot] = make_float2(best, total);
  }
}

// One block a (row, head), one thread a dimension.
template <class T, int kDim>
__global__ __launch_bounds__(kDim) void combineSplits(const DecodeLayout layout,
                                                      const Partials partials,
                                                      const Tensors tensors) {
  const int64_t pair = blockIdx.x;
  const int64_t pairs = int64_t(layout.rows) * layout.heads;
  const float scaleLog2 = tensors.scale * kLog2E;
  float best = -INFINITY;
  for (int split = 0; split < layout.splits; ++split) {
    best = fmaxf(best, partials.sums[split * pairs + pair].x);
  }
  float value = 0.0f;
  float total = 0.0f;
  for (int split = 0; split < layout.splits; ++split) {
    const float2 part = partials.sums[split * pairs + pair];
    const float weight = exp2f((part.x - best) * scaleLog2);
    value += weight * partials.output[(split * pairs + pair) * kDim + threadIdx.x];
    total += weight * part.y;
  }
  static_cast<T*>(tensors.output)[pair * kDim + threadIdx.x] = T(value / total);
  if (tensors.logSumExp != nullptr && threadIdx.x == 0) {
    tensors.logSumExp[pair % layout.heads * layout.rows + pair / layout.heads] =
        (best * scaleLog2 + log2f(total)) * kLn2;
  }
}

template <class T, int kDim>
cudaError_t launch(const DecodeTask& task, void* workspace, cudaStream_t stream) {
  const DecodeLayout layout = decodeLayout(task);
  const int64_t slots = int64_t{layout.splits} * layout.rows * layout.heads;
  auto* output = static_cast<float*>(workspace);
  const Partials partials{output, reinterpret_cast<float2*>(output + slots * kDim)};
  constexpr int kBytes = sizeof(SharedMemoryPlan<T, kDim>);
  const cudaError_t error = allowShared(decodeSplit<T, kDim>, kBytes);
  if (error != cudaSuccess) return error;
  decodeSplit<T, kDim>
      <<<dim3(layout.splits, layout.kvHeads, layout.packedBlocks), kThreads, kBytes, stream>>>(
          layout, partials, task.tensors);
  if (const cudaError_t failed = cudaGetLastError(); failed != cudaSuccess) return failed;
  combineSplits<T, kDim>
      <<<layout.rows * layout.heads, kDim, 0, stream>>>(layout, partials, task.tensors);
  return cudaGetLastError();
}

}  // namespace

int64_t decodeWorkspaceBytes(const DecodeTask& task) {
  const DecodeLayout layout = decodeLayout(task);
  return int64_t{layout.splits} * layout.rows * layout.heads * (task.shape.headDim + 2) * 4;
}

cudaError_t launchDecode(const DecodeTask& task, void* workspace, cudaStream_t stream) {
  if (!validate(task).empty() || workspace == nullptr) return cudaErrorInvalidValue;
  const HeadShape& shape = task.shape;
  if (shape.element == Element::bf16) {
    return shape.headDim == 64 ? launch<Bf16, 64>(task, workspace, stream)
                               : launch<Bf16, 128>(task, workspace, stream);
  }
  return shape.headDim == 64 ? launch<F16, 64>(task, workspace, stream)
                             : launch<F16, 128>(task, workspace, stream);
}

}  // namespace longsight::cuda
