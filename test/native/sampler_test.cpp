// Each step of the sampler against a plain implementation of its own, and the edges.
#include "session/sampler.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <numeric>
#include <random>
#include <set>

#include "error.h"
#include "temporary.h"

namespace longsight::test {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// The definition in sampler.h, step by step, with everything sorted and nothing left out.
class PlainSampler {
 public:
  PlainSampler(const Sampling& sampling, std::vector<int32_t> history)
      : sampling_(sampling), history_(std::move(history)), random_(sampling.seed) {}

  // Probability of each token.
  std::vector<double> distribution(const std::vector<float>& logits) const {
    std::vector<double> adjusted(logits.begin(), logits.end());
    for (const auto& [token, bias] : sampling_.logitBias)
      adjusted[static_cast<size_t>(token)] += bias;
    const size_t begin = history_.size() > 64 ? history_.size() - 64 : 0;
    const std::set<int32_t> recent(history_.begin() + static_cast<std::ptrdiff_t>(begin),
                                   history_.end());
    for (int32_t token : recent) {
      double& logit = adjusted[static_cast<size_t>(token)];
      logit = logit > 0 ? logit / sampling_.repetitionPenalty : logit * sampling_.repetitionPenalty;
    }
    std::vector<size_t> order(adjusted.size());
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(),
                     [&](size_t a, size_t b) { return adjusted[a] > adjusted[b]; });
    if (sampling_.temperature == 0) order.resize(1);
    if (sampling_.topK > 0)
      order.resize(std::min(order.size(), static_cast<size_t>(sampling_.topK)));
    const double best = adjusted[order[0]];
    auto weight = [&](size_t token) { return std::exp(adjusted[token] - best); };
    double total = 0;
    for (size_t token : order) total += weight(token);
    double kept = 0;
    size_t count = 0;
    while (count < order.size() && (count == 0 || kept < sampling_.topP * total))
      kept += weight(order[count++]);
    if (sampling_.topP < 1) order.resize(count);
    std::erase_if(order, [&](size_t token) { return weight(token) < sampling_.minP; });

    std::vector<double> probability(adjusted.size(), 0);
    const double temperature = sampling_.temperature == 0 ? 1 : sampling_.temperature;
    double sum = 0;
    for (size_t token : order)
      sum += probability[token] = std::exp((adjusted[token] - best) / temperature);
    for (double& value : probability) value /= sum;
    return probability;
  }

  int32_t pick(const std::vector<float>& logits) {
    const std::vector<double> probability = distribution(logits);
    size_t token = 0;
    if (sampling_.temperature == 0) {
      token = static_cast<size_t>(std::max_element(probability.begin(), probability.end()) -
                                  probability.begin());
    } else {
      double left = static_cast<double>(random_() >> 11) * 0x1p-53;
      for (; token + 1 < probability.size(); ++token) {
        left -= probability[token];
        if (left < 0) break;
      }
    }
    history_.push_back(static_cast<int32_t>(token));
    return history_.back();
  }

 private:
  Sampling sampling_;
  std::vector<int32_t> history_;
  std::mt19937_64 random_;
};

std::vector<float> randomLogits(std::mt19937_64& random, size_t count, float spread) {
  std::normal_distribution<float> normal(-1.0f, spread);
  std::vector<float> logits(count);
  for (float& logit : logits) logit = normal(random);
  return logits;
}

// Both pick the same tokens, one after another, over many rows of random logits.
void expectTheSame(const Sampling& sampling, std::mt19937_64& random, size_t vocabulary) {
  ASSERT_EQ(validate(sampling, static_cast<int32_t>(vocabulary)), "");
  std::vector<int32_t> prompt(100);
  for (int32_t& token : prompt) token = static_cast<int32_t>(random() % vocabulary);
  Sampler sampler(sampling, prompt);
  PlainSampler plain(sampling, prompt);
  for (int i = 0; i < 60; ++i) {
    const std::vector<float> logits = randomLogits(random, vocabulary, i % 2 ? 4.0f : 0.5f);
    ASSERT_EQ(sampler.pick(logits), plain.pick(logits)) << "pick " << i;
  }
}

