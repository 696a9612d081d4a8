// Every architecture against libllama, on small random models.
#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <iostream>
#include <optional>
#include <random>

#include "error.h"
#include "llama_reference.h"
#include "session/session.h"
#include "temporary.h"
#include "tiny_gguf.h"

namespace longsight::test {
namespace {

constexpr const char* kArchitectures[] = {"llama",     "qwen2",   "qwen3",
                                          "internlm2", "chatglm", "glm4"};
constexpr int kHeadDims[] = {64, 80, 96, 128, 256};
constexpr int64_t kTokens = 150;
constexpr int64_t kContextTokens = 1024;

std::string field(const std::string& name, const std::string& text) {
  return "\"" + name + "\": \"" + text + "\"";
}

std::vector<int32_t> randomTokens(size_t count, uint32_t seed = 11) {
  std::mt19937 random(seed);
  std::vector<int32_t> tokens(count);
  for (int32_t& token : tokens) token = static_cast<int32_t>(random() % 400);
  return tokens;
}

Prompt promptOf(std::vector<int32_t> tokens, Policy policy) {
  Prompt prompt;
  const auto count = static_cast<int64_t>(tokens.size());
  prompt.tokens = std::move(tokens);
  prompt.borders = {count};
  prompt.denseFrom = count;
  prompt.params.policy = policy;
  return prompt;
}

std::unique_ptr<Session> sessionOf(const std::shared_ptr<Model>& model, int64_t contextTokens,
                                   double ropeBaseScale = 1) {
  const CancelFlag never;
  const SessionOptions options = {
      .contextTokens = contextTokens, .threads = 2, .ropeBaseScale = ropeBaseScale};
  return std::make_unique<Session>(model, options, never, nullptr);
}

// Linear layers and attention in f32 as long as this lives, so that only the bf16 cache rounds.
class Float32Products {
 public:
  Float32Products() { setenv("LONGSIGHT_CPU", "portable", 1); }
  ~Float32Products() {
    if (before_)
      setenv("LONGSIGHT_CPU", before_->c_str(), 1);
    else
      unsetenv("LONGSIGHT_CPU");
  }

