// SampleAttention on the CPU: one layer of one segment, stages 1 to 3 with audit rows.
// Executes what attention/plan.h decides; the arithmetic is in kernels/cpu/.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "attention/drawn_lists.h"
#include "attention/head_attention.h"
#include "attention/params.h"
#include "attention/plan.h"
#include "attention/score_dims.h"
#include "cpu/cancel_flag.h"
#include "cpu/kv_rows.h"
#include "cpu/thread_pool.h"

namespace longsight {

// Keys (after RoPE) and values of one layer, laid out [kvHead][capacityRows] in rows of
// kvRowBytes(type, headDim).
struct KvLayer {
  std::byte* keys = nullptr;
  std::byte* values = nullptr;
  int64_t capacityRows = 0;
  int32_t kvHeads = 0;
  int32_t headDim = 0;
  KvType type = KvType::bf16;

  KvMatrix keysOf(int32_t kvHead) const { return {keys + offset(kvHead, 0), type, headDim}; }
  KvMatrix valuesOf(int32_t kvHead) const { return {values + offset(kvHead, 0), type, headDim}; }
  // Stores what one row holds for a KV head, headDim floats each.
  void store(int32_t kvHead, int64_t row, const float* key, const float* value) const {
    storeKvRow(type, key, headDim, keys + offset(kvHead, row));
    storeKvRow(type, value, headDim, values + offset(kvHead, row));
  }

 private:
  int64_t offset(int32_t kvHead, int64_t row) const {
    return (kvHead * capacityRows + row) * kvRowBytes(type, headDim);
  }
};

// Memory that runAttention works in, kept between calls: it only grows. Not for two runs at once.
class AttentionScratch {
 public:
  AttentionScratch();
  ~AttentionScratch();
  AttentionScratch(const AttentionScratch&) = delete;
  AttentionScratch& operator=(const AttentionScratch&) = delete;

  // Bytes held now.
  uint64_t bytes() const;
  // Column list of a head as the last run made it, ascending. Empty when that segment was dense,
  // the head fell back to dense, or no column was worth keeping. Valid until the next run.
  std::span<const int32_t> columnList(int32_t head) const;

  struct State;
  State& state() { return *state_; }

 private:
  std::unique_ptr<State> state_;
};

// What the size of the scratch depends on.
struct AttentionShape {
  int32_t heads = 0;
  int32_t kvHeads = 0;
  int32_t headDim = 0;
  // Most rows in the KV cache.
  int64_t tokens = 0;
};

// Upper bound of AttentionScratch::bytes() for prompts of this shape.
uint64_t attentionScratchBytes(const AttentionShape& shape, const SampleAttentionParams& params,
                               int32_t threads);

struct AttentionTask {
  Segment segment;
  const SampleAttentionParams* params = nullptr;
  // Queries after RoPE, f32 [row - segment.begin][head][headDim].
  const float* queries = nullptr;
  // Result, f32, same layout. Every element is written; rows before outputBegin become zero.
  float* output = nullptr;
  // Query heads, a multiple of kv.kvHeads: head h reads KV head h / (heads / kvHeads).
  int32_t heads = 0;
  // Rows [0, segment.end) are filled; later ones are never read. headDim is a multiple of 4, at
  // most kMaxHeadDim.
  KvLayer kv;
  // Positive, usually 1 / sqrt(headDim).
  float scale = 0.0f;
  // First row whose output is wanted (the last layer needs only some); voters still vote.
  int64_t outputBegin = 0;
  RopeStyle ropeStyle = RopeStyle::interleaved;
  // The first dimensions of a head, which RoPE turned; 0 = all.
  int32_t rotatedDims = 0;
  // One a query head instead of params->epsilon; empty: that one for all.
  std::span<const float> epsilons;
  // What replaces the lists of a sparse segment once they were found.
  std::optional<ListDraw> draw;
  // Null: memory is allocated for this call alone.
  AttentionScratch* scratch = nullptr;
};

// Runs the task on all threads of the pool. False when cancelled: output is then undefined.
// `heads` gets one entry a query head. The same task gives the same bits for any number of threads.
// Throws std::invalid_argument for shapes that do not fit together.
bool runAttention(const AttentionTask& task, ThreadPool& pool, const CancelFlag& cancel,
                  std::vector<HeadAttention>& heads);

}  // namespace longsight
