#include "model/synthetic.h"

#include <cmath>
#include <set>
#include <string_view>

#include "error.h"

namespace longsight {
namespace {

constexpr int64_t kContextTokens = int64_t{1} << 21;

// Sources: config.json of the models on Hugging Face.
struct Shape {
  std::string_view name;
  std::string_view architecture;
  int32_t layers, heads, kvHeads, headDim, embedding, feedForward, vocabulary;
  // One matrix for embedding and output.
  bool tied;
  // Of queries, keys and values.
  bool biases;
  float ropeBase;
  float normEpsilon;
};

constexpr Shape kShapes[] = {
    {"llama-3.1-8b", "llama", 32, 32, 8, 128, 4096, 14336, 128256, false, false, 500000, 1e-5f},
    {"llama-3.2-3b", "llama", 28, 24, 8, 128, 3072, 8192, 128256, true, false, 500000, 1e-5f},
    {"llama-3.2-1b", "llama", 16, 32, 8, 64, 2048, 8192, 128256, true, false, 500000, 1e-5f},
    {"mistral-7b", "llama", 32, 32, 8, 128, 4096, 14336, 32768, false, false, 1000000, 1e-5f},
    {"smollm2-135m", "llama", 30, 9, 3, 64, 576, 1536, 49152, true, false, 100000, 1e-5f},
    {"qwen2.5-7b", "qwen2", 28, 28, 4, 128, 3584, 18944, 152064, false, true, 1000000, 1e-6f},
    {"qwen2.5-1.5b", "qwen2", 28, 12, 2, 128, 1536, 8960, 151936, true, true, 1000000, 1e-6f},
    {"qwen2.5-0.5b", "qwen2", 24, 14, 2, 64, 896, 4864, 151936, true, true, 1000000, 1e-6f},
    {"qwen3-8b", "qwen3", 36, 32, 8, 128, 4096, 12288, 151936, false, false, 1000000, 1e-6f},
    {"qwen3-4b", "qwen3", 36, 32, 8, 128, 2560, 9728, 151936, true, false, 1000000, 1e-6f},
    {"qwen3-0.6b", "qwen3", 28, 16, 8, 128, 1024, 3072, 151936, true, false, 1000000, 1e-6f},
};

struct Weights {
  std::string_view name;
  ggml_type usual;
  // Of the matrix that makes the logits.
  ggml_type output;
  // Of the values' and the feed-forward network's last matrices in layers that matter more.
  ggml_type important;
};

constexpr Weights kWeights[] = {
    {"bf16", GGML_TYPE_BF16, GGML_TYPE_BF16, GGML_TYPE_BF16},
    {"f16", GGML_TYPE_F16, GGML_TYPE_F16, GGML_TYPE_F16},
    {"q8_0", GGML_TYPE_Q8_0, GGML_TYPE_Q8_0, GGML_TYPE_Q8_0},
    {"q4_0", GGML_TYPE_Q4_0, GGML_TYPE_Q6_K, GGML_TYPE_Q4_0},
    {"q4_k_m", GGML_TYPE_Q4_K, GGML_TYPE_Q6_K, GGML_TYPE_Q6_K},
};

template <typename Entry, size_t count>
const Entry& find(const Entry (&entries)[count], const std::string& name, const char* what) {
  std::string list;
  for (const Entry& entry : entries) {
    if (entry.name == name) return entry;
    list += (list.empty() ? "" : ", ") + std::string(entry.name);
  }
  throw Error(ErrorCode::invalidParams,
              "There is no synthetic model with " + std::string(what) + " \"" + name + "\".",
              "Choose one of " + list + ".");
}

// The first and last eighth, and every third in between.
bool isImportant(int32_t layer, int32_t layers) {
  const int32_t eighth = layers / 8;
  return layer < eighth || layer >= 7 * layers / 8 || (layer - eighth) % 3 == 2;
}

// What the quantizer takes where rows are no multiple of the 256 values of a k-quant's block.
ggml_type typeFor(int64_t columns, ggml_type wanted) {
  if (columns % ggml_blck_size(wanted) == 0) return wanted;
  return wanted == GGML_TYPE_Q6_K ? GGML_TYPE_Q8_0 : GGML_TYPE_Q5_0;
}

class SpecMaker {
 public:
  SpecMaker(ModelSpec& spec, const Shape& shape, const Weights& weights)
      : spec_(spec), shape_(shape), weights_(weights) {}