class Samplers : public ::testing::Test {
 protected:
  std::mt19937_64 random{randomSeed()};
  // Ugly sizes: below, at and above the steps in which the likeliest are sorted.
  const std::vector<size_t> sizes = {1, 2, 63, 64, 65, 301, 5003};

  void compare(const Sampling& sampling) {
    for (size_t size : sizes) {
      SCOPED_TRACE(size);
      expectTheSame(sampling, random, size);
    }
  }
};

TEST_F(Samplers, Greedy) { compare({.temperature = 0}); }
TEST_F(Samplers, Temperature) {
  for (double temperature : {0.05, 0.7, 1.0, 5.0}) compare({.temperature = temperature, .seed = 3});
}
TEST_F(Samplers, TopP) {
  for (double topP : {1e-9, 0.3, 0.95, 0.999999})
    compare({.temperature = 1.3, .topP = topP, .seed = 4});
}
TEST_F(Samplers, TopK) {
  for (int32_t topK : {1, 2, 40, 64, 300, 100000})
    compare({.temperature = 0.8, .topK = topK, .seed = 5});
}
TEST_F(Samplers, MinP) {
  for (double minP : {1e-6, 0.05, 0.5, 1.0}) compare({.temperature = 2, .minP = minP, .seed = 6});
}
TEST_F(Samplers, RepetitionPenalty) {
  for (double penalty : {0.5, 1.1, 1.8, 10.0}) {
    compare({.temperature = 0, .repetitionPenalty = penalty});
    compare({.temperature = 1, .repetitionPenalty = penalty, .seed = 7});
  }
}
TEST_F(Samplers, LogitBias) {
  compare({.temperature = 0, .logitBias = {{0, 3.5}}});
  compare({.temperature = 1, .logitBias = {{0, 2.25}}, .seed = 8});
  for (size_t size : {2, 65, 5003}) {
    const auto last = static_cast<int32_t>(size - 1);
    expectTheSame({.temperature = 1, .logitBias = {{last, -kInfinity}, {0, 4}}, .seed = 8}, random,
                  size);
  }
}
TEST_F(Samplers, AllAtOnce) {
  for (uint64_t seed = 0; seed < 6; ++seed)
    for (size_t size : {64, 5003})
      expectTheSame({.temperature = 0.9,
                     .topP = 0.9,
                     .topK = 50,
                     .minP = 0.02,
                     .repetitionPenalty = 1.2,
                     .logitBias = {{3, 1.5}, {17, -kInfinity}, {40, -2}},
                     .seed = seed},
                    random, size);
}

// Draws follow the probabilities: chi-squared over the tokens that may come.
TEST(SamplerDistribution, DrawsByProbability) {
  const std::vector<Sampling> cases = {
      {.temperature = 1, .seed = 11},
      {.temperature = 2, .topK = 5, .seed = 12},
      {.temperature = 0.7, .topP = 0.9, .seed = 13},
      {.temperature = 1.5, .minP = 0.1, .seed = 14},
      {.temperature = 1, .logitBias = {{2, 2}, {5, -kInfinity}}, .seed = 15},
  };
  std::mt19937_64 random(99);
  const std::vector<float> logits = randomLogits(random, 12, 1.0f);
  for (const Sampling& sampling : cases) {
    SCOPED_TRACE(sampling.seed);
    const std::vector<double> expected = PlainSampler(sampling, {}).distribution(logits);
    constexpr int kDraws = 40000;
    Sampler sampler(sampling, {});
    std::vector<int> counts(logits.size());
    for (int i = 0; i < kDraws; ++i) ++counts[static_cast<size_t>(sampler.pick(logits))];
    double chiSquared = 0;
    int freedom = -1;
    for (size_t i = 0; i < counts.size(); ++i) {
      if (expected[i] == 0) {
        EXPECT_EQ(counts[i], 0) << "token " << i;
        continue;
      }
      ++freedom;
      const double mean = expected[i] * kDraws;
      chiSquared += (counts[i] - mean) * (counts[i] - mean) / mean;
    }
    // Beyond four standard deviations; the seeds are fixed.
    EXPECT_LT(chiSquared, freedom + 4 * std::sqrt(2.0 * freedom));
  }
}

