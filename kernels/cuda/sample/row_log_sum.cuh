// Softmax sums of a few rows over ranges of columns, without values: the anchors of stage 1 and the
// full rows of the audit. FlashAttention's online sum on mma.sync; every architecture runs it,
// since it is a few thousandths of the whole work.
#pragma once

#include "device/mma_sm80.cuh"

namespace longsight::cuda {

inline constexpr int kSumThreads = 128;
inline constexpr int kSumRows = 64;     // packed rows of a block: 16 a warp
inline constexpr int kSumColumns = 64;  // columns of a tile

template <class T, int kDim>
struct RowSumSharedMemory {
  alignas(1024) T queries[kSumRows * kDim];
  alignas(1024) T keys[2][kSumColumns * kDim];
};

// Columns [begin, end), also bounded by the row itself (causal). begin is a multiple of 64.
struct ColumnRange {
  int begin;
  int end;
  __device__ int tiles() const {
    return end > begin ? (end - begin + kSumColumns - 1) / kSumColumns : 0;
  }
};

// Maximum and sum of exp2 of a row, in units of log2; sum 0 when the row saw no column.
struct RowSum {
  float maximum;
  float sum;
};

// rowQuery(i) is the query of packed row i or null, rowPosition(i) its absolute position or -1.
// `keys` is the KV head's first row. Thread t gets the sums of packed rows
// 16 (t / 32) + (t % 32) / 4 and that + 8, the same in the four threads of a row.
template <class T, int kDim, class RowQuery, class RowPosition>
__device__ void sumRows(RowSumSharedMemory<T, kDim>& shared, RowQuery rowQuery,
                        RowPosition rowPosition, const T* keys, ColumnRange first,
                        ColumnRange second, float scaleLog2, RowSum (&result)[2]) {
  constexpr int kPieces = kDim / 8;
  const int thread = threadIdx.x;
  const int lane = thread % 32;
  const int warp = thread / 32;
  const uint32_t queryTile = sharedAddress(shared.queries);

  for (int i = thread; i < kSumRows * kPieces; i += kSumThreads) {
    const int row = i / kPieces;
    const T* source = rowQuery(row);
    copyAsync16(queryTile + tileOffset<kDim, kSumRows>(row, i % kPieces),
                source == nullptr ? keys : source + i % kPieces * 8, source != nullptr);
  }
  const int firstTiles = first.tiles();
  const int tiles = firstTiles + second.tiles();
  const auto rangeOf = [&](int tile) {
    const bool inFirst = tile < firstTiles;
    const int begin = inFirst ? first.begin + tile * kSumColumns
                              : second.begin + (tile - firstTiles) * kSumColumns;
    return ColumnRange{begin, inFirst ? first.end : second.end};
  };
  const auto loadTile = [&](int tile) {
    const ColumnRange range = rangeOf(tile);
    const uint32_t target = sharedAddress(shared.keys[tile % 2]);
    for (int i = thread; i < kSumColumns * kPieces; i += kSumThreads) {
      const int row = i / kPieces;
      const bool valid = range.begin + row < range.end;
      const T* source = keys + (valid ? int64_t(range.begin + row) * kDim + i % kPieces * 8 : 0);
      copyAsync16(target + tileOffset<kDim, kSumColumns>(row, i % kPieces), source, valid);
    }
  };
  if (tiles > 0) loadTile(0);
  copyAsyncCommit();

  const int positions[2] = {rowPosition(warp * 16 + lane / 4),
                            rowPosition(warp * 16 + lane / 4 + 8)};
  float maximum[2] = {-INFINITY, -INFINITY};
  float sum[2] = {0.0f, 0.0f};
  for (int tile = 0; tile < tiles; ++tile) {
    if (tile + 1 < tiles) loadTile(tile + 1);
    copyAsyncCommit();
    copyAsyncWait<1>();
    __syncthreads();
    const uint32_t keyTile = sharedAddress(shared.keys[tile % 2]);
    float scores[kSumColumns / 8][4] = {};
#pragma unroll
    for (int k = 0; k < kDim / 16; ++k) {
      uint32_t a[4];
      loadMatrix4(a,
                  queryTile + tileOffset<kDim, kSumRows>(warp * 16 + lane % 16, k * 2 + lane / 16));
#pragma unroll
      for (int n = 0; n < kSumColumns / 16; ++n) {
        uint32_t b[4];
        loadMatrix4(b, keyTile + tileOffset<kDim, kSumColumns>(n * 16 + lane % 8 + lane / 16 * 8,
                                                               k * 2 + lane / 8 % 2));
        mma16x8x16<T>(scores[2 * n], a, b[0], b[1]);
        mma16x8x16<T>(scores[2 * n + 1], a, b[2], b[3]);
      }
    }
    const ColumnRange range = rangeOf(tile);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float best = maximum[half];
#pragma unroll
      for (int n = 0; n < kSumColumns / 8; ++n) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const int column = range.begin + n * 8 + lane % 4 * 2 + i;
          float& score = scores[n][half * 2 + i];
          const bool seen = column < range.end && column <= positions[half];
          score = seen ? score * scaleLog2 : -INFINITY;
          best = fmaxf(best, score);
        }
      }
      best = fmaxf(best, __shfl_xor_sync(~0u, best, 1));
      best = fmaxf(best, __shfl_xor_sync(~0u, best, 2));
      const float base = best == -INFINITY ? 0.0f : best;
      float added = 0.0f;
#pragma unroll
      for (int n = 0; n < kSumColumns / 8; ++n) {
        added += exp2Fast(scores[n][half * 2] - base) + exp2Fast(scores[n][half * 2 + 1] - base);
      }
      sum[half] = sum[half] * exp2Fast(maximum[half] - base) + added;
      maximum[half] = best;
    }
    __syncthreads();
  }
  copyAsyncWait<0>();
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float total = sum[half];
    total += __shfl_xor_sync(~0u, total, 1);
    total += __shfl_xor_sync(~0u, total, 2);
    result[half] = {maximum[half], total};
  }
}

}  // namespace longsight::cuda
