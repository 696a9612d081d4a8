// Plain C++ for the compiler's base target: f32 throughout.
#include "kernels/cpu/linear/expand.h"

namespace longsight {
namespace {

// Panel: [strip][column][8 rows]; the sums of a tile of 4 rows fit sixteen 128-bit registers.
constexpr int kStripRows = 8;
constexpr int kTileRows = 4;

// Four floats in a register of whatever base target: GCC and Clang turn the operators into its
// vector instructions.
using Vector = float __attribute__((vector_size(16)));

inline Vector load(const float* source) {
  Vector value;
  std::memcpy(&value, source, sizeof(value));
  return value;
}

inline void store(float* target, Vector value) { std::memcpy(target, &value, sizeof(value)); }

int64_t stripElements(int64_t depth) {
  return (depth + kColumnMultiple - 1) / kColumnMultiple * kColumnMultiple * kStripRows;
}

void expandPanel(const PanelSource& source, float* group, void* panelBytes) {
  float* panel = static_cast<float*>(panelBytes);
  const int64_t elements = stripElements(source.columns);
  expandGroups(source, group,
               [=](const float* rows, int64_t columns, int32_t firstRow, int64_t firstColumn) {
                 for (int32_t part = 0; part < kGroupRows; part += kStripRows) {
                   float* target =
                       panel + (firstRow + part) / kStripRows * elements + firstColumn * kStripRows;
                   for (int64_t c = 0; c < columns; ++c, target += kStripRows) {
                     for (int r = 0; r < kStripRows; ++r)
                       target[r] = rows[(part + r) * kGroupStride + c];
                   }
                 }
               });
}

template <int Rows>
void tile(const float* __restrict a, int64_t aStride, const float* __restrict strip, int64_t depth,
          float* __restrict c, int64_t cStride, bool accumulate) {
  Vector sum[Rows][2];
  for (int r = 0; r < Rows; ++r) {
    for (int v = 0; v < 2; ++v) {
      sum[r][v] = accumulate ? load(c + r * cStride + 4 * v) : Vector{};
    }
  }
  for (int64_t k = 0; k < depth; ++k, strip += kStripRows) {
    const Vector b0 = load(strip);
    const Vector b1 = load(strip + 4);
    for (int r = 0; r < Rows; ++r) {
      sum[r][0] += a[r * aStride + k] * b0;
      sum[r][1] += a[r * aStride + k] * b1;
    }
  }
  for (int r = 0; r < Rows; ++r) {
    for (int v = 0; v < 2; ++v) store(c + r * cStride + 4 * v, sum[r][v]);
  }
}

void multiplyTile(const void* a, int64_t aStride, int32_t rows, const void* panel, int64_t depth,
                  float* c, int64_t cStride, bool accumulate) {
  using Tile = void (*)(const float*, int64_t, const float*, int64_t, float*, int64_t, bool);
  static constexpr Tile tiles[] = {tile<1>, tile<2>, tile<3>, tile<4>};
  const int64_t elements = stripElements(depth);
  for (int s = 0; s < kPanelRows / kStripRows; ++s) {
    tiles[rows - 1](static_cast<const float*>(a), aStride,
                    static_cast<const float*>(panel) + s * elements, depth, c + s * kStripRows,
                    cStride, accumulate);
  }
}

}  // namespace

const LinearKernels* portableLinearKernels() {
  static constexpr LinearKernels kernels = {.set = InstructionSet::portable,
                                            .tileRows = kTileRows,
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
