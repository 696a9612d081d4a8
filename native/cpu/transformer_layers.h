// Everything between two attention calls: token embedding, norms, projections, RoPE, feed-forward
// network, output head. Matrix products are blocked for many rows and dot products for a few.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "cpu/activations.h"
#include "cpu/cancel_flag.h"
#include "cpu/dot_products.h"
#include "cpu/kv_cache.h"
#include "cpu/rope.h"
#include "cpu/thread_pool.h"
#include "cpu/weights.h"
#include "kernels/cpu/linear/linear.h"

namespace longsight {

class TransformerLayers {
 public:
  // Rows of a block at most; below about this the expansion of weights begins to cost.
  static constexpr int64_t kBlockRows = 512;

  // contextTokens: the most that the cache holds.
  TransformerLayers(std::shared_ptr<const Weights> weights, Activations& activations,
                    ThreadPool& pool, float ropeBase, int64_t contextTokens);

  // Embeds `tokens` (one a row of the block) into the residual stream. Then the front of layer 0,
  // as below. All return false when cancelled.
  bool embed(const RowBlock& block, std::span<const int32_t> tokens, const KvCache& cache,
             bool wantQueries, const CancelFlag& cancel);
  // Second half of `layer` (output projection, feed-forward), then the first half of the next: keys
  // and values into the cache, queries when wanted.
  bool advance(const RowBlock& block, int32_t layer, const KvCache& cache, bool wantQueries,
               const CancelFlag& cancel);
  // Second half of the last layer and the final norm, in place in the residual stream.
  bool finish(const RowBlock& block, const CancelFlag& cancel);
  // Logits f32 [rows][vocabulary] of final states [rows][embedding].
  bool logits(const float* states, int64_t rows, float* out, const CancelFlag& cancel);

  uint64_t scratchBytes() const;
  static uint64_t estimateScratchBytes(const ModelSpec& spec, int32_t threads);

 private:
  bool front(const RowBlock& block, int32_t layer, const KvCache& cache, bool wantQueries,
             const CancelFlag& cancel);
  bool back(const RowBlock& block, int32_t layer, const CancelFlag& cancel);
  bool product(const float* input, int64_t rows, std::span<const LinearOutput> outputs,
               const CancelFlag& cancel);
  void addBlock(float* x, float* y, const float* bias, const float* norm) const;
  template <typename Body>
  void forRows(const RowBlock& block, const Body& body);

  std::shared_ptr<const Weights> weights_;
  const ModelSpec& spec_;
  Activations& activations_;
  ThreadPool& pool_;
  Rope rope_;
  LinearScratch scratch_;
  DotProducts dots_;
  // [row of the block][...], f32.
  std::vector<float> normed_, projected_, gate_, up_, keys_, values_, angles_;
};

}  // namespace longsight
