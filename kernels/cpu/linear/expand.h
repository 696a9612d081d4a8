// Expansion of weights to f32, as plain loops that the compiler vectorizes for each instruction
// set.
//
// Included once by each instruction set's source file. Everything is in an unnamed namespace and
// nothing of the standard library is called: a function shared between sources that are compiled
// for different instruction sets could run where its instructions do not exist.
//
// Block layouts: ggml-common.h of ggml. The operations and their order are those of ggml's
// dequantize_row_*, and the sources are compiled without contraction, so that the bits are equal.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__F16C__)
#include <immintrin.h>
#endif

#include "ggml.h"
#include "kernels/cpu/linear/half.h"
#include "kernels/cpu/linear/kernels.h"

namespace longsight {
namespace {

void expandF32(const void* source, float* target, int64_t count) {
  std::memcpy(target, source, static_cast<size_t>(count) * sizeof(float));
}

void expandF16(const void* source, float* __restrict target, int64_t count) {
  const uint8_t* bytes = static_cast<const uint8_t*>(source);
  int64_t i = 0;
#if defined(__F16C__)
  for (; i + 8 <= count; i += 8) {
    const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes + 2 * i));
    _mm256_storeu_ps(target + i, _mm256_cvtph_ps(half));
  }
#endif
  for (; i < count; ++i) target[i] = loadHalf(bytes + 2 * i);
}

void expandBf16(const void* source, float* __restrict target, int64_t count) {
  const uint8_t* __restrict bytes = static_cast<const uint8_t*>(source);
  for (int64_t i = 0; i < count; ++i) {
    const uint32_t raw = static_cast<uint32_t>(loadHalfBits(bytes + 2 * i)) << 16;
    std::memcpy(target + i, &raw, sizeof(raw));
  }
}

// 32 nibbles of 16 bytes, the low ones first: target = (nibble - bias) * d, then + m where HasM.
template <int Bias, bool HasM>
inline void expandNibbles(const uint8_t* __restrict source, float* __restrict target, float d,
                          float m) {
#if defined(__AVX2__)
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(source));
  const __m128i mask = _mm_set1_epi8(15);
  const __m128i low = _mm_and_si128(bytes, mask);
  const __m128i high = _mm_and_si128(_mm_srli_epi16(bytes, 4), mask);
  const __m128i eights[4] = {low, _mm_srli_si128(low, 8), high, _mm_srli_si128(high, 8)};
  for (int i = 0; i < 4; ++i) {
    const __m256i q = _mm256_sub_epi32(_mm256_cvtepu8_epi32(eights[i]), _mm256_set1_epi32(Bias));
    __m256 value = _mm256_mul_ps(_mm256_cvtepi32_ps(q), _mm256_set1_ps(d));
    if constexpr (HasM) value = _mm256_add_ps(value, _mm256_set1_ps(m));
    _mm256_storeu_ps(target + 8 * i, value);
  }
#else
  for (int j = 0; j < 16; ++j) {
    const float value = static_cast<float>((source[j] & 15) - Bias) * d;
    target[j] = HasM ? value + m : value;
  }
  for (int j = 0; j < 16; ++j) {
    const float value = static_cast<float>((source[j] >> 4) - Bias) * d;
    target[16 + j] = HasM ? value + m : value;
  }
#endif
}

// Block of 32: half d, 16 bytes.
void expandQ4_0(const void* source, float* __restrict target, int64_t count) {
  const uint8_t* block = static_cast<const uint8_t*>(source);
  for (int64_t i = 0; i < count; i += 32, block += 18, target += 32) {
    expandNibbles<8, false>(block + 2, target, loadHalf(block), 0.0f);
  }
}

// Block of 32: half d, half m, 16 bytes.
void expandQ4_1(const void* source, float* __restrict target, int64_t count) {
  const uint8_t* block = static_cast<const uint8_t*>(source);
  for (int64_t i = 0; i < count; i += 32, block += 20, target += 32) {
    expandNibbles<0, true>(block + 4, target, loadHalf(block), loadHalf(block + 2));
  }
}

// Block of 32: half d, 32 signed bytes.
void expandQ8_0(const void* source, float* __restrict target, int64_t count) {
  const uint8_t* __restrict block = static_cast<const uint8_t*>(source);
  for (int64_t i = 0; i < count; i += 32, block += 34, target += 32) {
    const float d = loadHalf(block);
    for (int j = 0; j < 32; ++j) {
      target[j] = static_cast<float>(static_cast<int8_t>(block[2 + j])) * d;
    }
  }
}

