// A GGUF file, checked: what is inside, and whether this engine can run it. Reads header, metadata
// and tensor descriptions, never weights.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "ggml.h"
#include "model/architecture.h"
#include "model/rope_spec.h"

namespace longsight {

// Where one tensor of the model lies in the file.
struct TensorSource {
  std::string name;
  ggml_type type = GGML_TYPE_F32;
  // ggml's order: shape[0] is the length of a row.
  int64_t shape[2] = {1, 1};
  int dimensions = 1;
  uint64_t fileOffset = 0;
  uint64_t bytes = 0;
};

// Shape and constants of a model.
struct ModelSpec {
  std::string path;
  std::string name;
  std::string architecture;
  // E.g. `Q4_1`; the most frequent matrix type when the file does not say.
  std::string fileType;
  std::string chatTemplate;
  // SentencePiece only: text at the start and after a special token is read as if a space came
  // before it.
  bool spacePrefix = false;
  int32_t layers = 0;
  int32_t heads = 0;
  int32_t kvHeads = 0;
  int32_t headDim = 0;
  int32_t embedding = 0;
  int32_t feedForward = 0;
  int32_t vocabulary = 0;
  int64_t contextTokens = 0;
  float normEpsilon = 1e-5f;
  RopeSpec rope;
  // 1 / sqrt(headDim).
  float attentionScale = 0.0f;
  // What every layer's tensors are called and what is in them.
  LayerTensors layerTensors;
  // Every tensor that the engine uses, in file order.
  std::vector<TensorSource> tensors;
  // Sum of the tensors' bytes.
  uint64_t weightBytes = 0;

  // Null when the file has none of that name.
  const TensorSource* find(const std::string& tensorName) const;
};

// What the angle of each pair is divided by (Llama 3, LongRoPE) in a context of this length: f32
// [rotatedDims / 2]; null when the file has none.
const TensorSource* ropeFactorTensor(const ModelSpec& spec, int64_t contextTokens);

// Opens and checks a GGUF file. Throws Error: modelNotFound, unreadableFile, notGguf,
// truncatedGguf, unsupportedArchitecture, unsupportedTensorType, unsupportedTokenizer. Whatever
// passes can be handed to ggml and libllama without tripping their assertions.
ModelSpec readGguf(const std::string& path);

}  // namespace longsight
