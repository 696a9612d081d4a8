// AVX2 and FMA: f32 throughout.
#include <immintrin.h>

#include "kernels/cpu/linear/expand.h"

namespace longsight {
namespace {

// Panel: [4 strips][column][16 rows]; a strip is what the accumulators of a tile hold.
constexpr int kStripRows = 16;

inline __attribute__((always_inline)) void transpose8x8(__m256 (&rows)[8]) {
  __m256 t[8];
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    t[2 * i] = _mm256_unpacklo_ps(rows[2 * i], rows[2 * i + 1]);
    t[2 * i + 1] = _mm256_unpackhi_ps(rows[2 * i], rows[2 * i + 1]);
  }
#pragma GCC unroll 2
  for (int i = 0; i < 2; ++i) {
    rows[4 * i + 0] = _mm256_shuffle_ps(t[4 * i], t[4 * i + 2], 0x44);
    rows[4 * i + 1] = _mm256_shuffle_ps(t[4 * i], t[4 * i + 2], 0xee);
    rows[4 * i + 2] = _mm256_shuffle_ps(t[4 * i + 1], t[4 * i + 3], 0x44);
    rows[4 * i + 3] = _mm256_shuffle_ps(t[4 * i + 1], t[4 * i + 3], 0xee);
  }
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    t[j] = _mm256_permute2f128_ps(rows[j], rows[4 + j], 0x20);
    t[4 + j] = _mm256_permute2f128_ps(rows[j], rows[4 + j], 0x31);
  }
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) rows[i] = t[i];
}

int64_t stripElements(int64_t depth) {
  return (depth + kColumnMultiple - 1) / kColumnMultiple * kColumnMultiple * kStripRows;
}

void expandPanel(const PanelSource& source, float* group, void* panelBytes) {
  static_assert(kStripRows == kGroupRows);
  float* panel = static_cast<float*>(panelBytes);
  const int64_t elements = stripElements(source.columns);
  expandGroups(source, group,
               [=](const float* rows, int64_t columns, int32_t firstRow, int64_t firstColumn) {
                 float* strip = panel + firstRow / kStripRows * elements;
                 for (int64_t c = 0; c < columns; c += 8) {
                   float* target = strip + (firstColumn + c) * kStripRows;
                   for (int half = 0; half < 2; ++half) {
                     __m256 values[8];
#pragma GCC unroll 8
                     for (int r = 0; r < 8; ++r) {
                       values[r] = _mm256_loadu_ps(rows + (8 * half + r) * kGroupStride + c);
                     }
                     transpose8x8(values);
#pragma GCC unroll 8
                     for (int j = 0; j < 8; ++j) {
                       _mm256_storeu_ps(target + j * kStripRows + 8 * half, values[j]);
                     }
                   }
                 }
               });
}

template <int Rows>
void tile(const float* a, int64_t aStride, const float* strip, int64_t depth, float* c,
          int64_t cStride, bool accumulate) {
  __m256 sum[Rows][2];
#pragma GCC unroll 6
  for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 2
    for (int v = 0; v < 2; ++v) {
      sum[r][v] = accumulate ? _mm256_loadu_ps(c + r * cStride + 8 * v) : _mm256_setzero_ps();
    }
  }
  for (int64_t k = 0; k < depth; ++k, strip += kStripRows) {
    const __m256 b0 = _mm256_loadu_ps(strip);
    const __m256 b1 = _mm256_loadu_ps(strip + 8);
#pragma GCC unroll 6
    for (int r = 0; r < Rows; ++r) {
      const __m256 value = _mm256_set1_ps(a[r * aStride + k]);
      sum[r][0] = _mm256_fmadd_ps(value, b0, sum[r][0]);
      sum[r][1] = _mm256_fmadd_ps(value, b1, sum[r][1]);
    }
  }
#pragma GCC unroll 6
  for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 2
    for (int v = 0; v < 2; ++v) _mm256_storeu_ps(c + r * cStride + 8 * v, sum[r][v]);
  }
}

void multiplyTile(const void* a, int64_t aStride, int32_t rows, const void* panel, int64_t depth,
                  float* c, int64_t cStride, bool accumulate) {
  using Tile = void (*)(const float*, int64_t, const float*, int64_t, float*, int64_t, bool);
  static constexpr Tile tiles[] = {tile<1>, tile<2>, tile<3>, tile<4>, tile<5>, tile<6>};
  const int64_t elements = stripElements(depth);
  for (int s = 0; s < kPanelRows / kStripRows; ++s) {
    tiles[rows - 1](static_cast<const float*>(a), aStride,
                    static_cast<const float*>(panel) + s * elements, depth, c + s * kStripRows,
                    cStride, accumulate);
  }
}

}  // namespace

const LinearKernels* avx2LinearKernels() {
  static constexpr LinearKernels kernels = {.set = InstructionSet::avx2,
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
