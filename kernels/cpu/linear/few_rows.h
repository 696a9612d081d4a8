// Products for a few rows of activations, as decoding has them, with weights that a file holds as
// integers. Reading the weights once is most of the time they take.
#pragma once

#include <cstddef>
#include <cstdint>

namespace longsight {

inline constexpr int kMaxFewRows = 8;

// out[row][weight row] = activations[row] . weights[weight row].
struct FewProduct {
  const std::byte* activations;  // packed rows
  int64_t activationRowBytes;
  int32_t rows;     // 1 to kMaxFewRows
  int64_t columns;  // of both, a multiple of the type's block
  int32_t ggmlType;
  int64_t blockColumns;
  int64_t blockBytes;
  const std::byte* weights;
  int64_t weightRowBytes;
  int64_t weightRows;
  float* out;
  int64_t outStride;

  const void* row(int32_t index) const { return activations + index * activationRowBytes; }
};

struct FewRowKernels {
  // Whether weights of a ggml_type are multiplied by these.
  bool (*takes)(int32_t ggmlType);
  // Of a packed row, a multiple of 64; rows start at such a multiple.
  int64_t (*rowBytes)(int64_t columns);
  // Activations are rounded as for prefill.
  void (*packRow)(const float* source, int64_t columns, void* target);
  // An output's bits depend on its row of activations and its row of weights alone.
  void (*multiply)(const FewProduct& product);
};

const FewRowKernels* avx512vnniFewRowKernels();

// Those that run here and that LONGSIGHT_CPU does not forbid; null: none. Throws like
// chooseInstructionSet().
const FewRowKernels* chooseFewRowKernels();

}  // namespace longsight
