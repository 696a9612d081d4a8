// Weights as the integers of their file type: value = scale * (integer - 128) + minimum, for blocks
// of 32 columns. Exact, but for types with minima, whose sum ggml rounds to f32.
//
// Block layouts: ggml-common.h of ggml. Unnamed namespace: see expand.h.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "ggml.h"
#include "kernels/cpu/linear/half.h"

namespace longsight {
namespace {

constexpr int kIntegerBlock = 32;

// Where the integers of a row's blocks go, and a scale and a minimum for each.
struct IntegerRow {
  uint8_t* integers;
  float* scales;
  float* minima;  // null: the type has none
};

// Unpacks `count` weights of a row, a multiple of the type's block.
using UnpackRow = void (*)(const uint8_t* source, int64_t count, const IntegerRow& target);

inline void storeIntegers(uint8_t* target, __m256i integers, int bias) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(target),
                      _mm256_add_epi8(integers, _mm256_set1_epi8(static_cast<char>(bias))));
}

// 32 nibbles of 16 bytes, the low ones first.
inline __m256i nibbles(const uint8_t* source) {
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(source));
  return _mm256_and_si256(_mm256_set_m128i(_mm_srli_epi16(bytes, 4), bytes), _mm256_set1_epi8(15));
}

// 16 where the bit of the lane is set.
inline __m256i fifthBits(const uint8_t* source) {
  uint32_t bits;
  __builtin_memcpy(&bits, source, sizeof(bits));
  return _mm256_maskz_set1_epi8(bits, 16);
}

void unpackQ8_0(const uint8_t* block, int64_t count, const IntegerRow& target) {
  for (int64_t b = 0; b < count / 32; ++b, block += 34) {
    target.scales[b] = loadHalf(block);
    storeIntegers(target.integers + 32 * b,
                  _mm256_loadu_si256(reinterpret_cast<const __m256i*>(block + 2)), 128);
  }
}

void unpackQ4_0(const uint8_t* block, int64_t count, const IntegerRow& target) {
  for (int64_t b = 0; b < count / 32; ++b, block += 18) {
    target.scales[b] = loadHalf(block);
    storeIntegers(target.integers + 32 * b, nibbles(block + 2), 128 - 8);
  }
}

void unpackQ4_1(const uint8_t* block, int64_t count, const IntegerRow& target) {
  for (int64_t b = 0; b < count / 32; ++b, block += 20) {
    target.scales[b] = loadHalf(block);
    target.minima[b] = loadHalf(block + 2);
    storeIntegers(target.integers + 32 * b, nibbles(block + 4), 128);
  }
}

void unpackQ5_0(const uint8_t* block, int64_t count, const IntegerRow& target) {
  for (int64_t b = 0; b < count / 32; ++b, block += 22) {
    target.scales[b] = loadHalf(block);
    storeIntegers(target.integers + 32 * b,
                  _mm256_or_si256(nibbles(block + 6), fifthBits(block + 2)), 128 - 16);
  }
}

void unpackQ5_1(const uint8_t* block, int64_t count, const IntegerRow& target) {
  for (int64_t b = 0; b < count / 32; ++b, block += 24) {
    target.scales[b] = loadHalf(block);
    target.minima[b] = loadHalf(block + 2);
    storeIntegers(target.integers + 32 * b,
                  _mm256_or_si256(nibbles(block + 8), fifthBits(block + 4)), 128);
  }
}

// Half d, half dmin, 12 bytes with eight 6-bit scales and minima, as in expandQ4_K.
inline void kScales(const uint8_t* block, float* scales, float* minima) {
  const float d = loadHalf(block), dmin = loadHalf(block + 2);
  const uint8_t* packed = block + 4;
  for (int j = 0; j < 4; ++j) {
    scales[j] = d * static_cast<float>(packed[j] & 63);
    minima[j] = -(dmin * static_cast<float>(packed[j + 4] & 63));
    scales[j + 4] = d * static_cast<float>((packed[j + 8] & 15) | ((packed[j] >> 6) << 4));
    minima[j + 4] =
        -(dmin * static_cast<float>((packed[j + 8] >> 4) | ((packed[j + 4] >> 6) << 4)));
  }
}

