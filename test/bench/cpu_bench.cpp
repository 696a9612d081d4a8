// Longsight and libllama on the same file, prompt and machine, in turn. For `npm run bench:cpu`,
// which makes a table of the measurements: one a line, `quantity size name value`.
//   cpu_bench MODEL THREADS RUNS TOKENS,... DEPTHS,... WHAT,... DENSITY < TEXT
//     0 threads = the physical cores; WHAT: libllama, dense, peak, score; q8: with q8 KV caches;
//     DENSITY: of the lists that are drawn for `peak` in place of found ones; 0 = none
//   cpu_bench MODEL OUT TYPE   writes a model of random weights, Q8_0 or Q4_1, with the vocabulary
//   of
//                              MODEL
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <iostream>
#include <iterator>
#include <map>
#include <memory>
#include <random>
#include <ranges>
#include <set>
#include <span>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "cpu/ggml_runtime.h"
#include "gguf.h"
#include "kernels/cpu/attention/kernels.h"
#include "kernels/cpu/linear/linear.h"
#include "llama.h"
#include "session/machine.h"
#include "session/session.h"

using namespace longsight;

namespace {

// Tokens of one measurement of decoding: the last ones before the depth.
constexpr int64_t kDecodeTokens = 32;
// Rows over which the policies are compared.
constexpr int64_t kScoredTokens = 1024;

void report(const char* quantity, int64_t size, const std::string& name, double value) {
  std::printf("%s %lld %s %.9g\n", quantity, static_cast<long long>(size), name.c_str(), value);
  std::fflush(stdout);
}

template <typename Body>
double secondsOf(const Body& body) {
  const auto start = std::chrono::steady_clock::now();
  body();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

// ---- peaks of the machine
// ------------------------------------------------------------------------

#if defined(__x86_64__)
constexpr int64_t kRounds = 4'000'000;
volatile float sinkValue;

// Independent multiply-adds that never leave the registers; the empty asm statements keep the
// compiler from seeing that all sums are equal. Returns the number of operations.
#define LONGSIGHT_CHAINS(name, isa, Sum, Factor, one, chains, step, operations) \
  __attribute__((target(isa))) double name() {                                  \
    Sum sums[chains] = {};                                                      \
    Factor a = (Factor)one, b = a;                                              \
    for (auto& sum : sums) asm volatile("" : "+v"(sum));                        \
    for (int64_t i = 0; i < kRounds; ++i) {                                     \
      asm volatile("" : "+v"(a), "+v"(b));                                      \
      _Pragma("GCC unroll 16") for (auto& sum : sums) sum = step;               \
    }                                                                           \
    for (auto& sum : sums) sinkValue = sum[0];                                  \
    return static_cast<double>(kRounds) * chains * operations;                  \
  }
LONGSIGHT_CHAINS(bf16Avx512, "avx512f,avx512bf16", __m512, __m512bh, _mm512_set1_epi32(0x3f803f80),
                 16, _mm512_dpbf16_ps(sum, a, b), 64)
LONGSIGHT_CHAINS(f32Avx512, "avx512f", __m512, __m512, _mm512_set1_ps(1), 16,
                 _mm512_fmadd_ps(a, b, sum), 32)
LONGSIGHT_CHAINS(f32Avx2, "avx2,fma", __m256, __m256, _mm256_set1_ps(1), 12,
                 _mm256_fmadd_ps(a, b, sum), 16)
#endif

void reportPeak([[maybe_unused]] ThreadPool& pool) {
#if defined(__x86_64__)
  const auto measure = [&](const char* name, double (*chains)()) {
    std::vector<double> operations(static_cast<size_t>(pool.threads()));
    for (int burst = 0; burst < 5; ++burst) {
      const double seconds = secondsOf([&] {
        pool.forEach(pool.threads(),
                     [&](int64_t i, int32_t) { operations[static_cast<size_t>(i)] = chains(); });
      });
      report("peak", 0, name, operations[0] * pool.threads() / seconds / 1e9);
    }
  };
  if (instructionSetRuns(InstructionSet::avx512bf16)) measure("bf16", bf16Avx512);
  if (instructionSetRuns(InstructionSet::avx512)) measure("f32", f32Avx512);
  if (instructionSetRuns(InstructionSet::avx2)) measure("avx2", f32Avx2);
#endif
}

// ---- libllama
// ------------------------------------------------------------------------------------

class Llama {
 public:
  Llama(llama_model* model, int64_t capacity, int32_t threads, uint32_t ubatch, ggml_type cache)
      : vocabulary_(llama_vocab_n_tokens(llama_model_get_vocab(model))) {
    llama_context_params params = llama_context_default_params();
    params.n_ctx = params.n_batch = static_cast<uint32_t>(capacity);
    params.n_ubatch = ubatch;
    params.n_threads = params.n_threads_batch = threads;
    params.type_k = params.type_v = cache;
    params.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_ENABLED;
    context_.reset(llama_init_from_model(model, params));
    if (!context_) throw std::runtime_error("libllama makes no context for this model");
  }

  double prefillSeconds(std::span<const int32_t> tokens) {
    cut(0);
    return secondsOf([&] { decode(tokens); });
  }

  // After a prefill of at least `depth` of the tokens. Greedy, like the engine's own measurement.
  double decodeTokensPerSecond(std::span<const int32_t> tokens, int64_t depth) {
    const int64_t begin = depth - kDecodeTokens;
    cut(begin);
    return kDecodeTokens / secondsOf([&] {
             for (int64_t row = begin; row < depth; ++row) {
               decode(tokens.subspan(static_cast<size_t>(row), 1));
               const float* logits = llama_get_logits(context_.get());
               if (!std::isfinite(*std::max_element(logits, logits + vocabulary_)))
                 throw std::runtime_error("libllama computed no numbers");
             }
           });
  }

 private:
  // Forgets what lies behind the first `rows` rows.
  void cut(int64_t rows) {
    llama_memory_t memory = llama_get_memory(context_.get());
    if (!llama_memory_seq_rm(memory, 0, static_cast<llama_pos>(rows), -1) ||
        llama_memory_seq_pos_max(memory, 0) != rows - 1)
      throw std::runtime_error("libllama's cache does not end at row " + std::to_string(rows));
  }
  void decode(std::span<const int32_t> tokens) {
    std::vector<llama_token> copy(tokens.begin(), tokens.end());
    const int32_t status = llama_decode(
        context_.get(), llama_batch_get_one(copy.data(), static_cast<int32_t>(copy.size())));
    if (status != 0) throw std::runtime_error("llama_decode returned " + std::to_string(status));
    llama_synchronize(context_.get());
  }

  struct Free {
    void operator()(llama_context* context) const { llama_free(context); }
  };
  int32_t vocabulary_;
  std::unique_ptr<llama_context, Free> context_;
};

// With the settings that are fastest for these tokens.
std::unique_ptr<Llama> fastestLlama(llama_model* model, std::span<const int32_t> tokens,
                                    int64_t capacity, int32_t threads) {
  std::pair<uint32_t, ggml_type> fastest;
  double least = INFINITY;
  for (const auto& [ubatch, cache] : {std::pair{512u, GGML_TYPE_F16},
                                      {1024u, GGML_TYPE_F16},
                                      {2048u, GGML_TYPE_F16},
                                      {512u, GGML_TYPE_BF16}}) {
    Llama llama(model, capacity, threads, ubatch, cache);
    llama.prefillSeconds(tokens.first(64));
    const double seconds = llama.prefillSeconds(tokens);
    report("settings", ubatch, ggml_type_name(cache), seconds);
    if (seconds < least) fastest = {ubatch, cache};
    least = std::min(least, seconds);
  }
  return std::make_unique<Llama>(model, capacity, threads, fastest.first, fastest.second);
}

// ---- the measurement
// -----------------------------------------------------------------------------

// Work of a dense prefill by the shape of the model. Without the output layer, and of the last
// layer only keys and values: nothing reads the rest of it.
void reportWork(const ModelSpec& spec, int64_t rows) {
  const std::string last = "blk." + std::to_string(spec.layers - 1) + ".";
  double weights = 0;
  for (const TensorSource& tensor : spec.tensors) {
    const bool read = tensor.name.rfind(last, 0) != 0 || tensor.name == last + "attn_k.weight" ||
                      tensor.name == last + "attn_v.weight";
    if (tensor.dimensions == 2 && tensor.name.rfind("blk.", 0) == 0 && read)
      weights += static_cast<double>(tensor.shape[0] * tensor.shape[1]);
  }
  const auto count = static_cast<double>(rows);
  report("gflop", rows, "linear", 2e-9 * weights * count);
  report("gflop", rows, "attention",
         4e-9 * spec.headDim * spec.heads * (spec.layers - 1) * count * (count + 1) / 2);
}

Prompt promptOf(std::span<const int32_t> tokens, Policy policy) {
  Prompt prompt;
  prompt.tokens.assign(tokens.begin(), tokens.end());
  prompt.denseFrom = static_cast<int64_t>(tokens.size());
  prompt.borders = {prompt.denseFrom};
  prompt.params.policy = policy;
  return prompt;
}

void bench(const std::string& path, int32_t threads, int64_t runs,
           const std::vector<int64_t>& counts, const std::vector<int64_t>& depths,
           const std::set<std::string>& what, double density) {
  const int64_t most = counts.back();
  const std::string text{std::istreambuf_iterator<char>(std::cin), {}};
  cpuDevice();
  const auto model = std::make_shared<Model>(path);
  std::vector<int32_t> tokens;
  model->tokenizer().tokenize(text, false, tokens);
  if (static_cast<int64_t>(tokens.size()) < most)
    throw std::runtime_error("the text has " + std::to_string(tokens.size()) + " tokens, " +
                             std::to_string(most) + " are needed");
  const auto head = [&](int64_t count) {
    return std::span<const int32_t>(tokens).first(static_cast<size_t>(count));
  };
  const CancelFlag cancel;
  const bool q8 = what.contains("q8");
  Session session(
      model, {.contextTokens = most, .threads = threads, .kvCache = q8 ? KvType::q8 : KvType::bf16},
      cancel, nullptr);
  std::unique_ptr<llama_model, decltype(&llama_model_free)> theirs(nullptr, &llama_model_free);
  std::unique_ptr<Llama> llama;
  if (what.contains("libllama")) {
    theirs.reset(llama_model_load_from_file(path.c_str(), llama_model_default_params()));
    if (!theirs) throw std::runtime_error("libllama does not load " + path);
    llama = q8 ? std::make_unique<Llama>(theirs.get(), most, threads, 2048, GGML_TYPE_Q8_0)
               : fastestLlama(theirs.get(), head(std::min<int64_t>(most, 2048)), most, threads);
  }
  ThreadPool pool(threads);
  const LinearSets linear = chooseLinearSets();
  report("threads", threads, "linear:" + std::string(instructionSetName(linear.general)), 0);
  if (linear.integers != linear.general)
    report("threads", threads, "integers:" + std::string(instructionSetName(linear.integers)), 0);
  report(
      "threads", threads,
      "attention:" + std::string(instructionSetName(attentionKernels(chooseInstructionSet()).set)),
      0);
  report("threads", threads, "ggml:" + cpuVariant(), 0);
  for (int64_t count : counts) reportWork(model->spec(), count);

  session.generate(promptOf(head(64), Policy::peak), {}, {});  // The first touch of all memory.
  for (int64_t run = 0; run < runs; ++run) {
    reportPeak(pool);
    for (int64_t count : counts) {
      if (llama) report("prefill", count, "libllama", llama->prefillSeconds(head(count)));
      for (Policy policy : {Policy::peak, Policy::dense}) {
        const char* name = policy == Policy::peak ? "peak" : "dense";
        if (!what.contains(name)) continue;
        Prompt prompt = promptOf(head(count), policy);
        if (policy == Policy::peak && density > 0) prompt.forcedDensity = density;
        session.reset();
        GenerateResult result;
        report("prefill", count, name,
               secondsOf([&] { result = session.generate(prompt, {}, {}); }));
        report("density", count, name, result.attention.density);
        if (result.attention.sparseDensity)
          report("sparse", count, name, *result.attention.sparseDensity);
      }
    }
    // Both caches hold the longest prefill now; every depth cuts them.
    for (int64_t depth : depths | std::views::reverse) {
      if (llama) report("decode", depth, "libllama", llama->decodeTokensPerSecond(tokens, depth));
      GenerateOptions answer;
      answer.maxTokens = kDecodeTokens;
      answer.ignoreEnd = true;
      const Prompt prompt = promptOf(head(depth - kDecodeTokens), Policy::dense);
      report("decode", depth, "longsight",
             session.generate(prompt, answer, {}).decodeTokensPerSecond);
    }
  }
  if (!what.contains("score")) return;
  const int64_t tail = std::min(kScoredTokens, most / 2);
  const ScoreOutcome score = session.score(promptOf(head(most), Policy::peak), tail, true, {});
  report("score", tail, "kl", score.kl.value());
  report("score", tail, "top1", score.top1Agreement.value());
}

// ---- a model of random weights
// -------------------------------------------------------------------

// 0.5 billion weights, 16 query heads on 8 key heads of 128 dimensions.
void writeSynthetic(const std::string& vocabularyFrom, const std::string& path,
                    const std::string& typeName) {
  if (typeName != "Q8_0" && typeName != "Q4_1")
    throw std::runtime_error("random weights are Q8_0 or Q4_1, not " + typeName);
  const ggml_type type = typeName == "Q8_0" ? GGML_TYPE_Q8_0 : GGML_TYPE_Q4_1;
  cpuDevice();
  const std::unique_ptr<gguf_context, decltype(&gguf_free)> source(
      gguf_init_from_file(vocabularyFrom.c_str(), {/*no_alloc=*/true, nullptr}), &gguf_free);
  const int64_t key = source ? gguf_find_key(source.get(), "tokenizer.ggml.tokens") : -1;
  if (key < 0) throw std::runtime_error("no vocabulary in " + vocabularyFrom);
  const std::unique_ptr<gguf_context, decltype(&gguf_free)> target(gguf_init_empty(), &gguf_free);
  gguf_set_kv(target.get(), source.get());
  gguf_set_val_str(target.get(), "general.name", "Synthetic 0.5B");
  gguf_set_val_u32(target.get(), "general.file_type",
                   type == GGML_TYPE_Q8_0 ? LLAMA_FTYPE_MOSTLY_Q8_0 : LLAMA_FTYPE_MOSTLY_Q4_1);
  constexpr int64_t kLayers = 28, kWidth = 1024, kFeedForward = 3072, kHeads = 16, kKvHeads = 8;
  constexpr int64_t kHeadDim = 128;
  const std::map<std::string, int64_t> shape = {{"block_count", kLayers},
                                                {"context_length", 32768},
                                                {"embedding_length", kWidth},
                                                {"feed_forward_length", kFeedForward},
                                                {"rope.dimension_count", kHeadDim},
                                                {"attention.head_count", kHeads},
                                                {"attention.head_count_kv", kKvHeads},
                                                {"attention.key_length", kHeadDim},
                                                {"attention.value_length", kHeadDim}};
  for (const auto& [name, value] : shape)
    gguf_set_val_u32(target.get(), ("llama." + name).c_str(), static_cast<uint32_t>(value));

  const std::unique_ptr<ggml_context, decltype(&ggml_free)> context(
      ggml_init({size_t{700} << 20, nullptr, /*no_alloc=*/false}), &ggml_free);
  std::minstd_rand random(7);
  const auto add = [&](const std::string& name, int64_t columns, int64_t rows) {
    std::vector<float> values(static_cast<size_t>(columns * rows), 1.0f);
    std::uniform_real_distribution<float> uniform(-1, 1);
    const float scale = std::sqrt(3.0f / static_cast<float>(columns));
    if (rows > 1)
      for (float& value : values) value = scale * uniform(random);
    const int64_t sizes[] = {columns, rows};
    ggml_tensor* tensor = rows > 1 ? ggml_new_tensor(context.get(), type, 2, sizes)
                                   : ggml_new_tensor(context.get(), GGML_TYPE_F32, 1, sizes);
    ggml_set_name(tensor, (name + ".weight").c_str());
    ggml_quantize_chunk(tensor->type, values.data(), tensor->data, 0, rows, columns, nullptr);
    gguf_add_tensor(target.get(), tensor);
  };
  add("token_embd", kWidth, static_cast<int64_t>(gguf_get_arr_n(source.get(), key)));
  add("output_norm", kWidth, 1);
  for (int64_t layer = 0; layer < kLayers; ++layer) {
    const std::string prefix = "blk." + std::to_string(layer) + ".";
    for (const char* norm : {"attn_norm", "ffn_norm"}) add(prefix + norm, kWidth, 1);
    add(prefix + "attn_q", kWidth, kHeads * kHeadDim);
    for (const char* name : {"attn_k", "attn_v"}) add(prefix + name, kWidth, kKvHeads * kHeadDim);
    add(prefix + "attn_output", kHeads * kHeadDim, kWidth);
    for (const char* name : {"ffn_gate", "ffn_up"}) add(prefix + name, kWidth, kFeedForward);
    add(prefix + "ffn_down", kFeedForward, kWidth);
  }
  if (!gguf_write_to_file(target.get(), path.c_str(), /*only_meta=*/false))
    throw std::runtime_error("cannot write " + path);
}

std::set<std::string> parts(const std::string& text) {
  std::set<std::string> found;
  std::istringstream stream(text);
  for (std::string part; std::getline(stream, part, ',');) found.insert(part);
  return found;
}

std::vector<int64_t> ascending(const std::string& text) {
  std::vector<int64_t> values;
  for (const std::string& part : parts(text)) values.push_back(std::stoll(part));
  std::sort(values.begin(), values.end());
  return values;
}

}  // namespace

int main(int count, char** given) try {
  if (count == 4) {
    writeSynthetic(given[1], given[2], given[3]);
  } else if (count == 8) {
    const int32_t threads = std::stoi(given[2]) > 0 ? std::stoi(given[2]) : physicalCores();
    bench(given[1], threads, std::stoll(given[3]), ascending(given[4]), ascending(given[5]),
          parts(given[6]), std::stod(given[7]));
  } else {
    throw std::runtime_error("3 or 7 arguments are needed: npm run bench:cpu gives them");
  }
} catch (const std::exception& error) {
  std::fprintf(stderr, "cpu_bench: %s\n", error.what());
  return 1;
}
