// What distinguishes the architectures that this engine runs, as data: which tensors a layer has,
// what is in them, and how RoPE turns a head. Everything else is the same in all of them: RMS norms
// before attention and feed-forward network, grouped queries, SwiGLU.
//
// Source of names and layouts: the converters and tensor names of llama.cpp (conversion/*.py,
// gguf-py/gguf/constants.py).
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "attention/score_dims.h"

namespace longsight {

// The matrix products of a layer.
enum class Matrix { query, key, value, attentionOutput, gate, up, down };
inline constexpr size_t kMatrices = 7;

// The RMS norms of a layer. `query` and `key` are of one head, before RoPE; the norms named
// `...Output` are of what a block adds to the residual stream.
enum class Norm { attention, query, key, attentionOutput, feedForward, feedForwardOutput };
inline constexpr size_t kNorms = 6;

struct Architecture {
  // As general.architecture has it; also the prefix of the metadata keys.
  std::string_view name;
  RopeStyle ropeStyle;
  // rope.dimension_count may be less than the head: the other dimensions are not rotated.
  bool partialRotary;
  // attn_q_norm and attn_k_norm.
  bool headNorms;
  // post_attention_norm and post_ffw_norm.
  bool outputNorms;
  // ffn_up holds the rows of the gate, then those of up; there is no ffn_gate.
  bool gateInUp;
};

std::span<const Architecture> architectures();

// Null when this engine does not run it.
const Architecture* findArchitecture(std::string_view name);

// "llama, qwen2, ..."
std::string architectureNames();

// The sizes that the shapes of a layer's tensors follow from.
struct LayerSizes {
  int64_t embedding = 0;
  // All heads together.
  int64_t queryWidth = 0;
  int64_t keyWidth = 0;
  int64_t headDim = 0;
  int64_t feedForward = 0;
};

// `blk.N.<name>.weight`: the rows of one or more matrices, one after the other. The bias has the
// same rows and is optional.
struct MatrixTensor {
  struct Part {
    Matrix matrix;
    int64_t rows;
  };
  std::string_view name;
  int64_t columns = 0;
  std::vector<Part> parts;

  int64_t rows() const;
};

struct NormTensor {
  std::string_view name;
  Norm norm;
  int64_t length = 0;
};

// What a layer's tensors are. A matrix may stand in several: a file has one of them.
struct LayerTensors {
  std::vector<MatrixTensor> matrices;
  // All of them are required.
  std::vector<NormTensor> norms;
};

LayerTensors layerTensors(const Architecture& architecture, const LayerSizes& sizes);

}  // namespace longsight
