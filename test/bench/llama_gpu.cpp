// What the CUDA engine is compared with: libllama on the same card, with random weights of the
// shape of Llama 3.1 8B, so that no model has to be fetched. Uses public functions of libllama
// alone; build it against a CUDA build of it (test/kernels/run-gpu.sh, section `llama`).
//   llama_gpu write PATH f16|q4_k_m [LAYERS EMBEDDING FEED_FORWARD HEADS KV_HEADS VOCABULARY]
//   llama_gpu bench PATH LIBRARIES DEPTH,... UBATCH [NAME]
// One measurement a line: quantity, depth, name, value. `ttft` is the seconds until the last of
// DEPTH rows has its logits, `decode` the milliseconds of a token after DEPTH rows.
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <sstream>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "ggml-backend.h"
#include "ggml.h"
#include "gguf.h"
#include "llama.h"

namespace {

constexpr int kDecodeTokens = 64;
constexpr int kWarmupTokens = 8;

double secondsSince(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

// ---- a model of random weights -----------------------------------------------------------------

struct Shape {
  int64_t layers = 32, embedding = 4096, feedForward = 14336, heads = 32, kvHeads = 8,
          vocabulary = 128256;
};

struct Deleter {
  void operator()(ggml_context* context) const { ggml_free(context); }
  void operator()(gguf_context* context) const { gguf_free(context); }
};

// Blocks of any bits but for their scales, which give weights of about 0.01.
void fillRandom(ggml_type type, uint8_t* data, size_t bytes, uint64_t seed) {
  std::mt19937_64 random(seed);
  const auto put16 = [](uint8_t* at, uint16_t bits) { std::memcpy(at, &bits, sizeof(bits)); };
  if (type == GGML_TYPE_F32) {
    const float one = 1;
    for (size_t at = 0; at < bytes; at += sizeof(one)) std::memcpy(data + at, &one, sizeof(one));
    return;
  }
  for (size_t at = 0; at + sizeof(uint64_t) <= bytes; at += sizeof(uint64_t)) {
    uint64_t bits = random();
    if (type == GGML_TYPE_F16) bits = (bits & 0x83ff83ff83ff83ffull) | 0x2000200020002000ull;
    std::memcpy(data + at, &bits, sizeof(bits));
  }
  const size_t block = ggml_type_size(type);
  for (size_t at = 0; type == GGML_TYPE_Q4_K && at < bytes; at += block) {
    put16(data + at, 0x0400);      // 6.1e-5
    put16(data + at + 2, 0x0f80);  // 7.5 times that: as many weights above zero as below
  }
  for (size_t at = 0; type == GGML_TYPE_Q6_K && at < bytes; at += block)
    put16(data + at + block - 2, 0x0093);  // 8.8e-6
}

// The mixture of types of llama.cpp's Q4_K_M.
bool moreBits(int64_t layer, int64_t layers) {
  return layer < layers / 8 || layer >= 7 * layers / 8 || (layer - layers / 8) % 3 == 2;
}

void writeModel(const std::string& path, const std::string& weights, const Shape& shape) {
  const bool quantized = weights == "q4_k_m";
  if (!quantized && weights != "f16") throw std::runtime_error("weights: f16 or q4_k_m");
  const std::unique_ptr<gguf_context, Deleter> gguf(gguf_init_empty());
  const std::unique_ptr<ggml_context, Deleter> tensors(
      ggml_init({size_t{16} << 20, nullptr, /*no_alloc=*/true}));
  const auto number = [&](const std::string& key, int64_t value) {
    gguf_set_val_u32(gguf.get(), ("llama." + key).c_str(), static_cast<uint32_t>(value));
  };
  gguf_set_val_str(gguf.get(), "general.architecture", "llama");
  gguf_set_val_str(gguf.get(), "general.name", "random");
  gguf_set_val_str(gguf.get(), "tokenizer.ggml.model", "none");
  number("vocab_size", shape.vocabulary);
  number("block_count", shape.layers);
  number("context_length", 1 << 20);
  number("embedding_length", shape.embedding);
  number("feed_forward_length", shape.feedForward);
  number("attention.head_count", shape.heads);
  number("attention.head_count_kv", shape.kvHeads);
  number("rope.dimension_count", shape.embedding / shape.heads);
  gguf_set_val_f32(gguf.get(), "llama.attention.layer_norm_rms_epsilon", 1e-5f);
  gguf_set_val_f32(gguf.get(), "llama.rope.freq_base", 500000.0f);

  const auto add = [&](const std::string& name, ggml_type type, int64_t columns, int64_t rows) {
    ggml_tensor* tensor = rows > 1 ? ggml_new_tensor_2d(tensors.get(), type, columns, rows)
                                   : ggml_new_tensor_1d(tensors.get(), type, columns);
    ggml_set_name(tensor, (name + ".weight").c_str());
    gguf_add_tensor(gguf.get(), tensor);
  };
  const ggml_type plain = quantized ? GGML_TYPE_Q4_K : GGML_TYPE_F16;
  const ggml_type finer = quantized ? GGML_TYPE_Q6_K : GGML_TYPE_F16;
  const int64_t keyWidth = shape.embedding / shape.heads * shape.kvHeads;
  add("token_embd", plain, shape.embedding, shape.vocabulary);
  add("output_norm", GGML_TYPE_F32, shape.embedding, 1);
  add("output", finer, shape.embedding, shape.vocabulary);
  for (int64_t layer = 0; layer < shape.layers; ++layer) {
    const std::string prefix = "blk." + std::to_string(layer) + ".";
    const ggml_type mixed = moreBits(layer, shape.layers) ? finer : plain;
    add(prefix + "attn_norm", GGML_TYPE_F32, shape.embedding, 1);
    add(prefix + "attn_q", plain, shape.embedding, shape.embedding);
    add(prefix + "attn_k", plain, shape.embedding, keyWidth);
    add(prefix + "attn_v", mixed, shape.embedding, keyWidth);
    add(prefix + "attn_output", plain, shape.embedding, shape.embedding);
    add(prefix + "ffn_norm", GGML_TYPE_F32, shape.embedding, 1);
    add(prefix + "ffn_gate", plain, shape.embedding, shape.feedForward);
    add(prefix + "ffn_up", plain, shape.embedding, shape.feedForward);
    add(prefix + "ffn_down", mixed, shape.feedForward, shape.embedding);
  }
  if (!gguf_write_to_file(gguf.get(), path.c_str(), /*only_meta=*/true))
    throw std::runtime_error("cannot write " + path);

  const size_t meta = gguf_get_meta_size(gguf.get());
  const int64_t count = gguf_get_n_tensors(gguf.get());
  const size_t bytes = meta + gguf_get_tensor_offset(gguf.get(), count - 1) +
                       gguf_get_tensor_size(gguf.get(), count - 1);
  const int file = open(path.c_str(), O_RDWR);
  if (file < 0 || ftruncate(file, static_cast<off_t>(bytes)) != 0)
    throw std::runtime_error("cannot make " + path + " " + std::to_string(bytes) + " bytes long");
  void* mapped = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  close(file);
  if (mapped == MAP_FAILED) throw std::runtime_error("cannot map " + path);
  std::vector<std::thread> threads;
  const unsigned workers = std::max(1u, std::thread::hardware_concurrency());
  for (unsigned worker = 0; worker < workers; ++worker)
    threads.emplace_back([&, worker] {
      for (int64_t id = worker; id < count; id += workers)
        fillRandom(gguf_get_tensor_type(gguf.get(), id),
                   static_cast<uint8_t*>(mapped) + meta + gguf_get_tensor_offset(gguf.get(), id),
                   gguf_get_tensor_size(gguf.get(), id), static_cast<uint64_t>(id) + 1);
    });
  for (std::thread& thread : threads) thread.join();
  munmap(mapped, bytes);
  std::printf("%s: %zu bytes\n", path.c_str(), bytes);
}

// ---- the measurement ---------------------------------------------------------------------------

class Bench {
 public:
  Bench(const std::string& path, int64_t capacity, uint32_t ubatch)
      : model_(load(path), &llama_model_free),
        vocabulary_(llama_vocab_n_tokens(llama_model_get_vocab(model_.get()))) {
    llama_context_params params = llama_context_default_params();
    params.n_ctx = static_cast<uint32_t>(capacity);
    params.n_batch = params.n_ubatch = ubatch;
    params.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_ENABLED;
    params.no_perf = true;
    context_.reset(llama_init_from_model(model_.get(), params));
    if (!context_) throw std::runtime_error("libllama makes no context for " + path);
    batchRows_ = ubatch;
  }

  void clear() { llama_memory_clear(llama_get_memory(context_.get()), true), rows_ = 0; }

  // Seconds to bring the cache to `rows` rows, with the logits of the last.
  double prefillTo(int64_t rows) {
    const auto start = std::chrono::steady_clock::now();
    while (rows_ < rows) decode(std::min<int64_t>(batchRows_, rows - rows_));
    checkLogits();
    return secondsSince(start);
  }

  // Milliseconds of a token; the cache then has as many rows as before.
  double decodeMs() {
    const int64_t before = rows_;
    for (int i = 0; i < kWarmupTokens; ++i) decode(1), checkLogits();
    const auto start = std::chrono::steady_clock::now();
    for (int i = 0; i < kDecodeTokens; ++i) decode(1), checkLogits();
    const double seconds = secondsSince(start);
    if (!llama_memory_seq_rm(llama_get_memory(context_.get()), 0, static_cast<llama_pos>(before),
                             -1))
      throw std::runtime_error("libllama cannot shorten its cache");
    rows_ = before;
    return seconds * 1e3 / kDecodeTokens;
  }

 private:
  static llama_model* load(const std::string& path) {
    llama_model_params params = llama_model_default_params();
    params.n_gpu_layers = 999;
    llama_model* model = llama_model_load_from_file(path.c_str(), params);
    if (!model) throw std::runtime_error("libllama does not load " + path);
    return model;
  }
  void decode(int64_t rows) {
    std::vector<llama_token> tokens(static_cast<size_t>(rows));
    for (llama_token& token : tokens)
      token = static_cast<llama_token>(random_() % static_cast<uint32_t>(vocabulary_));
    if (llama_decode(context_.get(),
                     llama_batch_get_one(tokens.data(), static_cast<int32_t>(rows))) != 0)
      throw std::runtime_error("llama_decode failed at row " + std::to_string(rows_));
    rows_ += rows;
  }
  // Waits for the device, too.
  void checkLogits() {
    const float* logits = llama_get_logits_ith(context_.get(), -1);
    if (!logits || !std::isfinite(logits[0]) || !std::isfinite(logits[vocabulary_ - 1]))
      throw std::runtime_error("libllama computed no numbers");
  }

  std::unique_ptr<llama_model, decltype(&llama_model_free)> model_;
  struct ContextDeleter {
    void operator()(llama_context* context) const { llama_free(context); }
  };
  std::unique_ptr<llama_context, ContextDeleter> context_;
  int32_t vocabulary_;
  int64_t batchRows_ = 0;
  int64_t rows_ = 0;
  std::mt19937 random_{11};
};

void bench(const std::string& path, const std::vector<int64_t>& depths, uint32_t ubatch,
           const std::string& name) {
  const auto start = std::chrono::steady_clock::now();
  Bench bench(path, depths.back() + 2 * (kDecodeTokens + kWarmupTokens), ubatch);
  std::printf("load 0 %s %.2f\n", name.c_str(), secondsSince(start));
  // Kernels are compiled and libraries loaded by their first use.
  const double firstUse = bench.prefillTo(2 * ubatch) + bench.decodeMs() / 1e3;
  std::printf("first-use 0 %s %.2f\n", name.c_str(), firstUse);
  bench.clear();
  double ttft = 0;
  for (const int64_t depth : depths) {
    ttft += bench.prefillTo(depth);
    std::printf("ttft %lld %s %.4f\n", static_cast<long long>(depth), name.c_str(), ttft);
    std::printf("decode %lld %s %.4f\n", static_cast<long long>(depth), name.c_str(),
                bench.decodeMs());
    std::fflush(stdout);
  }
}

}  // namespace

int main(int argc, char** argv) {
  const std::vector<std::string> arguments(argv + 1, argv + argc);
  try {
    if (arguments.size() >= 3 && arguments[0] == "write") {
      Shape shape;
      int64_t* sizes[] = {&shape.layers, &shape.embedding, &shape.feedForward,
                          &shape.heads,  &shape.kvHeads,   &shape.vocabulary};
      for (size_t i = 3; i < std::min<size_t>(arguments.size(), 9); ++i)
        *sizes[i - 3] = std::stoll(arguments[i]);
      writeModel(arguments[1], arguments[2], shape);
      return 0;
    }
    if (arguments.size() >= 5 && arguments[0] == "bench") {
      ggml_backend_load_all_from_path(arguments[2].c_str());
      for (size_t i = 0; i < ggml_backend_dev_count(); ++i)
        std::printf("device %zu %s\n", i, ggml_backend_dev_description(ggml_backend_dev_get(i)));
      llama_log_set(
          [](ggml_log_level level, const char* text, void*) {
            if (level >= GGML_LOG_LEVEL_WARN && level != GGML_LOG_LEVEL_CONT)
              std::fputs(text, stderr);
          },
          nullptr);
      std::vector<int64_t> depths;
      std::istringstream list(arguments[3]);
      for (std::string depth; std::getline(list, depth, ',');) depths.push_back(std::stoll(depth));
      bench(arguments[1], depths, static_cast<uint32_t>(std::stoul(arguments[4])),
            arguments.size() > 5 ? arguments[5] : "libllama");
      return 0;
    }
  } catch (const std::exception& error) {
    std::fprintf(stderr, "llama_gpu: %s\n", error.what());
    return 1;
  }
  std::fprintf(stderr,
               "llama_gpu write PATH f16|q4_k_m [SIZES] | bench PATH LIBRARIES DEPTH,... UBATCH "
               "[NAME]\n");
  return 2;
}
