// What an instruction set contributes to attention. native/cpu/attention.cpp holds all the rest.
//
// Everything works on a tile of up to kTileKeys columns, packed once and then used by all rows of a
// work item. Rows come in blocks of `blockRows`. Only the functions here know the type and the
// order of packed elements: f32, with the scale in the packed queries, or bf16, where the queries
// alone are rounded and the scale is applied to their products. Scores are in base 2: the scale
// that all functions get is the softmax's times log2(e).
#pragma once

#include <cstdint>

#include "attention/score_dims.h"
#include "cpu/kv_rows.h"
#include "kernels/cpu/instruction_set.h"

namespace longsight {

// A tile's keys and values (32 KiB at d = 64) stay in the first two cache levels.
inline constexpr int32_t kTileKeys = 64;
// Rows that attendFew takes at most.
inline constexpr int32_t kFewRows = 8;
// Values are packed with zeros up to a multiple of this many dimensions.
inline constexpr int32_t kDimMultiple = 16;

// Rows of keys or values: count <= kTileKeys of them, either the listed ones or those from `first`
// on. No other row is read.
struct KeyRows {
  KvMatrix matrix;
  const int32_t* columns;  // null: consecutive rows
  int64_t first;           // of consecutive rows
  int32_t count;
};

// The running softmax of rows; arrays are padded to whole blocks of rows.
struct RowState {
  float* maximum;  // -inf before the first column
  float* sum;      // of 2^(score - maximum)
  float* output;   // [row][outputStride], weighted by 2^(score - maximum); null: not wanted
  int64_t outputStride;
};

struct AttendTile {
  const void* queries;  // packed blocks
  int32_t blocks;
  int32_t dims;  // of a query and a key
  float scale;
  const void* keys;    // packed
  const void* values;  // packed; null when state.output is
  int32_t keyCount;
  // Row i sees keys [visibleBegin[i], visibleEnd[i]) of the tile; null: from 0, to keyCount.
  const int32_t* visibleBegin;
  const int32_t* visibleEnd;
  RowState state;
  float* scores;  // scratch, blockRows * kTileKeys
};

// A few rows, as in decoding: the tile is read as it is stored, since unpacking would cost more
// than it saves. headDim is a multiple of kDimMultiple.
struct FewTile {
  const float* queries;  // by packFewQueries
  int32_t rows;          // <= kFewRows
  KeyRows keys;
  KeyRows values;
  // Row i sees keys [0, visibleEnd[i]) of the tile; null: all.
  const int32_t* visibleEnd;
  RowState state;  // with output
  float* scores;   // scratch, kFewRows * kTileKeys
};

// The votes of rows for a tile's columns: score minus the row's reference, both base 2.
struct VoteTile {
  const void* queries;  // packed blocks
  int32_t blocks;
  int32_t dims;
  float scale;
  const float* references;  // one a row; +inf: the row does not count
  const void* keys;         // packed, kTileKeys columns (the rest zero)
  float* votes;             // [kTileKeys]
};

struct AttentionKernels {
  InstructionSet set;
  int32_t blockRows;
  // Of a packed element.
  int32_t elementBytes;
  // Packed queries and keys have zeros up to a multiple of this many dimensions (of values: of
  // kDimMultiple).
  int32_t dimMultiple;
  // Queries count as rounded to bf16.
  bool roundsQueries;

  // Of one packed query or key.
  int64_t rowBytes(int32_t dims) const {
    return int64_t{(dims + dimMultiple - 1) / dimMultiple * dimMultiple} * elementBytes;
  }

  // Packs `blocks` blocks of rows; rows[i] points to headDim floats, null becomes zeros.
  // packed: blocks * blockRows * rowBytes(dims.count()).
  void (*packQueries)(const float* const* rows, int32_t blocks, DimRanges dims, float scale,
                      void* packed);
  // packed: [row][headDim].
  void (*packFewQueries)(const float* const* rows, int32_t count, int32_t headDim, float scale,
                         float* packed);
  // packed: kTileKeys * rowBytes(dims.count()).
  void (*packKeys)(const KeyRows& keys, DimRanges dims, void* packed);
  // packed: kTileKeys * (headDim rounded up to kDimMultiple) elements.
  void (*packValues)(const KeyRows& values, void* packed);

  void (*attend)(const AttendTile& tile);
  void (*attendFew)(const FewTile& tile);
  // votes = max(votes, score - reference).
  void (*peaks)(const VoteTile& tile);
  // votes += 2^(score - reference), for scores that do not exceed the reference.
  void (*masses)(const VoteTile& tile);
};

const AttentionKernels* portableAttentionKernels();
// Null where this build does not contain them.
const AttentionKernels* avx2AttentionKernels();
const AttentionKernels* avx512bf16AttentionKernels();

// Those of the best set at or below `set` that has kernels of its own.
const AttentionKernels& attentionKernels(InstructionSet set);

// Those of LONGSIGHT_CPU, else the ones that measure fastest here: the rate of bf16 products beside
// that of f32 differs between processors. Measured once, in about a millisecond.
// Throws std::runtime_error like chooseInstructionSet().
const AttentionKernels& chooseAttentionKernels();

}  // namespace longsight
