// The real model at 8,192 tokens of source text: the GPU against the CPU.
#include <iostream>

#include "engine_case.h"
#include "temporary.h"

namespace longsight::test {
namespace {

constexpr int64_t kTokens = 8192;
constexpr int64_t kTail = 512;

Prompt realPrompt(Policy policy) {
  Prompt prompt;
  realModel()->tokenizer().tokenize(realText(static_cast<size_t>(kTokens) * 4), false,
                                    prompt.tokens);
  if (prompt.tokens.size() < static_cast<size_t>(kTokens))
    throw std::runtime_error("not enough text for the test");
  prompt.tokens.resize(static_cast<size_t>(kTokens));
  prompt.borders = {kTokens};
  prompt.denseFrom = kTokens - kTail;
  prompt.params.policy = policy;
  prompt.params.denseBelowTokens = 2048;
  return prompt;
}

class RealModel : public OnGpu {};

TEST_F(RealModel, LogitsAndDensityEqualTheCpu) {
  for (const Policy policy : {Policy::dense, Policy::peak, Policy::mass})
    for (const KvType kvCache : {KvType::bf16, KvType::q8}) {
      if (policy == Policy::mass && kvCache == KvType::q8) continue;
      const Prompt prompt = realPrompt(policy);
      const auto gpu = sessionOf(realModel(), optionsOf(BackendKind::cuda, kTokens, kvCache));
      const auto cpu = sessionOf(realModel(), optionsOf(BackendKind::cpu, kTokens, kvCache));
      const std::vector<float> actual = gpu->logits(prompt, kTokens - kTail);
      const std::vector<float> expected = cpu->logits(prompt, kTokens - kTail);
      const std::string name = std::string(policy == Policy::dense  ? "dense"
                                           : policy == Policy::peak ? "peak"
                                                                    : "mass") +
                               (kvCache == KvType::q8 ? ", q8" : "");
      // Between bf16 and f32 on the CPU it is about as much.
      expectClose("real model, " + name, actual, expected, realModel()->spec().vocabulary,
                  {.relative = 0.05, .kl = 2e-3});
      const GenerateResult gpuResult = gpu->generate(prompt, {}, {});
      const GenerateResult cpuResult = cpu->generate(prompt, {}, {});
      if (policy == Policy::dense) {
        EXPECT_EQ(gpuResult.attention.density, 1);
        continue;
      }
      const AttentionStats &a = gpuResult.attention, &b = cpuResult.attention;
      std::cout << name << ": sparse density " << *a.sparseDensity << " and " << *b.sparseDensity
                << ", coverage " << *a.coverageMean << " and " << *b.coverageMean << ", p5 "
                << *a.coverageP5 << " and " << *b.coverageP5 << "\n";
      EXPECT_NEAR(*a.sparseDensity, *b.sparseDensity, 0.01 * *b.sparseDensity);
      EXPECT_NEAR(*a.coverageMean, *b.coverageMean, 0.003);
      EXPECT_NEAR(*a.coverageP5, *b.coverageP5, 0.02);
      ASSERT_EQ(a.layers.size(), b.layers.size());
      for (size_t layer = 0; layer + 1 < a.layers.size(); ++layer)
        EXPECT_NEAR(*a.layers[layer].density, *b.layers[layer].density,
                    0.05 * *b.layers[layer].density)
            << "layer " << layer;
    }
}

TEST_F(RealModel, AnswersEqualTheCpu) {
  Prompt prompt;
  realModel()->tokenizer().tokenize(realText(9000), false, prompt.tokens);
  prompt.borders = {static_cast<int64_t>(prompt.tokens.size())};
  prompt.denseFrom = 0;
  const auto answer = [&](BackendKind backend, bool speculate) {
    std::string text;
    SessionEvents events;
    events.onText = [&](const std::string& part) { text += part; };
    GenerateOptions options;
    options.maxTokens = 200;
    options.ignoreEnd = true;
    options.speculate = speculate;
    options.sampling.temperature = 0;
    const GenerateResult result =
        sessionOf(realModel(), optionsOf(backend, 4096))->generate(prompt, options, events);
    std::cout << backendName(backend) << ": " << result.decodeTokensPerSecond
              << " tokens/s, guessed " << result.draftedTokens << ", right "
              << result.acceptedTokens << "\n";
    return text;
  };
  const std::string plain = answer(BackendKind::cuda, false);
  const std::string guessed = answer(BackendKind::cuda, true);
  const std::string cpu = answer(BackendKind::cpu, false);
  std::cout << "the answer: " << plain.substr(0, 200) << "\n";
  const auto same = [](const std::string& a, const std::string& b) {
    return std::mismatch(a.begin(), a.end(), b.begin(), b.end()).first - a.begin();
  };
  std::cout << "same as guessed for " << same(plain, guessed) << " bytes, as on the CPU for "
            << same(plain, cpu) << " of " << plain.size() << "\n";
  EXPECT_GT(same(plain, guessed), 100);
  // Rounding decides between words that are as likely: the texts part somewhere.
  EXPECT_GT(same(plain, cpu), 20);
}

}  // namespace
}  // namespace longsight::test
