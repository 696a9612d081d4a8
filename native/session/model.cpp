#include "session/model.h"

#include <algorithm>
#include <atomic>
#include <fstream>
#include <thread>

#include "cuda/backend.h"
#include "error.h"
#include "model/tensor_file.h"
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

std::vector<uint64_t> checksumsOf(const ModelSpec& spec, const Weights& weights) {
  const std::vector<std::span<const std::byte>> tensors = weights.contents();
  const std::vector<TensorBlock> blocks = blocksOf(spec);
  std::vector<uint64_t> sums(blocks.size());
  std::atomic<size_t> next = 0;
  auto work = [&] {
    for (size_t i = next++; i < blocks.size(); i = next++)
      sums[i] = checksum64(tensors[blocks[i].tensor].subspan(blocks[i].offset, blocks[i].bytes), i);
  };
  std::vector<std::thread> helpers;
  for (unsigned i = 1; i < std::max(1u, std::thread::hardware_concurrency()); ++i)
    helpers.emplace_back(work);
  work();
  for (std::thread& helper : helpers) helper.join();
  return sums;
}

}  // namespace

const Tokenizer& Model::tokenizer() const {
  if (!tokenizer_)
    throw Error(ErrorCode::invalidParams,
                "The synthetic model " + spec_.name + " has no tokenizer.", "Pass tokens.");
  return *tokenizer_;
}

std::vector<uint64_t> Model::blockChecksums() const {
  if (weights_) return checksumsOf(spec_, *weights_);
  return onDevices_.begin()->second->blockChecksums();
}

uint64_t Model::identity() {
  const std::lock_guard loading(loading_);
  if (identity_) return *identity_;
  if (spec_.path.empty()) {
    const std::string name = spec_.name + "/" + spec_.fileType;
    return *(identity_ = checksum64(std::as_bytes(std::span(name)), seed_));
  }
  const std::string head = readHead(spec_);
  const std::vector<uint64_t> sums = blockChecksums();
  identity_ = checksum64(std::as_bytes(std::span(sums)),
                         checksum64(std::as_bytes(std::span(head)), head.size()));
  return *identity_;
}

std::shared_ptr<CudaModel> Model::loadedOn(int32_t ordinal) {
  const std::lock_guard lock(guard_);
  if (ordinal < 0) return onDevices_.empty() ? nullptr : onDevices_.begin()->second;
  const auto found = onDevices_.find(ordinal);
  return found == onDevices_.end() ? nullptr : found->second;
}

MemoryEstimate Model::estimate(const SessionOptions& options, const SampleAttentionParams& params) {
  if (options.backend == BackendKind::cuda) {
    const std::shared_ptr<CudaModel> loaded = loadedOn(options.device);
    const LsDevice device =
        loaded ? loaded->device() : cudaDevices(CudaLibrary::get()).choose(options.device);
    return CudaBackend::estimate(spec_, device, loaded.get(), options, params);
  }
  std::shared_ptr<const Weights> loaded;
  {
    const std::lock_guard lock(guard_);
    loaded = weights_;
  }
  return estimateMemory(spec_, params, options.contextTokens, options.kvCache,
                        loaded ? loaded->bytes() : 0);
}

std::shared_ptr<const Weights> Model::weights(
    const CancelFlag& cancel, const std::function<void(uint64_t, uint64_t)>& onProgress) {
  if (spec_.path.empty())
    throw Error(ErrorCode::invalidParams,
                "The synthetic model " + spec_.name + " has weights on a GPU only.",
                "Use the CUDA backend, or a model file.");
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

std::shared_ptr<CudaModel> Model::weightsOn(
    int32_t ordinal, const CancelFlag& cancel,
    const std::function<void(uint64_t, uint64_t)>& onProgress) {
  const std::lock_guard loading(loading_);
  if (std::shared_ptr<CudaModel> loaded = loadedOn(ordinal)) {
    if (onProgress) onProgress(spec_.weightBytes, spec_.weightBytes);
    return loaded;
  }
  const LsDevice device = cudaDevices(CudaLibrary::get()).choose(ordinal);
  auto loaded = CudaModel::load(spec_, device, seed_, cancel, onProgress);
  const std::lock_guard lock(guard_);
  onDevices_[device.ordinal] = loaded;
  return loaded;
}

}  // namespace longsight
