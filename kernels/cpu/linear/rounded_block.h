// Activations in 8-bit integers, for products with weights whose file type holds integers.
//
// A few channels of a transformer's activations are ten to a hundred times as large as the rest.
// With one scale for a block they leave the rest a handful of steps: on SmolLM2-135M that costs a
// KL of 0.003 to f32 arithmetic, ten times what bf16 does. So of a block's 8 groups of 4 the two
// largest get 15 bits, as 128 * high + low, and the scale is that of the other six. (The idea of
// treating outliers apart: Dettmers et al. 2022, LLM.int8().)
//
// Unnamed namespace: see expand.h.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace longsight {
namespace {

constexpr int kBlock = 32;
constexpr int kGroup = 4;
constexpr int kWideGroups = 2;
// Bits by which a high part counts more.
constexpr int kHighShift = 7;
constexpr float kMostLow = 127.0f, kMostWide = 127.0f * 128.0f;

// 32 activations: value = scale * (low + 128 * high in the wide groups).
struct alignas(64) RoundedBlock {
  int8_t low[kBlock];
  // The four high parts of each wide group, and which of the block's groups it is.
  int32_t high[kWideGroups];
  int32_t group[kWideGroups];
  // Of the integers, and of the values.
  int32_t negatedSum;
  float valueSum;
  float scale;
  int32_t unused;
};
static_assert(sizeof(RoundedBlock) == 2 * kBlock);

// Blocks with a value that is no finite number get a scale that makes NaN of every product.
inline __attribute__((always_inline)) void roundBlock(const float* source, RoundedBlock& block) {
  const __m512i magnitude = _mm512_set1_epi32(0x7fffffff);
  const __m512 x[2] = {_mm512_loadu_ps(source), _mm512_loadu_ps(source + 16)};
  __m512 largest[2];  // of the group, in each of its lanes
  for (int half = 0; half < 2; ++half) {
    __m512 m = _mm512_castsi512_ps(_mm512_and_si512(_mm512_castps_si512(x[half]), magnitude));
    m = _mm512_max_ps(_mm512_permute_ps(m, 0xb1), m);
    largest[half] = _mm512_max_ps(_mm512_permute_ps(m, 0x4e), m);
  }
  const __m512i firstLanes = _mm512_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28, 0, 0, 0, 0, 0, 0, 0, 0);
  __m256 groups =
      _mm512_castps512_ps256(_mm512_permutex2var_ps(largest[0], firstLanes, largest[1]));
  const auto largestOf = [](__m256 values) __attribute__((always_inline)) {
    values = _mm256_max_ps(values, _mm256_permute2f128_ps(values, values, 1));
    values = _mm256_max_ps(values, _mm256_permute_ps(values, 0x4e));
    return _mm256_max_ps(values, _mm256_permute_ps(values, 0xb1));
  };
  float most = 0.0f;
  uint32_t wideLanes = 0;
  for (int i = 0; i < kWideGroups; ++i) {
    const __m256 top = largestOf(groups);
    if (i == 0) most = _mm256_cvtss_f32(top);
    // The bit of index 8 for a block in which nothing compares equal: NaN.
    const uint32_t equal = _mm256_cmp_ps_mask(groups, top, _CMP_EQ_OQ) | 0x80u;
    const int group = __builtin_ctz(equal);
    block.group[i] = group;
    wideLanes |= 0xfu << (kGroup * group);
    groups = _mm256_mask_mov_ps(groups, static_cast<__mmask8>(1u << group), _mm256_setzero_ps());
  }
  const float others = _mm256_cvtss_f32(largestOf(groups));
  const float scales[2] = {others / kMostLow, most / kMostWide};
  float scale = scales[0] > scales[1] ? scales[0] : scales[1];
  // Smaller ones have no reciprocal.
  if (scale < 1e-37f) scale = 0.0f;
  const __m512 perStep = _mm512_set1_ps(scale > 0.0f ? 1.0f / scale : 0.0f);

  __m512i all = _mm512_setzero_si512();
  alignas(64) int8_t high[kBlock];
  for (int half = 0; half < 2; ++half) {
    const __m512i steps = _mm512_cvtps_epi32(_mm512_mul_ps(x[half], perStep));
    const __m512i top = _mm512_maskz_srai_epi32(
        static_cast<__mmask16>(wideLanes >> (16 * half)),
        _mm512_add_epi32(steps, _mm512_set1_epi32(1 << (kHighShift - 1))), kHighShift);
    const __m512i low = _mm512_sub_epi32(steps, _mm512_slli_epi32(top, kHighShift));
    all = _mm512_add_epi32(all, steps);
    _mm_store_si128(reinterpret_cast<__m128i*>(block.low + 16 * half), _mm512_cvtepi32_epi8(low));
    _mm_store_si128(reinterpret_cast<__m128i*>(high + 16 * half), _mm512_cvtepi32_epi8(top));
  }
  for (int i = 0; i < kWideGroups; ++i) {
    __builtin_memcpy(&block.high[i], high + kGroup * block.group[i], sizeof(block.high[i]));
  }
  const int32_t sum = _mm512_reduce_add_epi32(all);
  // Zero for finite numbers, NaN otherwise.
  const __m512 zeros[2] = {_mm512_mul_ps(x[0], _mm512_setzero_ps()),
                           _mm512_mul_ps(x[1], _mm512_setzero_ps())};
  const __m512 either = _mm512_add_ps(zeros[0], zeros[1]);
  if (_mm512_cmp_ps_mask(either, either, _CMP_UNORD_Q) != 0) scale = __builtin_nanf("");
  block.negatedSum = -sum;
  block.valueSum = scale * static_cast<float>(sum);
  block.scale = scale;
  block.unused = 0;
}

}  // namespace
}  // namespace longsight
