#include "engine_case.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <iostream>
#include <random>
#include <thread>

#include "error.h"
#include "temporary.h"
#include "tiny_gguf.h"

namespace longsight::test {
namespace {

constexpr const char* kName = "LONGSIGHT_CPU";

int32_t threads() {
  return static_cast<int32_t>(std::clamp(std::thread::hardware_concurrency(), 1u, 16u));
}

// Empty when a model runs on the GPU; else the reason. The session stays open: with the last model
// of a process its context on the device goes, and the next model waits half a second for another.
const std::string& whyNoGpu() {
  static std::unique_ptr<Session> kept;
  static const std::string reason = []() -> std::string {
    try {
      kept = sessionOf(tinyModel("probe", TinyModel{}), optionsOf(BackendKind::cuda, 256));
      return {};
    } catch (const Error& error) {
      return error.message();
    }
  }();
  return reason;
}

void requireGpu() {
  if (whyNoGpu().empty()) return;
  if (std::getenv("LONGSIGHT_CUDA_REQUIRED")) {
    FAIL() << whyNoGpu();
  } else {
    GTEST_SKIP() << whyNoGpu();
  }
}

std::string pathOf(const std::string& name) {
  const char* folder = std::getenv("LONGSIGHT_TINY_MODELS");
  return folder ? (std::filesystem::path(folder) / (name + ".gguf")).string()
                : temporaryPath(name + ".gguf");
}

}  // namespace

ForcedCpu::ForcedCpu(const char* set) {
  if (const char* value = std::getenv(kName)) before_ = value;
  setenv(kName, set, 1);
}

ForcedCpu::~ForcedCpu() {
  if (before_)
    setenv(kName, before_->c_str(), 1);
  else
    unsetenv(kName);
}

void OnBackend::SetUp() {
  if (GetParam() == BackendKind::cuda) requireGpu();
}

void OnGpu::SetUp() { requireGpu(); }

std::string nameOfBackend(const testing::TestParamInfo<BackendKind>& backend) {
  return backendName(backend.param);
}

SessionOptions optionsOf(BackendKind backend, int64_t contextTokens, KvType kvCache,
                         double ropeBaseScale) {
  SessionOptions options;
  options.contextTokens = contextTokens;
  options.threads = threads();
  options.ropeBaseScale = ropeBaseScale;
  options.kvCache = kvCache;
  [&](auto& o) {
    if constexpr (requires { o.backend; })
      o.backend = backend;
    else if (backend == BackendKind::cuda)
      throw Error(ErrorCode::deviceUnavailable, "not yet", "");
  }(options);
  return options;
}

std::unique_ptr<Session> sessionOf(const std::shared_ptr<Model>& model,
                                   const SessionOptions& options) {
  return std::make_unique<Session>(model, options, CancelFlag(), nullptr);
}

std::unique_ptr<Session> referenceOf(const std::shared_ptr<Model>& model, int64_t contextTokens,
                                     KvType kvCache, double ropeBaseScale) {
  const ForcedCpu portable("portable");
  return sessionOf(model, optionsOf(BackendKind::cpu, contextTokens, kvCache, ropeBaseScale));
}

std::shared_ptr<Model> tinyModel(const std::string& name, const std::string& fields) {
  const std::string path = pathOf(name);
  if (!std::filesystem::exists(path)) {
    writeTinyGgufs(
        {{name, R"("heads": 2, "kv_heads": 1, "feed_forward": 256, "type": "Q4_0", )" + fields}});
    if (tinyGgufPath(name) != path) std::filesystem::copy_file(tinyGgufPath(name), path);
  }
  return std::make_shared<Model>(path);
}

std::shared_ptr<Model> tinyModel(const std::string& name, const TinyModel& shape) {
  const std::string path = temporaryPath(name + ".gguf");
  if (!std::filesystem::exists(path)) writeTinyModel(path, shape);
  return std::make_shared<Model>(path);
}

std::vector<int32_t> randomTokens(size_t count, uint32_t seed) {
  std::mt19937 random(seed);
  std::vector<int32_t> tokens(count);
  for (int32_t& token : tokens) token = static_cast<int32_t>(random() % 256);
  return tokens;
}

Prompt promptOf(std::vector<int32_t> tokens, Policy policy) {
  Prompt prompt;
  const auto count = static_cast<int64_t>(tokens.size());
  prompt.tokens = std::move(tokens);
  prompt.borders = {count};
  prompt.denseFrom = count;
  prompt.params.policy = policy;
  return prompt;
}

Prompt askedPrompt(int64_t files, int64_t question, Policy policy, uint32_t seed) {
  Prompt prompt = promptOf(randomTokens(static_cast<size_t>(files + question), seed), policy);
  prompt.denseFrom = files;
  prompt.borders = {files, files + question};
  prompt.params.denseBelowTokens = 512;
  prompt.params.segmentRows = 512;
  prompt.params.windowTokens = 128;
  return prompt;
}

Difference differenceOf(const std::vector<float>& actual, const std::vector<float>& expected,
                        int32_t vocabulary) {
  const LogitComparison comparison = compareLogits(actual, expected, vocabulary);
  const auto width = static_cast<size_t>(vocabulary);
  const auto logSum = [&](const float* row) {
    const double most = *std::max_element(row, row + width);
    double sum = 0;
    for (size_t i = 0; i < width; ++i) sum += std::exp(row[i] - most);
    return most + std::log(sum);
  };
  double kl = 0;
  for (size_t row = 0; row < expected.size(); row += width) {
    const float *want = expected.data() + row, *got = actual.data() + row;
    const double wantSum = logSum(want), gotSum = logSum(got);
    for (size_t i = 0; i < width; ++i)
      kl += std::exp(want[i] - wantSum) * ((want[i] - wantSum) - (got[i] - gotSum));
  }
  return {comparison.relativeDifference, kl / static_cast<double>(expected.size() / width),
          comparison.top1Agreement};
}

void expectClose(const std::string& name, const std::vector<float>& actual,
                 const std::vector<float>& expected, int32_t vocabulary, const Limits& limits) {
  ASSERT_EQ(actual.size(), expected.size()) << name;
  const Difference difference = differenceOf(actual, expected, vocabulary);
  std::cout << name << ": relative difference " << difference.relative << ", KL " << difference.kl
            << ", top-1 " << difference.top1 << "\n";
  // Written so that a value that is no number fails.
  EXPECT_TRUE(difference.relative < limits.relative)
      << name << ": relative difference " << difference.relative;
  EXPECT_TRUE(difference.kl < limits.kl) << name << ": KL " << difference.kl;
}

}  // namespace longsight::test