// 32 bytes hold the low nibbles of a block of 32, then the high ones of the next.
inline __m256i kNibbles(const uint8_t* bytes, int which) {
  const __m256i both = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(bytes));
  return _mm256_and_si256(which == 0 ? both : _mm256_srli_epi16(both, 4), _mm256_set1_epi8(15));
}

void unpackQ4_K(const uint8_t* block, int64_t count, const IntegerRow& target) {
  for (int64_t b = 0; b < count / 32; b += 8, block += 144) {
    kScales(block, target.scales + b, target.minima + b);
    for (int j = 0; j < 8; ++j) {
      storeIntegers(target.integers + 32 * (b + j), kNibbles(block + 16 + 32 * (j / 2), j % 2),
                    128);
    }
  }
}

// The same with 32 bytes before the nibbles: bit j of byte i is the fifth of weight i of block j.
void unpackQ5_K(const uint8_t* block, int64_t count, const IntegerRow& target) {
  for (int64_t b = 0; b < count / 32; b += 8, block += 176) {
    kScales(block, target.scales + b, target.minima + b);
    const __m256i high = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(block + 16));
    for (int j = 0; j < 8; ++j) {
      const __mmask32 set =
          _mm256_test_epi8_mask(high, _mm256_set1_epi8(static_cast<char>(1 << j)));
      storeIntegers(target.integers + 32 * (b + j),
                    _mm256_or_si256(kNibbles(block + 48 + 32 * (j / 2), j % 2),
                                    _mm256_maskz_set1_epi8(set, 16)),
                    128);
    }
  }
}

// Nibbles stand for these, here with the bias.
inline __m256i fromTable(__m256i nibble) {
  const __m128i table =
      _mm_setr_epi8(1, 24, 45, 63, 79, 93, 106, 118, static_cast<char>(129), static_cast<char>(141),
                    static_cast<char>(153), static_cast<char>(166), static_cast<char>(181),
                    static_cast<char>(197), static_cast<char>(217), static_cast<char>(241));
  return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(table), nibble);
}

void unpackIQ4_NL(const uint8_t* block, int64_t count, const IntegerRow& target) {
  for (int64_t b = 0; b < count / 32; ++b, block += 18) {
    target.scales[b] = loadHalf(block);
    storeIntegers(target.integers + 32 * b, fromTable(nibbles(block + 2)), 0);
  }
}

// Half d, eight 2-bit parts of scales, eight 4-bit parts, 128 bytes.
void unpackIQ4_XS(const uint8_t* block, int64_t count, const IntegerRow& target) {
  for (int64_t b = 0; b < count / 32; b += 8, block += 136) {
    const float d = loadHalf(block);
    const uint16_t high = loadHalfBits(block + 2);
    for (int j = 0; j < 8; ++j) {
      const int scale = ((block[4 + j / 2] >> (4 * (j % 2))) & 15) | (((high >> (2 * j)) & 3) << 4);
      target.scales[b + j] = d * static_cast<float>(scale - 32);
      storeIntegers(target.integers + 32 * (b + j), fromTable(nibbles(block + 8 + 16 * j)), 0);
    }
  }
}

struct IntegerType {
  UnpackRow unpack;  // null: weights of the type are no integers with a scale for 32 of them
  bool hasMinima;
};

IntegerType integerType(int32_t ggmlType) {
  switch (ggmlType) {
    case GGML_TYPE_Q8_0:
      return {unpackQ8_0, false};
    case GGML_TYPE_Q4_0:
      return {unpackQ4_0, false};
    case GGML_TYPE_Q4_1:
      return {unpackQ4_1, true};
    case GGML_TYPE_Q5_0:
      return {unpackQ5_0, false};
    case GGML_TYPE_Q5_1:
      return {unpackQ5_1, true};
    case GGML_TYPE_Q4_K:
      return {unpackQ4_K, true};
    case GGML_TYPE_Q5_K:
      return {unpackQ5_K, true};
    case GGML_TYPE_IQ4_NL:
      return {unpackIQ4_NL, false};
    case GGML_TYPE_IQ4_XS:
      return {unpackIQ4_XS, false};
    default:
      return {nullptr, false};
  }
}

}  // namespace
}  // namespace longsight
