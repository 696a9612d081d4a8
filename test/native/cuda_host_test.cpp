// The host side of the CUDA backend over a library that only pretends (fake_cuda.cpp): errors,
// weights on their way to a device, sessions above the boundary. No GPU is needed.
#include <dlfcn.h>
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <iostream>
#include <random>

#include "cpu/rope.h"
#include "cpu/weights.h"
#include "cuda/backend.h"
#include "cuda/library.h"
#include "cuda/session_desc.h"
#include "error.h"
#include "fake_cuda.h"
#include "model/synthetic.h"
#include "real_session.h"
#include "session/session.h"
#include "session/text_stream.h"
#include "temporary.h"
#include "tiny_gguf.h"
#include "tiny_model.h"

namespace longsight::test {
namespace {

using Clock = std::chrono::steady_clock;

void* fakeSymbol(const char* name) {
  static void* library = dlopen(LONGSIGHT_FAKE_CUDA, RTLD_NOW | RTLD_LOCAL);
  return library ? dlsym(library, name) : nullptr;
}
FakeState& fake() { return *reinterpret_cast<FakeStateFunction>(fakeSymbol("fakeCudaState"))(); }

class CudaHost : public ::testing::Test {
 protected:
  void SetUp() override {
    setenv("LONGSIGHT_CUDA_LIBRARY", LONGSIGHT_FAKE_CUDA, 1);
    ASSERT_NE(fakeSymbol("fakeCudaState"), nullptr);
    behave("");
    fake() = {};
  }
  void TearDown() override {
    behave("");
    EXPECT_EQ(fake().models, 0);
    EXPECT_EQ(fake().sessions, 0);
    EXPECT_EQ(fake().bytes, 0);
  }
  static void behave(const char* name, int64_t totalBytes = 0) {
    reinterpret_cast<FakeBehaveFunction>(fakeSymbol("fakeCudaBehave"))(name, totalBytes);
  }
};

std::shared_ptr<Model> tinyModel(const std::string& name, const TinyModel& tiny = {}) {
  const std::string path = temporaryPath("cuda-" + name);
  writeTinyModel(path, tiny);
  return std::make_shared<Model>(path);
}

SessionOptions onCuda(int64_t contextTokens) {
  SessionOptions options;
  options.contextTokens = contextTokens;
  options.backend = BackendKind::cuda;
  return options;
}

std::unique_ptr<Session> cudaSession(const std::shared_ptr<Model>& model,
                                     int64_t contextTokens = 4096) {
  const CancelFlag never;
  return std::make_unique<Session>(model, onCuda(contextTokens), never, nullptr);
}

Prompt promptOf(size_t count, int64_t denseFrom, uint64_t seed = 1) {
  std::mt19937_64 random(seed);
  Prompt prompt;
  for (size_t i = 0; i < count; ++i) prompt.tokens.push_back(static_cast<int32_t>(random() % 250));
  prompt.borders = {denseFrom, static_cast<int64_t>(count)};
  prompt.denseFrom = denseFrom;
  prompt.params.denseBelowTokens = 256;
  prompt.params.segmentRows = 512;
  return prompt;
}

// What the library must answer to these tokens.
std::vector<int32_t> expectedAnswer(const std::vector<int32_t>& tokens, size_t count) {
  uint64_t hash = 1;
  int64_t row = 0;
  std::vector<int32_t> answer;
  for (const int32_t token : tokens) hash = fakeRow(hash, token, row++);
  while (answer.size() < count) {
    answer.push_back(fakeNext(hash, row - 1, kTinyVocabulary));
    hash = fakeRow(hash, answer.back(), row++);
  }
  return answer;
}

std::string textOf(const Model& model, const std::vector<int32_t>& tokens) {
  TextStream stream({});
  std::string text;
  for (const int32_t token : tokens) text += stream.push(model.tokenizer().piece(token, false));
  return text + stream.finish();
}

struct Answer {
  std::string text;
  GenerateResult result;
};
Answer ask(Session& session, const Prompt& prompt, int64_t most, bool speculate) {
  Answer answer;
  SessionEvents events;
  events.onText = [&](const std::string& text) { answer.text += text; };
  answer.result = session.generate(
      prompt, {.maxTokens = most, .ignoreEnd = true, .speculate = speculate}, events);
  return answer;
}

TEST_F(CudaHost, SaysWhyALibraryIsNotUsed) {
  const Error missing = errorOf([] { CudaLibrary("/no/such/longsight-cuda.so"); });
  EXPECT_EQ(missing.code(), ErrorCode::deviceUnavailable);
  EXPECT_NE(missing.message().find("/no/such/longsight-cuda.so"), std::string::npos);
  EXPECT_NE(missing.action().find("CPU"), std::string::npos);
  const Error text = errorOf([] {
    const std::string path = temporaryPath("text.so");
    writeFile(path, "no library");
    CudaLibrary{path};
  });
  EXPECT_EQ(text.code(), ErrorCode::deviceUnavailable);
  const Error other = errorOf([] { CudaLibrary("libm.so.6"); });
  EXPECT_EQ(other.code(), ErrorCode::deviceUnavailable);
  EXPECT_NE(other.message().find("is not the CUDA engine"), std::string::npos);
  const Error version = errorOf([] { CudaLibrary{LONGSIGHT_OTHER_CUDA}; });
  EXPECT_EQ(version.code(), ErrorCode::deviceUnavailable);
  EXPECT_NE(version.message().find("version"), std::string::npos);
}

TEST_F(CudaHost, SaysWhyADeviceIsNotUsed) {
  const CudaLibrary& library = CudaLibrary::get();
  struct Case {
    const char* behaviour;
    const char* message;
    const char* action;
  };
  for (const auto& [behaviour, message, action] :
       {Case{"noDriver", "libcuda", "Install the NVIDIA driver"},
        Case{"oldDriver", "550.1", "580"}}) {
    behave(behaviour);
    const Error error = errorOf([&] { cudaDevices(library); });
    EXPECT_EQ(error.code(), ErrorCode::deviceUnavailable);
    EXPECT_NE(error.message().find(message), std::string::npos) << error.message();
    EXPECT_NE(error.action().find(action), std::string::npos) << error.action();
  }
  behave("noDevice");
  EXPECT_TRUE(cudaDevices(library).all.empty());
  EXPECT_EQ(errorOf([&] { cudaDevices(library).choose(-1); }).code(), ErrorCode::deviceUnavailable);
  behave("oldDevice");
  const CudaDevices old = cudaDevices(library);
  ASSERT_EQ(old.all.size(), 2u);
  EXPECT_NE(old.all[0].refusal.find("7.5"), std::string::npos);
  EXPECT_EQ(errorOf([&] { old.choose(-1); }).code(), ErrorCode::deviceUnavailable);
  EXPECT_NE(errorOf([&] { old.choose(1); }).message().find("7.5"), std::string::npos);
  behave("");
  EXPECT_EQ(cudaDevices(library).choose(-1).ordinal, 1) << "the most free memory";
  EXPECT_EQ(cudaDevices(library).choose(0).ordinal, 0);
  EXPECT_NE(errorOf([&] { cudaDevices(library).choose(5); }).message().find("0: Fake 0"),
            std::string::npos);
  behave("oneOld");
  EXPECT_EQ(cudaDevices(library).choose(-1).ordinal, 0);
}

TEST_F(CudaHost, ModelsThatTheKernelsLackAreForTheCpu) {
  behave("unsupported");
  const Error error = errorOf([] { cudaSession(tinyModel("unsupported.gguf")); });
  EXPECT_EQ(error.code(), ErrorCode::deviceUnavailable);
  EXPECT_NE(error.action().find("CPU"), std::string::npos);
}

// Every tensor of the device has the bytes that the CPU backend multiplies with.
void expectWeights(const std::shared_ptr<Model>& model) {
  const CancelFlag never;
  const auto session = cudaSession(model, 256);
  const std::shared_ptr<const Weights> weights = model->weights(never, nullptr);
  size_t compared = 0;
  for (const FakeTensor& tensor : fake().tensors) {
    const void* expected = nullptr;
    const LayerWeights& layer = weights->layer(tensor.layer);
    switch (tensor.role) {
      case LS_TOKEN_EMBEDDING:
        expected = weights->tokenEmbedding().data;
        break;
      case LS_OUTPUT:
        expected = weights->output().matrix.data;
        break;
      case LS_OUTPUT_NORM:
        expected = weights->outputNorm();
        break;
      case LS_OUTPUT_BIAS:
        expected = weights->output().bias;
        break;
      case LS_LAYER_NORM:
        expected = layer[static_cast<Norm>(tensor.part)];
        break;
      case LS_LAYER_MATRIX:
        expected = layer[static_cast<Matrix>(tensor.part)].matrix.data;
        EXPECT_EQ(layer[static_cast<Matrix>(tensor.part)].matrix.rows, tensor.rows);
        break;
      case LS_LAYER_BIAS:
        expected = layer[static_cast<Matrix>(tensor.part)].bias;
        break;
    }
    ASSERT_NE(expected, nullptr) << tensor.role << " " << tensor.part;
    ASSERT_EQ(std::memcmp(expected, tensor.bytes.data(), tensor.bytes.size()), 0)
        << tensor.role << " " << tensor.layer << " " << tensor.part;
    ++compared;
  }
  // All matrices and the norms before them; what else there is, the CPU's weights know.
  const auto layers = static_cast<size_t>(model->spec().layers);
  size_t least = 2 + layers * (kMatrices + 2);
  for (size_t index = 0; index < layers; ++index)
    for (size_t matrix = 0; matrix < kMatrices; ++matrix)
      least +=
          weights->layer(static_cast<int32_t>(index))[static_cast<Matrix>(matrix)].bias != nullptr;
  EXPECT_GE(compared, least);
}

TEST_F(CudaHost, EveryTensorArrivesOnce) {
  expectWeights(tinyModel("plain.gguf"));
  expectWeights(tinyModel("all.gguf", {.type = GGML_TYPE_Q8_0,
                                       .layers = 3,
                                       .tiedOutput = true,
                                       .biases = true,
                                       .ropeFactors = true}));
  expectWeights(std::make_shared<Model>(realModelPath()));
  std::vector<TinyGguf> models;
  for (const std::string arch : {"qwen2", "qwen3", "internlm2", "chatglm", "glm4"})
    models.push_back({"cuda-" + arch, "\"arch\": \"" + arch + "\""});
  writeTinyGgufs(models);
  for (const TinyGguf& model : models)
    expectWeights(std::make_shared<Model>(tinyGgufPath(model.name)));
}

TEST_F(CudaHost, LoadingStopsSoonAndTellsOfShortFiles) {
  const std::string path = temporaryPath("cuda-short.gguf");
  std::filesystem::copy_file(realModelPath(), path);
  {
    const auto model = std::make_shared<Model>(path);
    CancelFlag cancel;
    uint64_t done = 0;
    EXPECT_EQ(errorOf([&] {
                Session(model, onCuda(256), cancel, [&](uint64_t doneBytes, uint64_t total) {
                  EXPECT_GT(doneBytes, done);
                  EXPECT_LE(doneBytes, total);
                  done = doneBytes;
                  if (2 * doneBytes > total) cancel.set();
                });
              }).code(),
              ErrorCode::cancelled);
    EXPECT_EQ(fake().bytes, 0);
    // It becomes shorter after it was checked.
    std::filesystem::resize_file(path, std::filesystem::file_size(path) / 2);
    EXPECT_EQ(errorOf([&] { cudaSession(model, 256); }).code(), ErrorCode::truncatedGguf);
  }
  std::filesystem::remove(path);
}

TEST_F(CudaHost, AnswersAndGuessesOverSeveralChunks) {
  const auto model = tinyModel("answers.gguf");
  const Prompt prompt = promptOf(3000, 2900);
  auto session = cudaSession(model);
  const Answer slow = ask(*session, prompt, 150, false);
  EXPECT_EQ(slow.text, textOf(*model, expectedAnswer(prompt.tokens, 150)));
  // Chunks of 1,024 rows: whole segments, several at once.
  EXPECT_EQ(fake().forwardRows, 3000);
  EXPECT_GE(fake().forwardCalls, 3);
  EXPECT_LE(fake().forwardCalls, 5);
  const int64_t slowSteps = fake().steps;
  EXPECT_EQ(slowSteps, 149);
  const Answer fast = ask(*session, prompt, 150, true);
  EXPECT_EQ(fast.text, slow.text);
  EXPECT_GT(fast.result.acceptedTokens, 5);
  EXPECT_LT(fake().steps - slowSteps, 149);
  EXPECT_EQ(slow.result.backend, BackendKind::cuda);
  EXPECT_GT(slow.result.times.linearMs, 0);
  EXPECT_EQ(slow.result.times.attentionMs, slow.result.times.attendMs);
  EXPECT_EQ(slow.result.memory.fixedBytes, 1000u);
  ASSERT_TRUE(slow.result.memory.peakBytes);
  EXPECT_EQ(*slow.result.memory.peakBytes, static_cast<uint64_t>(fake().bytes));
  ASSERT_TRUE(slow.result.attention.sparseDensity);
  EXPECT_DOUBLE_EQ(*slow.result.attention.sparseDensity, 0.5);
  EXPECT_DOUBLE_EQ(*slow.result.attention.coverageMean, 0.625);

  // Sampled, with everything that looks at what was there before.
  GenerateOptions options{.maxTokens = 60, .ignoreEnd = true, .speculate = false};
  options.sampling.temperature = 2;
  options.sampling.repetitionPenalty = 1.2;
  options.sampling.seed = 9;
  std::string texts[2];
  for (const bool speculate : {false, true}) {
    options.speculate = speculate;
    SessionEvents events;
    events.onText = [&](const std::string& text) { texts[speculate] += text; };
    session->generate(prompt, options, events);
  }
  EXPECT_EQ(texts[0], texts[1]);
}

TEST_F(CudaHost, ReusesSavesAndRestores) {
  const auto model = tinyModel("saved.gguf");
  const std::string path = temporaryPath("cuda.session");
  const Prompt first = promptOf(2000, 1900);
  Prompt second = first;
  for (size_t i = 1900; i < 2000; ++i) second.tokens[i] = static_cast<int32_t>(i % 200);
  auto session = cudaSession(model);
  ask(*session, first, 40, true);
  const Answer warm = ask(*session, second, 40, true);
  EXPECT_GE(warm.result.prefill.reusedTokens, 1900);
  const std::string expected = textOf(*model, expectedAnswer(second.tokens, 40));
  EXPECT_EQ(warm.text, expected);

  const SavedRows saved = session->save(path, 1900, nullptr);
  EXPECT_EQ(saved.rows, 1900);
  EXPECT_EQ(session->savedBytes(1900), saved.bytes);
  auto other = cudaSession(model, 2500);
  EXPECT_EQ(other->restore(path, nullptr).rows, 1900);
  const Answer restored = ask(*other, second, 40, true);
  EXPECT_EQ(restored.result.prefill.reusedTokens, 1900);
  EXPECT_EQ(restored.text, expected);
  // In memory, where a system has it.
  if (std::filesystem::is_directory("/dev/shm")) {
    const std::string memoryPath = "/dev/shm/longsight-test-" + std::to_string(getpid());
    session->save(memoryPath, 1900, nullptr);
    EXPECT_EQ(other->restore(memoryPath, nullptr).rows, 1900);
    std::filesystem::remove(memoryPath);
  }
  // Rows of one backend are not those of the other.
  const CancelFlag never;
  Session onCpu(model, {.contextTokens = 2500}, never, nullptr);
  EXPECT_EQ(errorOf([&] { onCpu.restore(path, nullptr); }).code(), ErrorCode::otherSessionFile);
  // The same file is the same model, whether its weights came to the processor or to a device.
  const auto again = std::make_shared<Model>(model->spec().path);
  auto sessionOfAgain = cudaSession(again, 256);
  EXPECT_EQ(again->identity(), model->identity());
  const auto cpuOnly = std::make_shared<Model>(model->spec().path);
  cpuOnly->weights(never, nullptr);
  EXPECT_EQ(cpuOnly->identity(), model->identity());
}

TEST_F(CudaHost, CancelsSoonAndLeavesNothingBehind) {
  const auto model = tinyModel("cycles.gguf", {.layers = 4});
  const Prompt prompt = promptOf(2500, 2400);
  auto session = cudaSession(model);
  const int64_t before = fake().bytes;
  double longestMs = 0;
  for (int i = 0; i < 1000; ++i) {
    session->arm();
    if (i % 10 == 0) session->reset();
    SessionEvents events;
    Clock::time_point cancelled;
    // At some layer of some chunk, or in the answer.
    int64_t patience = i % 37;
    auto maybeCancel = [&] {
      if (patience-- != 0) return;
      cancelled = Clock::now();
      session->cancel();
    };
    events.onPrefill = [&](const PrefillProgress&) { maybeCancel(); };
    events.onText = [&](const std::string&) { maybeCancel(); };
    try {
      session->generate(prompt, {.maxTokens = 40, .ignoreEnd = true}, events);
    } catch (const Error& error) {
      ASSERT_EQ(error.code(), ErrorCode::cancelled);
      longestMs = std::max(
          longestMs, std::chrono::duration<double, std::milli>(Clock::now() - cancelled).count());
    }
    ASSERT_EQ(fake().bytes, before);
  }
  EXPECT_LT(longestMs, 250);
  session->arm();
  EXPECT_EQ(ask(*session, prompt, 30, true).text,
            textOf(*model, expectedAnswer(prompt.tokens, 30)));
  session.reset();
  EXPECT_EQ(fake().sessions, 0);
  EXPECT_EQ(fake().models, 1);
}

TEST_F(CudaHost, KnowsWhatFits) {
  const auto model = tinyModel("fits.gguf", {.contextTokens = 100000});
  const auto weightBytes = static_cast<int64_t>(model->spec().weightBytes);
  // 2 layers of 1,000 bytes a row.
  behave("", weightBytes + 1000 + 10240 + 2000 * 300);
  const MemoryEstimate whole = model->estimate(onCuda(0), {});
  EXPECT_TRUE(whole.fits);
  EXPECT_EQ(whole.contextTokens, whole.largestContextTokens);
  EXPECT_GE(whole.largestContextTokens, 300);
  EXPECT_LT(whole.largestContextTokens, 310);
  EXPECT_FALSE(model->estimate(onCuda(400), {}).fits);
  const Error error = errorOf([&] { cudaSession(model, 400); });
  EXPECT_EQ(error.code(), ErrorCode::notEnoughMemory);
  EXPECT_NE(error.action().find(std::to_string(whole.largestContextTokens)), std::string::npos)
      << error.action();
  auto session = cudaSession(model, 200);
  // Beside what is loaded, and another session.
  const MemoryEstimate further = model->estimate(onCuda(0), {});
  EXPECT_GT(further.largestContextTokens, 80);
  EXPECT_LT(further.largestContextTokens, 110);
  behave("", 1000);
  const Error none = errorOf([] { cudaSession(tinyModel("none.gguf"), 100); });
  EXPECT_EQ(none.code(), ErrorCode::notEnoughMemory);
  EXPECT_NE(none.action().find("CPU"), std::string::npos);
}

TEST_F(CudaHost, PassesParametersOnAndRefusesWhatItCannot) {
  const auto model = tinyModel("params.gguf");
  auto session = cudaSession(model);
  Prompt prompt = promptOf(1500, 1400);
  prompt.params.headEpsilons.assign(8, 0.01f);
  prompt.params.headEpsilons[3] = 0.5f;
  prompt.forcedDensity = 0.13;
  session->generate(prompt, {}, {});
  EXPECT_EQ(fake().headEpsilons, prompt.params.headEpsilons);
  EXPECT_EQ(fake().forcedDensity, 0.13);
  EXPECT_EQ(errorOf([&] { session->save(temporaryPath("forced.session"), 10, nullptr); }).code(),
            ErrorCode::invalidParams);
  prompt.forcedDensity.reset();
  EXPECT_EQ(session->plan(prompt).reusedTokens, 0);
  session->generate(prompt, {}, {});
  EXPECT_EQ(fake().forcedDensity, -1);
  const std::vector<std::vector<int32_t>> texts{prompt.tokens};
  const Error calibration = errorOf([&] { session->calibrate(texts, {}, {}, {}); });
  EXPECT_EQ(calibration.code(), ErrorCode::invalidParams);
  EXPECT_NE(calibration.action().find("cpu"), std::string::npos);
  behave("lost");
  prompt.params.epsilon = 0.1;
  EXPECT_EQ(errorOf([&] { session->generate(prompt, {}, {}); }).code(),
            ErrorCode::deviceUnavailable);
}

TEST_F(CudaHost, MakesSyntheticModels) {
  // Bytes of the tensors in files that llama.cpp's quantizer made, within what metadata takes.
  struct Known {
    const char* name;
    double fileBytes;
  };
  for (const auto& [name, fileBytes] :
       {Known{"llama-3.1-8b", 4'920'734'272.0}, Known{"llama-3.2-1b", 807'694'464.0},
        Known{"qwen2.5-7b", 4'683'073'536.0}, Known{"qwen2.5-0.5b", 397'807'936.0}}) {
    const auto bytes = static_cast<double>(syntheticSpec(name, "q4_k_m").weightBytes);
    std::cout << name << ": " << bytes << " bytes of " << fileBytes << "\n";
    EXPECT_LT(bytes, fileBytes);
    EXPECT_GT(bytes, fileBytes - 9e6);
  }
  EXPECT_EQ(syntheticSpec("llama-3.1-8b", "bf16").weightBytes, 2 * 8'030'261'248u + 2 * 65 * 4096u);
  const Error error = errorOf([] { syntheticSpec("llama-9", "bf16"); });
  EXPECT_EQ(error.code(), ErrorCode::invalidParams);
  EXPECT_NE(error.action().find("qwen2.5-7b"), std::string::npos);
  EXPECT_EQ(errorOf([] { syntheticSpec("llama-3.1-8b", "q9"); }).code(), ErrorCode::invalidParams);

  behave("", int64_t{8} << 30);
  const auto model = std::make_shared<Model>(syntheticSpec("smollm2-135m", "q4_0"), 5);
  auto session = cudaSession(model, 1000);
  Prompt prompt = promptOf(500, 400);
  const GenerateResult result = session->generate(prompt, {.maxTokens = 20}, {});
  EXPECT_EQ(result.generatedTokens, 20);
  const CancelFlag never;
  EXPECT_EQ(errorOf([&] { Session(model, {.contextTokens = 100}, never, nullptr); }).code(),
            ErrorCode::invalidParams);
}

// The angles of both backends, where the CPU's f32 arithmetic has not drifted yet.
TEST_F(CudaHost, RopeFrequenciesAreTheAnglesOfTheCpu) {
  RopeSpec spec;
  spec.style = RopeStyle::neox;
  spec.rotatedDims = 64;
  spec.base = 500000;
  spec.originalContextTokens = 4096;
  std::vector<float> factors(32);
  for (size_t i = 0; i < factors.size(); ++i) factors[i] = 1 + 0.1f * static_cast<float>(i);
  for (const float extrapolation : {0.0f, 0.7f, 1.0f})
    for (const float scale : {1.0f, 0.25f})
      for (const float* given : std::initializer_list<const float*>{nullptr, factors.data()}) {
        spec.extrapolation = extrapolation;
        spec.angleScale = scale;
        spec.magnitude = 1.25f;
        const Rope rope(spec, spec.base, given);
        const std::vector<double> frequencies = ropeFrequencies(spec, spec.base, given);
        ASSERT_EQ(frequencies.size(), 32u);
        std::vector<float> angles(static_cast<size_t>(rope.angleCount()));
        for (const int64_t position : {0, 1, 17, 300}) {
          rope.angles(position, angles.data());
          for (size_t pair = 0; pair < 32; ++pair) {
            const double angle = static_cast<double>(position) * frequencies[pair];
            EXPECT_NEAR(angles[pair], std::cos(angle) * 1.25, 2e-4);
            EXPECT_NEAR(angles[32 + pair], std::sin(angle) * 1.25, 2e-4);
          }
        }
      }
}

TEST_F(CudaHost, SessionsHaveTheFactorsOfTheirModel) {
  const auto plain = tinyModel("rope-plain.gguf");
  auto session = cudaSession(plain, 256);
  const std::vector<double> without = fake().frequencies;
  const auto scaled = tinyModel("rope-factors.gguf", {.ropeFactors = true});
  const CancelFlag never;
  const float* factors = scaled->weights(never, nullptr)->ropeFactors(256);
  auto other = cudaSession(scaled, 256);
  ASSERT_EQ(fake().frequencies.size(), without.size());
  for (size_t i = 0; i < without.size(); ++i)
    EXPECT_NEAR(fake().frequencies[i], without[i] / factors[i], 1e-12);
}

}  // namespace
}  // namespace longsight::test
