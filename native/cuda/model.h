// A model whose weights are on a GPU, shared by all sessions there.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <mutex>
#include <vector>

#include "cpu/cancel_flag.h"
#include "cuda/library.h"
#include "model/gguf_file.h"

namespace longsight {

// A ModelSpec in the words of the library. The file's tensors become tensors of the device; those
// that hold several matrices one after the other become several.
class CudaModelDesc {
 public:
  CudaModelDesc(const ModelSpec& spec, int32_t device);
  CudaModelDesc(const CudaModelDesc&) = delete;
  CudaModelDesc& operator=(const CudaModelDesc&) = delete;

  const LsModelDesc* get() const { return &desc_; }

  // Bytes [begin, begin + bytes) of a tensor of the file; whole rows of `rowBytes`.
  struct Source {
    size_t tensor = 0;
    uint64_t begin = 0;
    uint64_t bytes = 0;
    uint64_t rowBytes = 0;
  };
  // Of each tensor of the device.
  const std::vector<Source>& sources() const { return sources_; }

 private:
  void add(const ModelSpec& spec, const std::string& name, LsTensorDesc desc, int64_t firstRow = 0);

  LsModelDesc desc_{};
  std::vector<LsTensorDesc> tensors_;
  std::vector<Source> sources_;
};

class CudaModel {
 public:
  // Streams the tensors of the file to the device through a few blocks of host memory; a synthetic
  // spec, which has no file, gets random weights of this seed. `onProgress(doneBytes, totalBytes)`
  // is called on this thread. Throws Error: notEnoughMemory, deviceUnavailable, unreadableFile,
  // truncatedGguf, cancelled.
  static std::shared_ptr<CudaModel> load(const ModelSpec& spec, const LsDevice& device,
                                         uint64_t seed, const CancelFlag& cancel,
                                         const std::function<void(uint64_t, uint64_t)>& onProgress);
  ~CudaModel();
  CudaModel(const CudaModel&) = delete;
  CudaModel& operator=(const CudaModel&) = delete;

  const ModelSpec& spec() const { return spec_; }
  const LsDevice& device() const { return device_; }
  const CudaLibrary& library() const { return library_; }
  LsModel* handle() const { return handle_; }
  uint64_t weightBytes() const { return weightBytes_; }
  // Most memory of the device that was taken since it was chosen for the model, now that so much is
  // free.
  uint64_t peakBytes(uint64_t freeBytes);
  // checksum64 of each block of blocksOf(), with its index as seed; empty without a file.
  const std::vector<uint64_t>& blockChecksums() const { return checksums_; }

  // Held during every call of the library for this model or one of its sessions: it takes one at a
  // time.
  std::mutex& turn() { return turn_; }

 private:
  CudaModel(const ModelSpec& spec, const LsDevice& device);
  void upload(const CudaModelDesc& desc, const CancelFlag& cancel,
              const std::function<void(uint64_t, uint64_t)>& onProgress);

  ModelSpec spec_;
  LsDevice device_;
  const CudaLibrary& library_;
  LsModel* handle_ = nullptr;
  uint64_t weightBytes_ = 0;
  std::atomic<uint64_t> leastFreeBytes_;
  std::vector<uint64_t> checksums_;
  std::mutex turn_;
};

}  // namespace longsight
