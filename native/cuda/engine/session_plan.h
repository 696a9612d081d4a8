// The memory of a session as pure functions of model and description: what is allocated is what was
// estimated.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "cuda/api.h"
#include "cuda/engine/model_plan.h"
#include "sample_attention.h"

namespace longsight::cuda {

// Rows of linear layers at a time: enough for the products to run at their full speed.
inline constexpr int64_t kBlockRows = 16384;
// Logits are made for this many rows and, when there are more than a step's, this many tokens at a
// time.
inline constexpr int64_t kLogitRows = 1024;
inline constexpr int64_t kLogitTokens = 16384;

// The cache: keys and values [layer][kvHead][capacityRows][headDim], with q8 their scales.
struct KvPlan {
  HeadShape shape;
  int32_t layers = 0;
  // A multiple of 128.
  int64_t capacityRows = 0;
  uint64_t keys = 0, values = 0, keyScales = 0, valueScales = 0;
  uint64_t bytes = 0;

  bool isQ8() const { return shape.storage == KvStorage::q8; }
  int64_t dataRowBytes() const { return shape.headDim * (isQ8() ? 1 : 2); }
  int64_t scaleRowBytes() const { return 2 * q8Blocks(shape.headDim); }
  // Bytes of one layer of keys or values, of their scales.
  uint64_t layerBytes() const {
    return static_cast<uint64_t>(shape.kvHeads * capacityRows * dataRowBytes());
  }
  uint64_t layerScaleBytes() const {
    return static_cast<uint64_t>(shape.kvHeads * capacityRows * scaleRowBytes());
  }
};
KvPlan planKv(const ModelShape& model, const LsSessionDesc& desc);

// Scratch of a forward pass of up to `rows` rows, as offsets. What linear layers, attention and
// logits need is never needed at once and shares its place.
struct ScratchPlan {
  int64_t rows = 0;
  // At most kBlockRows.
  int64_t blockRows = 0;
  // int32 [rows]; f32 [rows][embedding]; bf16 [rows][heads][headDim] twice; f32 [heads][rows].
  uint64_t tokens = 0, residual = 0, queries = 0, attention = 0, logSums = 0;
  // f32 [layer][epsilonStride()].
  uint64_t epsilons = 0;

  // Linear layers: bf16 [blockRows][embedding]; [blockRows][projectedWidth or feedForward]; f32
  // [blockRows][embedding] where blocks have output norms; the products of a layer as bf16, where
  // they are not so already.
  uint64_t normed = 0, wide = 0, blockOutput = 0, linearWorkspace = 0;
  std::array<uint64_t, kProducts> expanded{};
  // Attention.
  uint64_t attentionWorkspace = 0, attentionWorkspaceBytes = 0;
  // Logits: f32 and bf16 [kLogitRows][embedding], bf16 [kLogitTokens][embedding], f32
  // [kLogitRows][kLogitTokens].
  uint64_t states = 0, statesBf16 = 0, head = 0, logits = 0, logitsWorkspace = 0;

  uint64_t bytes = 0;
};
// Epsilons from a layer to the next.
constexpr int64_t epsilonStride(int32_t heads) { return (heads + 63) / 64 * 64; }
ScratchPlan planScratch(const ModelPlan& model, int64_t rows, uint64_t attentionWorkspaceBytes);

// Scratch of a step.
struct StepPlan {
  // int32: position, then tokens. f64: RoPE frequencies.
  uint64_t inputs = 0, frequencies = 0;
  uint64_t residual = 0, normed = 0, projected = 0, queries = 0, attention = 0, hidden = 0,
           blockOutput = 0, logits = 0;
  uint64_t attentionWorkspace = 0, productWorkspace = 0, productWorkspaceBytes = 0;
  uint64_t bytes = 0;
};
// The current device is asked for the workspace of products.
StepPlan planStep(const ModelPlan& model, const KvPlan& kv);

// The options of the attention kernels.
SparseOptions sparseOptions(const LsAttentionParams& params, const float* headEpsilons);
// Throws Failure when a value is out of its range.
void checkParams(const LsAttentionParams& params, const ModelShape& shape);

// A whole session. `freeBytes` decides about the rows of a pass where the description leaves it
// open.
struct SessionPlan {
  KvPlan kv;
  ScratchPlan scratch;
  StepPlan step;

  uint64_t scratchBytes() const { return scratch.bytes + step.bytes; }
  uint64_t bytes() const { return kv.bytes + scratchBytes(); }
};
SessionPlan planSession(const ModelPlan& model, const LsSessionDesc& desc, uint64_t freeBytes);

// Throws Failure for what is out of range.
void checkSession(const ModelPlan& model, const LsSessionDesc& desc);

// Rows of the largest cache whose session takes at most `freeBytes`.
int64_t largestContextRows(const ModelPlan& model, const LsSessionDesc& desc, uint64_t freeBytes);

// What the kernels take once they are loaded, with graphs and events, on top of the context.
inline constexpr uint64_t kKernelBytes = uint64_t{32} << 20;

}  // namespace longsight::cuda
