// Transposition of 16 x 16 32-bit elements in registers.
// Unnamed namespace: see expand.h.
#pragma once

#include <immintrin.h>

namespace longsight {
namespace {

// rows[i] element j becomes rows[j] element i.
inline __attribute__((always_inline)) void transpose16x16(__m512i (&rows)[16]) {
  __m512i t[16];
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) {
    t[2 * i] = _mm512_unpacklo_epi32(rows[2 * i], rows[2 * i + 1]);
    t[2 * i + 1] = _mm512_unpackhi_epi32(rows[2 * i], rows[2 * i + 1]);
  }
  // rows[4 i + j], lane l: column 4 l + j of rows 4 i .. 4 i + 3.
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    rows[4 * i + 0] = _mm512_unpacklo_epi64(t[4 * i], t[4 * i + 2]);
    rows[4 * i + 1] = _mm512_unpackhi_epi64(t[4 * i], t[4 * i + 2]);
    rows[4 * i + 2] = _mm512_unpacklo_epi64(t[4 * i + 1], t[4 * i + 3]);
    rows[4 * i + 3] = _mm512_unpackhi_epi64(t[4 * i + 1], t[4 * i + 3]);
  }
  // A 4 x 4 transposition of 128-bit lanes for each j.
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    const __m512i lanes01a = _mm512_shuffle_i32x4(rows[j], rows[4 + j], 0x44);
    const __m512i lanes23a = _mm512_shuffle_i32x4(rows[j], rows[4 + j], 0xee);
    const __m512i lanes01b = _mm512_shuffle_i32x4(rows[8 + j], rows[12 + j], 0x44);
    const __m512i lanes23b = _mm512_shuffle_i32x4(rows[8 + j], rows[12 + j], 0xee);
    t[j] = _mm512_shuffle_i32x4(lanes01a, lanes01b, 0x88);
    t[4 + j] = _mm512_shuffle_i32x4(lanes01a, lanes01b, 0xdd);
    t[8 + j] = _mm512_shuffle_i32x4(lanes23a, lanes23b, 0x88);
    t[12 + j] = _mm512_shuffle_i32x4(lanes23a, lanes23b, 0xdd);
  }
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) rows[i] = t[i];
}

}  // namespace
}  // namespace longsight
