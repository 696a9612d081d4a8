// AMX: weights and activations rounded to bf16, sums in f32 in tile registers by tdpbf16ps.
#include "kernels/cpu/linear/bf16_panel.h"

namespace longsight {
namespace {

constexpr int kTileRows = 16;
// 32 bf16 or 16 f32.
constexpr int kTileBytes = 64;
constexpr int kTileColumns = 32;
constexpr int64_t kPanelStride = kPairElements * sizeof(uint16_t);

struct alignas(64) TileConfig {
  uint8_t palette = 1;
  uint8_t startRow = 0;
  uint8_t reserved[14] = {};
  uint16_t rowBytes[16] = {};
  uint8_t rows[16] = {};
};

// Tiles 0 to 3 sums, 4 and 5 activations, 6 and 7 weights; `lower` rows in 0, 1 and 4, `upper` in
// 2, 3 and 5. The barrier: the intrinsic does not say that it reads all of the configuration.
void configure(int lower, int upper) {
  TileConfig config;
  const int rows[8] = {lower, lower, upper, upper, lower, upper, kTileRows, kTileRows};
  for (int t = 0; t < 8; ++t) {
    config.rowBytes[t] = kTileBytes;
    config.rows[t] = static_cast<uint8_t>(rows[t]);
  }
  __asm__ volatile("" : : "r"(&config) : "memory");
  _tile_loadconfig(&config);
}

// Two tiles of rows by two of outputs: four products for four loads.
void twoByTwo(const uint16_t* a, int64_t aBytes, const uint16_t* panel, int64_t depth, float* c,
              int64_t cBytes, bool accumulate) {
  const uint16_t* upperA = a + kTileRows * aBytes / static_cast<int64_t>(sizeof(uint16_t));
  float* upperC = c + kTileRows * cBytes / static_cast<int64_t>(sizeof(float));
  if (accumulate) {
    _tile_loadd(0, c, cBytes);
    _tile_loadd(1, c + 16, cBytes);
    _tile_loadd(2, upperC, cBytes);
    _tile_loadd(3, upperC + 16, cBytes);
  } else {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  }
  for (int64_t k = 0; k < depth; k += kTileColumns) {
    const uint16_t* weights = panel + k / 2 * kPairElements;
    _tile_loadd(6, weights, kPanelStride);
    _tile_loadd(4, a + k, aBytes);
    _tile_loadd(7, weights + 32, kPanelStride);
    _tile_loadd(5, upperA + k, aBytes);
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  _tile_stored(0, c, cBytes);
  _tile_stored(1, c + 16, cBytes);
  _tile_stored(2, upperC, cBytes);
  _tile_stored(3, upperC + 16, cBytes);
}

// One tile of rows by two of outputs.
void oneByTwo(const uint16_t* a, int64_t aBytes, const uint16_t* panel, int64_t depth, float* c,
              int64_t cBytes, bool accumulate) {
  if (accumulate) {
    _tile_loadd(0, c, cBytes);
    _tile_loadd(1, c + 16, cBytes);
  } else {
    _tile_zero(0);
    _tile_zero(1);
  }
  for (int64_t k = 0; k < depth; k += kTileColumns) {
    const uint16_t* weights = panel + k / 2 * kPairElements;
    _tile_loadd(4, a + k, aBytes);
    _tile_loadd(6, weights, kPanelStride);
    _tile_loadd(7, weights + 32, kPanelStride);
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
  }
  _tile_stored(0, c, cBytes);
  _tile_stored(1, c + 16, cBytes);
}

void multiplyTile(const void* a, int64_t aStride, int32_t rows, const void* panel, int64_t depth,
                  float* c, int64_t cStride, bool accumulate) {
  const bool two = rows > kTileRows;
  // A tile that is not used still needs a shape.
  configure(two ? kTileRows : rows, two ? rows - kTileRows : 1);
  const auto tiles = two ? twoByTwo : oneByTwo;
  for (int half = 0; half < 2; ++half) {
    tiles(static_cast<const uint16_t*>(a), aStride * static_cast<int64_t>(sizeof(uint16_t)),
          static_cast<const uint16_t*>(panel) + 64 * half, depth, c + 32 * half,
          cStride * static_cast<int64_t>(sizeof(float)), accumulate);
  }
  _tile_release();
  __asm__ volatile("" : : : "memory");
}

}  // namespace

const LinearKernels* amxLinearKernels() {
  // 32 rows of activations of this depth stay in the first-level cache.
  static constexpr LinearKernels kernels = {.set = InstructionSet::amx,
                                            .tileRows = 2 * kTileRows,
                                            .panelDepth = 512,
                                            .elementBytes = 2,
                                            .expander = expanderOf,
                                            .packRow = packRow,
                                            .expandPanel = expandPanel,
                                            .multiplyTile = multiplyTile};
  return &kernels;
}

}  // namespace longsight
