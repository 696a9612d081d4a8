// SampleAttention on the CPU: one layer of one segment, stages 1 to 3 with audit rows.
// Executes what attention/plan.h decides; the arithmetic is in kernels/cpu/.
#pragma once

#include <cstdint>
#include <vector>

#include "attention/params.h"
#include "attention/plan.h"
#include "cpu/cancel_flag.h"
#include "cpu/thread_pool.h"

namespace longsight {

// Keys (after RoPE) and values of one layer, bf16, laid out [kvHead][capacityRows][headDim].
struct KvLayer {
  uint16_t* keys = nullptr;
  uint16_t* values = nullptr;
  int64_t capacityRows = 0;
  int32_t kvHeads = 0;
  int32_t headDim = 0;
};

struct AttentionTask {
  Segment segment;
  const SampleAttentionParams* params = nullptr;
  // Queries after RoPE, f32 [row - segment.begin][head][headDim].
  const float* queries = nullptr;
  // Result, f32, same layout. Every element is written.
  float* output = nullptr;
  int32_t heads = 0;
  // Rows [0, segment.end) are filled.
  KvLayer kv;
  // Usually 1 / sqrt(headDim).
  float scale = 0.0f;
  // First row whose output is wanted (the last layer needs only some); voters still vote.
  int64_t outputBegin = 0;
};

// What was computed for one (segment, layer, head).
struct HeadAttention {
  int64_t keptPairs = 0;
  int64_t causalPairs = 0;
  int64_t listLength = 0;
  // The list was longer than maxListShare allows: dense for this segment.
  bool denseFallback = false;
  // Exact share of attention probability kept, one value an audit row; empty for dense segments.
  std::vector<float> coverage;
};

// Runs the task on all threads of the pool. False when cancelled: output is then undefined.
// `heads` gets one entry a query head.
bool runAttention(const AttentionTask& task, ThreadPool& pool, const CancelFlag& cancel,
                  std::vector<HeadAttention>& heads);

}  // namespace longsight
