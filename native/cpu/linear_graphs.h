// Everything between two attention calls, as ggml graphs over a block of rows: token embedding,
// norms, projections, RoPE, feed-forward network, output head.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "cpu/ggml_runtime.h"
#include "cpu/kv_cache.h"
#include "cpu/weights.h"
#include "ggml-alloc.h"

namespace longsight {

class LinearGraphs {
 public:
  LinearGraphs(std::shared_ptr<const Weights> weights, int32_t threads, double ropeBaseScale);
  ~LinearGraphs();
  LinearGraphs(const LinearGraphs&) = delete;
  LinearGraphs& operator=(const LinearGraphs&) = delete;

  // Buffers for segments of up to `rows` rows. Throws Error notEnoughMemory.
  void reserve(int64_t rows);

  // Residual stream f32 [row][embedding]; queries and attention output f32 [row][head][headDim].
  float* residual() { return residual_; }
  float* queries() { return queries_; }
  float* attention() { return attention_; }

  struct Block {
    // Rows of the segment, relative to its begin.
    int64_t begin = 0;
    int64_t end = 0;
    // Position of the segment's row 0.
    int64_t position = 0;
  };

  // Rows that one graph should hold at most, so that no node runs longer than a cancel may wait.
  int64_t blockRows() const { return blockRows_; }
  int64_t logitRows() const { return logitRows_; }

  // Embeds `tokens` (one a row of the block) into the residual stream. Then the front of layer 0,
  // as below. All return false when cancelled.
  bool embed(const Block& block, std::span<const int32_t> tokens, const KvCache& cache,
             bool wantQueries, const CancelFlag& cancel);
  // Second half of `layer` (output projection, feed-forward), then the first half of the next: keys
  // and values into the cache, queries when wanted.
  bool advance(const Block& block, int32_t layer, const KvCache& cache, bool wantQueries,
               const CancelFlag& cancel);
  // Second half of the last layer and the final norm, in place in the residual stream.
  bool finish(const Block& block, const CancelFlag& cancel);
  // Logits f32 [rows][vocabulary] of `rows` <= logitRows() final states.
  bool logits(const float* states, int64_t rows, float* out, const CancelFlag& cancel);

  // Scratch held now.
  uint64_t scratchBytes() const;
  // What reserve(rows) and the graphs will hold, without allocating.
  static uint64_t estimateScratchBytes(const ModelSpec& spec, int64_t rows);

 private:
  struct Graph;
  ggml_tensor* front(Graph& graph, ggml_tensor* x, const Block& block, int32_t layer,
                     const KvCache& cache, bool wantQueries);
  ggml_tensor* back(Graph& graph, const Block& block, int32_t layer);
  bool run(Graph& graph, const CancelFlag& cancel);
  void fillPositions(const Block& block);

  std::shared_ptr<const Weights> weights_;
  const ModelSpec& spec_;
  GgmlCpu cpu_;
  float ropeBase_;
  int64_t blockRows_;
  int64_t logitRows_;
  ggml_gallocr_t allocator_ = nullptr;
  std::vector<uint8_t> arena_;
  ggml_backend_buffer_t buffer_ = nullptr;
  int64_t rows_ = 0;
  float* residual_ = nullptr;
  float* queries_ = nullptr;
  float* attention_ = nullptr;
  int32_t* positions_ = nullptr;
  int32_t* ids_ = nullptr;
  float* logitStates_ = nullptr;
  float* logitOut_ = nullptr;
};

}  // namespace longsight
