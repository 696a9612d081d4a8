// Panels and activations in bf16, in the order that vdpbf16ps and tdpbf16ps read.
// Unnamed namespace: see expand.h.
#pragma once

#include <immintrin.h>

#include "kernels/cpu/linear/expand.h"
#include "kernels/cpu/linear/transpose_avx512.h"

namespace longsight {
namespace {

// Rounds a group of 16 rows to bf16 and stores it as [column pair][16 rows][2], `pairStride`
// elements between pairs. columns is a multiple of 32.
inline void storeGroup(const float* rows, int64_t columns, uint16_t* target, int64_t pairStride) {
  for (int64_t c = 0; c < columns; c += 32, target += 16 * pairStride) {
    __m512i pairs[16];
#pragma GCC unroll 16
    for (int r = 0; r < 16; ++r) {
      const float* row = rows + r * kGroupStride + c;
      pairs[r] = (__m512i)_mm512_cvtne2ps_pbh(_mm512_loadu_ps(row + 16), _mm512_loadu_ps(row));
    }
    transpose16x16(pairs);
#pragma GCC unroll 16
    for (int j = 0; j < 16; ++j) _mm512_storeu_si512(target + j * pairStride, pairs[j]);
  }
}

void packRow(const float* source, int64_t columns, void* targetBytes, int64_t padded) {
  uint16_t* target = static_cast<uint16_t*>(targetBytes);
  for (int64_t c = 0; c < padded; c += 16) {
    const int64_t left = columns - c;
    const __mmask16 mask = left >= 16 ? 0xffff
                           : left > 0 ? static_cast<__mmask16>((1u << left) - 1)
                                      : 0;
    const __m256i rounded = (__m256i)_mm512_cvtneps_pbh(_mm512_maskz_loadu_ps(mask, source + c));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(target + c), rounded);
  }
}

}  // namespace
}  // namespace longsight
