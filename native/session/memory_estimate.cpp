#include "session/memory_estimate.h"

#include <algorithm>

#include "cpu/backend.h"
#include "session/machine.h"

namespace longsight {
namespace {

// Left to everything else on the computer.
constexpr uint64_t kReserveBytes = uint64_t{256} << 20;

uint64_t kvBytes(const ModelSpec& spec, KvType type, int64_t tokens) {
  return KvCache::bytesFor(type, spec.layers, spec.kvHeads, spec.headDim, tokens);
}

uint64_t scratchBytes(const ModelSpec& spec, const SampleAttentionParams& params, int64_t tokens) {
  const int64_t segment = params.policy == Policy::dense ? 512
                          : params.segmentRows > 0       ? params.segmentRows
                                                         : tokens;
  return CpuBackend::estimateScratchBytes(spec, params, std::min(segment, tokens), tokens,
                                          physicalCores());
}

}  // namespace

MemoryEstimate estimateMemory(const ModelSpec& spec, const SampleAttentionParams& params,
                              int64_t contextTokens, KvType kvCache, uint64_t loadedWeightBytes) {
  MemoryEstimate estimate;
  estimate.weightBytes = spec.weightBytes;
  estimate.availableBytes = availableMemoryBytes() + loadedWeightBytes;
  const uint64_t usable =
      estimate.availableBytes - std::min(estimate.availableBytes, kReserveBytes);
  auto needs = [&](int64_t tokens) {
    return spec.weightBytes + kvBytes(spec, kvCache, tokens) + scratchBytes(spec, params, tokens);
  };
  // The need grows with the tokens.
  int64_t low = 0, high = spec.contextTokens;
  while (low < high) {
    const int64_t middle = low + (high - low + 1) / 2;
    if (needs(middle) <= usable)
      low = middle;
    else
      high = middle - 1;
  }
  estimate.largestContextTokens = low;
  estimate.contextTokens = contextTokens > 0 ? contextTokens : (low > 0 ? low : spec.contextTokens);
  estimate.kvBytes = kvBytes(spec, kvCache, estimate.contextTokens);
  estimate.scratchBytes = scratchBytes(spec, params, estimate.contextTokens);
  estimate.fits = needs(estimate.contextTokens) <= usable;
  return estimate;
}

}  // namespace longsight
