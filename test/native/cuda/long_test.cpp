// What only a GPU does in the time of a test: long prompts, real sizes, memory to the byte.
#include <atomic>
#include <chrono>
#include <cmath>
#include <iostream>
#include <thread>

#include "cuda/library.h"
#include "engine_case.h"
#include "error.h"
#include "model/synthetic.h"
#include "session/open_backend.h"
#include "temporary.h"

namespace longsight::test {
namespace {

using Clock = std::chrono::steady_clock;

double msSince(Clock::time_point start) {
  return std::chrono::duration<double, std::milli>(Clock::now() - start).count();
}

uint64_t freeDeviceBytes() {
  const CudaLibrary& library = CudaLibrary::get();
  return cudaDevices(library).choose(-1).freeBytes;
}

class GpuEngine : public OnGpu {};

constexpr int64_t kLongTokens = 200'000;

std::shared_ptr<Model> longModel(int layers) {
  return tinyModel("long-" + std::to_string(layers),
                   R"("arch": "llama", "context": 262144, "layers": )" + std::to_string(layers) +
                       R"(, "keys": {"rope.freq_base": 5000000.0})");
}

// The last layer computes only what is wanted of most rows, so the CPU can follow one layer.
TEST_F(GpuEngine, DenseRowsAtTheEndOf200000) {
  const auto model = longModel(1);
  const Prompt prompt = promptOf(randomTokens(kLongTokens), Policy::dense);
  for (const KvType kvCache : {KvType::bf16, KvType::q8}) {
    const auto reference = [&] {
      const ForcedCpu portable("portable");
      return sessionOf(model, optionsOf(BackendKind::cpu, kLongTokens + 8, kvCache));
    }();
    expectClose("dense, 200,000 tokens",
                sessionOf(model, optionsOf(BackendKind::cuda, kLongTokens + 8, kvCache))
                    ->logits(prompt, kLongTokens - 16),
                reference->logits(prompt, kLongTokens - 16), model->spec().vocabulary,
                {.relative = 0.05, .kl = 2e-3});
  }
}

TEST_F(GpuEngine, SparsePromptOf200000) {
  const auto model = longModel(2);
  Prompt prompt = askedPrompt(kLongTokens - 64, 64, Policy::peak);
  prompt.params = SampleAttentionParams{};
  // Of the sums that random weights give, more columns than maxListShare are above the default.
  prompt.params.epsilon = 0.05;
  const GenerateResult gpu = [&] {
    const auto session = sessionOf(model, optionsOf(BackendKind::cuda, kLongTokens + 8));
    return session->generate(prompt, {}, {});
  }();
  const auto cpu = sessionOf(model, optionsOf(BackendKind::cpu, kLongTokens + 8));
  const GenerateResult expected = cpu->generate(prompt, {}, {});
  std::cout << "200,000 tokens: GPU " << gpu.prefillMs << " ms, CPU " << expected.prefillMs
            << " ms; sparse density " << *gpu.attention.sparseDensity << " and "
            << *expected.attention.sparseDensity << ", coverage " << *gpu.attention.coverageMean
            << " and " << *expected.attention.coverageMean << "\n";
  EXPECT_LT(*expected.attention.sparseDensity, 0.5);
  EXPECT_NEAR(*gpu.attention.sparseDensity, *expected.attention.sparseDensity,
              0.01 * *expected.attention.sparseDensity);
  EXPECT_NEAR(*gpu.attention.coverageMean, *expected.attention.coverageMean, 0.01);
}

// 20,000 rows are several chunks, and 300 short parts several groups of segments.
TEST_F(GpuEngine, ChunkBorders) {
  const auto model = longModel(2);
  Prompt prompt = askedPrompt(20'000, 64, Policy::peak);
  const auto logits = [&](int64_t chunkRows) {
    SessionOptions options = optionsOf(BackendKind::cuda, 20'100);
    options.chunkRows = chunkRows;
    const auto session = sessionOf(model, options);
    if (chunkRows > 0) {
      EXPECT_LE(session->backend().chunking().rows, chunkRows);
    }
    return session->logits(prompt, 20'000);
  };
  const std::vector<float> expected = logits(0);
  for (const int64_t rows : {1024, 4096, 8192})
    expectClose("chunks of " + std::to_string(rows), logits(rows), expected,
                model->spec().vocabulary, {.relative = 0.03, .kl = 8e-4});
  prompt.params.segmentRows = 256;
  prompt.borders.clear();
  for (int64_t border = 1100; border < 20'000; border += 1024 + border % 63)
    prompt.borders.push_back(border);
  prompt.borders.push_back(20'000);
  prompt.borders.push_back(20'064);
  const std::vector<float> manyParts = logits(0);
  expectClose("many parts", logits(2048), manyParts, model->spec().vocabulary,
              {.relative = 0.03, .kl = 8e-4});
}

TEST_F(GpuEngine, AThousandCyclesLeakNothing) {
  const auto model = longModel(2);
  const Prompt prompt = askedPrompt(12'000, 32, Policy::peak);
  const auto cycle = [&](Session& session, int i) {
    session.arm();
    session.reset();
    std::atomic<bool> started = false;
    SessionEvents events;
    events.onPrefill = [&](const PrefillProgress& progress) {
      started = true;
      if (i % 3 == 0 && progress.done > 0) session.cancel();
    };
    std::thread canceller;
    if (i % 3 == 1)
      canceller = std::thread([&] {
        while (!started) std::this_thread::yield();
        std::this_thread::sleep_for(std::chrono::microseconds(i % 17 * 200));
        session.cancel();
      });
    bool finished = true;
    try {
      session.generate(prompt, {.maxTokens = 2, .sampling = {}, .ignoreEnd = true}, events);
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::cancelled) << error.message();
      finished = false;
    }
    started = true;
    if (canceller.joinable()) canceller.join();
    return finished;
  };
  auto session = sessionOf(model, optionsOf(BackendKind::cuda, 12'100));
  cycle(*session, 2);
  const uint64_t before = freeDeviceBytes();
  int finished = 0;
  for (int i = 0; i < 1000; ++i) finished += cycle(*session, i);
  const uint64_t after = freeDeviceBytes();
  std::cout << "1,000 cycles, " << finished << " of them finished; free before " << before
            << ", after " << after << "\n";
  EXPECT_EQ(before, after);
  EXPECT_GT(finished, 300);
  EXPECT_LT(finished, 900);

  // And sessions that are made and destroyed.
  session.reset();
  const auto reopen = [&] { sessionOf(model, optionsOf(BackendKind::cuda, 12'100)); };
  reopen();
  const uint64_t closed = freeDeviceBytes();
  for (int i = 0; i < 20; ++i) reopen();
  EXPECT_EQ(freeDeviceBytes(), closed);
}

TEST_F(GpuEngine, RefusesADeviceThatIsNotThere) {
  SessionOptions options = optionsOf(BackendKind::cuda, 256);
  options.device = 99;
  const Error error = errorOf([&] { sessionOf(longModel(1), options); });
  EXPECT_EQ(error.code(), ErrorCode::deviceUnavailable);
  EXPECT_NE(error.message().find("99"), std::string::npos) << error.message();
  EXPECT_FALSE(error.action().empty());
}

// Planes of the two caches differ, and so do their bits.
TEST_F(GpuEngine, SessionsOfTheCpuAreNotRestored) {
  const auto model = longModel(2);
  const std::string path = temporaryPath("other.session");
  const Prompt prompt = askedPrompt(2000, 20, Policy::peak);
  const auto cpu = sessionOf(model, optionsOf(BackendKind::cpu, 2100));
  const auto gpu = sessionOf(model, optionsOf(BackendKind::cuda, 2100));
  cpu->generate(prompt, {}, {});
  cpu->save(path, 2000, nullptr);
  EXPECT_EQ(errorOf([&] { gpu->restore(path, nullptr); }).code(), ErrorCode::otherSessionFile);
  gpu->generate(prompt, {}, {});
  gpu->save(path, 2000, nullptr);
  EXPECT_EQ(errorOf([&] { cpu->restore(path, nullptr); }).code(), ErrorCode::otherSessionFile);
  EXPECT_EQ(gpu->plan(prompt).reusedTokens, lengthOf(prompt) - 1) << "the refused file changed it";
}

// ---- real sizes --------------------------------------------------------------------------------

struct Big {
  std::shared_ptr<Model> model =
      std::make_shared<Model>(syntheticSpec("llama-3.1-8b", "q4_k_m"), 7);
  Prompt prompt;

  explicit Big(int64_t tokens) {
    prompt = askedPrompt(tokens - 64, 64, Policy::peak);
    prompt.params = SampleAttentionParams{};
    prompt.forcedDensity = 0.13;
  }
};

TEST_F(GpuEngine, BigMemoryIsWhatWasEstimated) {
  for (const KvType kvCache : {KvType::bf16, KvType::q8}) {
    const Big big(65'536);
    const SessionOptions options = optionsOf(BackendKind::cuda, 131'072, kvCache);
    const MemoryEstimate estimate = big.model->estimate(options, big.prompt.params);
    const uint64_t before = freeDeviceBytes();
    const auto session = sessionOf(big.model, options);
    uint64_t least = before;
    const auto look = [&] { least = std::min(least, freeDeviceBytes()); };
    SessionEvents events;
    events.onPrefill = [&](const PrefillProgress&) { look(); };
    events.onText = [&](const std::string&) { look(); };
    GenerateOptions generate;
    generate.maxTokens = 20;
    generate.ignoreEnd = true;
    const GenerateResult result = session->generate(big.prompt, generate, events);
    look();
    // What the driver takes is there already, from the session that OnGpu keeps open.
    const auto estimated =
        static_cast<double>(estimate.weightBytes + estimate.kvBytes + estimate.scratchBytes);
    const auto taken = static_cast<double>(before - least);
    std::cout << "prefill of 65,536 tokens " << result.prefillMs << " ms; estimated "
              << estimated / 1e9 << " GB and " << static_cast<double>(estimate.fixedBytes) / 1e9
              << " for the driver, taken " << taken / 1e9 << " GB\n";
    EXPECT_NEAR(taken, estimated, 0.03 * estimated);
    EXPECT_EQ(result.memory.weightBytes, estimate.weightBytes);
    EXPECT_EQ(result.memory.kvBytes, estimate.kvBytes);
  }
}

TEST_F(GpuEngine, BigPromptOf200000) {
  const Big big(kLongTokens);
  const auto session = sessionOf(big.model, optionsOf(BackendKind::cuda, kLongTokens + 100));
  const GenerateResult result =
      session->generate(big.prompt, {.maxTokens = 5, .sampling = {}, .ignoreEnd = true}, {});
  std::cout << "200,000 tokens of the 8B shape: " << result.prefillMs << " ms, density "
            << result.attention.density << "\n";
  EXPECT_NEAR(*result.attention.sparseDensity, 0.13, 0.02);
  EXPECT_GT(session->plan(big.prompt).reusedTokens, kLongTokens - 2);
  const std::vector<float> logits = lastLogits(*session, big.prompt);
  double squares = 0;
  for (float value : logits) squares += double{value} * value;
  EXPECT_TRUE(std::isfinite(squares));
  EXPECT_GT(squares, 0);
}

TEST_F(GpuEngine, BigCancelTakesLessThan250Ms) {
  const Big big(131'072);
  const auto session = sessionOf(big.model, optionsOf(BackendKind::cuda, 131'100));
  double worst = 0;
  for (const int waitMs : {20, 150, 400, 900, 1700}) {
    session->arm();
    session->reset();
    std::atomic<bool> started = false;
    SessionEvents events;
    events.onPrefill = [&](const PrefillProgress&) { started = true; };
    Clock::time_point at;
    std::thread canceller([&] {
      while (!started) std::this_thread::sleep_for(std::chrono::milliseconds(1));
      std::this_thread::sleep_for(std::chrono::milliseconds(waitMs));
      at = Clock::now();
      session->cancel();
    });
    const Error error = errorOf([&] { session->generate(big.prompt, {}, events); });
    const double ms = msSince(at);
    canceller.join();
    EXPECT_EQ(error.code(), ErrorCode::cancelled) << error.message();
    EXPECT_LT(ms, 250);
    session->arm();
    const int64_t kept = session->plan(big.prompt).reusedTokens;
    std::cout << "cancelled after " << waitMs << " ms: ended " << ms << " ms later, " << kept
              << " rows kept\n";
    worst = std::max(worst, ms);
    EXPECT_LT(kept, lengthOf(big.prompt));
  }
  std::cout << "worst " << worst << " ms\n";
  // The prefix is of use: the rest gives finite logits.
  const GenerateResult result =
      session->generate(big.prompt, {.maxTokens = 1, .sampling = {}, .ignoreEnd = true}, {});
  EXPECT_GT(result.prefill.reusedTokens, 0);
}

TEST_F(GpuEngine, BigContextsThatDoNotFitSayWhatWould) {
  const Big big(4096);
  SessionOptions options = optionsOf(BackendKind::cuda, int64_t{1} << 20);
  const Error error = errorOf([&] { sessionOf(big.model, options); });
  EXPECT_EQ(error.code(), ErrorCode::notEnoughMemory);
  std::cout << error.message() << " " << error.action() << "\n";
  const MemoryEstimate estimate = big.model->estimate(options, big.prompt.params);
  EXPECT_FALSE(estimate.fits);
  ASSERT_GT(estimate.largestContextTokens, 131'072);
  EXPECT_NE((error.message() + error.action()).find(std::to_string(estimate.largestContextTokens)),
            std::string::npos);
  // It does fit, and works.
  options.contextTokens = estimate.largestContextTokens;
  const auto session = sessionOf(big.model, options);
  EXPECT_EQ(session->generate(big.prompt, {.maxTokens = 2, .sampling = {}, .ignoreEnd = true}, {})
                .generatedTokens,
            2);
}

}  // namespace
}  // namespace longsight::test
