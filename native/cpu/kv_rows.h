// How a key or a value of one token and KV head is stored.
#pragma once

#include <cstddef>
#include <cstdint>

namespace longsight {

// bf16: [headDim] uint16.
// q8: [headDim] int8, then an fp16 scale for each block of 32 of them; a block ends with the head,
// so that the last one of 80 dims has 16 values. A value is its integer times the scale of its
// block.
enum class KvType : int32_t { bf16, q8 };

inline constexpr int32_t kQ8Block = 32;
// Dimensions of a head at most.
inline constexpr int32_t kMaxHeadDim = 256;

// Keys and values [row] of one layer and KV head, rows next to each other.
struct KvMatrix {
  const std::byte* data = nullptr;
  KvType type = KvType::bf16;
  int32_t headDim = 0;  // even
};

constexpr int64_t kvRowBytes(KvType type, int32_t headDim) {
  if (type == KvType::bf16) return int64_t{2} * headDim;
  return headDim + int64_t{2} * ((headDim + kQ8Block - 1) / kQ8Block);
}

// Rounds a row of headDim floats into kvRowBytes. q8: the scale is the least fp16 number that takes
// the largest value of the block to 127 or below, so that a value errs by at most half the scale;
// where that is beyond fp16 (values above 8.3 million) values saturate.
void storeKvRow(KvType type, const float* values, int32_t headDim, std::byte* row);

// The stored values, exactly.
void loadKvRow(KvType type, const std::byte* row, int32_t headDim, float* values);

}  // namespace longsight
