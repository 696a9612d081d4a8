// Architectures, shapes, weight types and RoPE scalings: dense logits of every row.
#include "engine_case.h"
#include "ggml.h"

namespace longsight::test {
namespace {

constexpr int64_t kContextTokens = 1024;

std::string withKeys(const std::string& arch, const std::string& keys) {
  return "\"arch\": \"" + arch + "\", \"keys\": {" + keys + "}";
}

struct Run {
  KvType kvCache = KvType::bf16;
  double ropeBaseScale = 1;
  int64_t tokens = 150;
  Limits limits;
};

void expectDenseEqual(BackendKind backend, const std::string& name,
                      const std::shared_ptr<Model>& model, const Run& run = {}) {
  const Prompt prompt = promptOf(randomTokens(static_cast<size_t>(run.tokens)), Policy::dense);
  const std::vector<float> expected =
      referenceOf(model, kContextTokens, run.kvCache, run.ropeBaseScale)->logits(prompt, 0);
  const std::vector<float> actual =
      sessionOf(model, optionsOf(backend, kContextTokens, run.kvCache, run.ropeBaseScale))
          ->logits(prompt, 0);
  expectClose(name, actual, expected, model->spec().vocabulary, run.limits);
}

class TinyModels : public OnBackend {};
LONGSIGHT_ON_ALL_BACKENDS(TinyModels);

TEST_P(TinyModels, EveryArchitecture) {
  for (const std::string arch : {"llama", "qwen2", "qwen3", "internlm2", "chatglm", "glm4"})
    expectDenseEqual(GetParam(), arch, tinyModel(arch, "\"arch\": \"" + arch + "\""));
}

TEST_P(TinyModels, EveryHeadDim) {
  for (const std::string arch : {"llama", "qwen3", "glm4"})
    for (const std::string headDim : {"64", "80", "96", "128", "256"}) {
      const std::string name = arch + "-" + headDim;
      // Blocks of weights have 32 columns.
      const bool uneven = arch == "qwen3" && headDim == "80";
      expectDenseEqual(GetParam(), name,
                       tinyModel(name, "\"arch\": \"" + arch + "\", \"head_dim\": " + headDim +
                                           (uneven ? R"(, "width": 96)" : "")));
    }
}

TEST_P(TinyModels, EveryWeightType) {
  for (const ggml_type type : {GGML_TYPE_F32, GGML_TYPE_F16, GGML_TYPE_BF16, GGML_TYPE_Q8_0,
                               GGML_TYPE_Q4_0, GGML_TYPE_Q4_1, GGML_TYPE_Q5_0, GGML_TYPE_Q5_1,
                               GGML_TYPE_Q4_K, GGML_TYPE_Q5_K, GGML_TYPE_Q6_K, GGML_TYPE_IQ4_XS})
    for (const bool tied : {false, true}) {
      TinyModel tiny;
      tiny.type = type;
      tiny.tiedOutput = tied;
      const std::string name = std::string(ggml_type_name(type)) + (tied ? "-tied" : "");
      expectDenseEqual(GetParam(), name, tinyModel("type-" + name, tiny));
    }
}

// The layouts that converters write for some models of an architecture only, and uneven shapes.
TEST_P(TinyModels, EveryVariant) {
  const std::pair<const char*, const char*> variants[] = {
      {"tied-qwen2", R"("arch": "qwen2", "tied": true)"},
      {"plain-qwen2", R"("arch": "qwen2", "biases": false)"},
      {"biased-internlm2", R"("arch": "internlm2", "biases": true)"},
      {"split-chatglm", R"("arch": "chatglm", "fused_qkv": false)"},
      {"biased-glm4", R"("arch": "glm4", "biases": true)"},
      {"one-layer", R"("arch": "glm4", "layers": 1)"},
      {"seven-heads", R"("arch": "qwen2", "heads": 7, "kv_heads": 1)"},
      {"three-groups", R"("arch": "llama", "heads": 9, "kv_heads": 3)"},
      {"no-groups", R"("arch": "llama", "heads": 3, "kv_heads": 3)"},
      {"quarter-rotary", R"("arch": "chatglm", "rotated": 16)"},
      {"most-rotary", R"("arch": "glm4", "rotated": 48)"},
      {"wide-heads", R"("arch": "glm4", "head_dim": 128, "width": 128,
                        "keys": {"attention.key_length": 128, "attention.value_length": 128})"},
      {"uneven-feed-forward", R"("arch": "llama", "feed_forward": 352)"},
      {"f16", R"("arch": "qwen3", "type": "F16")"},
  };
  for (const auto& [name, fields] : variants)
    expectDenseEqual(GetParam(), name, tinyModel(name, std::string(fields)));
}

TEST_P(TinyModels, EveryRopeScaling) {
  const std::string yarn =
      R"("rope.scaling.type": "yarn", "rope.scaling.factor": 4.0,
         "rope.scaling.original_context_length": 64)";
  const std::string longRope =
      R"("arch": "llama", "long_factors": true, "keys": {"rope.scaling.type": "longrope",
         "rope.scaling.attn_factor": 1.2, "rope.scaling.original_context_length": )";
  const std::pair<const char*, std::string> scalings[] = {
      {"freqs", R"("arch": "llama", "rope_freqs": true)"},
      {"linear", withKeys("llama", R"("rope.scaling.type": "linear", "rope.scaling.factor": 4.0)")},
      {"yarn-llama", withKeys("llama", yarn)},
      {"yarn-qwen2", withKeys("qwen2", yarn + R"(, "rope.scaling.attn_factor": 1.3)")},
      {"yarn-glm4", withKeys("glm4", yarn)},
      {"ntk", withKeys("chatglm", R"("rope.freq_base": 5000000.0)")},
      {"long-rope-short", longRope + "2048}"},
      {"long-rope-long", longRope + "512}"},
  };
  for (const auto& [name, fields] : scalings) {
    const auto model = tinyModel(name, fields);
    expectDenseEqual(GetParam(), name, model, {.tokens = 400});
    expectDenseEqual(GetParam(), name + std::string(", base x 4"), model,
                     {.ropeBaseScale = 4, .tokens = 400});
  }
}

// The rows of a q8 cache are rounded before anything reads them, on either side of a border too.
TEST_P(TinyModels, CachesOf8Bits) {
  for (const std::string headDim : {"64", "80", "96", "128", "256"})
    expectDenseEqual(GetParam(), "q8, head dim " + headDim,
                     tinyModel("llama-" + headDim, R"("arch": "llama", "head_dim": )" + headDim),
                     {.kvCache = KvType::q8, .limits = {.relative = 0.05, .kl = 1.5e-3}});
}

// The comparisons above see what is wrong.
TEST_P(TinyModels, AnotherModelDiffers) {
  const Prompt prompt = promptOf(randomTokens(150), Policy::dense);
  const auto model = tinyModel("llama", R"("arch": "llama")");
  const auto other = tinyModel("freqs", R"("arch": "llama", "rope_freqs": true)");
  const std::vector<float> a = referenceOf(model, kContextTokens)->logits(prompt, 0);
  const std::vector<float> b =
      sessionOf(other, optionsOf(GetParam(), kContextTokens))->logits(prompt, 0);
  const Difference difference = differenceOf(b, a, model->spec().vocabulary);
  EXPECT_GT(difference.relative, 0.05);
  EXPECT_GT(difference.kl, 1e-3);
}

}  // namespace
}  // namespace longsight::test
