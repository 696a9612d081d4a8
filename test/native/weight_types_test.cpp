// Every weight type the engine accepts, in small random models, against libllama.
#include <gtest/gtest.h>

#include <random>

#include "error.h"
#include "llama_reference.h"
#include "session/session.h"
#include "temporary.h"
#include "tiny_model.h"

namespace longsight::test {
namespace {

std::vector<int32_t> randomTokens(size_t count) {
  std::mt19937 random(11);
  std::vector<int32_t> tokens(count);
  for (int32_t& token : tokens) token = static_cast<int32_t>(random() % 256);
  return tokens;
}

LogitComparison compareWithLibllama(const TinyModel& tiny, const std::string& name) {
  const std::string path = temporaryPath(name + ".gguf");
  writeTinyModel(path, tiny);
  auto model = std::make_shared<Model>(path);
  Prompt prompt;
  prompt.tokens = randomTokens(100);
  prompt.borders = {100};
  prompt.denseFrom = 100;
  prompt.params.policy = Policy::dense;
  const CancelFlag never;
  Session session(model, {.contextTokens = 256, .threads = 2}, never, nullptr);
  return compareLogits(session.logits(prompt, 0), llamaLogits(path, prompt.tokens, 0),
                       kTinyVocabulary);
}

class WeightType : public testing::TestWithParam<ggml_type> {};

// Libllama rounds activations to 8 bits for most types, this engine to bf16 or not at all: a few
// percent of the logits' deviation in a random model, whose best logits are often close to each
// other.
TEST_P(WeightType, LogitsEqualLibllama) {
  TinyModel tiny;
  tiny.type = GetParam();
  for (int32_t headDim : {64, 128}) {
    tiny.headDim = headDim;
    tiny.heads = 512 / headDim;
    tiny.kvHeads = tiny.heads / 2;
    const LogitComparison comparison = compareWithLibllama(
        tiny, std::string(ggml_type_name(tiny.type)) + "-" + std::to_string(headDim));
    EXPECT_LT(comparison.relativeDifference, 0.1) << "head dim " << headDim;
    EXPECT_GT(comparison.top1Agreement, 0.85) << "head dim " << headDim;
  }
}

INSTANTIATE_TEST_SUITE_P(
    All, WeightType,
    testing::Values(GGML_TYPE_F32, GGML_TYPE_F16, GGML_TYPE_BF16, GGML_TYPE_Q4_0, GGML_TYPE_Q4_1,
                    GGML_TYPE_Q5_0, GGML_TYPE_Q5_1, GGML_TYPE_Q8_0, GGML_TYPE_Q2_K, GGML_TYPE_Q3_K,
                    GGML_TYPE_Q4_K, GGML_TYPE_Q5_K, GGML_TYPE_Q6_K, GGML_TYPE_IQ4_NL,
                    GGML_TYPE_IQ4_XS, GGML_TYPE_IQ3_S, GGML_TYPE_IQ3_XXS, GGML_TYPE_IQ2_S,
                    GGML_TYPE_IQ2_XS, GGML_TYPE_IQ2_XXS, GGML_TYPE_IQ1_S, GGML_TYPE_IQ1_M,
                    GGML_TYPE_MXFP4, GGML_TYPE_TQ1_0, GGML_TYPE_TQ2_0),
    [](const testing::TestParamInfo<ggml_type>& type) {
      return std::string(ggml_type_name(type.param));
    });

TEST(ModelVariants, LogitsEqualLibllama) {
  TinyModel tied;
  tied.tiedOutput = true;
  EXPECT_LT(compareWithLibllama(tied, "tied").relativeDifference, 0.03);
  TinyModel biases;
  biases.biases = true;
  EXPECT_LT(compareWithLibllama(biases, "biases").relativeDifference, 0.03);
  TinyModel factors;
  factors.ropeFactors = true;
  EXPECT_LT(compareWithLibllama(factors, "factors").relativeDifference, 0.03);
  TinyModel scaled;
  scaled.change = [](gguf_context* gguf) {
    gguf_set_val_str(gguf, "llama.rope.scaling.type", "linear");
    gguf_set_val_f32(gguf, "llama.rope.scaling.factor", 4.0f);
  };
  EXPECT_LT(compareWithLibllama(scaled, "scaled").relativeDifference, 0.03);
  TinyModel oneLayer;
  oneLayer.layers = 1;
  EXPECT_LT(compareWithLibllama(oneLayer, "one-layer").relativeDifference, 0.03);
}

}  // namespace
}  // namespace longsight::test
