// Weights as bf16 rows for matrix products, and embedding rows as f32.
//
// Expansion is bound by memory: 4.5 bits read and 16 written for a weight of Q4_K. A warp takes 16
// rows x 128 columns, reads them as they lie, 16 bytes a lane, and turns them in shared memory so
// that it writes 256 bytes of a row at a time.
#include <cuda_bf16.h>

#include <algorithm>

#include "device/mma_sm80.cuh"
#include "weights/groups.cuh"
#include "weights/matrix_layout.h"

namespace longsight::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;

unsigned blocksFor(int64_t threads) { return static_cast<unsigned>(ceilDiv(threads, kThreads)); }

// Rows of 18 pieces of 16 bytes: with the permutation below, the 8 lanes that store at a time meet
// 8 different groups of banks.
constexpr int kStagedRow = 18;

__device__ __forceinline__ int stagedPiece(int row, int piece) {
  return row * kStagedRow + (piece ^ (piece >> 3 & 1));
}

template <int32_t kType>
__global__ __launch_bounds__(kThreads) void expandBlocks(const DeviceMatrix matrix,
                                                         int64_t firstRow, int64_t rows,
                                                         int64_t firstTile, int64_t halvesPerTile,
                                                         int64_t count, Bf16* __restrict__ out,
                                                         int64_t rowStride) {
  using F = BlockFormat<kType>;
  __shared__ uint4 staged[kWarps][kTileRows * kStagedRow];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int64_t index = int64_t{blockIdx.x} * kWarps + warp;
  if (index >= count) return;
  const int64_t tile = firstTile + index / halvesPerTile;
  const int64_t half = index % halvesPerTile;
  const char* unit = static_cast<const char*>(matrix.data) +
                     unitOffset<F>(matrix.columns, tile, half / F::kHalves);
  const int group = static_cast<int>(half % F::kHalves) * 4 + lane % 4;
#pragma unroll
  for (int rowHalf = 0; rowHalf < 2; ++rowHalf) {
    const int row = lane / 4 + 8 * rowHalf;
    float values[kGroup];
    readGroup<F>(unit, row, group, values);
#pragma unroll
    for (int piece = 0; piece < 4; ++piece) {
      const float* v = values + 8 * piece;
      staged[warp][stagedPiece(row, lane % 4 * 4 + piece)] =
          make_uint4(packPair<Bf16>(v[0], v[1]), packPair<Bf16>(v[2], v[3]),
                     packPair<Bf16>(v[4], v[5]), packPair<Bf16>(v[6], v[7]));
    }
  }
  __syncwarp();
  const int piece = lane % 16;
  const int64_t column = half * 128 + piece * 8;
#pragma unroll
  for (int pass = 0; pass < 8; ++pass) {
    const int row = 2 * pass + lane / 16;
    const int64_t outRow = tile * kTileRows + row - firstRow;
    if (outRow >= 0 && outRow < rows && column < matrix.columns) {
      *reinterpret_cast<uint4*>(out + outRow * rowStride + column) =
          staged[warp][stagedPiece(row, piece)];
    }
  }
}

// Eight neighbouring elements as floats.
__device__ __forceinline__ void loadPlain8(const void* source, int32_t type, int64_t index,
                                           float (&values)[8]) {
  if (type == kTypeF32) {
    const auto* floats = static_cast<const float*>(source) + index;
    const float4 a = *reinterpret_cast<const float4*>(floats);
    const float4 b = *reinterpret_cast<const float4*>(floats + 4);
    const float all[8] = {a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w};
#pragma unroll
    for (int i = 0; i < 8; ++i) values[i] = all[i];
    return;
  }
  const uint4 packed =
      *reinterpret_cast<const uint4*>(static_cast<const uint16_t*>(source) + index);
  const uint32_t words[4] = {packed.x, packed.y, packed.z, packed.w};
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const uint32_t bits = words[i / 2] >> (i % 2 * 16) & 0xFFFF;
    values[i] = type == kTypeF16 ? halfBits(bits) : __uint_as_float(bits << 16);
  }
}

__global__ __launch_bounds__(kThreads) void expandPlain(const DeviceMatrix matrix, int64_t firstRow,
                                                        int64_t count, Bf16* __restrict__ out,
                                                        int64_t rowStride) {
  const int64_t index = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (index >= count) return;
  const int64_t piecesPerRow = matrix.columns / 8;
  const int64_t row = index / piecesPerRow;
  const int64_t column = index % piecesPerRow * 8;
  const int64_t source = (firstRow + row) * matrix.columns + column;
  uint4 packed;
  if (matrix.type == kTypeBF16) {
    packed = *reinterpret_cast<const uint4*>(static_cast<const Bf16*>(matrix.data) + source);
  } else {
    float v[8];
    loadPlain8(matrix.data, matrix.type, source, v);
    packed = make_uint4(packPair<Bf16>(v[0], v[1]), packPair<Bf16>(v[2], v[3]),
                        packPair<Bf16>(v[4], v[5]), packPair<Bf16>(v[6], v[7]));
  }
  *reinterpret_cast<uint4*>(out + row * rowStride + column) = packed;
}

