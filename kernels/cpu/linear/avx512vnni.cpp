// AVX512_VNNI: weights that a file holds as integers stay integers, activations become such
// (rounded_block.h), and vpdpbusd adds four products to each of 16 int32 sums: twice the products
// of vdpbf16ps in an instruction. Each block of 32 columns has scales, with which its sums go into
// f32 sums: of the 48 instructions that need a multiplier for a row, 64 outputs and a block, 32 are
// products, 8 those of the high parts, 4 products of scales and 4 the multiply-adds.
#include <immintrin.h>

#include "kernels/cpu/linear/integers.h"
#include "kernels/cpu/linear/kernels.h"
#include "kernels/cpu/linear/rounded_block.h"
#include "kernels/cpu/linear/transpose_avx512.h"

namespace longsight {
namespace {

// A panel: this header, then the blocks.
struct alignas(64) PanelHeader {
  int32_t hasMinima;
};
// Of 32 columns: integers [group of 4 columns][64 rows][4].
struct alignas(64) PanelBlock {
  uint8_t integers[kBlock / kGroup][kPanelRows][kGroup];
  float scales[kPanelRows];
  float minima[kPanelRows];
};
// A panel of bf16 has this size: the scratch is that of any set.
static_assert(sizeof(PanelHeader) + sizeof(PanelBlock) <= 2 * kPanelRows * kBlock);
static_assert(kBlock == kColumnMultiple && kBlock == kIntegerBlock);

constexpr int kGroupBlocks = kGroupColumns / kBlock;
constexpr int64_t kIntegerStride = kGroupColumns + 64;

bool takes(int32_t ggmlType) { return integerType(ggmlType).unpack != nullptr; }

ExpandRow noExpander(int32_t) { return nullptr; }

void packRow(const float* source, int64_t columns, void* target, int64_t) {
  auto* blocks = static_cast<RoundedBlock*>(target);
  for (int64_t column = 0; column < columns; column += kBlock) {
    roundBlock(source + column, *blocks++);
  }
}

// Puts 16 rows of `blocks` blocks into the panel.
void storeGroup(const uint8_t* integers, const float (&scales)[kGroupRows][kGroupBlocks],
                const float (&minima)[kGroupRows][kGroupBlocks], int64_t blocks, int32_t firstRow,
                PanelBlock* target) {
  constexpr int kGroups = kBlock / kGroup;
  for (int64_t pair = 0; pair < blocks; pair += 2) {
    __m512i columns[kGroupRows];
#pragma GCC unroll 16
    for (int r = 0; r < kGroupRows; ++r) {
      columns[r] = _mm512_loadu_si512(integers + r * kIntegerStride + kBlock * pair);
    }
    transpose16x16(columns);
#pragma GCC unroll 16
    for (int g = 0; g < 2 * kGroups; ++g) {
      const int64_t block = pair + g / kGroups;
      if (block < blocks) {
        _mm512_storeu_si512(target[block].integers[g % kGroups][firstRow], columns[g]);
      }
    }
  }
  for (int64_t block = 0; block < blocks; ++block) {
    for (int r = 0; r < kGroupRows; ++r) {
      target[block].scales[firstRow + r] = scales[r][block];
      target[block].minima[firstRow + r] = minima[r][block];
    }
  }
}

void expandPanel(const PanelSource& source, float* group, void* panel) {
  auto* header = static_cast<PanelHeader*>(panel);
  auto* blocks = reinterpret_cast<PanelBlock*>(header + 1);
  auto* integers = reinterpret_cast<uint8_t*>(group);
  const IntegerType type = integerType(source.ggmlType);
  header->hasMinima = type.hasMinima;
  for (int32_t firstRow = 0; firstRow < kPanelRows; firstRow += kGroupRows) {
    for (int64_t column = 0; column < source.columns; column += kGroupColumns) {
      const int64_t left = source.columns - column;
      const int64_t count = left < kGroupColumns ? left : kGroupColumns;
      float scales[kGroupRows][kGroupBlocks] = {};
      float minima[kGroupRows][kGroupBlocks] = {};
      for (int32_t r = 0; r < kGroupRows; ++r) {
        uint8_t* row = integers + r * kIntegerStride;
        if (firstRow + r < source.rows) {
          const std::byte* data = source.data + (firstRow + r) * source.rowBytes +
                                  column / source.blockColumns * source.blockBytes;
          // The rest of the row comes next, after as much of 15 other rows: too many for the
          // hardware to foresee.
          const int64_t bytes = count / source.blockColumns * source.blockBytes;
          for (int64_t at = 0; at < bytes; at += 64) {
            _mm_prefetch(reinterpret_cast<const char*>(data) + bytes + at, _MM_HINT_T0);
          }
          type.unpack(reinterpret_cast<const uint8_t*>(data), count, {row, scales[r], minima[r]});
        } else {
          __builtin_memset(row, 0, static_cast<size_t>(count));
        }
      }
      storeGroup(integers, scales, minima, count / kBlock, firstRow, blocks + column / kBlock);
    }
  }
}

template <int Rows, bool HasMinima>
void tile(const RoundedBlock* a, int64_t aStride, const PanelBlock* panel, int64_t blocks, float* c,
          int64_t cStride, bool accumulate) {
  __m512 sum[Rows][4];
#pragma GCC unroll 3
  for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v) {
      float* target = c + r * cStride + 16 * v;
      sum[r][v] = accumulate ? _mm512_loadu_ps(target) : _mm512_setzero_ps();
      // The rows of an output lie far apart: without this, the stores below wait for memory.
      _mm_prefetch(reinterpret_cast<const char*>(target), _MM_HINT_T0);
    }
  }
  for (int64_t block = 0; block < blocks; ++block, ++panel, ++a) {
    if constexpr (HasMinima) {
      __m512 minima[4];
#pragma GCC unroll 4
      for (int v = 0; v < 4; ++v) minima[v] = _mm512_load_ps(panel->minima + 16 * v);
#pragma GCC unroll 3
      for (int r = 0; r < Rows; ++r) {
        const __m512 total = _mm512_set1_ps(a[r * aStride].valueSum);
#pragma GCC unroll 4
        for (int v = 0; v < 4; ++v) sum[r][v] = _mm512_fmadd_ps(total, minima[v], sum[r][v]);
      }
    }
    // The high parts, and what the bias of the weights adds, are shifted together.
    __m512i products[Rows][4];
#pragma GCC unroll 3
    for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 4
      for (int v = 0; v < 4; ++v) products[r][v] = _mm512_set1_epi32(a[r * aStride].negatedSum);
    }
#pragma GCC unroll 2
    for (int i = 0; i < kWideGroups; ++i) {
#pragma GCC unroll 3
      for (int r = 0; r < Rows; ++r) {
        const __m512i high = _mm512_set1_epi32(a[r * aStride].high[i]);
        const auto* weights = panel->integers[a[r * aStride].group[i]];
#pragma GCC unroll 4
        for (int v = 0; v < 4; ++v) {
          products[r][v] =
              _mm512_dpbusd_epi32(products[r][v], _mm512_load_si512(weights + 16 * v), high);
        }
      }
    }
#pragma GCC unroll 3
    for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 4
      for (int v = 0; v < 4; ++v) products[r][v] = _mm512_slli_epi32(products[r][v], kHighShift);
    }
