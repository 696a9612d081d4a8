// What the weights of a model are on the device and where they lie: a pure function of its
// description. Tensors that one product multiplies stand together.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "cuda/api.h"

namespace longsight::cuda {

// Sizes and constants of LsModelDesc.
struct ModelShape {
  int32_t layers = 0;
  int32_t heads = 0;
  int32_t kvHeads = 0;
  int32_t headDim = 0;
  int32_t embedding = 0;
  int32_t feedForward = 0;
  int32_t vocabulary = 0;
  float normEpsilon = 0.0f;
  float attentionScale = 0.0f;

  int64_t queryWidth() const { return int64_t{heads} * headDim; }
  int64_t keyWidth() const { return int64_t{kvHeads} * headDim; }
  // Of the product that makes queries, keys and values.
  int64_t projectedWidth() const { return queryWidth() + 2 * keyWidth(); }
};

// The products of a layer. In gateUp the rows of the two take turns.
enum class Product { queryKeyValue, attentionOutput, gateUp, down };
inline constexpr size_t kProducts = 4;
inline constexpr size_t kNorms = 6;

// Whatever is in the arena of the weights begins there; -1: the model has none.
using ArenaOffset = int64_t;
inline constexpr ArenaOffset kAbsent = -1;

struct PlannedMatrix {
  // Number of the ggml_type.
  int32_t type = -1;
  int64_t rows = 0;
  int64_t columns = 0;
  ArenaOffset offset = kAbsent;
  // Where its rows begin in those of the product.
  int64_t firstRow = 0;
};

struct PlannedProduct {
  int64_t rows = 0;
  int64_t columns = 0;
  // Matrices below each other; neighbours of one type are one matrix.
  std::vector<PlannedMatrix> matrices;
  // f32 [rows], zero where only other rows have one.
  ArenaOffset bias = kAbsent;

  // Whether the prefill can read the weights as they are.
  bool isPlainBf16() const;
  // Of all rows as bf16.
  uint64_t expandedBytes() const { return static_cast<uint64_t>(rows * columns) * 2; }
};

struct PlannedLayer {
  std::array<PlannedProduct, kProducts> products;
  // By LsNorm.
  std::array<ArenaOffset, kNorms> norms;
};

// Where the rows of an uploaded tensor go: row i to firstRow + i * rowStep().
struct TensorTarget {
  int32_t type = -1;
  int64_t rows = 0;
  int64_t columns = 0;
  // Of a vector: where it begins in the arena. Matrices: kAbsent.
  ArenaOffset vector = kAbsent;
  PlannedMatrix matrix;
  int64_t firstRow = 0;
  bool takesTurns = false;
  // The matrix is BF16, the tensor is not.
  bool expands = false;

  int64_t rowStep() const { return takesTurns ? 2 : 1; }
};

struct ModelPlan {
  ModelShape shape;
  PlannedMatrix tokenEmbedding;
  // The same as tokenEmbedding where the two are tied.
  PlannedMatrix output;
  ArenaOffset outputNorm = kAbsent;
  ArenaOffset outputBias = kAbsent;
  std::vector<PlannedLayer> layers;
  // By index of LsModelDesc::tensors.
  std::vector<TensorTarget> targets;
  uint64_t bytes = 0;

  bool tied() const { return output.offset == tokenEmbedding.offset; }
  const PlannedProduct& product(int32_t layer, Product which) const {
    return layers[static_cast<size_t>(layer)].products[static_cast<size_t>(which)];
  }
};

// Throws Failure: invalid arguments for what does not fit together, unsupported for what the
// kernels do not have.
ModelPlan planModel(const LsModelDesc& desc);

}  // namespace longsight::cuda
