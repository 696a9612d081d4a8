// The CUDA backend of one session: its cache and scratch on a GPU, behind longsight-cuda.so.
#pragma once

#include <memory>

#include "cuda/model.h"
#include "session/backend.h"
#include "session/memory_estimate.h"
#include "session/session_options.h"

namespace longsight {

class CudaBackend final : public Backend {
 public:
  // Takes cache and scratch on the model's device. Throws Error notEnoughMemory,
  // deviceUnavailable.
  CudaBackend(std::shared_ptr<CudaModel> model, const SessionOptions& options,
              int64_t capacityRows);
  ~CudaBackend() override;
  CudaBackend(const CudaBackend&) = delete;
  CudaBackend& operator=(const CudaBackend&) = delete;

  // What a session takes at its peak; options.contextTokens 0 = the model's context, or the largest
  // that fits. `loaded`: the model on this device, or null while it is not there. Throws Error
  // deviceUnavailable.
  static MemoryEstimate estimate(const ModelSpec& spec, const LsDevice& device, CudaModel* loaded,
                                 const SessionOptions& options,
                                 const SampleAttentionParams& params);

  Chunking chunking() const override;
  bool forward(const Chunk& chunk, const CancelFlag& cancel,
               std::vector<SegmentAttention>& attention) override;
  bool step(std::span<const int32_t> tokens, int64_t position, float* logits,
            const CancelFlag& cancel) override;
  bool logits(const float* states, int64_t rows, float* out, const CancelFlag& cancel) override;
  Speed probe(int64_t usedRows, const CancelFlag& cancel) override;

  int64_t capacityRows() const override { return capacityRows_; }
  MemoryUse memory() const override;
  ScratchNeed scratchFor(const SampleAttentionParams& params, int64_t segmentRows) override;
  ForwardTimes times() const override;

  BackendKind kind() const override { return BackendKind::cuda; }
  std::string deviceName() const override { return model_->device().name; }
  bool canMeasure() const override { return false; }
  uint64_t identity() const override;

  std::vector<uint64_t> planeRowBytes() const override;
  void readRows(size_t plane, int64_t first, int64_t rows, std::byte* target) const override;
  void writeRows(size_t plane, int64_t first, int64_t rows, const std::byte* source) override;
  void filled(int64_t rows) override;

 private:
  const LsCudaApi& api() const { return *model_->library().operator->(); }
  const ModelSpec& spec() const { return model_->spec(); }
  // As callCuda, in turn with the other sessions of the model. False when cancelled.
  template <typename Function, typename... Arguments>
  bool call(Function function, Arguments... arguments) const;
  LsMemory deviceMemory() const;
  void collect(const Chunk& chunk, std::span<const LsHeadStats> stats,
               std::span<const float> coverage, std::vector<SegmentAttention>& attention) const;

  std::shared_ptr<CudaModel> model_;
  SessionOptions options_;
  int64_t capacityRows_;
  int64_t chunkRows_ = 0;
  LsSession* session_ = nullptr;
};

}  // namespace longsight
