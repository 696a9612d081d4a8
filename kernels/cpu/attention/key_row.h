// Where a row of a tile's keys or values lies. Unnamed namespace: see blocked.h.
#pragma once

#include "kernels/cpu/attention/kernels.h"

namespace longsight {
namespace {

inline const uint16_t* keyRow(const KeyRows& keys, int32_t key) {
  const int64_t row = keys.columns != nullptr ? keys.columns[key] : keys.first + key;
  return keys.matrix + row * keys.headDim;
}

}  // namespace
}  // namespace longsight
