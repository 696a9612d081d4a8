#include "session/sampler.h"

#include <gtest/gtest.h>

#include <cmath>
#include <map>

namespace longsight::test {
namespace {

TEST(Sampler, GreedyTakesTheFirstOfTheBest) {
  Sampler sampler({});
  EXPECT_EQ(sampler.pick(std::vector<float>{1, 3, 2, 3}), 1);
}

TEST(Sampler, DrawsByProbability) {
  Sampler sampler({.temperature = 2.0, .topP = 1.0, .seed = 1, .stop = {}});
  // Probabilities 1/7, 2/7, 4/7 at temperature 2.
  const std::vector<float> logits = {0, 2 * std::log(2.0f), 2 * std::log(4.0f)};
  std::map<int32_t, int> counts;
  for (int i = 0; i < 7000; ++i) ++counts[sampler.pick(logits)];
  EXPECT_NEAR(counts[0], 1000, 120);
  EXPECT_NEAR(counts[1], 2000, 150);
  EXPECT_NEAR(counts[2], 4000, 170);
}

TEST(Sampler, TopPKeepsTheSmallestSufficientSet) {
  Sampler sampler({.temperature = 1.0, .topP = 0.55, .seed = 2, .stop = {}});
  const std::vector<float> logits = {std::log(0.5f), std::log(0.1f), std::log(0.4f)};
  for (int i = 0; i < 500; ++i) EXPECT_NE(sampler.pick(logits), 1);
  Sampler narrow({.temperature = 1.0, .topP = 1e-9, .seed = 2, .stop = {}});
  for (int i = 0; i < 50; ++i) EXPECT_EQ(narrow.pick(logits), 0);
}

TEST(Sampler, TheSeedDecides) {
  const std::vector<float> logits(1000, 0.0f);
  auto draw = [&](uint64_t seed) {
    Sampler sampler({.temperature = 1.0, .topP = 0.9, .seed = seed, .stop = {}});
    std::vector<int32_t> picks;
    for (int i = 0; i < 20; ++i) picks.push_back(sampler.pick(logits));
    return picks;
  };
  EXPECT_EQ(draw(5), draw(5));
  EXPECT_NE(draw(5), draw(6));
}

}  // namespace
}  // namespace longsight::test
