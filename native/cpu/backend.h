// The CPU backend of one session: KV cache, threads, scratch. Runs whole segments through all
// layers.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "attention/epsilon_curves.h"
#include "attention/params.h"
#include "attention/plan.h"
#include "cpu/activations.h"
#include "cpu/attention.h"
#include "cpu/cancel_flag.h"
#include "cpu/kv_cache.h"
#include "cpu/thread_pool.h"
#include "cpu/transformer_layers.h"
#include "cpu/weights.h"
#include "session/backend.h"

namespace longsight {

class CpuBackend final : public Backend {
 public:
  CpuBackend(std::shared_ptr<const Weights> weights, KvType kvCache, int64_t capacityRows,
             int32_t threads, double ropeBaseScale);

  // Dense rows go through all layers in blocks of this size.
  static constexpr int64_t kDenseRows = 512;
  Chunking chunking() const override { return {1, 1, kDenseRows}; }
  bool forward(const Chunk& chunk, const CancelFlag& cancel,
               std::vector<SegmentAttention>& attention) override;
  bool step(std::span<const int32_t> tokens, int64_t position, float* logits,
            const CancelFlag& cancel) override;
  bool logits(const float* states, int64_t rows, float* out, const CancelFlag& cancel) override;
  Speed probe(int64_t usedRows, const CancelFlag& cancel) override;

  int64_t capacityRows() const override { return cache_.capacityRows(); }
  MemoryUse memory() const override;
  ScratchNeed scratchFor(const SampleAttentionParams& params, int64_t segmentRows) override;
  ForwardTimes times() const override { return times_; }

  BackendKind kind() const override { return BackendKind::cpu; }
  std::string deviceName() const override { return ""; }
  bool canMeasure() const override { return true; }
  uint64_t identity() const override;

  std::vector<uint64_t> planeRowBytes() const override { return cache_.planeRowBytes(); }
  void readRows(size_t plane, int64_t first, int64_t rows, std::byte* target) const override;
  void writeRows(size_t plane, int64_t first, int64_t rows, const std::byte* source) override;
  void filled(int64_t) override {}

  // At most, for segments of up to `segmentRows` rows in a cache of `capacityRows`.
  static uint64_t estimateScratchBytes(const ModelSpec& spec, const SampleAttentionParams& params,
                                       int64_t segmentRows, int64_t capacityRows, int32_t threads);

 private:
  const ModelSpec& spec() const { return weights_->spec(); }
  uint64_t scratchBytes() const;
  // A segment of a chunk. outputBegin and states are of this segment. `rowByRow`: attention takes
  // dense rows one at a time, so that each has the bits that it would have alone.
  bool forwardSegment(const Chunk& chunk, const Segment& segment, int64_t outputBegin,
                      float* states, bool rowByRow, const std::function<void(double)>& onProgress,
                      const CancelFlag& cancel, SegmentAttention& attention);
  bool attend(const Segment& segment, int32_t layer, int64_t segmentBegin, int64_t outputBegin,
              const Chunk& chunk, const CancelFlag& cancel, std::vector<HeadAttention>& heads);
  // Calls body(block) for the blocks of rows [begin, end) until one returns false.
  template <typename Body>
  bool forBlocks(int64_t begin, int64_t end, int64_t position, const Body& body);

  std::shared_ptr<const Weights> weights_;
  KvCache cache_;
  ThreadPool pool_;
  Activations activations_;
  AttentionScratch attentionScratch_;
  TransformerLayers layers_;
  ForwardTimes times_;
  // Of step(), f32 [kMostStepRows][embedding].
  std::vector<float> stepStates_;
};

}  // namespace longsight
