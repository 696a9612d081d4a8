// The tensors of a model in memory, read once and shared by all sessions.
#pragma once

#include <array>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "cpu/cancel_flag.h"
#include "ggml-backend.h"
#include "ggml.h"
#include "kernels/cpu/linear/linear.h"
#include "model/gguf_file.h"

namespace longsight {

// A matrix product: rows of a tensor in memory, and their bias, null when the file has none.
struct Linear {
  WeightView matrix;
  const float* bias = nullptr;
};

// One transformer block.
class LayerWeights {
 public:
  const Linear& operator[](Matrix matrix) const { return linears_[static_cast<size_t>(matrix)]; }
  // Null when the architecture has none there.
  const float* operator[](Norm norm) const { return norms_[static_cast<size_t>(norm)]; }

 private:
  friend class Weights;
  std::array<Linear, kMatrices> linears_;
  std::array<const float*, kNorms> norms_{};
};

class Weights {
 public:
  // Reads every tensor of `spec`. `onProgress(doneBytes, totalBytes)` is called on this thread.
  // Throws Error: notEnoughMemory, unreadableFile, truncatedGguf, cancelled.
  static std::shared_ptr<const Weights> load(
      const ModelSpec& spec, const CancelFlag& cancel,
      const std::function<void(uint64_t, uint64_t)>& onProgress);
  ~Weights();
  Weights(const Weights&) = delete;
  Weights& operator=(const Weights&) = delete;

  const ModelSpec& spec() const { return spec_; }
  const LayerWeights& layer(int32_t index) const { return layers_[static_cast<size_t>(index)]; }
  const WeightView& tokenEmbedding() const { return tokenEmbedding_; }
  const float* outputNorm() const { return outputNorm_; }
  // The matrix is the token embedding when the file ties them.
  const Linear& output() const { return output_; }
  // What the angle of each pair is divided by (Llama 3, LongRoPE) in a context of this length:
  // f32 [rotatedDims / 2]; null when the file has none.
  const float* ropeFactors(int64_t contextTokens) const;
  // Bytes of every tensor, in file order.
  std::vector<std::span<const std::byte>> contents() const;
  // Bytes held in memory.
  uint64_t bytes() const { return ggml_backend_buffer_get_size(buffer_); }

 private:
  explicit Weights(const ModelSpec& spec) : spec_(spec) {}
  void bindNames();
  // Null when the file has none of that name.
  const float* vector(const std::string& name) const;
  WeightView matrix(const std::string& name) const;

  ModelSpec spec_;
  ggml_context* context_ = nullptr;
  ggml_backend_buffer_t buffer_ = nullptr;
  std::vector<LayerWeights> layers_;
  WeightView tokenEmbedding_;
  const float* outputNorm_ = nullptr;
  Linear output_;
};

}  // namespace longsight
