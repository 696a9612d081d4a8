#include "session/open_backend.h"

#include <algorithm>
#include <string>

#include "cpu/backend.h"
#include "cuda/backend.h"
#include "error.h"

namespace longsight {
namespace {

constexpr int32_t kMaxThreads = 256;
constexpr int64_t kMostChunkRows = int64_t{1} << 20;

Error invalid(const std::string& message) {
  return Error(ErrorCode::invalidParams, message, "Correct the value and try again.");
}

void check(const SessionOptions& options, const ModelSpec& spec) {
  const double ropeBaseScale = options.ropeBaseScale;
  if (options.threads < 1 || options.threads > kMaxThreads)
    throw invalid("threads is " + std::to_string(options.threads) + ", expected 1 to " +
                  std::to_string(kMaxThreads) + ".");
  if (!(ropeBaseScale > 0) || ropeBaseScale > 1e6)
    throw invalid("ropeBaseScale is " + std::to_string(ropeBaseScale) +
                  ", expected above 0, up to 1e6.");
  const double longest = static_cast<double>(spec.contextTokens) * std::max(1.0, ropeBaseScale);
  if (options.contextTokens < 0 || static_cast<double>(options.contextTokens) > longest)
    throw invalid("contextTokens is " + std::to_string(options.contextTokens) + ", expected 0 to " +
                  std::to_string(static_cast<int64_t>(longest)) + ", the model's context.");
  if (options.chunkRows < 0 || options.chunkRows > kMostChunkRows)
    throw invalid("chunkRows is " + std::to_string(options.chunkRows) + ", expected 0 to " +
                  std::to_string(kMostChunkRows) + ".");
}

void requireMemory(const MemoryEstimate& estimate, const ModelSpec& spec, bool onGpu) {
  if (estimate.fits && estimate.contextTokens >= 1) return;
  const auto bytes = [](uint64_t count) { return std::to_string(count); };
  throw Error(
      ErrorCode::notEnoughMemory,
      "\"" + spec.name + "\" with a context of " + std::to_string(estimate.contextTokens) +
          " tokens needs " +
          bytes(estimate.weightBytes + estimate.kvBytes + estimate.scratchBytes +
                estimate.fixedBytes) +
          " bytes" + (onGpu ? " of the GPU" : "") + " (weights " + bytes(estimate.weightBytes) +
          ", cache " + bytes(estimate.kvBytes) + ", scratch " + bytes(estimate.scratchBytes) +
          (onGpu ? ", driver and kernels " + bytes(estimate.fixedBytes) : "") + "), but " +
          bytes(estimate.availableBytes) + " bytes are available.",
      estimate.largestContextTokens > 0
          ? "Use a context of at most " + std::to_string(estimate.largestContextTokens) + " tokens."
      : onGpu ? "Choose a smaller model or quantization, close other programs that use the "
                "GPU, or use the CPU backend."
              : "Choose a smaller model or quantization, or close other programs.");
}

}  // namespace

std::unique_ptr<Backend> openBackend(Model& model, const SessionOptions& options,
                                     const CancelFlag& cancel,
                                     const std::function<void(uint64_t, uint64_t)>& onProgress) {
  const ModelSpec& spec = model.spec();
  check(options, spec);
  const bool onGpu = options.backend == BackendKind::cuda;
  const MemoryEstimate estimate = model.estimate(options, SampleAttentionParams{});
  requireMemory(estimate, spec, onGpu);
  if (onGpu)
    return std::make_unique<CudaBackend>(model.weightsOn(options.device, cancel, onProgress),
                                         options, estimate.contextTokens);
  return std::make_unique<CpuBackend>(model.weights(cancel, onProgress), options.kvCache,
                                      estimate.contextTokens, options.threads,
                                      options.ropeBaseScale);
}

}  // namespace longsight
