// Where a row of a tile's keys or values lies. Unnamed namespace: see blocked.h.
#pragma once

#include "kernels/cpu/attention/kernels.h"

namespace longsight {
namespace {

inline const std::byte* keyRow(const KeyRows& keys, int32_t key) {
  const int64_t row = keys.columns != nullptr ? keys.columns[key] : keys.first + key;
  return keys.matrix.data + row * kvRowBytes(keys.matrix.type, keys.matrix.headDim);
}

// A row as bf16.
inline const uint16_t* bf16Of(const std::byte* row) {
  return reinterpret_cast<const uint16_t*>(row);
}

// A row of q8 is its integers and then the fp16 scales of their blocks.
inline const int8_t* integersOf(const std::byte* row) {
  return reinterpret_cast<const int8_t*>(row);
}

inline uint16_t halfScaleOf(const std::byte* row, int32_t headDim, int32_t dim) {
  uint16_t half;
  __builtin_memcpy(&half, row + headDim + dim / kQ8Block * 2, sizeof(half));
  return half;
}

}  // namespace
}  // namespace longsight
