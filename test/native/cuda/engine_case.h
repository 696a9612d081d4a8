// The same cases for every backend: what a backend computes is compared with the CPU in f32, so
// the CPU's own fast paths go through them, too, and tell what rounding to bf16 may cost.
#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "llama_reference.h"
#include "real_session.h"
#include "session/backend.h"
#include "session/session.h"
#include "tiny_model.h"

namespace longsight::test {

// Skips a test where its backend cannot run. With LONGSIGHT_CUDA_REQUIRED set, a test of the GPU
// fails instead: on a machine that has one, nothing may pass by being left out.
class OnBackend : public testing::TestWithParam<BackendKind> {
 protected:
  void SetUp() override;
};

// OnBackend for what the CPU takes too long for or does not have.
class OnGpu : public testing::Test {
 protected:
  void SetUp() override;
};

std::string nameOfBackend(const testing::TestParamInfo<BackendKind>& backend);

// Instantiates the tests of a fixture derived from OnBackend for all backends.
#define LONGSIGHT_ON_ALL_BACKENDS(fixture)                                                     \
  INSTANTIATE_TEST_SUITE_P(All, fixture, testing::Values(BackendKind::cpu, BackendKind::cuda), \
                           nameOfBackend)

SessionOptions optionsOf(BackendKind backend, int64_t contextTokens, KvType kvCache = KvType::bf16,
                         double ropeBaseScale = 1);

std::unique_ptr<Session> sessionOf(const std::shared_ptr<Model>& model,
                                   const SessionOptions& options);

// Forces an instruction set of the CPU upon sessions made while it lives.
class ForcedCpu {
 public:
  explicit ForcedCpu(const char* set);
  ~ForcedCpu();
  ForcedCpu(const ForcedCpu&) = delete;
  ForcedCpu& operator=(const ForcedCpu&) = delete;

 private:
  std::optional<std::string> before_;
};

// A session whose linear layers and attention are computed in f32 on the CPU: only its cache
// rounds.
std::unique_ptr<Session> referenceOf(const std::shared_ptr<Model>& model, int64_t contextTokens,
                                     KvType kvCache = KvType::bf16, double ropeBaseScale = 1);

// ---- models ------------------------------------------------------------------------------------

// A model as tiny_gguf.py describes it, small unless `fields` say otherwise: `"arch": "glm4"`.
// Taken from the folder LONGSIGHT_TINY_MODELS where it has NAME.gguf, else written there, or to a
// temporary folder.
std::shared_ptr<Model> tinyModel(const std::string& name, const std::string& fields);

// One of tiny_model.h, for the types that Python does not write.
std::shared_ptr<Model> tinyModel(const std::string& name, const TinyModel& shape);

// ---- prompts -----------------------------------------------------------------------------------

std::vector<int32_t> randomTokens(size_t count, uint32_t seed = 11);

// One part, all of its rows dense or not as the policy says.
Prompt promptOf(std::vector<int32_t> tokens, Policy policy);

// `files` random rows of a policy, then `question` dense ones.
Prompt askedPrompt(int64_t files, int64_t question, Policy policy, uint32_t seed = 11);

inline int64_t lengthOf(const Prompt& prompt) { return static_cast<int64_t>(prompt.tokens.size()); }

// ---- comparison --------------------------------------------------------------------------------

struct Difference {
  // Of logits, as a share of the deviation of the expected ones.
  double relative = 0;
  double kl = 0;
  double top1 = 0;
};

// Mean KL(expected || actual) over the rows, in nats.
Difference differenceOf(const std::vector<float>& actual, const std::vector<float>& expected,
                        int32_t vocabulary);

// What two layers of random weights may differ by, when activations and weights are rounded to
// bf16. The limits are twice what the CPU's bf16 products give.
struct Limits {
  double relative = 0.04;
  double kl = 5e-3;
};

// Prints the difference and expects it within the limits.
void expectClose(const std::string& name, const std::vector<float>& actual,
                 const std::vector<float>& expected, int32_t vocabulary, const Limits& limits = {});

}  // namespace longsight::test
