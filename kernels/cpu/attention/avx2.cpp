// AVX2 and FMA: 6 rows x 16 columns in 12 of 16 registers.
#include <immintrin.h>

#include "kernels/cpu/attention/blocked.h"

namespace longsight {
namespace {

struct Avx2 {
  using Type = __m256;
  static constexpr int kLanes = 8;

  static Type load(const float* p) { return _mm256_loadu_ps(p); }
  static void store(float* p, Type v) { _mm256_storeu_ps(p, v); }
  static Type broadcast(float x) { return _mm256_set1_ps(x); }
  static Type zero() { return _mm256_setzero_ps(); }
  static Type add(Type a, Type b) { return _mm256_add_ps(a, b); }
  static Type subtract(Type a, Type b) { return _mm256_sub_ps(a, b); }
  static Type multiply(Type a, Type b) { return _mm256_mul_ps(a, b); }
  static Type multiplyAdd(Type a, Type b, Type c) { return _mm256_fmadd_ps(a, b, c); }
  static Type max(Type a, Type b) { return _mm256_max_ps(a, b); }

  static Type power2(Type t) {
    const __m256i exponent = _mm256_slli_epi32(_mm256_castps_si256(t), 23);
    return _mm256_castsi256_ps(_mm256_add_epi32(exponent, _mm256_set1_epi32(127 << 23)));
  }
  static float horizontalMax(Type v) {
    __m128 x = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    x = _mm_max_ps(x, _mm_movehl_ps(x, x));
    return _mm_cvtss_f32(_mm_max_ss(x, _mm_movehdup_ps(x)));
  }
  static float horizontalSum(Type v) {
    __m128 x = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    x = _mm_add_ps(x, _mm_movehl_ps(x, x));
    return _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)));
  }

  static Type loadBf16(const uint16_t* p) {
    const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
  }

  static Type loadIntegers(const int8_t* p) {
    return _mm256_cvtepi32_ps(
        _mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
  }
  static float halfToFloat(uint16_t half) { return _cvtsh_ss(half); }

  // 8 rows x 8 dims to [dim][16 columns].
  template <typename Element>
  static void transpose8(const Element* const* rows, int32_t dim, float* packed) {
    Type r[8];
    for (int i = 0; i < 8; ++i) r[i] = rows[i] != nullptr ? loadWide<Avx2>(rows[i] + dim) : zero();
    Type pairs[8];
    for (int i = 0; i < 8; i += 2) {
      pairs[i] = _mm256_unpacklo_ps(r[i], r[i + 1]);
      pairs[i + 1] = _mm256_unpackhi_ps(r[i], r[i + 1]);
    }
    Type quads[8];
    for (int i = 0; i < 8; i += 4) {
      for (int j = 0; j < 2; ++j) {
        quads[i + 2 * j] = _mm256_shuffle_ps(pairs[i + j], pairs[i + j + 2], 0x44);
        quads[i + 2 * j + 1] = _mm256_shuffle_ps(pairs[i + j], pairs[i + j + 2], 0xee);
      }
    }
    for (int i = 0; i < 4; ++i) {
      store(packed + i * 16, _mm256_permute2f128_ps(quads[i], quads[i + 4], 0x20));
      store(packed + (i + 4) * 16, _mm256_permute2f128_ps(quads[i], quads[i + 4], 0x31));
    }
  }

  template <typename Element>
  static void transposePanel(const Element* const* rows, DimRanges dims, float* packed) {
    for (const DimRange& range : dims.ranges) {
      int32_t dim = range.begin;
      for (; dim + 8 <= range.end; dim += 8, packed += 8 * 16) {
        transpose8(rows, dim, packed);
        transpose8(rows + 8, dim, packed + 8);
      }
      for (; dim < range.end; ++dim) {
        for (int i = 0; i < 16; ++i) {
          *packed++ = rows[i] != nullptr ? wide(rows[i][dim]) : 0.0f;
        }
      }
    }
  }
};

constexpr AttentionKernels kKernels = Blocked<Avx2, 6>::table(InstructionSet::avx2);

}  // namespace

const AttentionKernels* avx2AttentionKernels() { return &kKernels; }

}  // namespace longsight
