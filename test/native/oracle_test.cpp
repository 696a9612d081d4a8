// Dense arithmetic against libllama: the same file, the same tokens.
#include <gtest/gtest.h>

#include <cmath>
#include <iostream>

#include "llama_reference.h"
#include "session/session.h"
#include "temporary.h"
#include "tiny_model.h"

namespace longsight::test {
namespace {

struct Dense {
  std::shared_ptr<Model> model;
  Prompt prompt;
};

Dense densePrompt(const std::string& path, int64_t tokens) {
  Dense dense{std::make_shared<Model>(path), {}};
  dense.model->tokenizer().tokenize(realText(static_cast<size_t>(tokens) * 8), false,
                                    dense.prompt.tokens);
  dense.prompt.tokens.resize(static_cast<size_t>(tokens));
  dense.prompt.borders = {tokens};
  dense.prompt.denseFrom = tokens;
  dense.prompt.params.policy = Policy::dense;
  return dense;
}

std::vector<float> engineLogits(const Dense& dense, int64_t from) {
  const CancelFlag never;
  Session session(dense.model, {.contextTokens = 2048, .threads = 2}, never, nullptr);
  return session.logits(dense.prompt, from);
}

TEST(Oracle, Float32LogitsEqualLibllama) {
  const std::string path = temporaryPath("smollm2-f32.gguf");
  writeDequantized(realModelPath(), path);
  // Rows 0 and up, across the block border at 512.
  const Dense dense = densePrompt(path, 600);
  const int64_t from = 300;
  const int32_t vocabulary = dense.model->spec().vocabulary;
  const LogitComparison comparison = compareLogits(
      engineLogits(dense, from), llamaLogits(path, dense.prompt.tokens, from), vocabulary);
  std::cout << "f32: rms difference " << comparison.rmsDifference << ", top-1 agreement "
            << comparison.top1Agreement << "\n";
  EXPECT_LT(comparison.rmsDifference, 0.1);
  EXPECT_GE(comparison.top1Agreement, 0.99);
  std::remove(path.c_str());
}

TEST(Oracle, QuantizedNllEqualsLibllama) {
  const Dense dense = densePrompt(realModelPath(), 1101);
  const int64_t from = 100;
  const int32_t vocabulary = dense.model->spec().vocabulary;
  const double ours = meanNll(engineLogits(dense, from), vocabulary, dense.prompt.tokens, from);
  const double theirs = meanNll(llamaLogits(realModelPath(), dense.prompt.tokens, from), vocabulary,
                                dense.prompt.tokens, from);
  std::cout << "mean NLL of 1000 positions: " << ours << ", libllama " << theirs << "\n";
  EXPECT_LT(std::abs(ours - theirs), 0.01 * theirs);
  // A model that reads the text predicts it far better than chance.
  EXPECT_LT(ours, 4.0);
}

TEST(Oracle, ScoreIsTheMeanNllOfTheTail) {
  const Dense dense = densePrompt(realModelPath(), 400);
  const int64_t tail = 101;
  const CancelFlag never;
  Session session(dense.model, {.contextTokens = 1024, .threads = 2}, never, nullptr);
  const ScoreOutcome outcome = session.score(dense.prompt, tail, true, {});
  const std::vector<float> logits = engineLogits(dense, 400 - tail);
  EXPECT_NEAR(outcome.nll,
              meanNll(logits, dense.model->spec().vocabulary, dense.prompt.tokens, 400 - tail),
              2e-3);
  ASSERT_TRUE(outcome.kl && outcome.top1Agreement);
  EXPECT_LT(*outcome.kl, 1e-4);
  EXPECT_GE(*outcome.top1Agreement, 0.99);
  EXPECT_EQ(outcome.attention.density, 1);
  EXPECT_FALSE(outcome.attention.sparseDensity);
}

}  // namespace
}  // namespace longsight::test
