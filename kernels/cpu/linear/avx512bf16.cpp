// AVX512_BF16: weights and activations rounded to bf16, sums in f32 by vdpbf16ps.
#include <immintrin.h>

#include "kernels/cpu/linear/bf16_panel.h"

namespace longsight {
namespace {

// Panel: [column pair][64 rows][2].
constexpr int kPairElements = 2 * kPanelRows;

void expandPanel(const PanelSource& source, float* group, void* panelBytes) {
  uint16_t* panel = static_cast<uint16_t*>(panelBytes);
  expandGroups(source, group,
               [panel](const float* rows, int64_t columns, int32_t firstRow, int64_t firstColumn) {
                 storeGroup(rows, columns, panel + firstColumn / 2 * kPairElements + 2 * firstRow,
                            kPairElements);
               });
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
  // The rows of an output lie far apart: without this, the stores below wait for memory.
#pragma GCC unroll 6
  for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v) {
      _mm_prefetch(reinterpret_cast<const char*>(c + r * cStride + 16 * v), _MM_HINT_T0);
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
                                            .takes = nullptr,
                                            .expander = expanderOf,
                                            .packRow = packRow,
                                            .expandPanel = expandPanel,
                                            .multiplyTile = multiplyTile};
  return &kernels;
}

}  // namespace longsight
