// Guesses of what follows: where they come from, and when they are worth it.
#include "session/drafter.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <iostream>
#include <random>

namespace longsight::test {
namespace {

std::vector<int32_t> randomTokens(size_t count, int32_t vocabulary, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::vector<int32_t> tokens(count);
  for (int32_t& token : tokens)
    token = static_cast<int32_t>(random() % static_cast<uint64_t>(vocabulary));
  return tokens;
}

// The longest agreement among all earlier runs of at least `length`, found by trying each.
size_t longestAgreement(std::span<const int32_t> text, size_t length, size_t most) {
  size_t best = 0;
  for (size_t end = length; end < text.size(); ++end) {
    size_t agreement = 0;
    while (agreement < most && agreement < end &&
           text[end - 1 - agreement] == text[text.size() - 1 - agreement])
      ++agreement;
    if (agreement >= length) best = std::max(best, agreement);
  }
  return best;
}

TEST(NgramIndex, FindsTheRunWithTheMostBeforeIt) {
  std::mt19937_64 random(3);
  for (int round = 0; round < 40; ++round) {
    // Runs of 3 out of 12 tokens: few enough candidates that none is passed over.
    const std::vector<int32_t> all = randomTokens(1 + random() % 400, 12, random());
    const size_t known = random() % (all.size() + 1);
    NgramIndex index(3);
    std::vector<int32_t> text(all.begin(), all.begin() + static_cast<std::ptrdiff_t>(known));
    index.append(text);
    for (size_t i = known; i < all.size(); ++i) {
      text.push_back(all[i]);
      index.append(text);
      const size_t end = index.findLast(text);
      const size_t expected = longestAgreement(text, 3, 32);
      if (expected == 0) {
        ASSERT_EQ(end, 0u);
        continue;
      }
      ASSERT_GT(end, 0u);
      ASSERT_LT(end, text.size());
      for (size_t j = 0; j < expected; ++j) ASSERT_EQ(text[end - 1 - j], text[text.size() - 1 - j]);
    }
  }
}

TEST(Drafter, CopiesWhatFollowedBefore) {
  std::vector<int32_t> text = randomTokens(1000, 50000, 4);
  text.insert(text.end(), text.begin() + 200, text.begin() + 204);
  Drafter drafter(text);
  const std::vector<int32_t> draft = drafter.draft(7);
  ASSERT_GE(draft.size(), 1u);
  EXPECT_TRUE(std::equal(draft.begin(), draft.end(), text.begin() + 204));
  EXPECT_LE(drafter.draft(2).size(), 2u);
  EXPECT_TRUE(drafter.draft(0).empty());
  // A token that never stood there.
  drafter.append(60000);
  EXPECT_TRUE(drafter.draft(7).empty());
}

TEST(Drafter, IsSilentWithoutRepetition) {
  std::vector<int32_t> text(5000);
  for (size_t i = 0; i < text.size(); ++i) text[i] = static_cast<int32_t>(i);
  EXPECT_TRUE(Drafter(text).draft(7).empty());
  EXPECT_TRUE(Drafter(std::vector<int32_t>{}).draft(7).empty());
  EXPECT_TRUE(Drafter(std::vector<int32_t>{7}).draft(7).empty());
}

// A model whose steps cost `rowShare` of one more a row, on text where a guess is right with
// `chance`. Returns the tokens a unit of time and what was drafted.
struct Rate {
  double speed;
  int64_t drafted;
};
Rate simulate(double rowShare, double chance) {
  std::mt19937_64 random(5);
  // Everything repeats, so that there is always something to guess.
  std::vector<int32_t> text;
  for (int i = 0; i < 400; ++i) text.push_back(i % 10);
  Drafter drafter(text);
  double ms = 0;
  int64_t tokens = 0, drafted = 0;
  for (int step = 0; step < 2000; ++step) {
    const size_t count = drafter.draft(7).size();
    size_t right = 0;
    while (right < count && static_cast<double>(random() % 1000) < 1000 * chance) ++right;
    const double stepMs = 10 * (1 + rowShare * static_cast<double>(count));
    drafter.observe(count, right, stepMs);
    for (size_t i = 0; i <= right; ++i)
      drafter.append(static_cast<int32_t>((400 + tokens + i) % 10));
    ms += stepMs;
    tokens += static_cast<int64_t>(right) + 1;
    drafted += static_cast<int64_t>(count);
  }
  return {static_cast<double>(tokens) / ms * 10, drafted};
}

TEST(Drafter, GuessesAsFarAsItPays) {
  // Right guesses at little cost: near the most that seven guesses can bring.
  EXPECT_GT(simulate(0.01, 0.98).speed, 6);
  // Each row costs as much as a step of its own: guesses cannot pay, and stop.
  const Rate dear = simulate(1.0, 0.5);
  EXPECT_GT(dear.speed, 0.97);
  EXPECT_LT(dear.drafted, 200);
  // Wrong guesses at little cost: hardly slower than without.
  const Rate wrong = simulate(0.05, 0.02);
  EXPECT_GT(wrong.speed, 0.97);
  // In between: short guesses.
  EXPECT_GT(simulate(0.3, 0.7).speed, 1.25);
}

TEST(Drafter, IsFastForAMillionTokens) {
  const std::vector<int32_t> text = randomTokens(1 << 20, 3000, 6);
  const auto start = std::chrono::steady_clock::now();
  Drafter drafter(text);
  const auto built = std::chrono::steady_clock::now();
  int64_t drafted = 0;
  for (int i = 0; i < 10000; ++i) {
    drafter.append(text[static_cast<size_t>(i)]);
    drafted += static_cast<int64_t>(drafter.draft(7).size());
  }
  const auto end = std::chrono::steady_clock::now();
  const auto ms = [](auto span) { return std::chrono::duration<double, std::milli>(span).count(); };
  std::cout << "index of 1,048,576 tokens: " << ms(built - start) << " ms, a token "
            << ms(end - built) / 10 << " us\n";
  EXPECT_GT(drafted, 10000);
  EXPECT_LT(ms(built - start), 2000);
  EXPECT_LT(ms(end - built) / 10, 100);
}

}  // namespace
}  // namespace longsight::test