TEST(SamplerEdges, EqualLogits) {
  const std::vector<float> logits(100, 2.5f);
  EXPECT_EQ(Sampler({.temperature = 0}, {}).pick(logits), 0);
  EXPECT_EQ(Sampler({.temperature = 1, .topK = 1}, {}).pick(logits), 0);
  std::map<int32_t, int> counts;
  Sampler few({.temperature = 1, .topK = 7, .minP = 1, .seed = 1}, {});
  for (int i = 0; i < 500; ++i) ++counts[few.pick(logits)];
  EXPECT_EQ(counts.size(), 7u);
  EXPECT_EQ(counts.rbegin()->first, 6) << "the smaller ids of equals stay";
}

TEST(SamplerEdges, MinPOneKeepsTheLikeliestAlone) {
  std::mt19937_64 random(5);
  Sampler sampler({.temperature = 5, .minP = 1, .seed = 2}, {});
  for (int i = 0; i < 100; ++i) {
    const std::vector<float> logits = randomLogits(random, 500, 0.1f);
    EXPECT_EQ(sampler.pick(logits),
              std::max_element(logits.begin(), logits.end()) - logits.begin());
  }
}

TEST(SamplerEdges, TopKOneIsGreedyAtAnyTemperature) {
  std::mt19937_64 random(6);
  Sampler sampler({.temperature = 5, .topK = 1, .repetitionPenalty = 1.3, .seed = 2}, {});
  Sampler greedy({.temperature = 0, .repetitionPenalty = 1.3}, {});
  for (int i = 0; i < 100; ++i) {
    const std::vector<float> logits = randomLogits(random, 500, 0.1f);
    EXPECT_EQ(sampler.pick(logits), greedy.pick(logits));
  }
}

TEST(SamplerEdges, AllButOneBanned) {
  Sampling sampling{.temperature = 5, .topP = 0.5, .topK = 3, .minP = 0.5, .seed = 3};
  for (int32_t token = 0; token < 50; ++token)
    if (token != 31) sampling.logitBias.emplace_back(token, -kInfinity);
  EXPECT_EQ(Sampler(sampling, {}).pick(std::vector<float>(50, 1.0f)), 31);
  sampling.temperature = 0;
  EXPECT_EQ(Sampler(sampling, {}).pick(std::vector<float>(50, 1.0f)), 31);
}

TEST(SamplerEdges, AVocabularyOfOne) {
  for (double temperature : {0.0, 1.0}) {
    Sampler sampler({.temperature = temperature, .topP = 0.1, .topK = 1, .minP = 1}, {});
    EXPECT_EQ(sampler.pick(std::vector<float>{-3.0f}), 0);
  }
}

TEST(SamplerEdges, UnusableLogitsAreErrors) {
  auto codeOf = [](Sampling sampling, const std::vector<float>& logits) {
    try {
      Sampler(sampling, {}).pick(logits);
    } catch (const Error& error) {
      EXPECT_FALSE(error.action().empty());
      return std::pair(error.code(), error.message());
    }
    ADD_FAILURE() << "no error";
    return std::pair(ErrorCode::cancelled, std::string());
  };
  for (double temperature : {0.0, 1.0}) {
    const auto [code, message] = codeOf({.temperature = temperature}, {1, 2, std::nanf(""), 4});
    EXPECT_EQ(code, ErrorCode::internal);
    EXPECT_NE(message.find("token 2 of 4"), std::string::npos) << message;
    EXPECT_EQ(codeOf({.temperature = temperature}, {1, kInfinity}).first, ErrorCode::internal);
    EXPECT_EQ(
        codeOf({.temperature = temperature, .logitBias = {{0, -kInfinity}}}, {1, -kInfinity}).first,
        ErrorCode::invalidParams);
  }
  // A model may itself rule a token out.
  EXPECT_EQ(Sampler({.temperature = 1}, {}).pick(std::vector<float>{-kInfinity, 1}), 1);
}

