#include "session/model.h"

namespace longsight {

MemoryEstimate Model::estimate(int64_t contextTokens, const SampleAttentionParams& params,
                               KvType kvCache) {
  std::shared_ptr<const Weights> loaded;
  {
    const std::lock_guard lock(guard_);
    loaded = weights_;
  }
  return estimateMemory(spec_, params, contextTokens, kvCache, loaded ? loaded->bytes() : 0);
}

std::shared_ptr<const Weights> Model::weights(
    const CancelFlag& cancel, const std::function<void(uint64_t, uint64_t)>& onProgress) {
  const std::lock_guard loading(loading_);
  {
    const std::lock_guard lock(guard_);
    if (weights_) {
      if (onProgress) onProgress(spec_.weightBytes, spec_.weightBytes);
      return weights_;
    }
  }
  auto loaded = Weights::load(spec_, cancel, onProgress);
  const std::lock_guard lock(guard_);
  weights_ = loaded;
  return loaded;
}

}  // namespace longsight