// One group of 32 weights a thread.
template <int32_t kType>
__global__ __launch_bounds__(kThreads) void embedBlocks(const DeviceMatrix matrix,
                                                        const int32_t* __restrict__ tokens,
                                                        int64_t count, float* __restrict__ out) {
  using F = BlockFormat<kType>;
  const int64_t groupsPerRow = matrix.columns / kGroup;
  const int64_t index = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (index >= count * groupsPerRow) return;
  const int64_t group = index % groupsPerRow;
  const int64_t token = tokens[index / groupsPerRow];
  float values[kGroup] = {};
  if (token >= 0 && token < matrix.rows) {
    const char* unit = static_cast<const char*>(matrix.data) +
                       unitOffset<F>(matrix.columns, token / kTileRows, group / F::kGroups);
    readGroup<F>(unit, static_cast<int>(token % kTileRows), static_cast<int>(group % F::kGroups),
                 values);
  }
  auto* target = reinterpret_cast<float4*>(out + index * kGroup);
#pragma unroll
  for (int i = 0; i < kGroup; i += 4) {
    target[i / 4] = make_float4(values[i], values[i + 1], values[i + 2], values[i + 3]);
  }
}

__global__ __launch_bounds__(kThreads) void embedPlain(const DeviceMatrix matrix,
                                                       const int32_t* __restrict__ tokens,
                                                       int64_t count, float* __restrict__ out) {
  const int64_t piecesPerRow = matrix.columns / 8;
  const int64_t index = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (index >= count * piecesPerRow) return;
  const int64_t token = tokens[index / piecesPerRow];
  float values[8] = {};
  if (token >= 0 && token < matrix.rows) {
    loadPlain8(matrix.data, matrix.type, token * matrix.columns + index % piecesPerRow * 8, values);
  }
  auto* target = reinterpret_cast<float4*>(out + index * 8);
  target[0] = make_float4(values[0], values[1], values[2], values[3]);
  target[1] = make_float4(values[4], values[5], values[6], values[7]);
}

}  // namespace

cudaError_t launchExpand(const DeviceMatrix& matrix, int64_t firstRow, int64_t rows, void* out,
                         int64_t rowStride, cudaStream_t stream) {
  if (!validateMatrix(matrix.type, matrix.rows, matrix.columns).empty() || firstRow < 0 ||
      rows < 0 || firstRow + rows > matrix.rows || rowStride < matrix.columns ||
      rowStride % 8 != 0) {
    return cudaErrorInvalidValue;
  }
  if (rows == 0) return cudaSuccess;
  auto* target = static_cast<Bf16*>(out);
  const bool blocks = dispatchBlocks(matrix.type, [&]<int32_t kType>() {
    const int64_t firstTile = firstRow / kTileRows;
    const int64_t tiles = ceilDiv(firstRow + rows, kTileRows) - firstTile;
    const int64_t halves = ceilDiv(matrix.columns, 128);
    expandBlocks<kType><<<blocksFor(tiles * halves * 32), kThreads, 0, stream>>>(
        matrix, firstRow, rows, firstTile, halves, tiles * halves, target, rowStride);
  });
  if (!blocks) {
    const int64_t count = rows * (matrix.columns / 8);
    expandPlain<<<blocksFor(count), kThreads, 0, stream>>>(matrix, firstRow, count, target,
                                                           rowStride);
  }
  return cudaGetLastError();
}

cudaError_t launchEmbed(const DeviceMatrix& matrix, const int32_t* tokens, int64_t count,
                        float* out, cudaStream_t stream) {
  if (!validateMatrix(matrix.type, matrix.rows, matrix.columns).empty() || count < 0) {
    return cudaErrorInvalidValue;
  }
  if (count == 0) return cudaSuccess;
  const bool blocks = dispatchBlocks(matrix.type, [&]<int32_t kType>() {
    embedBlocks<kType><<<blocksFor(count * (matrix.columns / kGroup)), kThreads, 0, stream>>>(
        matrix, tokens, count, out);
  });
  if (!blocks) {
    embedPlain<<<blocksFor(count * (matrix.columns / 8)), kThreads, 0, stream>>>(matrix, tokens,
                                                                                 count, out);
  }
  return cudaGetLastError();
}

}  // namespace longsight::cuda