TEST(SamplerEdges, HugeAndTinyLogitsStayFinite) {
  Sampler sampler({.temperature = 5, .topP = 0.99, .seed = 1}, {});
  EXPECT_EQ(sampler.pick(std::vector<float>{-3e38f, 3e38f, -3e38f}), 1);
  EXPECT_EQ(sampler.pick(std::vector<float>{-3e38f, -2e38f}), 1);
}

TEST(SamplerEdges, ThePenaltySeesTheLast64TokensOfPromptAndAnswer) {
  std::vector<int32_t> prompt(64, 1);
  prompt.front() = 0;
  const std::vector<float> logits = {2, 2.1f, 1.9f, 1.8f};
  Sampler sampler({.temperature = 0, .repetitionPenalty = 1.5}, prompt);
  // 0 and 1 are in the prompt; 2 is then in the answer; by then 0 has left the window.
  EXPECT_EQ(sampler.pick(logits), 2);
  EXPECT_EQ(sampler.pick(logits), 0);
  EXPECT_EQ(sampler.pick(logits), 3);
}

// What every machine must draw: recorded once.
TEST(SamplerEdges, TheSeedDecides) {
  std::vector<float> logits(1000);
  for (size_t i = 0; i < logits.size(); ++i)
    logits[i] = static_cast<float>((i * 7919) % 1000) / 100;
  auto draw = [&](uint64_t seed) {
    Sampler sampler({.temperature = 1.0, .topP = 0.9, .seed = seed}, {});
    std::vector<int32_t> picks;
    for (int i = 0; i < 8; ++i) picks.push_back(sampler.pick(logits));
    return picks;
  };
  EXPECT_EQ(draw(5), draw(5));
  EXPECT_NE(draw(5), draw(6));
  EXPECT_EQ(draw(5), (std::vector<int32_t>{667, 39, 235, 668, 99, 100, 137, 681}));
}

TEST(SamplerRanges, NameFieldValueAndRange) {
  constexpr int32_t kVocabulary = 100;
  const double nan = std::nan("");
  const std::vector<std::pair<Sampling, std::string>> wrong = {
      {{.temperature = -0.1}, "temperature = -0.1"},
      {{.temperature = nan}, "temperature"},
      {{.temperature = 5.5}, "0 to 5"},
      {{.topP = 0}, "topP = 0"},
      {{.topP = 1.01}, "at most 1"},
      {{.topK = -1}, "topK = -1"},
      {{.minP = 1.5}, "minP = 1.5"},
      {{.minP = nan}, "minP"},
      {{.repetitionPenalty = 0}, "repetitionPenalty = 0"},
      {{.repetitionPenalty = 11}, "at most 10"},
      {{.logitBias = {{100, 1}}}, "0 to 99"},
      {{.logitBias = {{-1, 1}}}, "token -1"},
      {{.logitBias = {{4, nan}}}, "token 4"},
      {{.logitBias = {{4, kInfinity}}}, "token 4"},
      {{.logitBias = {{4, 1}, {4, 2}}}, "twice"},
  };
  for (const auto& [sampling, part] : wrong)
    EXPECT_NE(validate(sampling, kVocabulary).find(part), std::string::npos)
        << part << " in " << validate(sampling, kVocabulary);
  EXPECT_EQ(validate({.temperature = 5,
                      .topP = 1,
                      .topK = 1 << 30,
                      .minP = 1,
                      .repetitionPenalty = 10,
                      .logitBias = {{99, -kInfinity}, {0, -1000}}},
                     kVocabulary),
            "");
}

}  // namespace
}  // namespace longsight::test
