#include "model/gguf_file.h"

#include <sys/stat.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <map>
#include <memory>
#include <set>
#include <unordered_set>

#include "cpu/ggml_runtime.h"
#include "error.h"
#include "gguf.h"
#include "llama.h"
#include "model/gguf_metadata.h"

namespace longsight {
namespace {

// Bounds on what a file may declare: far above every real model, low enough that products of them
// stay below 2^63 and that a broken header cannot ask for absurd allocations.
constexpr int64_t kMaxLayers = 512;
constexpr int64_t kMaxHeads = 1024;
constexpr int64_t kMaxWidth = int64_t{1} << 20;
constexpr int64_t kMaxVocabulary = int64_t{1} << 22;
constexpr int64_t kMaxContext = int64_t{1} << 30;

// What ggml's CPU backend multiplies with f32 rows and reads rows of.
constexpr std::array kMatrixTypes = {
    GGML_TYPE_F32,   GGML_TYPE_F16,     GGML_TYPE_BF16,  GGML_TYPE_Q4_0,   GGML_TYPE_Q4_1,
    GGML_TYPE_Q5_0,  GGML_TYPE_Q5_1,    GGML_TYPE_Q8_0,  GGML_TYPE_Q2_K,   GGML_TYPE_Q3_K,
    GGML_TYPE_Q4_K,  GGML_TYPE_Q5_K,    GGML_TYPE_Q6_K,  GGML_TYPE_IQ4_NL, GGML_TYPE_IQ4_XS,
    GGML_TYPE_IQ3_S, GGML_TYPE_IQ3_XXS, GGML_TYPE_IQ2_S, GGML_TYPE_IQ2_XS, GGML_TYPE_IQ2_XXS,
    GGML_TYPE_IQ1_S, GGML_TYPE_IQ1_M,   GGML_TYPE_MXFP4, GGML_TYPE_TQ1_0,  GGML_TYPE_TQ2_0,
};

// Dimensions of a head that the attention kernels have.
constexpr std::array kHeadDims = {64, 80, 96, 128, 256};

std::string headDimList() {
  std::string list;
  for (const int32_t headDim : kHeadDims) {
    if (!list.empty()) list += headDim == kHeadDims.back() ? " and " : ", ";
    list += std::to_string(headDim);
  }
  return list;
}

std::string matrixTypeList() {
  std::string list;
  for (ggml_type type : kMatrixTypes) {
    if (!list.empty()) list += ", ";
    list += ggml_type_name(type);
  }
  return list;
}

struct GgufCloser {
  void operator()(gguf_context* context) const { gguf_free(context); }
};

// Size of the file, after making sure that it is a readable regular file that starts like a GGUF.
uint64_t checkFile(const std::string& path) {
  struct stat status {};
  if (stat(path.c_str(), &status) != 0) {
    if (errno == ENOENT || errno == ENOTDIR)
      throw Error(ErrorCode::modelNotFound, "There is no model file " + quoted(path) + ".",
                  "Select another model.");
    throw Error(ErrorCode::unreadableFile,
                "The model file " + quoted(path) + " cannot be read: " + std::strerror(errno) + ".",
                "Check the permissions of the file and its folders.");
  }
  if (!S_ISREG(status.st_mode))
    throw Error(ErrorCode::notGguf,
                quoted(path) + (S_ISDIR(status.st_mode) ? " is a folder, not a GGUF file."
                                                        : " is not a regular file."),
                "Select a GGUF file.");
  std::unique_ptr<FILE, int (*)(FILE*)> file(std::fopen(path.c_str(), "rb"), &std::fclose);
  if (!file)
    throw Error(ErrorCode::unreadableFile,
                "The model file " + quoted(path) + " cannot be read: " + std::strerror(errno) + ".",
                "Check the permissions of the file.");
  char magic[4] = {};
  const size_t got = std::fread(magic, 1, sizeof(magic), file.get());
  if (got < sizeof(magic) || std::memcmp(magic, "GGUF", 4) != 0) {
    const bool beginsLikeGguf = got > 0 && std::memcmp(magic, "GGUF", got) == 0;
    if (beginsLikeGguf)
      throw Error(ErrorCode::truncatedGguf,
                  quoted(path) + " ends after " + std::to_string(got) + " bytes.", kFetchAgain);
    throw Error(ErrorCode::notGguf,
                quoted(path) + (got == 0 ? " is empty."
                                         : " is not a GGUF file: it does not begin with \"GGUF\"."),
                "Select a GGUF file.");
  }
  return static_cast<uint64_t>(status.st_size);
}

// libllama asserts that every token has a text of its own (it names empty ones itself).
void checkTokensDiffer(const gguf_context* context, const std::string& path) {
  const int64_t key = gguf_find_key(context, "tokenizer.ggml.tokens");
  const size_t count = gguf_get_arr_n(context, key);
  std::unordered_set<std::string> texts;
  texts.reserve(count);
  for (size_t token = 0; token < count; ++token) {
    std::string text = gguf_get_arr_str(context, key, token);
    if (text.empty()) text = "[EMPTY_" + std::to_string(token) + "]";
    if (!texts.insert(text).second)
      throw damaged(path, "token " + std::to_string(token) + " has the same text as another, " +
                              quoted(text));
  }
}

void checkTokenizer(const Metadata& metadata, const std::string& path, int64_t vocabulary) {
  const auto model = metadata.text("tokenizer.ggml.model");
  auto unsupportedTokenizer = [&](const std::string& what) {
    return Error(ErrorCode::unsupportedTokenizer, what,
                 "Choose a GGUF with a gpt2 (BPE) or llama (SentencePiece) tokenizer.");
  };
  if (!model) throw unsupportedTokenizer(quoted(path) + " has no tokenizer.");
  if (*model != "gpt2" && *model != "llama")
    throw unsupportedTokenizer(quoted(path) + " has a tokenizer of kind " + quoted(*model) +
                               "; supported are gpt2 and llama.");
  const auto tokens = metadata.arrayLength("tokenizer.ggml.tokens", {GGUF_TYPE_STRING});
  if (!tokens) throw damaged(path, "tokenizer.ggml.tokens is missing");
  if (*tokens != vocabulary)
    throw damaged(path, "tokenizer.ggml.tokens has " + std::to_string(*tokens) +
                            " entries, but token_embd.weight has " + std::to_string(vocabulary) +
                            " rows");
  const auto scores = metadata.arrayLength("tokenizer.ggml.scores", {GGUF_TYPE_FLOAT32});
  if (scores && *scores < vocabulary)
    throw damaged(path, "tokenizer.ggml.scores has " + std::to_string(*scores) + " entries for " +
                            std::to_string(vocabulary) + " tokens");
  const auto types =
      metadata.arrayLength("tokenizer.ggml.token_type", {GGUF_TYPE_INT32, GGUF_TYPE_UINT32});
  if (types && *types < vocabulary)
    throw damaged(path, "tokenizer.ggml.token_type has " + std::to_string(*types) +
                            " entries for " + std::to_string(vocabulary) + " tokens");
  checkTokensDiffer(metadata.context(), path);
  metadata.arrayLength("tokenizer.ggml.merges", {GGUF_TYPE_STRING});
  for (const char* key :
       {"bos", "eos", "unknown", "separator", "padding", "eot", "eom", "mask", "cls", "fim_pre",
        "fim_suf", "fim_mid", "fim_pad", "fim_rep", "fim_sep"}) {
    const std::string name = std::string("tokenizer.ggml.") + key + "_token_id";
    const auto id = metadata.integer(name);
    if (id && (*id < 0 || *id >= vocabulary) && *id != 0xffffffff && *id != -1)
      throw damaged(path, name + " is " + std::to_string(*id) + " in a vocabulary of " +
                              std::to_string(vocabulary));
  }
}

// A tensor that a model of this shape may have.
struct Expected {
  int64_t shape[2];
  int dimensions;
};

std::string layerPrefix(int32_t layer) { return "blk." + std::to_string(layer) + "."; }

std::map<std::string, Expected> expectedTensors(const ModelSpec& spec) {
  const int64_t width = spec.embedding;
  const Expected ropeFactors = {{spec.rope.rotatedDims / 2, 1}, 1};
  std::map<std::string, Expected> all = {
      {"token_embd.weight", {{width, spec.vocabulary}, 2}},
      {"output_norm.weight", {{width, 1}, 1}},
      {"output.weight", {{width, spec.vocabulary}, 2}},
      {"output.bias", {{spec.vocabulary, 1}, 1}},
      {"rope_freqs.weight", ropeFactors},
      {"rope_factors_long.weight", ropeFactors},
      {"rope_factors_short.weight", ropeFactors},
  };
  for (int32_t layer = 0; layer < spec.layers; ++layer) {
    const std::string prefix = layerPrefix(layer);
    for (const MatrixTensor& tensor : spec.layerTensors.matrices) {
      const std::string name = prefix + std::string(tensor.name);
      all[name + ".weight"] = {{tensor.columns, tensor.rows()}, 2};
      all[name + ".bias"] = {{tensor.rows(), 1}, 1};
    }
    for (const NormTensor& tensor : spec.layerTensors.norms)
      all[prefix + std::string(tensor.name) + ".weight"] = {{tensor.length, 1}, 1};
  }
  return all;
}

// Every norm is there, every matrix in exactly one tensor, and no bias without its matrix.
void checkComplete(const ModelSpec& spec, const std::set<std::string>& present) {
  auto require = [&](const std::string& name) {
    if (!present.count(name)) throw damaged(spec.path, "tensor " + name + " is missing");
  };
  require("token_embd.weight");
  require("output_norm.weight");
  for (int32_t layer = 0; layer < spec.layers; ++layer) {
    const std::string prefix = layerPrefix(layer);
    for (const NormTensor& tensor : spec.layerTensors.norms)
      require(prefix + std::string(tensor.name) + ".weight");
    std::map<Matrix, std::string> holders;
    for (const MatrixTensor& tensor : spec.layerTensors.matrices) {
      const std::string name = prefix + std::string(tensor.name);
      if (!present.count(name + ".weight")) {
        if (present.count(name + ".bias")) require(name + ".weight");
        continue;
      }
      for (const MatrixTensor::Part& part : tensor.parts)
        if (const auto [holder, first] = holders.emplace(part.matrix, name); !first)
          throw damaged(spec.path, "tensors " + holder->second + ".weight and " + name +
                                       ".weight hold the same matrix");
    }
    for (const MatrixTensor& tensor : spec.layerTensors.matrices)
      for (const MatrixTensor::Part& part : tensor.parts)
        if (!holders.count(part.matrix)) require(prefix + std::string(tensor.name) + ".weight");
  }
}

std::string shapeText(const int64_t* shape, int dimensions) {
  std::string text = "[";
  for (int i = 0; i < dimensions; ++i) text += (i ? ", " : "") + std::to_string(shape[i]);
  return text + "]";
}

// Dimensions without trailing ones.
int dimensionsOf(const int64_t* shape) {
  int dimensions = GGML_MAX_DIMS;
  while (dimensions > 1 && shape[dimensions - 1] == 1) --dimensions;
  return dimensions;
}

void collectTensors(const gguf_context* context, uint64_t fileBytes, ModelSpec& spec) {
  const std::map<std::string, Expected> expected = expectedTensors(spec);
  const uint64_t dataOffset = gguf_get_data_offset(context);
  std::set<std::string> seen;
  uint64_t neededBytes = 0;
  std::string lastTensor;
  for (int64_t id = 0; id < gguf_get_n_tensors(context); ++id) {
    const std::string name = gguf_get_tensor_name(context, id);
    const int64_t* shape = gguf_get_tensor_ne(context, id);
    const ggml_type type = gguf_get_tensor_type(context, id);
    const auto found = expected.find(name);
    if (found == expected.end()) {
      // Old conversions of Llama 2 carry RoPE frequencies in each layer; libllama ignores them too.
      if (name.ends_with(".attn_rot_embd") || name.ends_with(".rotary_emb.inv_freq")) continue;
      throw unsupported(quoted(spec.path) + " has the tensor " + quoted(name) + " " +
                        shapeText(shape, dimensionsOf(shape)) +
                        ", which this engine does not know for architecture " + spec.architecture +
                        ".");
    }
    const Expected& want = found->second;
    if (dimensionsOf(shape) > want.dimensions || shape[0] != want.shape[0] ||
        shape[1] != want.shape[1])
      throw damaged(spec.path, "tensor " + name + " has shape " +
                                   shapeText(shape, dimensionsOf(shape)) + ", expected " +
                                   shapeText(want.shape, want.dimensions));
    const bool isMatrix = want.dimensions == 2;
    const bool typeOk =
        isMatrix ? std::find(kMatrixTypes.begin(), kMatrixTypes.end(), type) != kMatrixTypes.end()
                 : type == GGML_TYPE_F32;
    if (!typeOk)
      throw Error(ErrorCode::unsupportedTensorType,
                  "Tensor " + quoted(name) + " of " + quoted(spec.path) + " has type " +
                      ggml_type_name(type) + "; supported " +
                      (isMatrix ? "are " + matrixTypeList() : "for vectors is f32") + ".",
                  "Choose another quantization of the model, for example Q8_0 or Q4_K_M.");
    TensorSource source;
    source.name = name;
    source.type = type;
    source.shape[0] = shape[0];
    source.shape[1] = shape[1];
    source.dimensions = want.dimensions;
    source.bytes = gguf_get_tensor_size(context, id);
    source.fileOffset = dataOffset + gguf_get_tensor_offset(context, id);
    if (source.fileOffset + source.bytes > neededBytes) {
      neededBytes = source.fileOffset + source.bytes;
      lastTensor = name;
    }
    spec.weightBytes += source.bytes;
    seen.insert(name);
    spec.tensors.push_back(std::move(source));
  }
  checkComplete(spec, seen);
  if (neededBytes > fileBytes)
    throw Error(ErrorCode::truncatedGguf,
                quoted(spec.path) + " is cut short: tensor " + quoted(lastTensor) +
                    " ends at byte " + std::to_string(neededBytes) + ", but the file has " +
                    std::to_string(fileBytes) + " bytes.",
                kFetchAgain);
}

std::string fileTypeName(const Metadata& metadata, const ModelSpec& spec) {
  if (const auto type = metadata.integer("general.file_type"); type && *type >= 0 && *type < 1024) {
    const std::string name = llama_ftype_name(static_cast<llama_ftype>(*type));
    if (name.find("unknown") == std::string::npos) return name;
  }
  std::map<ggml_type, uint64_t> bytesByType;
  for (const TensorSource& tensor : spec.tensors)
    if (tensor.dimensions == 2) bytesByType[tensor.type] += tensor.bytes;
  const auto largest =
      std::max_element(bytesByType.begin(), bytesByType.end(),
                       [](const auto& a, const auto& b) { return a.second < b.second; });
  return largest == bytesByType.end() ? "unknown" : ggml_type_name(largest->first);
}

// Kinds of models that look like a supported architecture but compute something else.
void refuseVariants(const Metadata& metadata, const std::string& prefix) {
  const std::string file = quoted(metadata.path());
  if (const auto type = metadata.text("general.type"); type && *type != "model")
    throw unsupported(file + " holds a " + quoted(*type) + ", not a language model.");
  if (const int64_t parts = metadata.integer("split.count").value_or(1); parts > 1)
    throw Error(ErrorCode::unsupportedArchitecture,
                file + " is one of " + std::to_string(parts) +
                    " parts of a split model; supported is a single file.",
                "Merge the parts with llama-gguf-split --merge and choose the merged file.");

  struct Count {
    const char* key;
    const char* before;
    const char* after;
  };
  for (const auto& [key, before, after] : {
           Count{"expert_count", " is a mixture of ", " experts; supported are dense models."},
           Count{"attention.sliding_window", " has layers that see only the last ",
                 " tokens (sliding window attention), which is not supported."},
           Count{"nextn_predict_layers", " ends with ",
                 " layers for predicting several tokens at once, which are not supported."},
           Count{"pooling_type", " is a model for embeddings or ranking (pooling type ",
                 "), which writes no text."},
       })
    if (const int64_t count = metadata.integer(prefix + key).value_or(0); count > 0)
      throw unsupported(file + before + std::to_string(count) + after);
  for (const char* key : {"attn_logit_softcapping", "final_logit_softcapping"})
    if (const double cap = metadata.number(prefix + key).value_or(0); cap != 0)
      throw unsupported(file + " caps its logits (" + prefix + key + " is " + std::to_string(cap) +
                        "), which is not supported.");
  if (!metadata.boolean(prefix + "attention.causal").value_or(true))
    throw unsupported(file +
                      " looks at later tokens too (attention is not causal); it writes no "
                      "text.");
  for (const int64_t section : metadata.integers(prefix + "rope.dimension_sections"))
    if (section != 0)
      throw unsupported(file +
                        " turns heads by several positions (M-RoPE, for images), which is "
                        "not supported.");
}

}  // namespace

const TensorSource* ModelSpec::find(const std::string& tensorName) const {
  for (const TensorSource& tensor : tensors)
    if (tensor.name == tensorName) return &tensor;
  return nullptr;
}

const TensorSource* ropeFactorTensor(const ModelSpec& spec, int64_t contextTokens) {
  if (const TensorSource* factors = spec.find("rope_freqs.weight")) return factors;
  return spec.find(contextTokens > spec.rope.originalContextTokens ? "rope_factors_long.weight"
                                                                   : "rope_factors_short.weight");
}

ModelSpec readGguf(const std::string& path) {
  const uint64_t fileBytes = checkFile(path);

  LogCapture log;
  const gguf_init_params params = {/*no_alloc=*/true, /*ctx=*/nullptr};
  const std::unique_ptr<gguf_context, GgufCloser> context(
      gguf_init_from_file(path.c_str(), params));
  if (!context)
    throw Error(ErrorCode::truncatedGguf,
                "The header of " + quoted(path) + " (" + std::to_string(fileBytes) +
                    " bytes) is damaged or cut short: " + log.reason("it cannot be read") + ".",
                kFetchAgain);

  const Metadata metadata(context.get(), path);
  ModelSpec spec;
  spec.path = path;
  spec.architecture = metadata.text("general.architecture").value_or("");
  const Architecture* architecture = findArchitecture(spec.architecture);
  if (!architecture)
    throw unsupported(quoted(path) + " has the architecture " + quoted(spec.architecture) +
                      "; supported are " + architectureNames() + ".");
  const std::string prefix = spec.architecture + ".";
  refuseVariants(metadata, prefix);

  auto size = [&](const char* key, int64_t high) {
    return static_cast<int32_t>(metadata.requiredInteger(prefix + key, 1, high));
  };
  spec.layers = size("block_count", kMaxLayers);
  spec.embedding = size("embedding_length", kMaxWidth);
  spec.feedForward = size("feed_forward_length", kMaxWidth);
  spec.heads = size("attention.head_count", kMaxHeads);
  spec.kvHeads = static_cast<int32_t>(
      metadata.integerOr(prefix + "attention.head_count_kv", spec.heads, 1, kMaxHeads));
  spec.contextTokens = metadata.requiredInteger(prefix + "context_length", 1, kMaxContext);
  if (spec.heads % spec.kvHeads != 0)
    throw damaged(path, std::to_string(spec.heads) + " heads cannot share " +
                            std::to_string(spec.kvHeads) + " key and value heads");
  const std::string keyLength = prefix + "attention.key_length";
  if (!metadata.has(keyLength) && spec.embedding % spec.heads != 0)
    throw damaged(path, "an embedding of " + std::to_string(spec.embedding) +
                            " does not divide into " + std::to_string(spec.heads) + " heads");
  spec.headDim = static_cast<int32_t>(
      metadata.integerOr(keyLength, spec.embedding / spec.heads, 1, kMaxWidth));
  const int64_t valueDim =
      metadata.integerOr(prefix + "attention.value_length", spec.headDim, 1, kMaxWidth);
  const bool supportedDim =
      std::find(kHeadDims.begin(), kHeadDims.end(), spec.headDim) != kHeadDims.end();
  if (!supportedDim || valueDim != spec.headDim)
    throw unsupported(quoted(path) + " has heads of " + std::to_string(spec.headDim) +
                      " (keys) and " + std::to_string(valueDim) +
                      " (values) dimensions; supported are " + headDimList() + " for both.");
  spec.normEpsilon =
      static_cast<float>(metadata.positiveOr(prefix + "attention.layer_norm_rms_epsilon", 1e-5));
  spec.attentionScale = static_cast<float>(1.0 / std::sqrt(spec.headDim));
  spec.rope = readRope(metadata, *architecture, spec.headDim, spec.contextTokens);
  // YaRN is made for this many, whatever context the file names.
  if (spec.rope.extrapolation > 0)
    spec.contextTokens = std::max(
        spec.contextTokens,
        std::min(kMaxContext,
                 static_cast<int64_t>(static_cast<double>(spec.rope.originalContextTokens) /
                                      static_cast<double>(spec.rope.angleScale))));
  spec.layerTensors = layerTensors(*architecture, {.embedding = spec.embedding,
                                                   .queryWidth = int64_t{spec.heads} * spec.headDim,
                                                   .keyWidth = int64_t{spec.kvHeads} * spec.headDim,
                                                   .headDim = spec.headDim,
                                                   .feedForward = spec.feedForward});

  const int64_t embeddings = gguf_find_tensor(context.get(), "token_embd.weight");
  if (embeddings < 0) throw damaged(path, "tensor token_embd.weight is missing");
  const int64_t vocabulary = gguf_get_tensor_ne(context.get(), embeddings)[1];
  if (vocabulary < 1 || vocabulary > kMaxVocabulary)
    throw damaged(path, "token_embd.weight has " + std::to_string(vocabulary) + " rows");
  spec.vocabulary = static_cast<int32_t>(vocabulary);
  checkTokenizer(metadata, path, vocabulary);

  collectTensors(context.get(), fileBytes, spec);
  spec.fileType = fileTypeName(metadata, spec);
  spec.spacePrefix = metadata.text("tokenizer.ggml.model") == "llama" &&
                     metadata.boolean("tokenizer.ggml.add_space_prefix").value_or(true);
  spec.chatTemplate = metadata.text("tokenizer.chat_template").value_or("");
  spec.name = metadata.text("general.name").value_or("");
  if (spec.name.empty()) {
    const size_t slash = path.find_last_of('/');
    spec.name = slash == std::string::npos ? path : path.substr(slash + 1);
  }
  return spec;
}

}  // namespace longsight
