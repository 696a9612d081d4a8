// AVX-512 without bf16 arithmetic: f32 throughout, sums by fused multiply-add.
#include <immintrin.h>

#include "kernels/cpu/linear/expand.h"
#include "kernels/cpu/linear/transpose_avx512.h"

namespace longsight {
namespace {

// Panel: [column][64 rows].
void expandPanel(const PanelSource& source, float* group, void* panelBytes) {
  float* panel = static_cast<float*>(panelBytes);
  expandGroups(source, group,
               [panel](const float* rows, int64_t columns, int32_t firstRow, int64_t firstColumn) {
                 for (int64_t c = 0; c < columns; c += 16) {
                   __m512i values[16];
#pragma GCC unroll 16
                   for (int r = 0; r < 16; ++r)
                     values[r] = _mm512_loadu_si512(rows + r * kGroupStride + c);
                   transpose16x16(values);
                   float* target = panel + (firstColumn + c) * kPanelRows + firstRow;
#pragma GCC unroll 16
                   for (int j = 0; j < 16; ++j)
                     _mm512_storeu_si512(target + j * kPanelRows, values[j]);
                 }
               });
}

template <int Rows>
void tile(const float* a, int64_t aStride, const float* panel, int64_t depth, float* c,
          int64_t cStride, bool accumulate) {
  __m512 sum[Rows][4];
#pragma GCC unroll 6
  for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v) {
      sum[r][v] = accumulate ? _mm512_loadu_ps(c + r * cStride + 16 * v) : _mm512_setzero_ps();
    }
  }
  for (int64_t k = 0; k < depth; ++k, panel += kPanelRows) {
    __m512 b[4];
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v) b[v] = _mm512_loadu_ps(panel + 16 * v);
#pragma GCC unroll 6
    for (int r = 0; r < Rows; ++r) {
      const __m512 value = _mm512_set1_ps(a[r * aStride + k]);
#pragma GCC unroll 4
      for (int v = 0; v < 4; ++v) sum[r][v] = _mm512_fmadd_ps(value, b[v], sum[r][v]);
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
  using Tile = void (*)(const float*, int64_t, const float*, int64_t, float*, int64_t, bool);
  static constexpr Tile tiles[] = {tile<1>, tile<2>, tile<3>, tile<4>, tile<5>, tile<6>};
  tiles[rows - 1](static_cast<const float*>(a), aStride, static_cast<const float*>(panel), depth, c,
                  cStride, accumulate);
}

}  // namespace

const LinearKernels* avx512LinearKernels() {
  static constexpr LinearKernels kernels = {.set = InstructionSet::avx512,
                                            .tileRows = 6,
                                            .panelDepth = 1024,
                                            .elementBytes = 4,
                                            .takes = nullptr,
                                            .expander = expanderOf,
                                            .packRow = nullptr,
                                            .expandPanel = expandPanel,
                                            .multiplyTile = multiplyTile};
  return &kernels;
}

}  // namespace longsight
