#include "session/model.h"

#include <algorithm>
#include <atomic>
#include <fstream>
#include <thread>

#include "error.h"
#include "session/checksum.h"

namespace longsight {
namespace {

// The part of the file before the weights.
std::string readHead(const ModelSpec& spec) {
  uint64_t bytes = spec.tensors.front().fileOffset;
  for (const TensorSource& tensor : spec.tensors) bytes = std::min(bytes, tensor.fileOffset);
  std::string head(bytes, '\0');
  std::ifstream file(spec.path, std::ios::binary);
  if (!file.read(head.data(), static_cast<std::streamsize>(bytes)))
    throw Error(ErrorCode::unreadableFile,
                "The metadata of \"" + spec.path + "\" cannot be read again.",
                "Check that the file is still there.");
  return head;
}

std::vector<uint64_t> checksumsOf(const std::vector<std::span<const std::byte>>& parts) {
  std::vector<uint64_t> sums(parts.size());
  std::atomic<size_t> next = 0;
  auto work = [&] {
    for (size_t i = next++; i < parts.size(); i = next++) sums[i] = checksum64(parts[i], i);
  };
  std::vector<std::thread> helpers;
  for (unsigned i = 1; i < std::max(1u, std::thread::hardware_concurrency()); ++i)
    helpers.emplace_back(work);
  work();
  for (std::thread& helper : helpers) helper.join();
  return sums;
}

}  // namespace

uint64_t Model::identity() {
  const std::lock_guard loading(loading_);
  if (identity_) return *identity_;
  const std::string head = readHead(spec_);
  const std::vector<uint64_t> sums = checksumsOf(weights_->contents());
  identity_ = checksum64(std::as_bytes(std::span(sums)),
                         checksum64(std::as_bytes(std::span(head)), head.size()));
  return *identity_;
}

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
