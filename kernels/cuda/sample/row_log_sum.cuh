// Softmax sums of a few rows over ranges of columns, without values: the anchors of stage 1 and the
// full rows of the audit. FlashAttention's online sum on mma.sync; every architecture runs it,
// since it is a few thousandths of the whole work.
#pragma once

#include "device/mma_sm80.cuh"

namespace longsight::cuda {

inline constexpr int kSumThreads = 128;
inline constexpr int kSumRows = 64;     // packed rows of a block, times kRowBlocks: 16 a warp
inline constexpr int kSumColumns = 64;  // columns of a tile

// kRowBlocks: blocks of 16 rows of a warp. Two halve the reads of keys, where there are the rows.
template <class T, int kDim, int kRowBlocks = 1>
struct RowSumSharedMemory {
  alignas(1024) T queries[kRowBlocks * kSumRows * kTileDim<kDim>];
  alignas(1024) T keys[2][kSumColumns * kTileDim<kDim>];
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
// `keys` is the KV head's first row. result[i] is the sum of packed row packedRowOfSum(i), the same
// in the four threads of a row.
template <int kRowBlocks>
__device__ __forceinline__ int packedRowOfSum(int i) {
  return threadIdx.x / 32 * (16 * kRowBlocks) + threadIdx.x % 32 / 4 + i * 8;
}

template <class T, int kDim, int kRowBlocks, class RowQuery, class RowPosition>
__device__ void sumRows(RowSumSharedMemory<T, kDim, kRowBlocks>& shared, RowQuery rowQuery,
                        RowPosition rowPosition, const T* keys, ColumnRange first,
                        ColumnRange second, float scaleLog2, RowSum (&result)[2 * kRowBlocks]) {
  constexpr int kPieces = kDim / 8;
  constexpr int kRows = kRowBlocks * kSumRows;
  constexpr int kHalves = 2 * kRowBlocks;
  const int thread = threadIdx.x;
  const int lane = thread % 32;
  const int warp = thread / 32;
  const uint32_t queryTile = sharedAddress(shared.queries);

  for (int i = thread; i < kRows * kPieces; i += kSumThreads) {
    const int row = i / kPieces;
    const T* source = rowQuery(row);
    copyAsync16(queryTile + tileOffset<kDim, kRows>(row, i % kPieces),
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
#pragma unroll 4
    for (int i = thread; i < kSumColumns * kPieces; i += kSumThreads) {
      const int row = i / kPieces;
      const bool valid = range.begin + row < range.end;
      const T* source = keys + (valid ? int64_t(range.begin + row) * kDim + i % kPieces * 8 : 0);
      copyAsync16(target + tileOffset<kDim, kSumColumns>(row, i % kPieces), source, valid);
    }
  };
  if (tiles > 0) loadTile(0);
  copyAsyncCommit();

  int positions[kHalves];
  float maximum[kHalves];
  float sum[kHalves] = {};
#pragma unroll
  for (int half = 0; half < kHalves; ++half) {
    positions[half] = rowPosition(packedRowOfSum<kRowBlocks>(half));
    maximum[half] = -INFINITY;
  }
  // Addresses of this thread's matrix rows at k = 0; since the swizzle only flips address bits 4 to
  // 6, step k is at (address ^ k % 4 * 32), in the block k / 4 of 64 elements.
  const uint32_t queryRow =
      queryTile + tileOffset<kDim, kRows>(warp * kRowBlocks * 16 + lane % 16, lane / 16);
  for (int tile = 0; tile < tiles; ++tile) {
    if (tile + 1 < tiles) loadTile(tile + 1);
    copyAsyncCommit();
    copyAsyncWait<1>();
    __syncthreads();
    const uint32_t keyRow = sharedAddress(shared.keys[tile % 2]) +
                            tileOffset<kDim, kSumColumns>(lane % 8 + lane / 16 * 8, lane / 8 % 2);
    float scores[kRowBlocks][kSumColumns / 8][4] = {};
#pragma unroll
    for (int k = 0; k < kDim / 16; ++k) {
      uint32_t a[kRowBlocks][4];
#pragma unroll
      for (int m = 0; m < kRowBlocks; ++m) {
        loadMatrix4(a[m], (queryRow ^ k % 4 * 32) + k / 4 * (kRows * 128) + m * 16 * 128);
      }
#pragma unroll
      for (int n = 0; n < kSumColumns / 16; ++n) {
        uint32_t b[4];
        loadMatrix4(b, (keyRow ^ k % 4 * 32) + k / 4 * (kSumColumns * 128) + n * 16 * 128);
#pragma unroll
        for (int m = 0; m < kRowBlocks; ++m) {
          mma16x8x16<T>(scores[m][2 * n], a[m], b[0], b[1]);
          mma16x8x16<T>(scores[m][2 * n + 1], a[m], b[2], b[3]);
        }
      }
    }
    const ColumnRange range = rangeOf(tile);
    int firstPosition = positions[0];
#pragma unroll
    for (int half = 1; half < kHalves; ++half) {
      firstPosition = min(firstPosition, positions[half]);
    }
    const bool whole = __all_sync(~0u, range.begin + kSumColumns <= range.end &&
                                           range.begin + kSumColumns - 1 <= firstPosition);
#pragma unroll
    for (int half = 0; half < kHalves; ++half) {
      float best = maximum[half];
#pragma unroll
      for (int n = 0; n < kSumColumns / 8; ++n) {
        float* pair = scores[half / 2][n] + half % 2 * 2;
        if (!whole) {
          const int last = min(range.end - 1, positions[half]) - range.begin - lane % 4 * 2;
          if (n * 8 > last) pair[0] = -INFINITY;
          if (n * 8 + 1 > last) pair[1] = -INFINITY;
        }
        best = fmaxf(best, fmaxf(pair[0], pair[1]));
      }
      best = fmaxf(best, __shfl_xor_sync(~0u, best, 1));
      best = fmaxf(best, __shfl_xor_sync(~0u, best, 2));
      const float base = best == -INFINITY ? 0.0f : best * scaleLog2;
      float added = 0.0f;
#pragma unroll
      for (int n = 0; n < kSumColumns / 8; ++n) {
        const float* pair = scores[half / 2][n] + half % 2 * 2;
        added +=
            exp2Fast(fmaf(pair[0], scaleLog2, -base)) + exp2Fast(fmaf(pair[1], scaleLog2, -base));
      }
      // A maximum that stays must rescale by exactly 1.
      if (best != maximum[half]) {
        sum[half] *= exp2Fast(fmaf(maximum[half], scaleLog2, -base));
        maximum[half] = best;
      }
      sum[half] += added;
    }
    __syncthreads();
  }
  copyAsyncWait<0>();
#pragma unroll
  for (int half = 0; half < kHalves; ++half) {
    float total = sum[half];
    total += __shfl_xor_sync(~0u, total, 1);
    total += __shfl_xor_sync(~0u, total, 2);
    result[half] = {maximum[half] * scaleLog2, total};
  }
}

}  // namespace longsight::cuda
