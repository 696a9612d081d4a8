// Sparse attention: lists, what they leave out, and prompts of any length.
#include <algorithm>
#include <cmath>
#include <iostream>
#include <span>
#include <utility>

#include "engine_case.h"
#include "session/open_backend.h"
#include "session/prefill_work.h"

namespace longsight::test {
namespace {

constexpr int64_t kContextTokens = 4096;

// Deep enough that lists of the second layer come from queries that attention has changed.
std::shared_ptr<Model> modelOf(const std::string& arch, const std::string& headDim) {
  return tinyModel("attend-" + arch + "-" + headDim,
                   "\"arch\": \"" + arch +
                       R"(", "heads": 4, "kv_heads": 2, "layers": 3, "head_dim": )" + headDim);
}

using NamedModel = std::pair<const char*, const char*>;

// Architecture and head dim. The CPU, which other tests cover too, takes the first two.
std::span<const NamedModel> modelsFor(BackendKind backend) {
  static constexpr NamedModel kModels[] = {
      {"llama", "64"}, {"qwen3", "128"}, {"glm4", "128"}, {"llama", "80"}};
  return std::span(kModels).first(backend == BackendKind::cpu ? 2 : 4);
}

class TinyAttention : public OnBackend {};
LONGSIGHT_ON_ALL_BACKENDS(TinyAttention);

SampleAttentionParams paramsOf(Policy policy, ScoreDims scoreDims = ScoreDims::slowHalf) {
  SampleAttentionParams params;
  params.policy = policy;
  params.scoreDims = scoreDims;
  params.denseBelowTokens = 512;
  params.segmentRows = 512;
  params.windowTokens = 128;
  params.maxListShare = 1;
  // Scores of random weights are wide: peaks far below the anchors are rare.
  params.epsilon = 0.05;
  params.alpha = 0.9;
  return params;
}

// What attention did for a prompt, a segment each.
std::vector<SegmentAttention> attentionOf(const std::shared_ptr<Model>& model,
                                          const SessionOptions& options,
                                          const std::vector<int32_t>& tokens,
                                          const SampleAttentionParams& params) {
  const CancelFlag never;
  const auto backend = openBackend(*model, options, never, nullptr);
  const auto length = static_cast<int64_t>(tokens.size());
  const std::vector<Segment> segments = planSegments(length, {{length}}, length, params);
  std::vector<SegmentAttention> all;
  std::vector<float> state(static_cast<size_t>(model->spec().embedding));
  for (const std::vector<Segment>& part : planWork(segments, 0, backend->chunking()).chunks) {
    Backend::Chunk chunk;
    chunk.segments = part;
    chunk.tokens = std::span(tokens).subspan(static_cast<size_t>(chunk.begin()),
                                             static_cast<size_t>(chunk.end() - chunk.begin()));
    chunk.params = &params;
    chunk.outputBegin = std::max(chunk.begin(), std::min(chunk.end(), length - 1));
    chunk.states = state.data();
    std::vector<SegmentAttention> made;
    EXPECT_TRUE(backend->forward(chunk, never, made));
    EXPECT_EQ(made.size(), part.size());
    for (size_t i = 0; i < part.size(); ++i)
      if (!part[i].dense) all.push_back(made[i]);
  }
  return all;
}

struct Bracket {
  SampleAttentionParams less, more;
};

// A threshold moved by more than rounding moves a peak, and shares by more than it moves a mass.
Bracket bracketOf(const SampleAttentionParams& params) {
  Bracket bracket{params, params};
  bracket.less.epsilon *= std::exp(0.3);
  bracket.more.epsilon *= std::exp(-0.3);
  bracket.less.alpha -= 0.01;
  bracket.more.alpha += 0.01;
  return bracket;
}

// Lists lie between those that the reference makes with thresholds a little above and below: the
// agreement rule of docs/sample-attention.md, which lets columns close to the threshold differ, for
// an implementation whose queries are rounded otherwise.
void expectAgreement(BackendKind kind, const std::string& name, const std::shared_ptr<Model>& model,
                     const SampleAttentionParams& params) {
  const std::vector<int32_t> tokens = randomTokens(2300);
  const SessionOptions options = optionsOf(kind, kContextTokens);
  const auto actual = attentionOf(model, options, tokens, params);
  const Bracket bracket = bracketOf(params);
  const auto reference = [&](const SampleAttentionParams& of) {
    const ForcedCpu portable("portable");
    return attentionOf(model, optionsOf(BackendKind::cpu, kContextTokens), tokens, of);
  };
  const auto less = reference(bracket.less), same = reference(params),
             more = reference(bracket.more);
  ASSERT_EQ(actual.size(), same.size());
  ASSERT_FALSE(actual.empty());
  int64_t listed = 0, expected = 0, heads = 0;
  double coverageError = 0;
  for (size_t segment = 0; segment < actual.size(); ++segment) {
    ASSERT_EQ(actual[segment].size(), same[segment].size());
    for (size_t layer = 0; layer < actual[segment].size(); ++layer) {
      ASSERT_EQ(actual[segment][layer].size(), same[segment][layer].size())
          << "layer " << layer << " of segment " << segment;
      for (size_t head = 0; head < actual[segment][layer].size(); ++head) {
        const std::string where = name + ", segment " + std::to_string(segment) + ", layer " +
                                  std::to_string(layer) + ", head " + std::to_string(head);
        const HeadAttention& made = actual[segment][layer][head];
        const HeadAttention& want = same[segment][layer][head];
        EXPECT_EQ(made.causalPairs, want.causalPairs) << where;
        EXPECT_EQ(made.denseFallback, want.denseFallback) << where;
        EXPECT_GE(made.listLength, less[segment][layer][head].listLength) << where;
        EXPECT_LE(made.listLength, more[segment][layer][head].listLength) << where;
        EXPECT_GE(made.keptPairs, less[segment][layer][head].keptPairs) << where;
        EXPECT_LE(made.keptPairs, more[segment][layer][head].keptPairs) << where;
        listed += made.listLength;
        expected += want.listLength;
        ASSERT_EQ(made.coverage.size(), want.coverage.size()) << where;
        for (size_t i = 0; i < made.coverage.size(); ++i) {
          // Of one row a single column close to the threshold may hold much.
          EXPECT_GT(made.coverage[i], 0) << where << ", audit row " << i;
          EXPECT_LE(made.coverage[i], 1.001) << where << ", audit row " << i;
          coverageError += std::abs(made.coverage[i] - want.coverage[i]);
          ++heads;
        }
      }
    }
  }
  std::cout << name << ": " << listed << " columns listed, " << expected
            << " by the reference; coverage differs by "
            << coverageError / static_cast<double>(heads) << "\n";
  EXPECT_GT(expected, 0) << name << ": nothing was listed";
  EXPECT_NEAR(static_cast<double>(listed), static_cast<double>(expected),
              0.02 * static_cast<double>(expected))
      << name;
  ASSERT_GT(heads, 0) << name;
  EXPECT_LT(coverageError / static_cast<double>(heads), 0.02) << name;
}

TEST_P(TinyAttention, ListsOfPeakAgree) {
  for (const auto& [arch, headDim] : modelsFor(GetParam()))
    for (const ScoreDims scoreDims : {ScoreDims::slowHalf, ScoreDims::all})
      expectAgreement(GetParam(),
                      std::string("peak ") + arch + " " + headDim +
                          (scoreDims == ScoreDims::all ? ", all dims" : ", slow half"),
                      modelOf(arch, headDim), paramsOf(Policy::peak, scoreDims));
}

TEST_P(TinyAttention, ListsOfMassAgree) {
  for (const auto& [arch, headDim] : modelsFor(GetParam())) {
    SampleAttentionParams params = paramsOf(Policy::mass);
    expectAgreement(GetParam(), std::string("mass ") + arch + " " + headDim, modelOf(arch, headDim),
                    params);
    // One list for the whole prompt, as in the preset `paper`.
    params.sampleStride = 20;
    params.segmentRows = 0;
    params.windowFraction = 0.08;
    params.sinkTokens = 0;
    params.denseBelowTokens = 0;
    expectAgreement(GetParam(), std::string("paper ") + arch + " " + headDim,
                    modelOf(arch, headDim), params);
  }
}

TEST_P(TinyAttention, EpsilonsByHeadAreUsed) {
  SampleAttentionParams params = paramsOf(Policy::peak);
  const auto model = modelOf("llama", "64");
  for (int32_t i = 0; i < model->spec().layers * model->spec().heads; ++i)
    params.headEpsilons.push_back(i % 3 == 0 ? 0.3f : 0.01f);
  const std::vector<int32_t> tokens = randomTokens(2300);
  const auto actual = attentionOf(model, optionsOf(GetParam(), kContextTokens), tokens, params);
  const auto expected = [&] {
    const ForcedCpu portable("portable");
    return attentionOf(model, optionsOf(BackendKind::cpu, kContextTokens), tokens, params);
  }();
  for (size_t segment = 0; segment < expected.size(); ++segment)
    for (size_t layer = 0; layer < expected[segment].size(); ++layer)
      for (size_t head = 0; head < expected[segment][layer].size(); ++head) {
        const auto want = static_cast<double>(expected[segment][layer][head].listLength);
        EXPECT_NEAR(static_cast<double>(actual[segment][layer][head].listLength), want,
                    5 + 0.1 * want)
            << "segment " << segment << ", layer " << layer << ", head " << head;
      }
}

// Logits of a sparse prompt: a column close to a threshold makes more difference than rounding.
TEST_P(TinyAttention, SparsePromptsAreCloseToTheReference) {
  for (const auto& [arch, headDim] : modelsFor(GetParam()))
    for (const Policy policy : {Policy::peak, Policy::mass})
      for (const KvType kvCache : {KvType::bf16, KvType::q8}) {
        const auto model = modelOf(arch, headDim);
        Prompt prompt = askedPrompt(2050, 61, policy);
        prompt.params = paramsOf(policy);
        expectClose(std::string(policy == Policy::peak ? "peak " : "mass ") + arch + " " + headDim +
                        (kvCache == KvType::q8 ? ", q8" : ""),
                    sessionOf(model, optionsOf(GetParam(), kContextTokens, kvCache))
                        ->logits(prompt, prompt.denseFrom),
                    referenceOf(model, kContextTokens, kvCache)->logits(prompt, prompt.denseFrom),
                    model->spec().vocabulary, {.relative = 0.2, .kl = 0.03});
      }
}

// The master invariant, and that the comparison sees lists at all.
TEST_P(TinyAttention, EveryColumnKeptEqualsDense) {
  for (const auto& [arch, headDim] : modelsFor(GetParam())) {
    const auto model = modelOf(arch, headDim);
    const SessionOptions options = optionsOf(GetParam(), kContextTokens);
    Prompt prompt = askedPrompt(1500, 40, Policy::dense);
    const std::vector<float> dense = sessionOf(model, options)->logits(prompt, prompt.denseFrom);
    prompt.params = paramsOf(Policy::peak);
    prompt.params.epsilon = 0;
    prompt.params.alpha = 1;
    const std::string name = std::string(arch) + " " + headDim;
    for (const Policy policy : {Policy::peak, Policy::mass}) {
      prompt.params.policy = policy;
      expectClose(name + ", every column", sessionOf(model, options)->logits(prompt, 1500), dense,
                  model->spec().vocabulary, {.relative = 0.02, .kl = 3e-4});
    }
    prompt.params.policy = Policy::peak;
    prompt.params.epsilon = 0.5;
    EXPECT_GT(differenceOf(sessionOf(model, options)->logits(prompt, 1500), dense,
                           model->spec().vocabulary)
                  .relative,
              0.01)
        << name << ": nothing was left out";
  }
}

TEST_P(TinyAttention, PromptsOfAnyLength) {
  const auto model = modelOf("llama", "64");
  for (const int64_t files : {0, 1, 7, 127, 128, 129, 511, 512, 513, 1025, 2047})
    for (const int64_t question : {1, 2, 9, 130}) {
      const Prompt prompt =
          askedPrompt(files, question, Policy::peak, static_cast<uint32_t>(files + question));
      expectClose(std::to_string(files) + " + " + std::to_string(question) + " rows",
                  lastLogits(*sessionOf(model, optionsOf(GetParam(), kContextTokens)), prompt),
                  lastLogits(*referenceOf(model, kContextTokens), prompt), model->spec().vocabulary,
                  {.relative = 0.09, .kl = 6e-3});
    }
}

// All rows' logits, those of sparse segments too: then the last layer votes and attends as well.
TEST_P(TinyAttention, LogitsOfSparseRows) {
  const auto model = modelOf("llama", "64");
  const Prompt prompt = askedPrompt(1700, 30, Policy::peak);
  for (const int64_t from : {0, 700, 1100, 1690})
    expectClose("logits from row " + std::to_string(from),
                sessionOf(model, optionsOf(GetParam(), kContextTokens))->logits(prompt, from),
                referenceOf(model, kContextTokens)->logits(prompt, from), model->spec().vocabulary,
                {.relative = 0.08, .kl = 5e-3});
}

TEST_P(TinyAttention, BordersAnywhere) {
  const auto model = modelOf("llama", "64");
  Prompt prompt = askedPrompt(3000, 77, Policy::peak);
  prompt.borders = {1101, 1300, 2750, 3077};
  prompt.denseFrom = 2991;
  const auto whole = lastLogits(*sessionOf(model, optionsOf(GetParam(), kContextTokens)), prompt);
  expectClose("four parts", whole, lastLogits(*referenceOf(model, kContextTokens), prompt),
              model->spec().vocabulary, {.relative = 0.08, .kl = 5e-3});
  // One call a part.
  const auto session = sessionOf(model, optionsOf(GetParam(), kContextTokens));
  for (const int64_t border : {1101, 1300, 2750}) {
    Prompt part = prompt;
    part.tokens.resize(static_cast<size_t>(border));
    part.denseFrom = border;
    std::erase_if(part.borders, [&](int64_t other) { return other > border; });
    session->generate(part, {}, {});
    EXPECT_EQ(session->plan(prompt).reusedTokens, border);
  }
  expectClose("a call for each part", lastLogits(*session, prompt), whole, model->spec().vocabulary,
              {.relative = 0.02, .kl = 5e-4});
}

}  // namespace
}  // namespace longsight::test