 private:
  std::optional<std::string> before_ = [] {
    const char* value = getenv("LONGSIGHT_CPU");
    return value ? std::optional<std::string>(value) : std::nullopt;
  }();
};

struct Against {
  // Of libllama.
  std::function<void(llama_context_params&)> change;
  double ropeBaseScale = 1;
  // The model that libllama runs; empty = the same.
  std::string reference;
};

LogitComparison compareDense(const std::string& name, const Against& against = {}) {
  const auto model = std::make_shared<Model>(tinyGgufPath(name));
  const Prompt prompt = promptOf(randomTokens(kTokens), Policy::dense);
  const std::vector<float> ours =
      sessionOf(model, kContextTokens, against.ropeBaseScale)->logits(prompt, 0);
  const std::string& reference = against.reference.empty() ? name : against.reference;
  const LogitComparison comparison =
      compareLogits(ours, llamaLogits(tinyGgufPath(reference), prompt.tokens, 0, against.change),
                    model->spec().vocabulary);
  std::cout << name << ": relative difference " << comparison.relativeDifference << ", top-1 "
            << comparison.top1Agreement << "\n";
  return comparison;
}

void expectEqual(const std::string& name, const Against& against = {}) {
  const Float32Products exact;
  const LogitComparison comparison = compareDense(name, against);
  EXPECT_LT(comparison.relativeDifference, 0.01) << name;
  EXPECT_GE(comparison.top1Agreement, 0.95) << name;
}

TEST(Architecture, Float32LogitsEqualLibllama) {
  std::vector<TinyGguf> models;
  for (const std::string arch : kArchitectures) models.push_back({arch, field("arch", arch)});
  writeTinyGgufs(models);
  for (const TinyGguf& model : models) expectEqual(model.name);
}

// Libllama rounds activations to 8 bits with these types.
TEST(Architecture, QuantizedLogitsEqualLibllama) {
  std::vector<TinyGguf> models;
  for (const std::string arch : kArchitectures)
    for (const std::string type : {"Q8_0", "Q4_0"})
      models.push_back({arch + "-" + type, field("arch", arch) + ", " + field("type", type)});
  writeTinyGgufs(models);
  for (const TinyGguf& model : models) {
    const LogitComparison comparison = compareDense(model.name);
    EXPECT_LT(comparison.relativeDifference, 0.06) << model.name;
    EXPECT_GT(comparison.top1Agreement, 0.88) << model.name;
  }
}

// The layouts that converters write for some models of an architecture only.
TEST(Architecture, VariantsEqualLibllama) {
  const std::vector<TinyGguf> models = {
      {"tied-qwen2", R"("arch": "qwen2", "tied": true)"},
      {"tied-glm4", R"("arch": "glm4", "tied": true)"},
      {"plain-qwen2", R"("arch": "qwen2", "biases": false)"},
      {"biased-internlm2", R"("arch": "internlm2", "biases": true)"},
      {"split-chatglm", R"("arch": "chatglm", "fused_qkv": false)"},
      {"biased-glm4", R"("arch": "glm4", "biases": true)"},
      {"one-layer", R"("arch": "glm4", "layers": 1)"},
      {"one-group", R"("arch": "chatglm", "heads": 6, "kv_heads": 1)"},
      {"quarter-rotary", R"("arch": "chatglm", "rotated": 16)"},
      {"most-rotary", R"("arch": "glm4", "rotated": 48)"},
      {"wide-heads", R"("arch": "glm4", "head_dim": 128, "width": 256,
                        "keys": {"attention.key_length": 128, "attention.value_length": 128})"},
  };
  writeTinyGgufs(models);
  for (const TinyGguf& model : models) expectEqual(model.name);
}

TEST(Architecture, HeadDimsEqualLibllama) {
  std::vector<TinyGguf> models;
  for (const std::string arch : {"llama", "qwen3", "glm4"})
    for (const int headDim : kHeadDims) {
      const std::string dims = std::to_string(headDim);
      models.push_back(
          {arch + "-" + dims,
           field("arch", arch) + ", \"heads\": 2, \"kv_heads\": 1, " + "\"head_dim\": " + dims});
    }
  writeTinyGgufs(models);
  for (const TinyGguf& model : models) expectEqual(model.name);
}

TEST(RopeScaling, EqualsLibllama) {
  const std::string yarn =
      R"("rope.scaling.type": "yarn", "rope.scaling.factor": 4.0,
         "rope.scaling.original_context_length": 64)";
  auto keys = [](const std::string& text) { return ", \"keys\": {" + text + "}"; };
  const std::vector<TinyGguf> models = {
      {"freqs", R"("arch": "llama", "rope_freqs": true)"},
      {"linear-llama", R"("arch": "llama")" + keys(R"("rope.scaling.type": "linear",
                                                      "rope.scaling.factor": 4.0)")},
      {"linear-qwen2", R"("arch": "qwen2")" + keys(R"("rope.scale_linear": 2.0)")},
      {"none", R"("arch": "qwen2")" + keys(R"("rope.scaling.type": "none",
                                              "rope.scaling.factor": 4.0)")},
      {"yarn-llama", R"("arch": "llama")" + keys(yarn)},
      {"yarn-qwen2", R"("arch": "qwen2")" + keys(yarn)},
      {"yarn-qwen3", R"("arch": "qwen3")" + keys(yarn)},
      {"yarn-glm4", R"("arch": "glm4")" + keys(yarn)},
      {"yarn-attn", R"("arch": "qwen2")" + keys(yarn + R"(, "rope.scaling.attn_factor": 1.3)")},
      {"yarn-small", R"("arch": "qwen2")" + keys(R"("rope.scaling.type": "yarn",
                                                    "rope.scaling.factor": 0.5)")},
      {"ntk", R"("arch": "chatglm")" + keys(R"("rope.freq_base": 5000000.0)")},
  };
  writeTinyGgufs(models);
  for (const TinyGguf& model : models) {
    expectEqual(model.name);
    if (model.name == "ntk") continue;
    // --rope-base-scale together with each.
    const Against against = {
        [](llama_context_params& params) { params.rope_freq_base = 40000; }, 4.0, {}};
    expectEqual(model.name, against);
  }
}

// Libllama takes these from its caller only, not from the file.
TEST(RopeScaling, YarnParametersEqualLibllama) {
  const std::string yarn =
      R"("arch": "qwen2", "keys": {"rope.scaling.type": "yarn", "rope.scaling.factor": 8.0,
         "rope.scaling.original_context_length": 128)";
  const double magnitude = 0.1 * std::log(8.0) + 1;
  writeTinyGgufs({{"yarn", yarn + "}"},
                  {"betas", yarn + R"(, "rope.scaling.yarn_beta_fast": 16.0,
                                        "rope.scaling.yarn_beta_slow": 2.0})"},
                  {"mix", yarn + R"(, "rope.scaling.yarn_ext_factor": 0.5})"},
                  {"no-mix", yarn + R"(, "rope.scaling.yarn_ext_factor": 0.0})"},
                  {"attention", yarn + R"(, "rope.scaling.yarn_attn_factor": 1.5})"},
                  {"same", yarn + ", \"rope.scaling.attn_factor\": " +
                               std::to_string(1.5 / magnitude) + "}"}});
  auto with = [](const std::function<void(llama_context_params&)>& change) {
    return Against{change, 1, "yarn"};
  };
  expectEqual("betas", with([](llama_context_params& params) {
                params.yarn_beta_fast = 16;
                params.yarn_beta_slow = 2;
              }));
  expectEqual("mix", with([](llama_context_params& params) { params.yarn_ext_factor = 0.5f; }));
  expectEqual("no-mix", with([](llama_context_params& params) { params.yarn_ext_factor = 0; }));
  expectEqual("attention", Against{{}, 1, "same"});
}

// The comparisons above see a scaling that is not applied.
TEST(RopeScaling, ChangesLogits) {
  const std::string scaled =
      R"("arch": "qwen2", "keys": {"rope.scaling.original_context_length": 128,
         "rope.scaling.factor": 8.0, "rope.scaling.type": )";
  writeTinyGgufs({{"unscaled", scaled + R"("none"})"},
                  {"linear", scaled + R"("linear"})"},
                  {"yarn", scaled + R"("yarn"})"},
                  {"betas", scaled + R"("yarn", "rope.scaling.yarn_beta_fast": 16.0,
                                       "rope.scaling.yarn_beta_slow": 2.0})"}});
  EXPECT_GT(compareDense("unscaled", {{}, 1, "linear"}).relativeDifference, 0.1);
  EXPECT_GT(compareDense("unscaled", {{}, 1, "yarn"}).relativeDifference, 0.1);
  EXPECT_GT(compareDense("linear", {{}, 1, "yarn"}).relativeDifference, 0.1);
  EXPECT_GT(compareDense("betas", {{}, 1, "yarn"}).relativeDifference, 0.03);
  EXPECT_GT(compareDense("unscaled", {{}, 4, {}}).relativeDifference, 0.1);
}

TEST(RopeScaling, YarnReachesItsWholeContext) {
  writeTinyGgufs({{"reach", R"("arch": "qwen2", "context": 512, "keys": {
                     "rope.scaling.type": "yarn", "rope.scaling.factor": 4.0,
                     "rope.scaling.original_context_length": 512})"}});
  EXPECT_EQ(readGguf(tinyGgufPath("reach")).contextTokens, 2048);
}

// The long factors belong to contexts beyond the original one, the short ones to the others.
TEST(RopeScaling, LongRopeEqualsLibllama) {
  auto fields = [](int64_t original) {
    return R"("arch": "llama", "long_factors": true, "keys": {"rope.scaling.type": "longrope",
              "rope.scaling.attn_factor": 1.2, "rope.scaling.original_context_length": )" +
           std::to_string(original) + "}";
  };
  writeTinyGgufs({{"short", fields(2048)}, {"long", fields(512)}});
  const Against sameContext = {
      [](llama_context_params& params) { params.n_ctx = kContextTokens; }, 1, {}};
  expectEqual("short", sameContext);
  expectEqual("long", sameContext);
}

TEST(Architecture, ReusedPrefixesChangeNothing) {
  const Float32Products exact;
  std::vector<TinyGguf> models;
  for (const std::string arch : kArchitectures)
    models.push_back({"reuse-" + arch, field("arch", arch) + R"(, "type": "Q8_0")"});
  writeTinyGgufs(models);
  for (const TinyGguf& tiny : models) {
    const auto model = std::make_shared<Model>(tinyGgufPath(tiny.name));
    std::vector<int32_t> first = randomTokens(300);
    std::vector<int32_t> longer = first;
    for (int32_t token : randomTokens(100, 5)) longer.push_back(token);
    std::vector<int32_t> other(first.begin(), first.begin() + 123);
    for (int32_t token : randomTokens(150, 6)) other.push_back(token);

    const auto session = sessionOf(model, kContextTokens);
    auto expectReuse = [&](const std::vector<int32_t>& tokens, int64_t reused) {
      Prompt prompt = promptOf(tokens, Policy::peak);
      prompt.denseFrom = 0;
      EXPECT_EQ(session->plan(prompt).reusedTokens, reused) << tiny.name;
      const int64_t last = static_cast<int64_t>(tokens.size()) - 1;
      const LogitComparison comparison = compareLogits(
          session->logits(prompt, last), sessionOf(model, kContextTokens)->logits(prompt, last),
          model->spec().vocabulary);
      EXPECT_LT(comparison.relativeDifference, 0.003) << tiny.name;
    };
    expectReuse(first, 0);
    expectReuse(longer, 300);
    expectReuse(other, 123);
  }
}

// With every column kept, sparse attention is dense attention.
TEST(Architecture, SparseWithEveryColumnEqualsDense) {
  std::vector<TinyGguf> models;
  for (const std::string arch : kArchitectures)
    models.push_back({"sparse-" + arch, field("arch", arch) + R"(, "layers": 3)"});
  writeTinyGgufs(models);
  for (const TinyGguf& tiny : models) {
    const auto model = std::make_shared<Model>(tinyGgufPath(tiny.name));
    const std::vector<int32_t> tokens = randomTokens(1500);
    const int64_t from = 1400;
    Prompt dense = promptOf(tokens, Policy::dense);
    Prompt sparse = promptOf(tokens, Policy::peak);
    sparse.params.epsilon = 0;
    sparse.params.denseBelowTokens = 0;
    sparse.params.maxListShare = 1;
    sparse.params.segmentRows = 512;
    sparse.params.windowTokens = 128;
    const std::vector<float> expected = sessionOf(model, 2048)->logits(dense, from);
    sparse.params.alpha = 1;
    for (const Policy policy : {Policy::mass, Policy::peak}) {
      sparse.params.policy = policy;
      const LogitComparison comparison = compareLogits(sessionOf(model, 2048)->logits(sparse, from),
                                                       expected, model->spec().vocabulary);
      EXPECT_LT(comparison.relativeDifference, 0.02) << tiny.name;
    }
    // And it did leave columns out with a threshold.
    sparse.params.epsilon = 0.2;
    EXPECT_GT(compareLogits(sessionOf(model, 2048)->logits(sparse, from), expected,
                            model->spec().vocabulary)
                  .relativeDifference,
              1e-4)
        << tiny.name;
  }
}

}  // namespace
}  // namespace longsight::test
