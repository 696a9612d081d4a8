// What an instruction set contributes to the linear layers. linear.cpp holds all the rest.
//
// A panel is 64 rows of a weight (64 output columns) over up to `panelDepth` input columns,
// expanded into the element type and order that `multiplyTile` reads. Only the set itself knows
// that order.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/cpu/instruction_set.h"

namespace longsight {

inline constexpr int32_t kPanelRows = 64;
// Weight rows are expanded 16 at a time, at most 256 columns of each: the largest block of a type.
inline constexpr int32_t kGroupRows = 16;
inline constexpr int32_t kGroupColumns = 256;
// Floats between two rows of the group: off a power of two, so that they spread over the cache
// sets.
inline constexpr int32_t kGroupStride = kGroupColumns + 16;
// Panels are filled with zeros up to a multiple of this many columns.
inline constexpr int32_t kColumnMultiple = 32;
inline constexpr int32_t kMaxTileRows = 128;

// Expands `count` weights (a multiple of the type's block) of one row. ggml's to_float signature.
using ExpandRow = void (*)(const void* source, float* target, int64_t count);

// A part of a weight: up to kPanelRows rows and a range of columns that starts on a block.
struct PanelSource {
  const std::byte* data;  // first block of the first row
  int64_t rowBytes;       // between two rows
  int64_t blockColumns;
  int64_t blockBytes;
  int32_t rows;
  int64_t columns;
  int32_t ggmlType;
  ExpandRow expand;
};

struct LinearKernels {
  InstructionSet set;
  // Rows that multiplyTile takes at most.
  int32_t tileRows;
  // Columns of a panel at most, a multiple of kGroupColumns: a panel stays in the second-level
  // cache.
  int32_t panelDepth;
  // Bytes of an element of a panel, and of an activation as multiplyTile reads it.
  int32_t elementBytes;

  // Whether weights of a ggml_type are multiplied by these kernels; null: all are.
  bool (*takes)(int32_t ggmlType);

  // This set's own expansion of a ggml_type, or null: then ggml's to_float serves.
  // Both give the same bits.
  ExpandRow (*expander)(int32_t ggmlType);

  // Rounds a row of activations to the element type and adds zeros up to `padded`.
  // Null: multiplyTile reads the f32 activations themselves.
  void (*packRow)(const float* source, int64_t columns, void* target, int64_t padded);

  // `group`: kGroupRows * kGroupStride floats of scratch. `panel`: kPanelRows * columns (rounded up
  // to kColumnMultiple) elements. Rows that are missing become zeros.
  void (*expandPanel)(const PanelSource& source, float* group, void* panel);

  // c[rows][64] (+)= a[rows][depth] x panel. aStride in elements, cStride in floats. Each output is
  // one chain of additions in the order of the columns, whatever `rows` is. depth is even where
  // elements are bf16.
  void (*multiplyTile)(const void* a, int64_t aStride, int32_t rows, const void* panel,
                       int64_t depth, float* c, int64_t cStride, bool accumulate);
};

// Those for all types of the best set at or below `set` that has such; null where `set` does not
// run.
const LinearKernels* linearKernels(InstructionSet set);
// Those of `set` for weights that files hold as integers; null where it has none or does not run.
const LinearKernels* integerLinearKernels(InstructionSet set);

const LinearKernels* portableLinearKernels();
const LinearKernels* avx2LinearKernels();
const LinearKernels* avx512LinearKernels();
const LinearKernels* avx512vnniLinearKernels();
const LinearKernels* avx512bf16LinearKernels();
const LinearKernels* amxLinearKernels();

}  // namespace longsight