#pragma GCC unroll 8
    for (int g = 0; g < kBlock / kGroup; ++g) {
      __m512i weights[4];
#pragma GCC unroll 4
      for (int v = 0; v < 4; ++v) weights[v] = _mm512_load_si512(panel->integers[g] + 16 * v);
#pragma GCC unroll 3
      for (int r = 0; r < Rows; ++r) {
        int32_t four;
        __builtin_memcpy(&four, a[r * aStride].low + kGroup * g, sizeof(four));
        const __m512i low = _mm512_set1_epi32(four);
#pragma GCC unroll 4
        for (int v = 0; v < 4; ++v) {
          products[r][v] = _mm512_dpbusd_epi32(products[r][v], weights[v], low);
        }
      }
    }
#pragma GCC unroll 3
    for (int r = 0; r < Rows; ++r) {
      const __m512 scale = _mm512_set1_ps(a[r * aStride].scale);
#pragma GCC unroll 4
      for (int v = 0; v < 4; ++v) {
        const __m512 both = _mm512_mul_ps(scale, _mm512_load_ps(panel->scales + 16 * v));
        sum[r][v] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(products[r][v]), both, sum[r][v]);
      }
    }
  }
#pragma GCC unroll 3
  for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v) _mm512_storeu_ps(c + r * cStride + 16 * v, sum[r][v]);
  }
}

// The rows of the tile: 12 integer and 12 f32 sums stay in registers.
constexpr int kTileRows = 3;

void multiplyTile(const void* a, int64_t aStride, int32_t rows, const void* panel, int64_t depth,
                  float* c, int64_t cStride, bool accumulate) {
  using Tile =
      void (*)(const RoundedBlock*, int64_t, const PanelBlock*, int64_t, float*, int64_t, bool);
  static constexpr Tile tiles[2][kTileRows] = {{tile<1, false>, tile<2, false>, tile<3, false>},
                                               {tile<1, true>, tile<2, true>, tile<3, true>}};
  const auto* header = static_cast<const PanelHeader*>(panel);
  tiles[header->hasMinima != 0][rows - 1](static_cast<const RoundedBlock*>(a), aStride / kBlock,
                                          reinterpret_cast<const PanelBlock*>(header + 1),
                                          depth / kBlock, c, cStride, accumulate);
}

}  // namespace

const LinearKernels* avx512vnniLinearKernels() {
  static constexpr LinearKernels kernels = {.set = InstructionSet::avx512vnni,
                                            .tileRows = kTileRows,
                                            .panelDepth = 1024,
                                            .elementBytes = sizeof(RoundedBlock) / kBlock,
                                            .takes = takes,
                                            .expander = noExpander,
                                            .packRow = packRow,
                                            .expandPanel = expandPanel,
                                            .multiplyTile = multiplyTile};
  return &kernels;
}

}  // namespace longsight
