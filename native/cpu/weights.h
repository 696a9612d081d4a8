// The tensors of a model in memory, read once and shared by all sessions.
#pragma once

#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "cpu/cancel_flag.h"
#include "ggml-backend.h"
#include "ggml.h"
#include "model/gguf_file.h"

namespace longsight {

// One transformer block. Biases are null when the file has none.
struct LayerWeights {
  ggml_tensor* attentionNorm = nullptr;
  ggml_tensor* query = nullptr;
  ggml_tensor* key = nullptr;
  ggml_tensor* value = nullptr;
  ggml_tensor* attentionOutput = nullptr;
  ggml_tensor* feedForwardNorm = nullptr;
  ggml_tensor* gate = nullptr;
  ggml_tensor* up = nullptr;
  ggml_tensor* down = nullptr;
  ggml_tensor* queryBias = nullptr;
  ggml_tensor* keyBias = nullptr;
  ggml_tensor* valueBias = nullptr;
  ggml_tensor* attentionOutputBias = nullptr;
  ggml_tensor* gateBias = nullptr;
  ggml_tensor* upBias = nullptr;
  ggml_tensor* downBias = nullptr;
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
  ggml_tensor* tokenEmbedding() const { return tokenEmbedding_; }
  ggml_tensor* outputNorm() const { return outputNorm_; }
  // The token embedding when the file ties them.
  ggml_tensor* output() const { return output_; }
  // Llama 3 frequency factors, f32 [headDim / 2]; null when the file has none.
  ggml_tensor* ropeFactors() const { return ropeFactors_; }
  // Bytes of every tensor, in file order.
  std::vector<std::span<const std::byte>> contents() const;
  // Bytes held in memory.
  uint64_t bytes() const { return ggml_backend_buffer_get_size(buffer_); }

 private:
  explicit Weights(const ModelSpec& spec) : spec_(spec) {}
  void bindNames();

  ModelSpec spec_;
  ggml_context* context_ = nullptr;
  ggml_backend_buffer_t buffer_ = nullptr;
  std::vector<LayerWeights> layers_;
  ggml_tensor* tokenEmbedding_ = nullptr;
  ggml_tensor* outputNorm_ = nullptr;
  ggml_tensor* output_ = nullptr;
  ggml_tensor* ropeFactors_ = nullptr;
};

}  // namespace longsight
