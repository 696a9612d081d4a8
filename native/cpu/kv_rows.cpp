#include "cpu/kv_rows.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

#include "cpu/by_processor.h"

namespace longsight {
namespace {

constexpr int32_t kLargest = 127;
constexpr uint16_t kLargestHalf = 0x7bff;

float halfToFloat(uint16_t half) {
  const uint32_t exponent = half >> 10 & 0x1f;
  const uint32_t fraction = half & 0x3ff;
  if (exponent == 0) return static_cast<float>(fraction) * 0x1p-24f;
  if (exponent == 31) return std::bit_cast<float>(0x7f800000u | fraction << 13);
  return std::bit_cast<float>((exponent + 112) << 23 | fraction << 13);
}

// The least fp16 number >= x, at most the largest finite one; x >= 0.
uint16_t halfAtLeast(float x) {
  if (!(x <= 65504.0f)) return kLargestHalf;
  if (x < 0x1p-14f) return static_cast<uint16_t>(std::ceil(x * 0x1p24f));
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  return static_cast<uint16_t>(((bits + 0x1fff) >> 13) - (112u << 10));
}

LONGSIGHT_BY_PROCESSOR
void storeBf16(const float* values, int32_t count, std::byte* row) {
  for (int32_t i = 0; i < count; ++i) {
    const uint32_t bits = std::bit_cast<uint32_t>(values[i]);
    const auto rounded = static_cast<uint16_t>((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16);
    std::memcpy(row + 2 * i, &rounded, sizeof(rounded));
  }
}

LONGSIGHT_BY_PROCESSOR
void storeQ8(const float* values, int32_t count, std::byte* row) {
  std::byte* scales = row + count;
  for (int32_t begin = 0; begin < count; begin += kQ8Block, scales += sizeof(uint16_t)) {
    const int32_t end = std::min(count, begin + kQ8Block);
    // Magnitudes are compared as integers, which have the same order.
    uint32_t most = 0;
    for (int32_t i = begin; i < end; ++i)
      most = std::max(most, std::bit_cast<uint32_t>(values[i]) & 0x7fffffffu);
    const uint16_t half = halfAtLeast(std::bit_cast<float>(most) / kLargest);
    std::memcpy(scales, &half, sizeof(half));
    const float perStep = half == 0 ? 0.0f : 1.0f / halfToFloat(half);
    for (int32_t i = begin; i < end; ++i) {
      // Adding 1.5 * 2^23 leaves the nearest integer in the low bits.
      constexpr float kRound = 12582912.0f;
      const float steps = std::min(std::max(values[i] * perStep, -127.0f), 127.0f);
      row[i] = static_cast<std::byte>(std::bit_cast<uint32_t>(steps + kRound) & 0xff);
    }
  }
}

}  // namespace

void storeKvRow(KvType type, const float* values, int32_t headDim, std::byte* row) {
  if (type == KvType::bf16)
    storeBf16(values, headDim, row);
  else
    storeQ8(values, headDim, row);
}

void loadKvRow(KvType type, const std::byte* row, int32_t headDim, float* values) {
  uint16_t bits;
  if (type == KvType::bf16) {
    for (int32_t i = 0; i < headDim; ++i) {
      std::memcpy(&bits, row + 2 * i, sizeof(bits));
      values[i] = std::bit_cast<float>(static_cast<uint32_t>(bits) << 16);
    }
    return;
  }
  const std::byte* scales = row + headDim;
  for (int32_t begin = 0; begin < headDim; begin += kQ8Block, scales += sizeof(bits)) {
    std::memcpy(&bits, scales, sizeof(bits));
    const float scale = halfToFloat(bits);
    const int32_t end = std::min(headDim, begin + kQ8Block);
    for (int32_t i = begin; i < end; ++i)
      values[i] = static_cast<float>(static_cast<int8_t>(row[i])) * scale;
  }
}

}  // namespace longsight
