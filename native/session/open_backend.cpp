#include "session/open_backend.h"

#include <algorithm>
#include <string>

#include "cpu/backend.h"
#include "error.h"

namespace longsight {
namespace {

constexpr int32_t kMaxThreads = 256;

Error invalid(const std::string& message) {
  return Error(ErrorCode::invalidParams, message, "Correct the value and try again.");
}

}  // namespace

std::unique_ptr<Backend> openBackend(Model& model, const SessionOptions& options,
                                     const CancelFlag& cancel,
                                     const std::function<void(uint64_t, uint64_t)>& onProgress) {
  const auto [contextTokens, threads, ropeBaseScale, kvCache] = options;
  if (threads < 1 || threads > kMaxThreads)
    throw invalid("threads is " + std::to_string(threads) + ", expected 1 to " +
                  std::to_string(kMaxThreads) + ".");
  if (!(ropeBaseScale > 0) || ropeBaseScale > 1e6)
    throw invalid("ropeBaseScale is " + std::to_string(ropeBaseScale) +
                  ", expected above 0, up to 1e6.");
  const ModelSpec& spec = model.spec();
  const double longest = static_cast<double>(spec.contextTokens) * std::max(1.0, ropeBaseScale);
  if (contextTokens < 0 || static_cast<double>(contextTokens) > longest)
    throw invalid("contextTokens is " + std::to_string(contextTokens) + ", expected 0 to " +
                  std::to_string(static_cast<int64_t>(longest)) + ", the model's context.");
  const MemoryEstimate estimate = model.estimate(contextTokens, SampleAttentionParams{}, kvCache);
  if (!estimate.fits || estimate.contextTokens < 1)
    throw Error(
        ErrorCode::notEnoughMemory,
        "\"" + spec.name + "\" with a context of " + std::to_string(estimate.contextTokens) +
            " tokens needs " +
            std::to_string(estimate.weightBytes + estimate.kvBytes + estimate.scratchBytes) +
            " bytes (weights " + std::to_string(estimate.weightBytes) + ", cache " +
            std::to_string(estimate.kvBytes) + ", scratch " +
            std::to_string(estimate.scratchBytes) + "), but " +
            std::to_string(estimate.availableBytes) + " bytes are available.",
        estimate.largestContextTokens > 0
            ? "Use a context of at most " + std::to_string(estimate.largestContextTokens) +
                  " tokens."
            : "Choose a smaller model or quantization, or close other programs.");
  return std::make_unique<CpuBackend>(model.weights(cancel, onProgress), kvCache,
                                      estimate.contextTokens, threads, ropeBaseScale);
}

}  // namespace longsight
