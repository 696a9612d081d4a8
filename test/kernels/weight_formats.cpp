#include "weight_formats.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdlib>
#include <cstring>

namespace longsight::test {
namespace {

enum Type { F32 = 0, F16 = 1, Q4_0 = 2, Q4_1 = 3, Q5_0 = 6, Q5_1 = 7, Q8_0 = 8, Q4_K = 12 };
enum MoreTypes { Q5_K = 13, Q6_K = 14, IQ4_XS = 23, BF16 = 30 };

constexpr WeightFormat kFormats[] = {
    {F32, "F32", 1, 4},       {F16, "F16", 1, 2},       {BF16, "BF16", 1, 2},
    {Q4_0, "Q4_0", 32, 18},   {Q4_1, "Q4_1", 32, 20},   {Q5_0, "Q5_0", 32, 22},
    {Q5_1, "Q5_1", 32, 24},   {Q8_0, "Q8_0", 32, 34},   {Q4_K, "Q4_K", 256, 144},
    {Q5_K, "Q5_K", 256, 176}, {Q6_K, "Q6_K", 256, 210}, {IQ4_XS, "IQ4_XS", 256, 136},
};

constexpr int kTable[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                            1,    13,   25,  38,  53,  69,  89,  113};

float fromHalf(const uint8_t* source) {
  uint16_t bits;
  std::memcpy(&bits, source, 2);
  const int exponent = bits >> 10 & 31, mantissa = bits & 1023;
  const float sign = bits & 0x8000 ? -1.0f : 1.0f;
  if (exponent == 0) return sign * std::ldexp(static_cast<float>(mantissa), -24);
  return sign * std::ldexp(static_cast<float>(1024 + mantissa), exponent - 25);
}

// To nearest; the numbers of the tests are far from the limits above.
void toHalf(float value, uint8_t* target) {
  const float size = std::fabs(value);
  int exponent = 0;
  std::frexp(size, &exponent);
  // Spacing of fp16 at this size: 2^(exponent - 11), and 2^-24 below the normal numbers.
  const int spacing = std::max(exponent - 11, -24);
  auto units = static_cast<int>(std::nearbyint(std::ldexp(size, -spacing)));
  uint16_t bits = 0;
  if (units == 0 || spacing == -24) {
    bits = static_cast<uint16_t>(units);
  } else {
    if (units == 2048) {
      units = 1024;
      ++exponent;
    }
    bits = static_cast<uint16_t>((exponent + 14) << 10 | (units - 1024));
  }
  if (value < 0.0f) bits |= 0x8000;
  std::memcpy(target, &bits, 2);
}

void sixBitPair(const uint8_t* packed, int j, int& factor, int& offset) {
  if (j < 4) {
    factor = packed[j] & 63;
    offset = packed[j + 4] & 63;
  } else {
    factor = (packed[j + 4] & 15) | (packed[j - 4] >> 6) << 4;
    offset = (packed[j + 4] >> 4) | (packed[j] >> 6) << 4;
  }
}

void expandBlock(int32_t type, const uint8_t* block, float* values) {
  const float d = type == Q6_K ? fromHalf(block + 208) : fromHalf(block);
  switch (type) {
    case F16:
      values[0] = d;
      return;
    case F32:
      std::memcpy(values, block, 4);
      return;
    case BF16: {
      uint16_t bits;
      std::memcpy(&bits, block, 2);
      values[0] = std::bit_cast<float>(uint32_t{bits} << 16);
      return;
    }
    case Q8_0:
      for (int i = 0; i < 32; ++i) {
        values[i] = static_cast<float>(static_cast<int8_t>(block[2 + i])) * d;
      }
      return;
    case Q4_0:
    case Q4_1:
    case Q5_0:
    case Q5_1: {
      const bool offset = type == Q4_1 || type == Q5_1, five = type == Q5_0 || type == Q5_1;
      const uint8_t* at = block + (offset ? 4 : 2);
      uint32_t upper = 0;
      if (five) std::memcpy(&upper, at, 4);
      if (five) at += 4;
      for (int i = 0; i < 32; ++i) {
        int code = i < 16 ? at[i] & 15 : at[i - 16] >> 4;
        code |= static_cast<int>(upper >> i & 1) << 4;
        if (!offset) code -= five ? 16 : 8;
        const float product = static_cast<float>(code) * d;
        values[i] = offset ? product + fromHalf(block + 2) : product;
      }
      return;
    }
    case Q4_K:
    case Q5_K: {
      const float dmin = fromHalf(block + 2);
      const uint8_t* at = block + (type == Q4_K ? 16 : 48);
      for (int i = 0; i < 256; ++i) {
        const int group = i / 32;
        int factor, offset;
        sixBitPair(block + 4, group, factor, offset);
        int code = at[group / 2 * 32 + i % 32] >> (group % 2 * 4) & 15;
        if (type == Q5_K) code |= (block[16 + i % 32] >> group & 1) << 4;
        const float scale = d * static_cast<float>(factor);
        const float least = dmin * static_cast<float>(offset);
        const float product = scale * static_cast<float>(code);
        values[i] = product - least;
      }
      return;
    }
    case Q6_K:
      for (int i = 0; i < 256; ++i) {
        const int half = i / 128, quarter = i % 128 / 32, column = i % 32;
        const int low = block[64 * half + 32 * (quarter % 2) + column] >> (quarter / 2 * 4) & 15;
        const int high = block[128 + 32 * half + column] >> (2 * quarter) & 3;
        const float scale = d * static_cast<float>(static_cast<int8_t>(block[192 + i / 16]));
        values[i] = scale * static_cast<float>((low | high << 4) - 32);
      }
      return;
    case IQ4_XS: {
      uint16_t high;
      std::memcpy(&high, block + 2, 2);
      for (int i = 0; i < 256; ++i) {
        const int group = i / 32, column = i % 32;
        const int low = block[4 + group / 2] >> (group % 2 * 4) & 15;
        const int scale = (low | (high >> (2 * group) & 3) << 4) - 32;
        const uint8_t byte = block[8 + 16 * group + column % 16];
        values[i] = d * static_cast<float>(scale) *
                    static_cast<float>(kTable[column < 16 ? byte & 15 : byte >> 4]);
      }
      return;
    }
    default:
      std::abort();
  }
}

}  // namespace

std::span<const WeightFormat> weightFormats() { return kFormats; }

const WeightFormat& weightFormat(int32_t type) {
  for (const WeightFormat& format : kFormats) {
    if (format.type == type) return format;
  }
  std::abort();
}

std::vector<uint8_t> randomWeights(const WeightFormat& format, int64_t count, float deviation,
                                   std::mt19937_64& random) {
  std::vector<uint8_t> blocks(static_cast<size_t>(count / format.blockColumns * format.blockBytes));
  std::normal_distribution<float> normal;
  std::uniform_real_distribution<float> spread(0.5f, 1.5f);
  for (size_t i = 0; i < blocks.size(); i += 8) {
    const uint64_t bits = random();
    std::memcpy(blocks.data() + i, &bits, std::min<size_t>(8, blocks.size() - i));
  }
  for (size_t at = 0; at < blocks.size(); at += static_cast<size_t>(format.blockBytes)) {
    uint8_t* block = blocks.data() + at;
    const float signedSize = deviation * spread(random) * (random() & 1 ? 1.0f : -1.0f);
    switch (format.type) {
      case F32: {
        const float value = deviation * normal(random);
        std::memcpy(block, &value, 4);
        break;
      }
      case F16:
        toHalf(deviation * normal(random), block);
        break;
      case BF16: {
        const auto bits = std::bit_cast<uint32_t>(deviation * normal(random)) >> 16;
        std::memcpy(block, &bits, 2);
        break;
      }
      case Q4_0:
        toHalf(signedSize / 4.6f, block);
        break;
      case Q5_0:
        toHalf(signedSize / 9.2f, block);
        break;
      case Q8_0:
        toHalf(signedSize / 74.0f, block);
        break;
      case Q4_1:
        toHalf(signedSize / 4.6f, block);
        toHalf(signedSize * -1.6f * spread(random), block + 2);
        break;
      case Q5_1:
        toHalf(signedSize / 9.2f, block);
        toHalf(signedSize * -1.6f * spread(random), block + 2);
        break;
      case Q4_K:
        toHalf(std::fabs(signedSize) / (4.6f * 36), block);
        toHalf(std::fabs(signedSize) * 1.6f / 36, block + 2);
        break;
      case Q5_K:
        toHalf(std::fabs(signedSize) / (9.2f * 36), block);
        toHalf(std::fabs(signedSize) * 1.6f / 36, block + 2);
        break;
      case Q6_K:
        toHalf(signedSize / (18.5f * 74), block + 208);
        break;
      case IQ4_XS:
        toHalf(signedSize / (73.0f * 18.5f), block);
        break;
      default:
        std::abort();
    }
  }
  return blocks;
}

std::vector<float> expandWeights(const WeightFormat& format, std::span<const uint8_t> blocks,
                                 int64_t count) {
  std::vector<float> values(static_cast<size_t>(count));
  for (int64_t i = 0; i < count / format.blockColumns; ++i) {
    expandBlock(format.type, blocks.data() + i * format.blockBytes,
                values.data() + i * format.blockColumns);
  }
  return values;
}

}  // namespace longsight::test
