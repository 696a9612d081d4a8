// The KV cache in q8 beside bf16: what it costs in exactness and saves in memory.
#include "cpu/kv_cache.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <fstream>
#include <iostream>

#include "llama_reference.h"
#include "real_session.h"
#include "session/session.h"
#include "temporary.h"
#include "tiny_model.h"

namespace longsight::test {
namespace {

constexpr int64_t kTokens = 1600;
constexpr int64_t kTail = 128;

Prompt promptOf(Policy policy) {
  Prompt prompt;
  realModel()->tokenizer().tokenize(realText(static_cast<size_t>(kTokens) * 6), false,
                                    prompt.tokens);
  prompt.tokens.resize(static_cast<size_t>(kTokens));
  prompt.borders = {kTokens};
  prompt.denseFrom = kTokens - kTail;
  prompt.params.policy = policy;
  prompt.params.denseBelowTokens = 512;
  prompt.params.segmentRows = 512;
  return prompt;
}

// Mean KL(a || b) in nats of rows of logits.
double meanKl(const std::vector<float>& a, const std::vector<float>& b) {
  const auto vocabulary = static_cast<size_t>(realModel()->spec().vocabulary);
  double total = 0;
  for (size_t row = 0; row < a.size(); row += vocabulary) {
    double sumA = 0, sumB = 0, kl = 0;
    for (size_t i = row; i < row + vocabulary; ++i) {
      sumA += std::exp(double{a[i]});
      sumB += std::exp(double{b[i]});
    }
    for (size_t i = row; i < row + vocabulary; ++i) {
      kl += std::exp(double{a[i]}) / sumA *
            (double{a[i]} - std::log(sumA) - double{b[i]} + std::log(sumB));
    }
    total += kl;
  }
  return total / static_cast<double>(a.size() / vocabulary);
}

TEST(KvCacheType, Q8LogitsAreCloseToBf16) {
  for (const Policy policy : {Policy::dense, Policy::peak}) {
    const Prompt prompt = promptOf(policy);
    const std::vector<float> bf16 =
        newSession(4096, KvType::bf16)->logits(prompt, prompt.denseFrom);
    const std::vector<float> q8 = newSession(4096, KvType::q8)->logits(prompt, prompt.denseFrom);
    const double kl = meanKl(bf16, q8);
    std::cout << (policy == Policy::dense ? "dense" : "peak") << ": KL(bf16 || q8) " << kl
              << " over " << kTail << " rows, top-1 "
              << compareLogits(bf16, q8, realModel()->spec().vocabulary).top1Agreement << "\n";
    EXPECT_GT(kl, 1e-7) << "both caches hold the same";
    EXPECT_LT(kl, 2e-3);
  }
}

TEST(KvCacheType, RowsOfQ8ReadWhatWasStored) {
  // A row that saw its own or another key before rounding would differ from the same row when it is
  // decoded later. In f32 nothing else differs.
  setenv("LONGSIGHT_CPU", "portable", 1);
  const std::string path = temporaryPath("q8.gguf");
  writeTinyModel(path, {});
  const auto model = std::make_shared<Model>(path);
  constexpr int64_t kLast = 299;
  Prompt whole;
  for (int64_t i = 0; i <= kLast; ++i) whole.tokens.push_back(static_cast<int32_t>(i * i % 251));
  whole.borders = {kLast + 1};
  Prompt part = whole;
  part.tokens.resize(kLast);
  part.borders = {kLast};
  const auto session = [&](KvType kvCache) {
    const SessionOptions options{.contextTokens = 512, .threads = 2, .kvCache = kvCache};
    return std::make_unique<Session>(model, options, CancelFlag(), nullptr);
  };
  auto stepping = session(KvType::q8);
  stepping->logits(part, kLast - 1);
  EXPECT_EQ(stepping->plan(whole).reusedTokens, kLast);
  const std::vector<float> stepwise = stepping->logits(whole, kLast);
  const std::vector<float> atOnce = session(KvType::q8)->logits(whole, kLast);
  const std::vector<float> bf16 = session(KvType::bf16)->logits(whole, kLast);
  unsetenv("LONGSIGHT_CPU");
  const int32_t vocabulary = model->spec().vocabulary;
  const double reused = compareLogits(stepwise, atOnce, vocabulary).rmsDifference;
  const double types = compareLogits(bf16, atOnce, vocabulary).rmsDifference;
  std::cout << "rms: decoded against prefilled " << reused << ", bf16 against q8 " << types << "\n";
  EXPECT_LT(reused, 0.02 * types);
}

TEST(KvCacheType, Q8TakesHalfTheMemory) {
  const auto residentBytes = [] {
    int64_t pages = 0, resident = 0;
    std::ifstream("/proc/self/statm") >> pages >> resident;
    return resident * 4096;
  };
  constexpr int32_t kLayers = 4, kHeads = 8, kDim = 128;
  constexpr int64_t kRows = 8192;
  const std::vector<float> values(kDim, 1.0f);
  int64_t taken[2];
  for (const KvType type : {KvType::bf16, KvType::q8}) {
    const int64_t before = residentBytes();
    const KvCache cache(type, kLayers, kHeads, kDim, kRows);
    for (int32_t layer = 0; layer < kLayers; ++layer) {
      for (int32_t head = 0; head < kHeads; ++head) {
        for (int64_t row = 0; row < kRows; ++row)
          cache.layer(layer).store(head, row, values.data(), values.data());
      }
    }
    taken[static_cast<int>(type)] = residentBytes() - before;
    EXPECT_NEAR(static_cast<double>(taken[static_cast<int>(type)]),
                static_cast<double>(cache.bytes()), 0.05 * static_cast<double>(cache.bytes()));
  }
  std::cout << "resident: bf16 " << taken[0] << " bytes, q8 " << taken[1] << "\n";
  EXPECT_LT(static_cast<double>(taken[1]), 0.56 * static_cast<double>(taken[0]));

  const MemoryEstimate bf16 =
      realModel()->estimate({.contextTokens = 4096, .kvCache = KvType::bf16}, {});
  const MemoryEstimate q8 =
      realModel()->estimate({.contextTokens = 4096, .kvCache = KvType::q8}, {});
  // 64 integers and 2 scales beside 64 values of 2 bytes.
  EXPECT_EQ(q8.kvBytes * 128, bf16.kvBytes * 68);
  EXPECT_EQ(newSession(4096, KvType::q8)->contextTokens(), 4096);
}

}  // namespace
}  // namespace longsight::test
