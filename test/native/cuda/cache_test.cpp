// What a session promises whatever computes: reuse, saved sessions, cancelling, decoding.
#include <atomic>
#include <chrono>
#include <cstring>
#include <iostream>
#include <thread>

#include "engine_case.h"
#include "error.h"
#include "session/open_backend.h"
#include "temporary.h"

namespace longsight::test {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int64_t kContextTokens = 4096;
// Logits of the same rows computed together with other rows.
constexpr Limits kSame = {.relative = 0.05, .kl = 2e-3};

bool sameBits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

std::shared_ptr<Model> smallModel() {
  return tinyModel("small", R"("arch": "llama", "heads": 4, "kv_heads": 2, "layers": 3)");
}

class TinySessions : public OnBackend {
 protected:
  std::unique_ptr<Session> open(int64_t contextTokens = kContextTokens,
                                KvType kvCache = KvType::bf16) {
    return sessionOf(smallModel(), optionsOf(GetParam(), contextTokens, kvCache));
  }
};
LONGSIGHT_ON_ALL_BACKENDS(TinySessions);

TEST_P(TinySessions, TheSameBitsTwice) {
  for (const Policy policy : {Policy::dense, Policy::peak, Policy::mass}) {
    const Prompt prompt = askedPrompt(2600, 33, policy);
    const std::vector<float> first = open()->logits(prompt, 2600);
    EXPECT_TRUE(sameBits(open()->logits(prompt, 2600), first));
    const auto used = open();
    used->logits(askedPrompt(3000, 90, Policy::peak, 5), 3000);
    EXPECT_TRUE(sameBits(used->logits(prompt, 2600), first)) << "a cache that held other rows";
  }
}

TEST_P(TinySessions, ReusedRowsChangeNothing) {
  for (const KvType kvCache : {KvType::bf16, KvType::q8}) {
    const auto session = open(kContextTokens, kvCache);
    const Prompt first = askedPrompt(2600, 40, Policy::peak);
    lastLogits(*session, first);
    Prompt second = first;
    const std::vector<int32_t> other = randomTokens(70, 9);
    second.tokens.resize(2600);
    second.tokens.insert(second.tokens.end(), other.begin(), other.end());
    second.borders.back() = 2670;
    EXPECT_GE(session->plan(second).reusedTokens, 2600);
    EXPECT_LT(session->plan(second).reusedTokens, 2640);
    expectClose("another question", lastLogits(*session, second),
                lastLogits(*open(kContextTokens, kvCache), second), smallModel()->spec().vocabulary,
                kSame);
    // Shorter than what is cached, then longer again.
    Prompt shorter = second;
    shorter.tokens.resize(2611);
    shorter.borders.back() = 2611;
    expectClose("a shorter question", lastLogits(*session, shorter),
                lastLogits(*open(kContextTokens, kvCache), shorter),
                smallModel()->spec().vocabulary, kSame);
    expectClose("the longer one again", lastLogits(*session, second),
                lastLogits(*open(kContextTokens, kvCache), second), smallModel()->spec().vocabulary,
                kSame);
  }
}

TEST_P(TinySessions, SavedRowsComeBackBitByBit) {
  for (const KvType kvCache : {KvType::bf16, KvType::q8}) {
    const std::string path = temporaryPath("saved.session");
    const Prompt prompt = askedPrompt(2600, 40, Policy::peak);
    const auto session = open(kContextTokens, kvCache);
    lastLogits(*session, prompt);
    EXPECT_EQ(session->save(path, 2600, nullptr).rows, 2600);
    // Of another capacity, used before.
    const auto other = open(3001, kvCache);
    lastLogits(*other, askedPrompt(1000, 9, Policy::dense, 4));
    EXPECT_EQ(other->restore(path, nullptr).rows, 2600);
    EXPECT_EQ(other->plan(prompt).reusedTokens, 2600);
    Prompt next = prompt;
    next.tokens.resize(2600);
    for (int32_t token : randomTokens(21, 8)) next.tokens.push_back(token);
    next.borders.back() = lengthOf(next);
    session->plan(next);
    expectClose("restored", lastLogits(*other, next), lastLogits(*session, next),
                smallModel()->spec().vocabulary, {.relative = 1e-3, .kl = 1e-5});
  }
}

TEST_P(TinySessions, StepsEqualPrefill) {
  const CancelFlag never;
  const Prompt prompt = askedPrompt(700, 40, Policy::dense);
  for (const KvType kvCache : {KvType::bf16, KvType::q8}) {
    const std::vector<float> expected = open(kContextTokens, kvCache)->logits(prompt, 700);
    const int32_t vocabulary = smallModel()->spec().vocabulary;
    for (const size_t rows : {1, 2, 3, 4, 5, 7, 8}) {
      const auto model = smallModel();
      const auto backend =
          openBackend(*model, optionsOf(GetParam(), 1024, kvCache), never, nullptr);
      const Segment files{0, 700, true, 0, 0};
      Backend::Chunk chunk;
      chunk.segments = std::span(&files, 1);
      chunk.tokens = std::span(prompt.tokens).first(700);
      chunk.params = &prompt.params;
      chunk.outputBegin = 700;
      std::vector<SegmentAttention> attention;
      ASSERT_TRUE(backend->forward(chunk, never, attention));
      std::vector<float> stepped(expected.size());
      for (size_t row = 0; row < 40; row += rows) {
        const auto tokens = std::span(prompt.tokens).subspan(700 + row, std::min(rows, 40 - row));
        ASSERT_TRUE(backend->step(tokens, static_cast<int64_t>(700 + row),
                                  stepped.data() + row * static_cast<size_t>(vocabulary), never));
      }
      expectClose(
          std::to_string(rows) + (kvCache == KvType::q8 ? " rows a step, q8" : " rows a step"),
          stepped, expected, vocabulary, {.relative = 0.05, .kl = 2e-3});
    }
  }
}

// Rows that were guessed and turned out wrong leave no trace.
TEST_P(TinySessions, StepsReplaceRows) {
  const CancelFlag never;
  const auto model = smallModel();
  const auto vocabulary = static_cast<size_t>(model->spec().vocabulary);
  const std::vector<int32_t> tokens = randomTokens(64), wrong = randomTokens(64, 3);
  const auto backend = openBackend(*model, optionsOf(GetParam(), 256), never, nullptr);
  const auto other = openBackend(*model, optionsOf(GetParam(), 256), never, nullptr);
  std::vector<float> logits(8 * vocabulary), expected(8 * vocabulary);
  for (size_t row = 0; row < 64; row += 4) {
    const auto at = static_cast<int64_t>(row);
    ASSERT_TRUE(backend->step(std::span(wrong).subspan(row, std::min<size_t>(8, 64 - row)), at,
                              logits.data(), never));
    ASSERT_TRUE(backend->step(std::span(tokens).subspan(row, 4), at, logits.data(), never));
    ASSERT_TRUE(other->step(std::span(tokens).subspan(row, 4), at, expected.data(), never));
    ASSERT_EQ(std::memcmp(logits.data(), expected.data(), 4 * vocabulary * sizeof(float)), 0)
        << "row " << row;
  }
}

TEST_P(TinySessions, SpeculationChangesNoGreedyText) {
  // Repeats itself, so that there is much to guess.
  Prompt prompt = askedPrompt(600, 20, Policy::dense);
  for (size_t i = 200; i < prompt.tokens.size(); ++i) prompt.tokens[i] = prompt.tokens[i - 200];
  const auto answer = [&](bool speculate) {
    std::string text;
    SessionEvents events;
    events.onText = [&](const std::string& part) { text += part; };
    GenerateOptions options;
    options.maxTokens = 300;
    options.ignoreEnd = true;
    options.speculate = speculate;
    options.sampling.temperature = 0;
    const GenerateResult result = open()->generate(prompt, options, events);
    EXPECT_EQ(result.generatedTokens, 300);
    std::cout << (speculate ? "guessed " : "plain, guessed ") << result.draftedTokens
              << " tokens, right " << result.acceptedTokens << "\n";
    return text;
  };
  const std::string plain = answer(false), guessed = answer(true);
  const auto differ = std::mismatch(plain.begin(), plain.end(), guessed.begin(), guessed.end());
  // Rounding decides between equals: of random weights, one pick in some thousands.
  EXPECT_GT(differ.first - plain.begin(), static_cast<std::ptrdiff_t>(plain.size()) / 4);
}

TEST_P(TinySessions, CancelledPrefillEndsSoonAndKeepsAPrefix) {
  const Prompt prompt = askedPrompt(3900, 40, Policy::peak);
  const std::vector<float> expected = lastLogits(*open(), prompt);
  int cancelled = 0;
  for (int attempt = 0; attempt < 30; ++attempt) {
    const auto session = open();
    session->arm();
    std::atomic<bool> started = false;
    SessionEvents events;
    events.onPrefill = [&](const PrefillProgress&) { started = true; };
    Clock::time_point at;
    std::thread canceller([&] {
      while (!started) std::this_thread::yield();
      std::this_thread::sleep_for(std::chrono::microseconds(attempt * 150));
      at = Clock::now();
      session->cancel();
    });
    bool finished = true;
    try {
      session->generate(prompt, {}, events);
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::cancelled) << error.message();
      finished = false;
    }
    const Clock::time_point ended = Clock::now();
    started = true;
    canceller.join();
    session->arm();
    if (finished) continue;
    ++cancelled;
    EXPECT_LT(std::chrono::duration_cast<std::chrono::milliseconds>(ended - at).count(), 250);
    EXPECT_LT(session->plan(prompt).reusedTokens, lengthOf(prompt) - 1);
    if (attempt % 5 == 0)
      expectClose("after a cancel", lastLogits(*session, prompt), expected,
                  smallModel()->spec().vocabulary, kSame);
  }
  EXPECT_GT(cancelled, 0);
}