// Block of 256: half d, half dmin, 12 bytes with eight 6-bit scales and minima, 128 bytes; each 32
// bytes hold 32 low nibbles, then 32 high ones.
void expandQ4_K(const void* source, float* __restrict target, int64_t count) {
  const uint8_t* __restrict block = static_cast<const uint8_t*>(source);
  for (int64_t i = 0; i < count; i += 256, block += 144, target += 256) {
    const float d = loadHalf(block);
    const float dmin = loadHalf(block + 2);
    const uint8_t* packed = block + 4;
    float scale[8];
    float minimum[8];
    for (int j = 0; j < 4; ++j) {
      scale[j] = d * static_cast<float>(packed[j] & 63);
      minimum[j] = dmin * static_cast<float>(packed[j + 4] & 63);
      scale[j + 4] = d * static_cast<float>((packed[j + 8] & 15) | ((packed[j] >> 6) << 4));
      minimum[j + 4] =
          dmin * static_cast<float>((packed[j + 8] >> 4) | ((packed[j + 4] >> 6) << 4));
    }
    for (int part = 0; part < 4; ++part) {
      const uint8_t* __restrict q = block + 16 + 32 * part;
      float* __restrict low = target + 64 * part;
      const float d1 = scale[2 * part], m1 = minimum[2 * part];
      const float d2 = scale[2 * part + 1], m2 = minimum[2 * part + 1];
      for (int j = 0; j < 32; ++j) low[j] = d1 * static_cast<float>(q[j] & 15) - m1;
      for (int j = 0; j < 32; ++j) low[32 + j] = d2 * static_cast<float>(q[j] >> 4) - m2;
    }
  }
}

// Block of 256: 128 bytes of low nibbles, 64 bytes of upper bit pairs, 16 signed scales, half d.
// Each half of 128 weights has 64 + 32 bytes and 8 scales; its quarter s takes the nibbles of
// bytes 32 * (s & 1), low for s < 2, the bit pair s, and scales 2 s and 2 s + 1.
void expandQ6_K(const void* source, float* __restrict target, int64_t count) {
  const uint8_t* __restrict block = static_cast<const uint8_t*>(source);
  for (int64_t i = 0; i < count; i += 256, block += 210) {
    const float d = loadHalf(block + 208);
    for (int half = 0; half < 2; ++half) {
      const uint8_t* __restrict low = block + 64 * half;
      const uint8_t* __restrict high = block + 128 + 32 * half;
      const uint8_t* scales = block + 192 + 8 * half;
      for (int s = 0; s < 4; ++s, target += 32) {
        const float first = d * static_cast<float>(static_cast<int8_t>(scales[2 * s]));
        const float second = d * static_cast<float>(static_cast<int8_t>(scales[2 * s + 1]));
        const uint8_t* __restrict l = low + 32 * (s & 1);
        const int lowShift = s < 2 ? 0 : 4;
        for (int j = 0; j < 32; ++j) {
          const int q = ((l[j] >> lowShift) & 15) | (((high[j] >> (2 * s)) & 3) << 4);
          target[j] = (j < 16 ? first : second) * static_cast<float>(q - 32);
        }
      }
    }
  }
}

ExpandRow expanderOf(int32_t ggmlType) {
  switch (ggmlType) {
    case GGML_TYPE_F32:
      return expandF32;
    case GGML_TYPE_F16:
      return expandF16;
    case GGML_TYPE_BF16:
      return expandBf16;
    case GGML_TYPE_Q4_0:
      return expandQ4_0;
    case GGML_TYPE_Q4_1:
      return expandQ4_1;
    case GGML_TYPE_Q8_0:
      return expandQ8_0;
    case GGML_TYPE_Q4_K:
      return expandQ4_K;
    case GGML_TYPE_Q6_K:
      return expandQ6_K;
    default:
      return nullptr;
  }
}

// Expands the source 16 rows by at most 256 columns at a time and hands each such group, filled up
// with zeros, to storeGroup(group, columns, firstRow, firstColumn), which puts it into the panel.
template <class StoreGroup>
void expandGroups(const PanelSource& source, float* group, const StoreGroup& storeGroup) {
  for (int32_t firstRow = 0; firstRow < kPanelRows; firstRow += kGroupRows) {
    for (int64_t column = 0; column < source.columns; column += kGroupColumns) {
      const int64_t left = source.columns - column;
      const int64_t count = left < kGroupColumns ? left : kGroupColumns;
      const int64_t padded = (count + kColumnMultiple - 1) / kColumnMultiple * kColumnMultiple;
      const int64_t columnBytes = column / source.blockColumns * source.blockBytes;
      for (int32_t r = 0; r < kGroupRows; ++r) {
        float* target = group + r * kGroupStride;
        int64_t filled = 0;
        if (firstRow + r < source.rows) {
          source.expand(source.data + (firstRow + r) * source.rowBytes + columnBytes, target,
                        count);
          filled = count;
        }
        for (int64_t j = filled; j < padded; ++j) target[j] = 0.0f;
      }
      storeGroup(group, padded, firstRow, column);
    }
  }
}

}  // namespace
}  // namespace longsight
