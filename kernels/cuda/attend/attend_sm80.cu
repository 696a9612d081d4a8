// Stage 3 on mma.sync, for every architecture from sm_80 on: 128 rows a block. The loop follows
// FlashAttention-2 (arXiv 2307.08691): one buffer for keys and one for values; the values of a tile
// are copied while its scores are computed, the keys of the next while it is multiplied with its
// values. The columns of a tile are of the run, from the diagonal backwards, or of the list, whose
// rows are gathered one by one.
#include "attend/tile_work.cuh"
#include "head_dispatch.cuh"

namespace longsight::cuda {
namespace {

// 32 rows a warp halve the reads of keys and values; with 256 dimensions the output leaves
// registers for 16. With 64 a tile is so soon done that its copies have to be a whole tile ahead,
// in a second buffer, and three blocks a processor hide more than longer tiles do.
template <int kDim>
struct AttendTraits {
  static constexpr int kRowBlocks = kDim > 128 ? 1 : 2;  // of 16 rows, of a warp
  static constexpr int kThreads = 128 / (16 * kRowBlocks) * 32;
  static constexpr int kColumns = kDim == 64 ? 48 : kDim > 128 ? 32 : 64;
  static constexpr int kStages = kDim == 64 ? 2 : 1;
  static constexpr int kCopyUnroll = kDim == 64 ? 3 : 4;
  static constexpr int kBlocks = kDim == 64 ? 3 : 1;  // a processor
  static constexpr int kPieces = kDim / 8;
  // Threads that copy a row, some of them idle where its pieces are no power of two.
  static constexpr int kCopyThreads = kTileDim<kDim> / 8;
  static constexpr int kRowsAtOnce = kThreads / kCopyThreads;
};
// Where the maximum of a row starts: finite, since the first rows of a tile see nothing of its last
// columns and the difference of two infinities is no number.
constexpr float kLowestMaximum = -1e30f;

template <class T, int kDim>
struct SharedMemoryPlan {
  static constexpr int kColumns = AttendTraits<kDim>::kColumns;
  alignas(1024) T queries[kTileRows * kTileDim<kDim>];
  alignas(1024) T keys[AttendTraits<kDim>::kStages][kColumns * kTileDim<kDim>];
  alignas(1024) T values[AttendTraits<kDim>::kStages][kColumns * kTileDim<kDim>];
  // Columns of this tile and the next, -1 where there is none.
  int columns[2][kColumns];
  // Here rather than in registers, of which the loop needs all.
  TileWork work;
};

template <class T, int kDim>
__global__ __launch_bounds__(AttendTraits<kDim>::kThreads, AttendTraits<kDim>::kBlocks) void attend(
    const __grid_constant__ ChunkLayout layout, const __grid_constant__ Workspace workspace,
    const __grid_constant__ Tensors tensors) {
  extern __shared__ __align__(1024) unsigned char sharedBytes[];
  auto& shared = *reinterpret_cast<SharedMemoryPlan<T, kDim>*>(sharedBytes);
  using Traits = AttendTraits<kDim>;
  constexpr int kColumns = Traits::kColumns;
  constexpr int kRowBlocks = Traits::kRowBlocks;
  constexpr int kRowsAtOnce = Traits::kRowsAtOnce;
  constexpr int kPasses = kColumns / kRowsAtOnce;
  {
    TileWork found;
    if (!findTileWork(layout, workspace, found)) return;
    if (threadIdx.x == 0) shared.work = found;
    __syncthreads();
  }
  const TileWork& work = shared.work;
  const int thread = threadIdx.x;
  const int lane = thread % 32;
  const int warpRow = thread / 32 * (16 * kRowBlocks);
  const int piece = thread % Traits::kCopyThreads;
  const int rowInPass = thread / Traits::kCopyThreads;
  const bool copies = piece < Traits::kPieces;
  const uint32_t queryTile = sharedAddress(shared.queries);
  const uint32_t keyTile = sharedAddress(shared.keys);
  const uint32_t valueTile = sharedAddress(shared.values);

  const auto queries = static_cast<const T*>(tensors.queries);
  for (int row = rowInPass; copies && row < kTileRows; row += kRowsAtOnce) {
    const int position = work.tileRow + row;
    const bool valid = position >= work.rowBegin && position < work.rowEnd;
    const int64_t source =
        valid ? (int64_t(position - layout.begin) * layout.heads + work.head) * kDim + piece * 8
              : 0;
    copyAsync16(queryTile + tileOffset<kDim, int(kTileRows)>(row, piece), queries + source, valid);
  }

  const int runLast = (work.columnsEnd - 1 - work.runBegin) / kColumns;
  const int runTiles = runLast + 1;
  const int tiles = runTiles + (work.listed + kColumns - 1) / kColumns;
  const auto findColumns = [&](int tile) {
    if (thread >= kColumns) return;
    int column;
    if (tile < runTiles) {
      column = work.runBegin + (runLast - tile) * kColumns + thread;
      if (column >= work.columnsEnd) column = -1;
    } else {
      const int entry = (tile - runTiles) * kColumns + thread;
      column = entry < work.listed ? __ldg(work.list + entry) : -1;
    }
    shared.columns[tile % 2][thread] = column;
  };
  constexpr int kTileBytes = kColumns * kTileDim<kDim> * 2;
  const auto copyRows = [&](const void* source, uint32_t target, int tile) {
    if constexpr (Traits::kStages > 1) target += tile % Traits::kStages * kTileBytes;
#pragma unroll(Traits::kCopyUnroll)
    for (int pass = 0; pass < kPasses; ++pass) {
      if (!copies) break;
      const int row = pass * kRowsAtOnce + rowInPass;
      const int column = shared.columns[tile % 2][row];
      const bool valid = column >= 0;
      const int64_t cacheRow = work.kvHead * tensors.capacityRows + (valid ? column : 0);
      copyAsync16(target + tileOffset<kDim, kColumns>(row, piece),
                  static_cast<const T*>(source) + cacheRow * kDim + piece * 8, valid);
    }
    copyAsyncCommit();
  };
  // Addresses of this thread's matrix rows at k = 0 (n = 0 for values). Since the swizzle only
  // flips address bits 4 to 6, step k is at (address ^ k % 4 * 32), in the block k / 4 of 64
  // elements.
  const uint32_t queryRow =
      queryTile + tileOffset<kDim, int(kTileRows)>(warpRow + lane % 16, lane / 16);
  const uint32_t keyRow =
      keyTile + tileOffset<kDim, kColumns>(lane % 8 + lane / 16 * 8, lane / 8 % 2);
  const uint32_t valueRow = valueTile + tileOffset<kDim, kColumns>(lane % 16, lane / 16);
  constexpr int kQueryBlock = int(kTileRows) * 128;
  constexpr int kColumnBlock = kColumns * 128;

  float accumulated[kRowBlocks][kDim / 8][4] = {};
  float maximum[kRowBlocks][2];
  float sum[kRowBlocks][2] = {};
#pragma unroll
  for (int m = 0; m < kRowBlocks; ++m) maximum[m][0] = maximum[m][1] = kLowestMaximum;
  const float scaleLog2 = tensors.scale * kLog2E;

  findColumns(0);
  __syncthreads();
  copyRows(tensors.keys, keyTile, 0);
  if constexpr (Traits::kStages > 1) {
    copyRows(tensors.values, valueTile, 0);
    if (tiles > 1) findColumns(1);
  }
  for (int tile = 0; tile < tiles; ++tile) {
    copyAsyncWait<0>();
    __syncthreads();
    uint32_t stageOffset = 0;
    if constexpr (Traits::kStages > 1) {
      stageOffset = tile % Traits::kStages * kTileBytes;
      if (tile + 1 < tiles) {
        copyRows(tensors.keys, keyTile, tile + 1);
        copyRows(tensors.values, valueTile, tile + 1);
      }
      if (tile + 2 < tiles) findColumns(tile + 2);
    } else {
      copyRows(tensors.values, valueTile, tile);
      if (tile + 1 < tiles) findColumns(tile + 1);
    }

    float scores[kRowBlocks][kColumns / 8][4] = {};
#pragma unroll
    for (int k = 0; k < kDim / 16; ++k) {
      uint32_t a[kRowBlocks][4];
#pragma unroll
      for (int m = 0; m < kRowBlocks; ++m) {
        loadMatrix4(a[m], (queryRow ^ k % 4 * 32) + k / 4 * kQueryBlock + m * 16 * 128);
      }
#pragma unroll
      for (int n = 0; n < kColumns / 16; ++n) {
        uint32_t b[4];
        loadMatrix4(b, ((keyRow + stageOffset) ^ k % 4 * 32) + k / 4 * kColumnBlock + n * 16 * 128);
#pragma unroll
        for (int m = 0; m < kRowBlocks; ++m) {
          mma16x8x16<T>(scores[m][2 * n], a[m], b[0], b[1]);
          mma16x8x16<T>(scores[m][2 * n + 1], a[m], b[2], b[3]);
        }
      }
    }

    // Columns beyond `last` of the tile are hidden from the row: by position in the run, by the end
    // of the list.
    const int runColumn = work.runBegin + (runLast - tile) * kColumns;
    const bool inRun = tile < runTiles;
    const int listLeft = work.listed - (tile - runTiles) * kColumns;
    const bool masked =
        inRun ? runColumn + kColumns > min(work.tileRow + warpRow + 1, work.columnsEnd)
              : listLeft < kColumns;
#pragma unroll
    for (int m = 0; m < kRowBlocks; ++m) {
      float rescale[2];
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int row = work.tileRow + warpRow + m * 16 + half * 8 + lane / 4;
        const int last = inRun ? min(row, work.columnsEnd - 1) - runColumn : listLeft - 1;
        float best = maximum[m][half];
#pragma unroll
        for (int n = 0; n < kColumns / 8; ++n) {
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            float& score = scores[m][n][half * 2 + i];
            if (masked && n * 8 + lane % 4 * 2 + i > last) score = -INFINITY;
            best = fmaxf(best, score);
          }
        }
        best = fmaxf(best, __shfl_xor_sync(~0u, best, 1));
        best = fmaxf(best, __shfl_xor_sync(~0u, best, 2));
        const float base = best * scaleLog2;
        // Exactly 1 where the maximum stays, so that no error piles up over thousands of tiles.
        rescale[half] = exp2Fast((maximum[m][half] - best) * scaleLog2);
        maximum[m][half] = best;
        float added = 0.0f;
#pragma unroll
        for (int n = 0; n < kColumns / 8; ++n) {
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            float& score = scores[m][n][half * 2 + i];
            score = exp2Fast(fmaf(score, scaleLog2, -base));
            added += score;
          }
        }
        sum[m][half] = fmaf(sum[m][half], rescale[half], added);
      }
      // After some tiles a maximum seldom rises.
      if (!__any_sync(~0u, rescale[0] != 1.0f || rescale[1] != 1.0f)) continue;
#pragma unroll
      for (int n = 0; n < kDim / 8; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) accumulated[m][n][i] *= rescale[i / 2];
      }
    }

    if constexpr (Traits::kStages == 1) {
      copyAsyncWait<0>();
      __syncthreads();
      if (tile + 1 < tiles) copyRows(tensors.keys, keyTile, tile + 1);
    }
