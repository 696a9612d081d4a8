// AVX512_BF16: weights and activations rounded to bf16, sums in f32 by vdpbf16ps.
#include <immintrin.h>

#include "kernels/cpu/linear/expand.h"
#include "kernels/cpu/linear/transpose_avx512.h"

namespace longsight {
namespace {

// Panel: [column pair][64 rows][2].
constexpr int kPairElements = 2 * kPanelRows;

void expandPanel(const PanelSource& source, float* group, void* panelBytes) {
  uint16_t* panel = static_cast<uint16_t*>(panelBytes);
  expandGroups(source, group,
               [panel](const float* rows, int64_t columns, int32_t firstRow, int64_t firstColumn) {
                 for (int64_t c = 0; c < columns; c += 32) {
                   __m512i pairs[16];
#pragma GCC unroll 16
                   for (int r = 0; r < 16; ++r) {
                     const float* row = rows + r * kGroupStride + c;
                     pairs[r] = (__m512i)_mm512_cvtne2ps_pbh(_mm512_loadu_ps(row + 16),
                                                             _mm512_loadu_ps(row));
                   }
                   transpose16x16(pairs);
                   uint16_t* target = panel + (firstColumn + c) / 2 * kPairElements + 2 * firstRow;
#pragma GCC unroll 16
                   for (int j = 0; j < 16; ++j)
                     _mm512_storeu_si512(target + j * kPairElements, pairs[j]);
                 }
               });
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

template <int Rows>
void tile(const uint16_t* a, int64_t aStride, const uint16_t* panel, int64_t depth, float* c,
          int64_t cStride, bool accumulate) {
  __m512 sum[Rows][4];
#pragma GCC unroll 6
  for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v) {
      sum[r][v] = accumulate ? _mm512_loadu_ps(c + r * cStride + 16 * v) : _mm512_setzero_ps();
    }
  }
  for (int64_t k = 0; k < depth; k += 2, panel += kPairElements) {
    __m512bh b[4];
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v) b[v] = (__m512bh)_mm512_loadu_si512(panel + 32 * v);
#pragma GCC unroll 6
    for (int r = 0; r < Rows; ++r) {
      int32_t pair;
      __builtin_memcpy(&pair, a + r * aStride + k, sizeof(pair));
      const __m512bh both = (__m512bh)_mm512_set1_epi32(pair);
#pragma GCC unroll 4
      for (int v = 0; v < 4; ++v) sum[r][v] = _mm512_dpbf16_ps(sum[r][v], both, b[v]);
    }
  }
#pragma GCC unroll 6
  for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v) _mm512_storeu_ps(c + r * cStride + 16 * v, sum[r][v]);
  }
}

void multiplyTile(const void* a, int64_t aStride, int32_t rows, const void* panel, int64_t depth,
                  float* c, int64_t cStride, bool accumulate) {
  using Tile = void (*)(const uint16_t*, int64_t, const uint16_t*, int64_t, float*, int64_t, bool);
  static constexpr Tile tiles[] = {tile<1>, tile<2>, tile<3>, tile<4>, tile<5>, tile<6>};
  tiles[rows - 1](static_cast<const uint16_t*>(a), aStride, static_cast<const uint16_t*>(panel),
                  depth, c, cStride, accumulate);
}

}  // namespace

const LinearKernels* avx512bf16LinearKernels() {
  static constexpr LinearKernels kernels = {.set = InstructionSet::avx512bf16,
                                            .tileRows = 6,
                                            .panelDepth = 2048,
                                            .elementBytes = 2,
                                            .expander = expanderOf,
                                            .packRow = packRow,
                                            .expandPanel = expandPanel,
                                            .multiplyTile = multiplyTile};
  return &kernels;
}

}  // namespace longsight
