// Sizes of a matrix in blocks as the device has it (formats.cuh draws the unit).
#pragma once

#include <cstdint>

#include "weights/formats.cuh"
#include "weights/weights.h"

namespace longsight::cuda {

constexpr int64_t ceilDiv(int64_t value, int64_t divisor) {
  return (value + divisor - 1) / divisor;
}

constexpr int64_t matrixTiles(const DeviceMatrix& matrix) {
  return ceilDiv(matrix.rows, kTileRows);
}

template <class F>
__host__ __device__ constexpr int64_t unitsPerTile(int64_t columns) {
  return (columns + F::kUnitColumns - 1) / F::kUnitColumns;
}

// Byte offset of a unit from the matrix.
template <class F>
__host__ __device__ constexpr int64_t unitOffset(int64_t columns, int64_t tile, int64_t unit) {
  return (tile * unitsPerTile<F>(columns) + unit) * F::kUnitBytes;
}

}  // namespace longsight::cuda