TEST_P(TinySessions, TwoAtOnce) {
  const auto run = [&](uint32_t seed, std::vector<float>& out) {
    const auto model = smallModel();
    const Prompt prompt = askedPrompt(2500, 40, Policy::peak, seed);
    const auto session = sessionOf(model, optionsOf(GetParam(), kContextTokens));
    for (int i = 0; i < 5; ++i) {
      session->reset();
      out = session->logits(prompt, 2500);
    }
  };
  smallModel();
  std::vector<float> alone[2], together[2];
  run(1, alone[0]);
  run(2, alone[1]);
  std::thread first([&] { run(1, together[0]); });
  std::thread second([&] { run(2, together[1]); });
  first.join();
  second.join();
  EXPECT_TRUE(sameBits(alone[0], together[0]));
  EXPECT_TRUE(sameBits(alone[1], together[1]));
}

// Two sessions of one model share its weights and take turns.
TEST_P(TinySessions, TwoOfOneModel) {
  const auto model = smallModel();
  const auto a = sessionOf(model, optionsOf(GetParam(), kContextTokens));
  const auto b = sessionOf(model, optionsOf(GetParam(), kContextTokens, KvType::q8));
  const Prompt prompt = askedPrompt(1500, 40, Policy::peak);
  const std::vector<float> before = a->logits(prompt, 1500);
  b->logits(askedPrompt(1000, 40, Policy::mass, 3), 1000);
  a->reset();
  EXPECT_TRUE(sameBits(a->logits(prompt, 1500), before));
}

TEST_P(TinySessions, RefusesWhatDoesNotFit) {
  try {
    open(int64_t{1} << 40);
    FAIL() << "no error";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::invalidParams) << error.message();
  }
  const auto session = open(256);
  EXPECT_EQ(errorOf([&] { session->generate(askedPrompt(300, 9, Policy::dense), {}, {}); }).code(),
            ErrorCode::promptTooLong);
  // It still works.
  EXPECT_EQ(session->generate(askedPrompt(200, 9, Policy::dense), {}, {}).prefill.computedTokens,
            209);
}

}  // namespace
}  // namespace longsight::test
