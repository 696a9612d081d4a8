#include "cpu/weights.h"

#include <string>

#include "cpu/ggml_runtime.h"
#include "error.h"
#include "ggml-alloc.h"
#include "model/tensor_file.h"

namespace longsight {
Weights::~Weights() {
  ggml_backend_buffer_free(buffer_);
  ggml_free(context_);
}

std::shared_ptr<const Weights> Weights::load(
    const ModelSpec& spec, const CancelFlag& cancel,
    const std::function<void(uint64_t, uint64_t)>& onProgress) {
  cpuDevice();
  const std::shared_ptr<Weights> weights(new Weights(spec));
  weights->context_ =
      ggml_init({ggml_tensor_overhead() * (spec.tensors.size() + 1), nullptr, true});
  for (const TensorSource& source : spec.tensors) {
    ggml_tensor* tensor =
        source.dimensions == 2
            ? ggml_new_tensor_2d(weights->context_, source.type, source.shape[0], source.shape[1])
            : ggml_new_tensor_1d(weights->context_, source.type, source.shape[0]);
    ggml_set_name(tensor, source.name.c_str());
  }
  weights->buffer_ =
      ggml_backend_alloc_ctx_tensors_from_buft(weights->context_, ggml_backend_cpu_buffer_type());
  if (!weights->buffer_)
    throw Error(ErrorCode::notEnoughMemory,
                "The weights need " + std::to_string(spec.weightBytes) +
                    " bytes, which the system did not give.",
                "Choose a smaller model or quantization, or close other programs.");
  ggml_backend_buffer_set_usage(weights->buffer_, GGML_BACKEND_BUFFER_USAGE_WEIGHTS);
  weights->bindNames();

  const TensorFile file(spec.path);
  uint64_t doneBytes = 0;
  for (const TensorBlock& block : blocksOf(spec)) {
    if (cancel.isSet()) throw cancelledError();
    const TensorSource& source = spec.tensors[block.tensor];
    auto* target =
        static_cast<char*>(ggml_get_tensor(weights->context_, source.name.c_str())->data);
    file.read(target + block.offset, block.bytes, source.fileOffset + block.offset);
    doneBytes += block.bytes;
    if (onProgress) onProgress(doneBytes, spec.weightBytes);
  }
  return weights;
}

std::vector<std::span<const std::byte>> Weights::contents() const {
  std::vector<std::span<const std::byte>> parts;
  for (const TensorSource& source : spec_.tensors) {
    const ggml_tensor* tensor = ggml_get_tensor(context_, source.name.c_str());
    parts.emplace_back(static_cast<const std::byte*>(tensor->data), ggml_nbytes(tensor));
  }
  return parts;
}

const float* Weights::vector(const std::string& name) const {
  const ggml_tensor* tensor = ggml_get_tensor(context_, name.c_str());
  return tensor ? static_cast<const float*>(tensor->data) : nullptr;
}

WeightView Weights::matrix(const std::string& name) const {
  const ggml_tensor* tensor = ggml_get_tensor(context_, name.c_str());
  if (!tensor) return {};
  return {tensor->data, tensor->type, tensor->ne[1], tensor->ne[0]};
}

const float* Weights::ropeFactors(int64_t contextTokens) const {
  const TensorSource* source = ropeFactorTensor(spec_, contextTokens);
  return source ? vector(source->name) : nullptr;
}

void Weights::bindNames() {
  tokenEmbedding_ = matrix("token_embd.weight");
  outputNorm_ = vector("output_norm.weight");
  output_ = {matrix("output.weight"), vector("output.bias")};
  if (!output_.matrix.data) output_.matrix = tokenEmbedding_;
  for (int32_t index = 0; index < spec_.layers; ++index) {
    const std::string prefix = "blk." + std::to_string(index) + ".";
    LayerWeights layer;
    for (const NormTensor& tensor : spec_.layerTensors.norms)
      layer.norms_[static_cast<size_t>(tensor.norm)] =
          vector(prefix + std::string(tensor.name) + ".weight");
    for (const MatrixTensor& tensor : spec_.layerTensors.matrices) {
      const std::string name = prefix + std::string(tensor.name);
      const WeightView whole = matrix(name + ".weight");
      if (!whole.data) continue;
      const float* bias = vector(name + ".bias");
      int64_t row = 0;
      for (const MatrixTensor::Part& part : tensor.parts) {
        Linear& linear = layer.linears_[static_cast<size_t>(part.matrix)];
        linear.matrix = whole;
        linear.matrix.data = static_cast<const uint8_t*>(whole.data) +
                             static_cast<size_t>(row) * ggml_row_size(whole.type, whole.columns);
        linear.matrix.rows = part.rows;
        linear.bias = bias ? bias + row : nullptr;
        row += part.rows;
      }
    }
    layers_.push_back(layer);
  }
}

}  // namespace longsight
