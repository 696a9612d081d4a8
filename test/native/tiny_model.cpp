#include "tiny_model.h"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <memory>
#include <random>
#include <stdexcept>
#include <vector>

#include "temporary.h"

namespace longsight::test {
namespace {

std::string utf8(uint32_t code) {
  if (code < 0x80) return {static_cast<char>(code)};
  return {static_cast<char>(0xC0 | (code >> 6)), static_cast<char>(0x80 | (code & 0x3F))};
}

// The characters that stand for bytes in byte-level BPE vocabularies.
std::vector<std::string> byteCharacters() {
  std::vector<std::string> characters;
  uint32_t next = 256;
  for (uint32_t byte = 0; byte < 256; ++byte) {
    const bool printable =
        (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174;
    characters.push_back(utf8(printable ? byte : next++));
  }
  return characters;
}

void addTokenizer(gguf_context* gguf) {
  std::vector<std::string> tokens = byteCharacters();
  std::vector<std::string> merges;
  const std::vector<std::pair<std::string, std::string>> pairs = {
      {"t", "h"}, {"th", "e"}, {"i", "n"}, {"e", "r"}, {utf8(288), "t"}, {"a", "n"}};
  for (const auto& [left, right] : pairs) {
    tokens.push_back(left + right);
    merges.push_back(left + " " + right);
  }
  const size_t firstSpecial = tokens.size();
  tokens.push_back("<|begin|>");
  tokens.push_back("<|end|>");
  while (tokens.size() < static_cast<size_t>(kTinyVocabulary))
    tokens.push_back("<|unused" + std::to_string(tokens.size()) + "|>");
  std::vector<int32_t> types(tokens.size(), 1);
  for (size_t i = firstSpecial; i < types.size(); ++i) types[i] = 3;

  std::vector<const char*> tokenTexts, mergeTexts;
  for (const std::string& token : tokens) tokenTexts.push_back(token.c_str());
  for (const std::string& merge : merges) mergeTexts.push_back(merge.c_str());
  gguf_set_val_str(gguf, "tokenizer.ggml.model", "gpt2");
  gguf_set_val_str(gguf, "tokenizer.ggml.pre", "smollm");
  gguf_set_arr_str(gguf, "tokenizer.ggml.tokens", tokenTexts.data(), tokenTexts.size());
  gguf_set_arr_data(gguf, "tokenizer.ggml.token_type", GGUF_TYPE_INT32, types.data(), types.size());
  gguf_set_arr_str(gguf, "tokenizer.ggml.merges", mergeTexts.data(), mergeTexts.size());
  gguf_set_val_u32(gguf, "tokenizer.ggml.bos_token_id", static_cast<uint32_t>(firstSpecial));
  gguf_set_val_u32(gguf, "tokenizer.ggml.eos_token_id", static_cast<uint32_t>(firstSpecial + 1));
}

// Tokens 0 to 2 are <unk>, <s> and </s>, then come the bytes. Merging letter by letter could make
// "<s>".
void addSentencePiece(gguf_context* gguf, bool byteTokens) {
  std::vector<std::string> tokens = {"<unk>", "<s>", "</s>"};
  std::vector<int32_t> types = {2, 3, 3};
  if (byteTokens)
    for (int byte = 0; byte < 256; ++byte) {
      char text[8];
      std::snprintf(text, sizeof(text), "<0x%02X>", byte);
      tokens.push_back(text);
      types.push_back(6);
    }
  for (const char* text :
       {"\u2581", "t", "h", "e", "<", "s", ">", "/", "<s", "th", "the", "\u2581the", "x"}) {
    tokens.push_back(text);
    types.push_back(1);
  }
  tokens.push_back("<|user|>");
  types.push_back(4);
  while (tokens.size() < static_cast<size_t>(kTinyVocabulary)) {
    tokens.push_back("[unused " + std::to_string(tokens.size()) + "]");
    types.push_back(5);
  }
  std::vector<float> scores;
  for (size_t i = 0; i < tokens.size(); ++i) scores.push_back(static_cast<float>(tokens[i].size()));
  std::vector<const char*> texts;
  for (const std::string& token : tokens) texts.push_back(token.c_str());
  gguf_set_val_str(gguf, "tokenizer.ggml.model", "llama");
  gguf_set_arr_str(gguf, "tokenizer.ggml.tokens", texts.data(), texts.size());
  gguf_set_arr_data(gguf, "tokenizer.ggml.scores", GGUF_TYPE_FLOAT32, scores.data(), scores.size());
  gguf_set_arr_data(gguf, "tokenizer.ggml.token_type", GGUF_TYPE_INT32, types.data(), types.size());
  gguf_set_val_u32(gguf, "tokenizer.ggml.bos_token_id", 1);
  gguf_set_val_u32(gguf, "tokenizer.ggml.eos_token_id", 2);
}

struct ContextCloser {
  void operator()(ggml_context* context) const { ggml_free(context); }
  void operator()(gguf_context* context) const { gguf_free(context); }
};

struct Shape {
  int32_t width, heads, kvHeads, headDim, layers, contextTokens;
  int64_t feedForward;
};

void addShape(gguf_context* gguf, const Shape& shape) {
  auto number = [&](const char* key, int64_t value) {
    gguf_set_val_u32(gguf, key, static_cast<uint32_t>(value));
  };
  gguf_set_val_str(gguf, "general.architecture", "llama");
  gguf_set_val_str(gguf, "general.name", "Tiny");
  number("llama.block_count", shape.layers);
  number("llama.context_length", shape.contextTokens);
  number("llama.embedding_length", shape.width);
  number("llama.feed_forward_length", shape.feedForward);
  number("llama.attention.head_count", shape.heads);
  number("llama.attention.head_count_kv", shape.kvHeads);
  number("llama.rope.dimension_count", shape.headDim);
  gguf_set_val_f32(gguf, "llama.attention.layer_norm_rms_epsilon", 1e-5f);
  gguf_set_val_f32(gguf, "llama.rope.freq_base", 10000.0f);
}

// Calls matrix(name, columns, rows) and vector(name, length) for each tensor of a layer.
template <typename Matrix, typename Vector>
void forLayer(const Shape& shape, int32_t layer, const Matrix& matrix, const Vector& vector) {
  const std::string prefix = "blk." + std::to_string(layer) + ".";
  const int64_t queryWidth = int64_t{shape.heads} * shape.headDim;
  const int64_t keyWidth = int64_t{shape.kvHeads} * shape.headDim;
  vector(prefix + "attn_norm", shape.width);
  matrix(prefix + "attn_q", shape.width, queryWidth);
  matrix(prefix + "attn_k", shape.width, keyWidth);
  matrix(prefix + "attn_v", shape.width, keyWidth);
  matrix(prefix + "attn_output", queryWidth, shape.width);
  vector(prefix + "ffn_norm", shape.width);
  matrix(prefix + "ffn_gate", shape.width, shape.feedForward);
  matrix(prefix + "ffn_up", shape.width, shape.feedForward);
  matrix(prefix + "ffn_down", shape.feedForward, shape.width);
}

}  // namespace

void writeTinyModel(const std::string& path, const TinyModel& model) {
  const std::unique_ptr<gguf_context, ContextCloser> gguf(gguf_init_empty());
  const Shape shape = {
      model.heads * model.headDim, model.heads,      model.kvHeads, model.headDim, model.layers,
      model.contextTokens,         model.feedForward};
  addShape(gguf.get(), shape);
  if (model.sentencePiece)
    addSentencePiece(gguf.get(), model.byteTokens);
  else
    addTokenizer(gguf.get());

  const std::unique_ptr<ggml_context, ContextCloser> context(
      ggml_init({size_t{64} << 20, nullptr, /*no_alloc=*/false}));
  std::mt19937 random(7);
  auto add = [&](const std::string& name, ggml_type type, int64_t columns, int64_t rows, float mean,
                 float deviation) {
    std::normal_distribution<float> distribution(mean, deviation);
    std::vector<float> values(static_cast<size_t>(columns * rows));
    for (float& value : values) value = distribution(random);
    ggml_tensor* tensor = rows > 1 ? ggml_new_tensor_2d(context.get(), type, columns, rows)
                                   : ggml_new_tensor_1d(context.get(), type, columns);
    ggml_set_name(tensor, name.c_str());
    const std::vector<float> importance(static_cast<size_t>(columns), 1.0f);
    if (type == GGML_TYPE_F32)
      std::copy(values.begin(), values.end(), static_cast<float*>(tensor->data));
    else
      ggml_quantize_chunk(type, values.data(), tensor->data, 0, rows, columns, importance.data());
    gguf_add_tensor(gguf.get(), tensor);
  };
  auto matrix = [&](const std::string& name, int64_t columns, int64_t rows) {
    add(name + ".weight", model.type, columns, rows, 0,
        1.5f / std::sqrt(static_cast<float>(columns)));
    if (model.biases && name.find("blk.") == 0)
      add(name + ".bias", GGML_TYPE_F32, rows, 1, 0, 0.3f);
  };
  auto norm = [&](const std::string& name, int64_t length) {
    add(name + ".weight", GGML_TYPE_F32, length, 1, 1, 0.2f);
  };
  add("token_embd.weight", model.type, shape.width, kTinyVocabulary, 0, 1);
  norm("output_norm", shape.width);
  if (!model.tiedOutput) matrix("output", shape.width, kTinyVocabulary);
  if (model.ropeFactors) {
    // As in Llama 3: high frequencies stay, low ones are slowed down.
    ggml_tensor* factors = ggml_new_tensor_1d(context.get(), GGML_TYPE_F32, model.headDim / 2);
    ggml_set_name(factors, "rope_freqs.weight");
    for (int32_t i = 0; i < model.headDim / 2; ++i)
      static_cast<float*>(factors->data)[i] = i < model.headDim / 4 ? 1.0f : 8.0f;
    gguf_add_tensor(gguf.get(), factors);
  }
  for (int32_t layer = 0; layer < model.layers; ++layer) forLayer(shape, layer, matrix, norm);
  if (model.change) model.change(gguf.get());
  if (!gguf_write_to_file(gguf.get(), path.c_str(), false))
    throw std::runtime_error("cannot write " + path);
}

void writeSparseModel(const std::string& path, int32_t layers, int64_t feedForward) {
  const std::unique_ptr<gguf_context, ContextCloser> gguf(gguf_init_empty());
  const Shape shape = {256, 4, 2, 64, layers, 4096, feedForward};
  addShape(gguf.get(), shape);
  addTokenizer(gguf.get());
  const std::unique_ptr<ggml_context, ContextCloser> context(
      ggml_init({size_t{64} << 20, nullptr, /*no_alloc=*/true}));
  auto add = [&](const std::string& name, int64_t columns, int64_t rows) {
    ggml_tensor* tensor = rows > 1 ? ggml_new_tensor_2d(context.get(), GGML_TYPE_F32, columns, rows)
                                   : ggml_new_tensor_1d(context.get(), GGML_TYPE_F32, columns);
    ggml_set_name(tensor, (name + ".weight").c_str());
    gguf_add_tensor(gguf.get(), tensor);
  };
  auto vector = [&](const std::string& name, int64_t length) { add(name, length, 1); };
  add("token_embd", shape.width, kTinyVocabulary);
  vector("output_norm", shape.width);
  for (int32_t layer = 0; layer < layers; ++layer) forLayer(shape, layer, add, vector);
  if (!gguf_write_to_file(gguf.get(), path.c_str(), /*only_meta=*/true))
    throw std::runtime_error("cannot write " + path);
  const int64_t last = gguf_get_n_tensors(gguf.get()) - 1;
  std::filesystem::resize_file(path, gguf_get_meta_size(gguf.get()) +
                                         gguf_get_tensor_offset(gguf.get(), last) +
                                         gguf_get_tensor_size(gguf.get(), last));
}

void writeDequantized(const std::string& from, const std::string& to) {
  ggml_context* read = nullptr;
  const std::unique_ptr<gguf_context, ContextCloser> source(
      gguf_init_from_file(from.c_str(), {/*no_alloc=*/false, &read}));
  if (!source) throw std::runtime_error("cannot read " + from);
  const std::unique_ptr<ggml_context, ContextCloser> tensors(read);
  size_t bytes = 0;
  for (ggml_tensor* tensor = ggml_get_first_tensor(read); tensor;
       tensor = ggml_get_next_tensor(read, tensor))
    bytes +=
        static_cast<size_t>(ggml_nelements(tensor)) * sizeof(float) + ggml_tensor_overhead() + 64;
  const std::unique_ptr<ggml_context, ContextCloser> expanded(ggml_init({bytes, nullptr, false}));

  const std::unique_ptr<gguf_context, ContextCloser> target(gguf_init_empty());
  gguf_set_kv(target.get(), source.get());
  gguf_set_val_u32(target.get(), "general.file_type", 0);
  for (int64_t id = 0; id < gguf_get_n_tensors(source.get()); ++id) {
    const char* name = gguf_get_tensor_name(source.get(), id);
    const ggml_tensor* tensor = ggml_get_tensor(read, name);
    ggml_tensor* copy =
        ggml_new_tensor(expanded.get(), GGML_TYPE_F32, ggml_n_dims(tensor), tensor->ne);
    ggml_set_name(copy, name);
    if (tensor->type == GGML_TYPE_F32)
      std::copy_n(static_cast<const float*>(tensor->data), ggml_nelements(tensor),
                  static_cast<float*>(copy->data));
    else
      ggml_get_type_traits(tensor->type)
          ->to_float(tensor->data, static_cast<float*>(copy->data), ggml_nelements(tensor));
    gguf_add_tensor(target.get(), copy);
  }
  if (!gguf_write_to_file(target.get(), to.c_str(), false))
    throw std::runtime_error("cannot write " + to);
}

}  // namespace longsight::test