#pragma unroll
    for (int k = 0; k < kColumns / 16; ++k) {
      uint32_t a[kRowBlocks][4];
#pragma unroll
      for (int m = 0; m < kRowBlocks; ++m) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const float* pair = &scores[m][2 * k + i / 2][i % 2 * 2];
          a[m][i] = packPair<T>(pair[0], pair[1]);
        }
      }
#pragma unroll
      for (int n = 0; n < kDim / 16; ++n) {
        uint32_t b[4];
        loadMatrix4Transposed(
            b, ((valueRow + stageOffset) ^ n % 4 * 32) + n / 4 * kColumnBlock + k * 16 * 128);
#pragma unroll
        for (int m = 0; m < kRowBlocks; ++m) {
          mma16x8x16<T>(accumulated[m][2 * n], a[m], b[0], b[1]);
          mma16x8x16<T>(accumulated[m][2 * n + 1], a[m], b[2], b[3]);
        }
      }
    }
  }

#pragma unroll
  for (int m = 0; m < kRowBlocks; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float total = sum[m][half];
      total += __shfl_xor_sync(~0u, total, 1);
      total += __shfl_xor_sync(~0u, total, 2);
      const int position = work.tileRow + warpRow + m * 16 + half * 8 + lane / 4;
      if (position < work.rowBegin || position >= work.rowEnd) continue;
      const int64_t row = position - layout.begin;
      if (layout.columnSplits > 1) {
        const int64_t slot = partialSlot(layout, work.split, row, work.head);
        float* target = workspace.partialOutputs + slot * kDim + lane % 4 * 2;
#pragma unroll
        for (int n = 0; n < kDim / 8; ++n) {
          const float* pair = accumulated[m][n] + 2 * half;
          *reinterpret_cast<float2*>(target + n * 8) = make_float2(pair[0], pair[1]);
        }
        if (lane % 4 == 0) workspace.partialSums[slot] = make_float2(maximum[m][half], total);
        continue;
      }
      const float inverse = 1.0f / total;
      T* target =
          static_cast<T*>(tensors.output) + (row * layout.heads + work.head) * kDim + lane % 4 * 2;
#pragma unroll
      for (int n = 0; n < kDim / 8; ++n) {
        *reinterpret_cast<uint32_t*>(target + n * 8) = packPair<T>(
            accumulated[m][n][2 * half] * inverse, accumulated[m][n][2 * half + 1] * inverse);
      }
      if (tensors.logSumExp != nullptr && lane % 4 == 0) {
        tensors.logSumExp[int64_t(work.head) * (layout.end - layout.begin) + row] =
            (maximum[m][half] * scaleLog2 + log2f(total)) * kLn2;
      }
    }
  }
}

template <class T, int kDim>
cudaError_t launch(const LaunchContext& context) {
  constexpr int kBytes = sizeof(SharedMemoryPlan<T, kDim>);
  static_assert(kBytes <= kSharedBytesEverywhere);
  const cudaError_t error = allowShared(attend<T, kDim>, kBytes);
  if (error != cudaSuccess) return error;
  attend<T, kDim>
      <<<attendBlocks(context.layout), AttendTraits<kDim>::kThreads, kBytes, context.stream>>>(
          context.layout, context.workspace, context.tensors);
  return cudaGetLastError();
}

}  // namespace

cudaError_t launchAttendMmaSync(const LaunchContext& context) {
  return dispatchHead(context.chunk.shape,
                      [&]<class T, int kDim>() { return launch<T, kDim>(context); });
}

}  // namespace longsight::cuda
