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

namespace longsight {

// [layer][head]; a layer that computed no attention has no heads.
using SegmentAttention = std::vector<std::vector<HeadAttention>>;

// Where the time of a forward pass went.
struct ForwardTimes {
  double linearMs = 0;
  double attentionMs = 0;
};

class CpuBackend {
 public:
  CpuBackend(std::shared_ptr<const Weights> weights, KvType kvCache, int64_t capacityRows,
             int32_t threads, double ropeBaseScale);

  struct Request {
    Segment segment;
    // One a row of the segment.
    std::span<const int32_t> tokens;
    const SampleAttentionParams* params = nullptr;
    // First row whose final state is wanted; segment.end = none. The last layer computes keys and
    // values for all rows, the rest for these only.
    int64_t outputBegin = 0;
    // Final states after the output norm, f32 [row - outputBegin][embedding].
    float* states = nullptr;
    // Where sparse segments under policy peak are measured; null: nowhere.
    EpsilonCurves* curves = nullptr;
    // Called after each layer with the share of the segment's work that is done, 0 to 1.
    std::function<void(double)> onProgress;
  };

  // Rows [0, segment.begin) must be in the cache. False when cancelled: rows of the segment are
  // then undefined, everything before is untouched.
  bool forward(const Request& request, const CancelFlag& cancel, SegmentAttention& attention);

  // Logits f32 [rows][vocabulary] of final states [rows][embedding]. False when cancelled.
  bool logits(const float* states, int64_t rows, float* out, const CancelFlag& cancel);

  // Time of one layer's linear work a row and of dense attention a (row, column, head) pair, in
  // milliseconds, from a small slice of real work. The cache is read, never written below
  // `usedRows`.
  struct Speed {
    double linearMsPerRow = 0;
    double attentionMsPerPair = 0;
  };
  Speed probe(int64_t usedRows, const CancelFlag& cancel);

  const ModelSpec& spec() const { return weights_->spec(); }
  int64_t capacityRows() const { return cache_.capacityRows(); }
  uint64_t kvBytes() const { return cache_.bytes(); }
  // For saving and restoring whole rows.
  std::vector<KvPlane> cachePlanes() const { return cache_.planes(); }
  uint64_t weightBytes() const { return weights_->bytes(); }
  uint64_t scratchBytes() const;
  // At most, for segments of up to `segmentRows` rows of this session.
  uint64_t mostScratchBytes(const SampleAttentionParams& params, int64_t segmentRows) const;
  // At most, for segments of up to `segmentRows` rows in a cache of `capacityRows`.
  static uint64_t estimateScratchBytes(const ModelSpec& spec, const SampleAttentionParams& params,
                                       int64_t segmentRows, int64_t capacityRows, int32_t threads);
  // Since construction.
  const ForwardTimes& times() const { return times_; }

 private:
  bool attend(const Segment& segment, int32_t layer, int64_t segmentBegin, int64_t outputBegin,
              const SampleAttentionParams& params, EpsilonCurves* curves, const CancelFlag& cancel,
              std::vector<HeadAttention>& heads);
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
};

}  // namespace longsight
