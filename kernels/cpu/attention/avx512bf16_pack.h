// AVX512_BF16: how tiles and queries are packed; see avx512bf16.cpp for the layouts. Unnamed
// namespace, no library code: see blocked.h.
#pragma once

#include <immintrin.h>

#include "kernels/cpu/attention/key_row.h"
#include "kernels/cpu/linear/transpose_avx512.h"

namespace longsight {
namespace {

constexpr int kRows = 6;
constexpr int kLanes = 16;
constexpr int kChunk = 64;
static_assert(kTileKeys == 64 && kDimMultiple == kLanes);
inline int32_t roundUpTo(int32_t value, int32_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

inline __mmask32 firstLanes(int32_t count) {
  if (count <= 0) return 0;
  return count >= 32 ? 0xffffffffu : (1u << count) - 1;
}

inline void packQueries(const float* const* rows, int32_t blocks, DimRanges dims, float,
                        void* target) {
  auto* packed = static_cast<uint16_t*>(target);
  const bool isOdd = dims.count() % 2 != 0;
  for (int32_t row = 0; row < blocks * kRows; ++row) {
    for (const DimRange& range : dims.ranges) {
      for (int32_t dim = range.begin; dim < range.end; dim += kLanes) {
        const int32_t count = range.end - dim < kLanes ? range.end - dim : kLanes;
        const auto mask = static_cast<__mmask16>(firstLanes(count));
        const __m512 values = rows[row] != nullptr ? _mm512_maskz_loadu_ps(mask, rows[row] + dim)
                                                   : _mm512_setzero_ps();
        _mm256_mask_storeu_epi16(packed, mask, (__m256i)_mm512_cvtneps_pbh(values));
        packed += count;
      }
    }
    if (isOdd) *packed++ = 0;
  }
}

inline void packFewQueries(const float* const* rows, int32_t count, int32_t headDim, float scale,
                           float* packed) {
  for (int32_t row = 0; row < count; ++row) {
    for (int32_t dim = 0; dim < headDim; dim += kLanes, packed += kLanes) {
      const __m256i rounded = (__m256i)_mm512_cvtneps_pbh(_mm512_loadu_ps(rows[row] + dim));
      const __m512i wide = _mm512_slli_epi32(_mm512_cvtepu16_epi32(rounded), 16);
      _mm512_storeu_ps(packed, _mm512_mul_ps(_mm512_castsi512_ps(wide), _mm512_set1_ps(scale)));
    }
  }
}

// A row of q8 rounded to bf16; values has room for kMaxHeadDim.
inline void round(const std::byte* row, int32_t headDim, uint16_t* values) {
  for (int32_t begin = 0; begin < headDim; begin += kQ8Block) {
    const __mmask32 inBlock = firstLanes(headDim - begin);
    const __m256i integers = _mm256_maskz_loadu_epi8(inBlock, integersOf(row) + begin);
    const __m512 scale = _mm512_set1_ps(_cvtsh_ss(halfScaleOf(row, headDim, begin)));
    const __m512 low = _mm512_mul_ps(
        _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm256_castsi256_si128(integers))), scale);
    const __m512 high = _mm512_mul_ps(
        _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm256_extracti128_si256(integers, 1))), scale);
    _mm512_storeu_si512(values + begin, (__m512i)_mm512_cvtne2ps_pbh(high, low));
  }
}

inline void packKeys(const KeyRows& keys, DimRanges dims, void* target) {
  const int32_t count = dims.count();
  const int32_t pairs = (count + 1) / 2;
  const DimRange first = dims.ranges[0];
  const DimRange second = dims.ranges[1];
  const int32_t firstCount = first.end - first.begin;
  uint16_t rounded[kLanes][kMaxHeadDim];
  for (int32_t key = 0; key < keys.count; key += kLanes) {
    const uint16_t* rows[kLanes] = {};
    for (int32_t i = 0; i < kLanes && key + i < keys.count; ++i) {
      const std::byte* row = keyRow(keys, key + i);
      rows[i] = bf16Of(row);
      if (keys.matrix.type == KvType::q8) {
        round(row, keys.matrix.headDim, rounded[i]);
        rows[i] = rounded[i];
      }
    }
    for (int32_t dim = 0; dim < count; dim += 32) {
      // Of 32 dims, those of the first range and those of the second.
      const __mmask32 inFirst = firstLanes(firstCount - dim);
      const __mmask32 inSecond = firstLanes(count - dim) & ~inFirst;
      const int64_t firstOffset = first.begin + dim;
      const int64_t secondOffset = second.begin + dim - firstCount;
      __m512i columns[kLanes];
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; ++i) {
        columns[i] = _mm512_setzero_si512();
        if (rows[i] == nullptr) continue;
        columns[i] = _mm512_maskz_loadu_epi16(inFirst, rows[i] + firstOffset);
        if (inSecond != 0) {
          columns[i] = _mm512_mask_loadu_epi16(columns[i], inSecond, rows[i] + secondOffset);
        }
      }
      transpose16x16(columns);
      auto* packed = static_cast<uint16_t*>(target) + dim * int64_t{kTileKeys} + 2 * key;
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; ++i) {
        if (dim / 2 + i < pairs) _mm512_storeu_si512(packed + i * 2 * kTileKeys, columns[i]);
      }
    }
  }
}

inline void packValues(const KeyRows& values, void* target) {
  const int32_t headDim = values.matrix.headDim;
  const int32_t padded = roundUpTo(headDim, kDimMultiple);
  uint16_t rounded[2][kMaxHeadDim];
  for (int32_t key = 0; key < values.count; key += 2) {
    const bool hasOdd = key + 1 < values.count;
    const std::byte* rows[2] = {keyRow(values, key), keyRow(values, hasOdd ? key + 1 : key)};
    const uint16_t* even = bf16Of(rows[0]);
    const uint16_t* odd = bf16Of(rows[1]);
    if (values.matrix.type == KvType::q8) {
      for (int i = 0; i < 2; ++i) round(rows[i], headDim, rounded[i]);
      even = rounded[0];
      odd = rounded[1];
    }
    auto* chunk = static_cast<uint16_t*>(target);
    for (int32_t begin = 0; begin < padded; begin += kChunk, chunk += kTileKeys * kChunk) {
      const int32_t width = padded - begin < kChunk ? padded - begin : kChunk;
      uint16_t* packed = chunk + key * width;
      for (int32_t dim = begin; dim < begin + width; dim += kLanes, packed += 2 * kLanes) {
        const auto mask = static_cast<__mmask16>(firstLanes(headDim - dim) & 0xffff);
        const auto oddMask = static_cast<__mmask16>(hasOdd ? mask : 0);
        const __m512i low = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, even + dim));
        const __m512i high = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(oddMask, odd + dim));
        _mm512_storeu_si512(packed, _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
      }
    }
  }
}

}  // namespace
}  // namespace longsight
