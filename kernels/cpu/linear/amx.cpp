// AMX: weights and activations rounded to bf16, sums in f32 in tile registers by tdpbf16ps.
#include "kernels/cpu/linear/bf16_panel.h"

namespace longsight {
namespace {

// A tile: 16 rows of 64 bytes, 32 bf16 or 16 f32.
constexpr int kTileRows = 16;
constexpr int kTileBytes = 64;
constexpr int kTileColumns = 32;
// Rows for which the weights of half a panel stay in the first-level cache.
constexpr int kRows = 128;

// Panel: [16 rows of weights][column pair][16][2], so that a tile is contiguous.
int64_t groupElements(int64_t columns) {
  return (columns + kColumnMultiple - 1) / kColumnMultiple * kColumnMultiple * kGroupRows;
}

void expandPanel(const PanelSource& source, float* group, void* panelBytes) {
  uint16_t* panel = static_cast<uint16_t*>(panelBytes);
  const int64_t elements = groupElements(source.columns);
  expandGroups(source, group,
               [=](const float* rows, int64_t columns, int32_t firstRow, int64_t firstColumn) {
                 storeGroup(rows, columns,
                            panel + firstRow / kGroupRows * elements + firstColumn * kGroupRows,
                            2 * kGroupRows);
               });
}

struct alignas(64) TileConfig {
  uint8_t palette = 0;
  uint8_t startRow = 0;
  uint8_t reserved[14] = {};
  uint16_t rowBytes[16] = {};
  uint8_t rows[16] = {};
};

// The barriers: the intrinsics do not say that they touch the whole configuration.
void load(const TileConfig& config) {
  __asm__ volatile("" : : "r"(&config) : "memory");
  _tile_loadconfig(&config);
}

TileConfig current() {
  TileConfig config;
  _tile_storeconfig(&config);
  __asm__ volatile("" : : "r"(&config) : "memory");
  return config;
}

// Tiles 0 to 3 are sums, 4 and 5 activations, 6 and 7 weights; `lower` rows in 0, 1 and 4, `upper`
// in 2, 3 and 5.
void configure(int lower, int upper) {
  TileConfig config;
  config.palette = 1;
  const int rows[8] = {lower, lower, upper, upper, lower, upper, kTileRows, kTileRows};
  for (int t = 0; t < 8; ++t) {
    config.rowBytes[t] = kTileBytes;
    config.rows[t] = static_cast<uint8_t>(rows[t]);
  }
  load(config);
}

struct Operands {
  const uint16_t* a;
  int64_t aStride;
  const uint16_t* left;  // weights of outputs 0 to 15 and 16 to 31
  const uint16_t* right;
  int64_t depth;
  float* c;
  int64_t cStride;
  bool accumulate;
};

// Two tiles of rows by two of outputs: four products for four loads.
void twoByTwo(const Operands& o) {
  const int64_t aBytes = o.aStride * static_cast<int64_t>(sizeof(uint16_t));
  const int64_t cBytes = o.cStride * static_cast<int64_t>(sizeof(float));
  const uint16_t* upperA = o.a + kTileRows * o.aStride;
  float* upperC = o.c + kTileRows * o.cStride;
  if (o.accumulate) {
    _tile_loadd(0, o.c, cBytes);
    _tile_loadd(1, o.c + 16, cBytes);
    _tile_loadd(2, upperC, cBytes);
    _tile_loadd(3, upperC + 16, cBytes);
  } else {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  }
  for (int64_t k = 0; k < o.depth; k += kTileColumns) {
    _tile_loadd(6, o.left + k * kGroupRows, kTileBytes);
    _tile_loadd(4, o.a + k, aBytes);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(7, o.right + k * kGroupRows, kTileBytes);
    _tile_dpbf16ps(1, 4, 7);
    _tile_loadd(5, upperA + k, aBytes);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  _tile_stored(0, o.c, cBytes);
  _tile_stored(1, o.c + 16, cBytes);
  _tile_stored(2, upperC, cBytes);
  _tile_stored(3, upperC + 16, cBytes);
}

// One tile of rows by two of outputs.
void oneByTwo(const Operands& o) {
  const int64_t aBytes = o.aStride * static_cast<int64_t>(sizeof(uint16_t));
  const int64_t cBytes = o.cStride * static_cast<int64_t>(sizeof(float));
  if (o.accumulate) {
    _tile_loadd(0, o.c, cBytes);
    _tile_loadd(1, o.c + 16, cBytes);
  } else {
    _tile_zero(0);
    _tile_zero(1);
  }
  for (int64_t k = 0; k < o.depth; k += kTileColumns) {
    _tile_loadd(4, o.a + k, aBytes);
    _tile_loadd(6, o.left + k * kGroupRows, kTileBytes);
    _tile_loadd(7, o.right + k * kGroupRows, kTileBytes);
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
  }
  _tile_stored(0, o.c, cBytes);
  _tile_stored(1, o.c + 16, cBytes);
}

void multiplyTile(const void* a, int64_t aStride, int32_t rows, const void* panel, int64_t depth,
                  float* c, int64_t cStride, bool accumulate) {
  // Others on this thread may rely on the configuration they loaded: ggml does so once a thread.
  const TileConfig before = current();
  const int64_t elements = groupElements(depth);
  Operands o{
      static_cast<const uint16_t*>(a), aStride, nullptr, nullptr, depth, c, cStride, accumulate};
  const int32_t pairs = rows / (2 * kTileRows);
  const int32_t rest = rows % (2 * kTileRows);
  if (pairs > 0) configure(kTileRows, kTileRows);
  const auto forHalves = [&](const auto& body) {
    for (int half = 0; half < 2; ++half) {
      o.left = static_cast<const uint16_t*>(panel) + 2 * half * elements;
      o.right = o.left + elements;
      body(c + 32 * half);
    }
  };
  forHalves([&](float* halfC) {
    for (int32_t pair = 0; pair < pairs; ++pair) {
      o.a = static_cast<const uint16_t*>(a) + pair * 2 * kTileRows * aStride;
      o.c = halfC + pair * 2 * kTileRows * cStride;
      twoByTwo(o);
    }
  });
  if (rest > 0) {
    const bool two = rest > kTileRows;
    // A tile that is not used still needs a shape.
    configure(two ? kTileRows : rest, two ? rest - kTileRows : 1);
    forHalves([&](float* halfC) {
      o.a = static_cast<const uint16_t*>(a) + pairs * 2 * kTileRows * aStride;
      o.c = halfC + pairs * 2 * kTileRows * cStride;
      two ? twoByTwo(o) : oneByTwo(o);
    });
  }
  if (before.palette == 0) {
    _tile_release();
  } else {
    load(before);
  }
  __asm__ volatile("" : : : "memory");
}

}  // namespace

const LinearKernels* amxLinearKernels() {
  // 32 rows of this depth are two thirds of the first-level cache.
  static constexpr LinearKernels kernels = {.set = InstructionSet::amx,
                                            .tileRows = kRows,
                                            .panelDepth = 512,
                                            .elementBytes = 2,
                                            .takes = nullptr,
                                            .expander = expanderOf,
                                            .packRow = packRow,
                                            .expandPanel = expandPanel,
                                            .multiplyTile = multiplyTile};
  return &kernels;
}

}  // namespace longsight