  void addAll() {
    addMatrix("token_embd.weight", shape_.vocabulary, shape_.embedding,
              shape_.tied ? weights_.output : weights_.usual);
    addVector("output_norm.weight", shape_.embedding);
    if (!shape_.tied)
      addMatrix("output.weight", shape_.vocabulary, shape_.embedding, weights_.output);
    for (int32_t layer = 0; layer < spec_.layers; ++layer) addLayer(layer);
  }

 private:
  void addLayer(int32_t layer) {
    const std::string prefix = "blk." + std::to_string(layer) + ".";
    for (const NormTensor& norm : spec_.layerTensors.norms)
      addVector(prefix + std::string(norm.name) + ".weight", norm.length);
    std::set<Matrix> held;
    // A matrix in a tensor of its own, where the architecture knows both.
    for (const size_t mostParts : {size_t{1}, kMatrices})
      for (const MatrixTensor& tensor : spec_.layerTensors.matrices) {
        const Matrix first = tensor.parts.front().matrix;
        if (tensor.parts.size() > mostParts || held.count(first)) continue;
        for (const MatrixTensor::Part& part : tensor.parts) held.insert(part.matrix);
        const std::string name = prefix + std::string(tensor.name);
        const bool matters =
            (first == Matrix::value || first == Matrix::down) && isImportant(layer, spec_.layers);
        addMatrix(name + ".weight", tensor.rows(), tensor.columns,
                  matters ? weights_.important : weights_.usual);
        if (shape_.biases && first <= Matrix::value) addVector(name + ".bias", tensor.rows());
      }
  }

  void addMatrix(const std::string& name, int64_t rows, int64_t columns, ggml_type wanted) {
    add({.name = name,
         .type = typeFor(columns, wanted),
         .shape = {columns, rows},
         .dimensions = 2});
  }
  void addVector(const std::string& name, int64_t length) {
    add({.name = name, .type = GGML_TYPE_F32, .shape = {length, 1}, .dimensions = 1});
  }
  void add(TensorSource tensor) {
    tensor.bytes =
        ggml_row_size(tensor.type, tensor.shape[0]) * static_cast<uint64_t>(tensor.shape[1]);
    spec_.weightBytes += tensor.bytes;
    spec_.tensors.push_back(std::move(tensor));
  }

  ModelSpec& spec_;
  const Shape& shape_;
  const Weights& weights_;
};

}  // namespace

ModelSpec syntheticSpec(const std::string& name, const std::string& weights) {
  const Shape& shape = find(kShapes, name, "the name");
  const Weights& types = find(kWeights, weights, "weights of type");
  const Architecture& architecture = *findArchitecture(shape.architecture);
  ModelSpec spec;
  spec.name = name;
  spec.architecture = shape.architecture;
  spec.fileType = weights;
  spec.layers = shape.layers;
  spec.heads = shape.heads;
  spec.kvHeads = shape.kvHeads;
  spec.headDim = shape.headDim;
  spec.embedding = shape.embedding;
  spec.feedForward = shape.feedForward;
  spec.vocabulary = shape.vocabulary;
  spec.contextTokens = kContextTokens;
  spec.normEpsilon = shape.normEpsilon;
  spec.rope.style = architecture.ropeStyle;
  spec.rope.rotatedDims = shape.headDim;
  spec.rope.base = shape.ropeBase;
  spec.rope.originalContextTokens = kContextTokens;
  spec.attentionScale = static_cast<float>(1.0 / std::sqrt(shape.headDim));
  spec.layerTensors = layerTensors(architecture, {.embedding = spec.embedding,
                                                  .queryWidth = int64_t{spec.heads} * spec.headDim,
                                                  .keyWidth = int64_t{spec.kvHeads} * spec.headDim,
                                                  .headDim = spec.headDim,
                                                  .feedForward = spec.feedForward});
  SpecMaker(spec, shape, types).addAll();
  return spec;
}

}  // namespace longsight
