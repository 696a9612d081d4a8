// Answers with guessed tokens: the same text as without, whatever the sampling.
#include <gtest/gtest.h>

#include <chrono>
#include <cmath>
#include <cstring>
#include <iostream>

#include "cpu/backend.h"
#include "real_session.h"
#include "session/session.h"
#include "temporary.h"

namespace longsight::test {
namespace {

struct Answer {
  std::string text;
  GenerateResult result;
};

Answer ask(Session& session, const Prompt& prompt, GenerateOptions options) {
  Answer answer;
  SessionEvents events;
  events.onText = [&](const std::string& text) { answer.text += text; };
  answer.result = session.generate(prompt, options, events);
  return answer;
}

// With all rows but the last in the cache, so that later questions compute the same rows.
std::unique_ptr<Session> warmSession(const Prompt& prompt, int64_t contextTokens = 4096) {
  auto session = newSession(contextTokens);
  session->generate(prompt, {}, {});
  return session;
}

// A text that the model will copy from.
Prompt copying() {
  Prompt prompt;
  const std::string code = realText(6000);
  const std::string text = code + "\n\nThe same file once more:\n\n" + code.substr(0, 1200);
  realModel()->tokenizer().tokenize(text, false, prompt.tokens);
  const auto count = static_cast<int64_t>(prompt.tokens.size());
  prompt.borders = {count};
  prompt.denseFrom = count;
  return prompt;
}

TEST(Speculation, RowsOfAStepHaveTheBitsOfSingleSteps) {
  const CancelFlag never;
  const auto weights = realModel()->weights(never, nullptr);
  const auto vocabulary = static_cast<size_t>(realModel()->spec().vocabulary);
  const Prompt prompt = copying();
  CpuBackend backend(weights, KvType::bf16, 4096, 2, 1.0);
  std::vector<float> single(Backend::kMostStepRows * vocabulary), joint(single.size());
  const SampleAttentionParams params;
  int64_t filled = 0;
  // Also where a tile of 128 rows ends, and columns are shared among threads.
  for (const size_t end :
       {size_t{40}, size_t{130}, size_t{1026}, size_t{1200}, size_t{2100}, size_t{2182}}) {
    const std::span tokens = std::span(prompt.tokens).first(end);
    const std::span last = tokens.last(Backend::kMostStepRows);
    const auto begin = static_cast<int64_t>(end - last.size());
    const Segment before{filled, begin};
    Backend::Chunk chunk;
    chunk.segments = {&before, 1};
    chunk.tokens = tokens.subspan(static_cast<size_t>(filled), static_cast<size_t>(begin - filled));
    chunk.params = &params;
    chunk.outputBegin = begin;
    std::vector<SegmentAttention> attention;
    ASSERT_TRUE(backend.forward(chunk, never, attention));
    filled = begin;
    for (size_t i = 0; i < last.size(); ++i)
      ASSERT_TRUE(backend.step(last.subspan(i, 1), begin + static_cast<int64_t>(i),
                               single.data() + i * vocabulary, never));
    for (const size_t rows : {size_t{2}, size_t{5}, last.size()}) {
      ASSERT_TRUE(backend.step(last.first(rows), begin, joint.data(), never));
      EXPECT_EQ(std::memcmp(single.data(), joint.data(), rows * vocabulary * sizeof(float)), 0)
          << rows << " rows up to " << end;
    }
  }
}

TEST(Speculation, GreedyTextIsThatOfPlainDecoding) {
  const Prompt prompt = copying();
  auto session = warmSession(prompt);
  const GenerateOptions plain{.maxTokens = 120, .ignoreEnd = true, .speculate = false};
  GenerateOptions guessing = plain;
  guessing.speculate = true;
  const Answer slow = ask(*session, prompt, plain);
  const Answer fast = ask(*session, prompt, guessing);
  EXPECT_EQ(fast.text, slow.text);
  EXPECT_EQ(fast.result.generatedTokens, 120);
  EXPECT_EQ(slow.result.draftedTokens, 0);
  EXPECT_GT(fast.result.acceptedTokens, 20);
  EXPECT_LE(fast.result.acceptedTokens, fast.result.draftedTokens);
  std::cout << "plain " << slow.result.decodeTokensPerSecond << " tokens/s, guessing "
            << fast.result.decodeTokensPerSecond << ", " << fast.result.acceptedTokens << " of "
            << fast.result.draftedTokens << " guesses right\n";
}

TEST(Speculation, SampledTextIsThatOfPlainDecoding) {
  const Prompt prompt = copying();
  auto session = warmSession(prompt);
  GenerateOptions options{.maxTokens = 80, .ignoreEnd = true, .speculate = false};
  options.sampling.temperature = 0.7;
  options.sampling.topP = 0.9;
  options.sampling.repetitionPenalty = 1.1;
  for (const uint64_t seed : {1u, 2u, 3u}) {
    options.sampling.seed = seed;
    options.speculate = false;
    const Answer slow = ask(*session, prompt, options);
    options.speculate = true;
    const Answer fast = ask(*session, prompt, options);
    EXPECT_EQ(fast.text, slow.text) << "seed " << seed;
  }
}

TEST(Speculation, EndsWhereItShould) {
  const Prompt prompt = copying();
  auto session = warmSession(prompt);
  const auto count = static_cast<int64_t>(prompt.tokens.size());
  const Answer whole =
      ask(*session, prompt, {.maxTokens = 60, .ignoreEnd = true, .speculate = false});
  for (const int64_t most : {1, 2, 3, 7, 19, 41}) {
    const Answer cut = ask(*session, prompt, {.maxTokens = most, .ignoreEnd = true});
    EXPECT_EQ(cut.result.generatedTokens, most);
    EXPECT_TRUE(whole.text.starts_with(cut.text));
    // No guess that was not chosen is taken for a row of the answer.
    Prompt further = prompt;
    realModel()->tokenizer().tokenize(cut.text + whole.text, false, further.tokens);
    further.borders.back() = static_cast<int64_t>(further.tokens.size());
    EXPECT_LT(session->plan(further).reusedTokens, count + most);
  }
  // A stop string within what was guessed.
  GenerateOptions stopping{.maxTokens = 60, .ignoreEnd = true};
  stopping.sampling.stop = {whole.text.substr(70, 6)};
  const Answer stopped = ask(*session, prompt, stopping);
  EXPECT_EQ(stopped.result.stopReason, StopReason::stop);
  EXPECT_EQ(stopped.text, whole.text.substr(0, whole.text.find(stopping.sampling.stop[0])));
  // A cache with room for a few tokens.
  auto small = warmSession(prompt, count + 5);
  const Answer full = ask(*small, prompt, {.maxTokens = 60, .ignoreEnd = true});
  EXPECT_EQ(full.result.generatedTokens, 6);
  EXPECT_EQ(full.result.stopReason, StopReason::length);
}

}  // namespace
}  // namespace longsight::test
