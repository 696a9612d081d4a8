#include "model/architecture.h"

#include <array>

namespace longsight {
namespace {

constexpr std::array kArchitectures = {
    Architecture{.name = "llama",
                 .ropeStyle = RopeStyle::interleaved,
                 .partialRotary = false,
                 .headNorms = false,
                 .outputNorms = false,
                 .gateInUp = false},
    Architecture{.name = "qwen2",
                 .ropeStyle = RopeStyle::neox,
                 .partialRotary = false,
                 .headNorms = false,
                 .outputNorms = false,
                 .gateInUp = false},
    Architecture{.name = "qwen3",
                 .ropeStyle = RopeStyle::neox,
                 .partialRotary = false,
                 .headNorms = true,
                 .outputNorms = false,
                 .gateInUp = false},
    Architecture{.name = "internlm2",
                 .ropeStyle = RopeStyle::interleaved,
                 .partialRotary = false,
                 .headNorms = false,
                 .outputNorms = false,
                 .gateInUp = false},
    Architecture{.name = "chatglm",
                 .ropeStyle = RopeStyle::interleaved,
                 .partialRotary = true,
                 .headNorms = false,
                 .outputNorms = false,
                 .gateInUp = true},
    Architecture{.name = "glm4",
                 .ropeStyle = RopeStyle::interleaved,
                 .partialRotary = true,
                 .headNorms = false,
                 .outputNorms = true,
                 .gateInUp = true},
};

}  // namespace

std::span<const Architecture> architectures() { return kArchitectures; }

const Architecture* findArchitecture(std::string_view name) {
  for (const Architecture& architecture : kArchitectures)
    if (architecture.name == name) return &architecture;
  return nullptr;
}

std::string architectureNames() {
  std::string names;
  for (const Architecture& architecture : kArchitectures) {
    if (!names.empty()) names += ", ";
    names += architecture.name;
  }
  return names;
}

int64_t MatrixTensor::rows() const {
  int64_t rows = 0;
  for (const Part& part : parts) rows += part.rows;
  return rows;
}

LayerTensors layerTensors(const Architecture& architecture, const LayerSizes& sizes) {
  const int64_t width = sizes.embedding;
  const MatrixTensor::Part query = {Matrix::query, sizes.queryWidth};
  const MatrixTensor::Part key = {Matrix::key, sizes.keyWidth};
  const MatrixTensor::Part value = {Matrix::value, sizes.keyWidth};
  const MatrixTensor::Part gate = {Matrix::gate, sizes.feedForward};
  const MatrixTensor::Part up = {Matrix::up, sizes.feedForward};

  LayerTensors tensors;
  tensors.norms = {{"attn_norm", Norm::attention, width}, {"ffn_norm", Norm::feedForward, width}};
  tensors.matrices = {
      {"attn_q", width, {query}},
      {"attn_k", width, {key}},
      {"attn_v", width, {value}},
      {"attn_qkv", width, {query, key, value}},
      {"attn_output", sizes.queryWidth, {{Matrix::attentionOutput, width}}},
      {"ffn_down", sizes.feedForward, {{Matrix::down, width}}},
  };
  if (architecture.gateInUp) {
    tensors.matrices.push_back({"ffn_up", width, {gate, up}});
  } else {
    tensors.matrices.push_back({"ffn_gate", width, {gate}});
    tensors.matrices.push_back({"ffn_up", width, {up}});
  }
  if (architecture.headNorms) {
    tensors.norms.push_back({"attn_q_norm", Norm::query, sizes.headDim});
    tensors.norms.push_back({"attn_k_norm", Norm::key, sizes.headDim});
  }
  if (architecture.outputNorms) {
    tensors.norms.push_back({"post_attention_norm", Norm::attentionOutput, width});
    tensors.norms.push_back({"post_ffw_norm", Norm::feedForwardOutput, width});
  }
  return tensors;
}

}  // namespace longsight
