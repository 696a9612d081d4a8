// Sessions that are saved by one and restored by another: with the real model and tiny ones.
#include <gtest/gtest.h>

#include <chrono>
#include <cstring>
#include <filesystem>
#include <iostream>

#include "error.h"
#include "real_session.h"
#include "session/session.h"
#include "temporary.h"
#include "tiny_model.h"

namespace longsight::test {
namespace {

std::unique_ptr<Session> newSession(const std::shared_ptr<Model>& model, int64_t contextTokens,
                                    KvType kvCache = KvType::bf16, double ropeBaseScale = 1) {
  const CancelFlag never;
  const SessionOptions options{contextTokens, 2, ropeBaseScale, kvCache};
  return std::make_unique<Session>(model, options, never, nullptr);
}

Prompt question(Model& model, int64_t fileTokens, const std::string& text) {
  Prompt prompt;
  model.tokenizer().tokenize(realText(static_cast<size_t>(fileTokens) * 6), false, prompt.tokens);
  prompt.tokens.resize(static_cast<size_t>(fileTokens));
  std::vector<int32_t> asked;
  model.tokenizer().tokenize(text, false, asked);
  prompt.tokens.insert(prompt.tokens.end(), asked.begin(), asked.end());
  prompt.borders = {fileTokens, static_cast<int64_t>(prompt.tokens.size())};
  prompt.denseFrom = fileTokens;
  prompt.params.denseBelowTokens = 512;
  prompt.params.segmentRows = 512;
  return prompt;
}

bool sameBits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

template <typename Body>
ErrorCode codeOf(const Body& body) {
  try {
    body();
  } catch (const Error& error) {
    return error.code();
  }
  ADD_FAILURE() << "no error";
  return ErrorCode::internal;
}

double msOf(const std::function<void()>& body) {
  const auto start = std::chrono::steady_clock::now();
  body();
  return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start)
      .count();
}

TEST(SaveRestore, TheSamePromptGivesTheSameBits) {
  const auto model = std::make_shared<Model>(realModelPath());
  const std::string path = temporaryPath("real.session");
  const Prompt first = question(*model, 3000, "\nQuestion: what is saved?\nAnswer:");
  const Prompt second = question(*model, 3000, "\nWhich file reads the GGUF header?");

  auto session = newSession(model, 4096);
  const GenerateResult cold =
      session->generate(first, {.maxTokens = 4, .sampling = {}, .ignoreEnd = true}, {});
  // The workspace alone, as the product saves it; and all rows, the answer's too.
  const SavedRows saved = session->save(path, first.denseFrom, nullptr);
  EXPECT_EQ(saved.rows, 3000);
  EXPECT_EQ(saved.bytes, std::filesystem::file_size(path));
  EXPECT_EQ(session->savedBytes(first.denseFrom), saved.bytes);
  EXPECT_GT(session->savedBytes(1 << 20), saved.bytes);

  auto other = newSession(model, 3500);
  SavedRows restored;
  GenerateResult warm;
  const double restoreMs = msOf([&] { restored = other->restore(path, nullptr); });
  EXPECT_EQ(restored.rows, 3000);
  EXPECT_EQ(other->plan(second).reusedTokens, 3000);
  warm = other->generate(second, {.maxTokens = 4, .sampling = {}, .ignoreEnd = true}, {});
  std::cout << "prefill cold " << cold.prefillMs << " ms; restore " << restoreMs << " ms of "
            << restored.bytes << " bytes, then prefill " << warm.prefillMs << " ms\n";
  EXPECT_LT(restoreMs + warm.prefillMs, 0.15 * cold.prefillMs);
  EXPECT_EQ(warm.attention.sparseDensity, cold.attention.sparseDensity);
  EXPECT_EQ(warm.attention.coverageMean, cold.attention.coverageMean);

  session->save(path, 1 << 20, nullptr);
  other->restore(path, nullptr);
  EXPECT_TRUE(sameBits(lastLogits(*session, second), lastLogits(*other, second)));
}

TEST(SaveRestore, KeepsRowsOf8BitIntegers) {
  const std::string modelPath = temporaryPath("q8.gguf"), path = temporaryPath("q8.session");
  writeTinyModel(modelPath, {});
  const auto model = std::make_shared<Model>(modelPath);
  auto session = newSession(model, 1024, KvType::q8);
  const Prompt prompt = question(*model, 700, "Why?");
  lastLogits(*session, prompt);
  session->save(path, 1 << 20, nullptr);
  auto other = newSession(model, 2000, KvType::q8);
  other->restore(path, nullptr);
  EXPECT_GT(other->plan(prompt).reusedTokens, 600);
  EXPECT_TRUE(sameBits(lastLogits(*other, prompt), lastLogits(*session, prompt)));
}

TEST(SaveRestore, AFreshCacheSavesNothing) {
  const std::string modelPath = temporaryPath("nothing.gguf"),
                    path = temporaryPath("nothing.session");
  writeTinyModel(modelPath, {});
  auto session = newSession(std::make_shared<Model>(modelPath), 512);
  EXPECT_EQ(codeOf([&] { session->save(path, 100, nullptr); }), ErrorCode::invalidParams);
  EXPECT_FALSE(std::filesystem::exists(path));
}

TEST(SaveRestore, KnowsItsModelByContent) {
  const std::string modelPath = temporaryPath("tiny.gguf"), path = temporaryPath("tiny.session");
  writeTinyModel(modelPath, {});
  const auto model = std::make_shared<Model>(modelPath);
  auto session = newSession(model, 1024);
  const Prompt prompt = question(*model, 700, "Why?");
  const std::vector<float> expected = lastLogits(*session, prompt);
  session->save(path, 1 << 20, nullptr);

  // A copy elsewhere is the same model.
  const std::string copyPath = temporaryPath("copy.gguf");
  std::filesystem::copy_file(modelPath, copyPath);
  auto copy = newSession(std::make_shared<Model>(copyPath), 1024);
  EXPECT_EQ(copy->restore(path, nullptr).rows, session->plan(prompt).promptTokens);
  EXPECT_TRUE(sameBits(lastLogits(*copy, prompt), expected));

  // One bit of one weight, or one number of the metadata, makes another one.
  std::string bytes = readFile(modelPath);
  bytes[bytes.size() - 1000] ^= 1;
  const std::string weightPath = temporaryPath("weight.gguf");
  writeFile(weightPath, bytes);
  const std::string metadataPath = temporaryPath("metadata.gguf");
  TinyModel changed;
  changed.change = [](gguf_context* file) {
    gguf_set_val_f32(file, "llama.rope.freq_base", 20000.0f);
  };
  writeTinyModel(metadataPath, changed);
  for (const std::string& otherPath : {weightPath, metadataPath}) {
    auto other = newSession(std::make_shared<Model>(otherPath), 1024);
    const std::vector<float> before = lastLogits(*other, prompt);
    const int64_t reusable = other->plan(prompt).reusedTokens;
    EXPECT_EQ(codeOf([&] { other->restore(path, nullptr); }), ErrorCode::otherSessionFile);
    EXPECT_EQ(other->plan(prompt).reusedTokens, reusable) << "a refused file costs nothing";
    EXPECT_TRUE(sameBits(lastLogits(*other, prompt), before));
  }
  auto scaled = newSession(model, 1024, KvType::bf16, 2);
  EXPECT_EQ(codeOf([&] { scaled->restore(path, nullptr); }), ErrorCode::otherSessionFile);
  auto rounded = newSession(model, 1024, KvType::q8);
  EXPECT_EQ(codeOf([&] { rounded->restore(path, nullptr); }), ErrorCode::otherSessionFile);
  auto small = newSession(model, 600);
  EXPECT_EQ(codeOf([&] { small->restore(path, nullptr); }), ErrorCode::otherSessionFile);
}

TEST(SaveRestore, DamagedRowsOrACancelLeaveAnEmptyCache) {
  const std::string modelPath = temporaryPath("rows.gguf"), path = temporaryPath("rows.session");
  writeTinyModel(modelPath, {});
  const auto model = std::make_shared<Model>(modelPath);
  auto session = newSession(model, 4096);
  const Prompt prompt = question(*model, 3500, "Why?");
  const std::vector<float> expected = lastLogits(*session, prompt);
  session->save(path, 1 << 20, nullptr);
  std::string bytes = readFile(path);
  ASSERT_GT(bytes.size(), 3u << 20);

  auto other = newSession(model, 4096);
  auto cancelAfterFirst = [&](uint64_t, uint64_t) { other->cancel(); };
  EXPECT_EQ(codeOf([&] { other->restore(path, cancelAfterFirst); }), ErrorCode::cancelled);
  other->arm();
  EXPECT_EQ(other->plan(prompt).reusedTokens, 0);

  bytes[bytes.size() - 100] ^= 4;
  writeFile(path, bytes);
  EXPECT_EQ(codeOf([&] { other->restore(path, nullptr); }), ErrorCode::damagedSessionFile);
  EXPECT_EQ(other->plan(prompt).reusedTokens, 0);
  EXPECT_TRUE(sameBits(lastLogits(*other, prompt), expected)) << "it goes on all the same";
}

}  // namespace
}  // namespace longsight::test
