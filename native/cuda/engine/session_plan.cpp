#include "cuda/engine/session_plan.h"

#include <algorithm>
#include <cmath>
#include <string>

#include "attention/geometry.h"
#include "cuda/engine/failure.h"
#include "cuda/engine/memory.h"
#include "linear/linear.h"
#include "weights/weights.h"

namespace longsight::cuda {
namespace {

constexpr std::array<int64_t, 3> kChunkRows = {32768, 16384, 8192};
constexpr int64_t kMostRows = int64_t{1} << 30;
constexpr int32_t kMostHeadDim = 256;
// Of one head; with more tiles there are blocks enough without splitting columns.
constexpr int64_t kMostSplitTiles = 64;

uint64_t bytesOf(int64_t count, int64_t each) { return static_cast<uint64_t>(count * each); }

int64_t roundRows(int64_t rows) { return (rows + kTileRows - 1) / kTileRows * kTileRows; }

// The segments of a pass at the end of a full cache, which need most.
std::vector<Segment> lastSegments(const LsSessionDesc& desc, int64_t rows) {
  std::vector<Segment> segments;
  const bool dense = desc.params.policy == LS_POLICY_DENSE;
  const int64_t step = desc.segmentRows > 0 ? desc.segmentRows : rows;
  int64_t begin = std::max<int64_t>(0, desc.capacityRows - rows);
  while (begin < desc.capacityRows && segments.size() < size_t{kMaxChunkSegments}) {
    Segment segment;
    segment.begin = begin;
    segment.end = std::min(begin + step, desc.capacityRows);
    segment.dense = dense;
    if (!dense) {
      segment.stride = desc.sampleStride;
      segment.windowTokens = desc.windowTokens;
    }
    segments.push_back(segment);
    begin = segment.end;
  }
  return segments;
}

int64_t attentionBytes(const KvPlan& kv, const LsSessionDesc& desc,
                       std::span<const Segment> segments) {
  const Chunk chunk{segments, kv.shape, sparseOptions(desc.params, nullptr)};
  if (std::string fault = validate(chunk); !fault.empty()) throw invalid(fault + ".");
  return workspaceBytes(chunk);
}

uint64_t mostAttentionBytes(const KvPlan& kv, const LsSessionDesc& desc, int64_t rows) {
  int64_t most = attentionBytes(kv, desc, lastSegments(desc, rows));
  // Few dense rows, as a question is: their columns are split.
  Segment few;
  few.end = desc.capacityRows;
  for (int64_t tiles = 1; tiles <= kMostSplitTiles; ++tiles) {
    few.begin = std::max<int64_t>(0, few.end - tiles * kTileRows);
    most = std::max(most, attentionBytes(kv, desc, {&few, 1}));
  }
  return static_cast<uint64_t>(most);
}

SessionPlan planFor(const ModelPlan& model, const LsSessionDesc& desc, int64_t chunkRows) {
  SessionPlan plan;
  plan.kv = planKv(model.shape, desc);
  const int64_t rows = std::min(roundRows(chunkRows), plan.kv.capacityRows);
  plan.scratch = planScratch(model, rows, mostAttentionBytes(plan.kv, desc, rows));
  plan.step = planStep(model, plan.kv);
  return plan;
}

}  // namespace

KvPlan planKv(const ModelShape& model, const LsSessionDesc& desc) {
  KvPlan plan;
  plan.shape = {model.heads, model.kvHeads, model.headDim, Element::bf16,
                desc.kvType == LS_KV_Q8 ? KvStorage::q8 : KvStorage::element};
  plan.layers = model.layers;
  plan.capacityRows = roundRows(desc.capacityRows);
  Layout layout;
  const auto layers = static_cast<uint64_t>(model.layers);
  plan.keys = layout.place(layers * plan.layerBytes());
  plan.values = layout.place(layers * plan.layerBytes());
  if (plan.isQ8()) {
    plan.keyScales = layout.place(layers * plan.layerScaleBytes());
    plan.valueScales = layout.place(layers * plan.layerScaleBytes());
  }
  plan.bytes = roundUp(layout.bytes(), kBlockBytes);
  return plan;
}

ScratchPlan planScratch(const ModelPlan& model, int64_t rows, uint64_t attentionWorkspaceBytes) {
  const ModelShape& shape = model.shape;
  ScratchPlan plan;
  plan.rows = rows;
  plan.blockRows = std::min(rows, kBlockRows);
  Layout layout;
  plan.tokens = layout.place(bytesOf(rows, 4));
  plan.residual = layout.place(bytesOf(rows, shape.embedding * int64_t{4}));
  plan.queries = layout.place(bytesOf(rows, shape.queryWidth() * 2));
  plan.attention = layout.place(bytesOf(rows, shape.queryWidth() * 2));
  plan.logSums = layout.place(bytesOf(rows, shape.heads * int64_t{4}));
  plan.epsilons = layout.place(bytesOf(shape.layers, epsilonStride(shape.heads) * 4));

  Layout linear = layout;
  plan.normed = linear.place(bytesOf(plan.blockRows, shape.embedding * int64_t{2}));
  plan.wide = linear.place(
      bytesOf(plan.blockRows, 2 * std::max<int64_t>(shape.projectedWidth(), shape.feedForward)));
  const bool norms = model.layers.front().norms[LS_NORM_ATTENTION_OUTPUT] != kAbsent;
  plan.blockOutput =
      linear.place(norms ? bytesOf(plan.blockRows, shape.embedding * int64_t{4}) : 0);
  int64_t workspace = 0;
  for (size_t which = 0; which < kProducts; ++which) {
    uint64_t expanded = 0;
    for (const PlannedLayer& layer : model.layers) {
      const PlannedProduct& product = layer.products[which];
      if (!product.isPlainBf16()) expanded = std::max(expanded, product.expandedBytes());
      LinearTask task;
      task.rows = plan.blockRows;
      task.outputs = static_cast<int32_t>(product.rows);
      task.inner = static_cast<int32_t>(product.columns);
      workspace = std::max(workspace, linearWorkspaceBytes(task));
    }
    plan.expanded[which] = linear.place(expanded);
  }
  plan.linearWorkspace = linear.place(static_cast<uint64_t>(workspace));

  Layout attention = layout;
  plan.attentionWorkspaceBytes = attentionWorkspaceBytes;
  plan.attentionWorkspace = attention.place(attentionWorkspaceBytes);

  Layout logits = layout;
  const int64_t tokens = std::min<int64_t>(kLogitTokens, roundRows(shape.vocabulary));
  plan.states = logits.place(bytesOf(kLogitRows, shape.embedding * int64_t{4}));
  plan.statesBf16 = logits.place(bytesOf(kLogitRows, shape.embedding * int64_t{2}));
  plan.head = logits.place(bytesOf(tokens, shape.embedding * int64_t{2}));
  plan.logits = logits.place(bytesOf(kLogitRows, tokens * 4));
  LinearTask head;
  head.rows = kLogitRows;
  head.outputs = static_cast<int32_t>(tokens);
  head.inner = shape.embedding;
  head.epilogue = LinearEpilogue::storeF32;
  plan.logitsWorkspace = logits.place(static_cast<uint64_t>(linearWorkspaceBytes(head)));

  plan.bytes = roundUp(std::max({linear.bytes(), attention.bytes(), logits.bytes()}), kBlockBytes);
  return plan;
}

StepPlan planStep(const ModelPlan& model, const KvPlan& kv) {
  const ModelShape& shape = model.shape;
  constexpr int64_t kRows = LS_MOST_STEP_ROWS;
  StepPlan plan;
  Layout layout;
  plan.inputs = layout.place((1 + kRows) * 4);
  plan.frequencies = layout.place(bytesOf(shape.headDim / 2, sizeof(double)));
  plan.residual = layout.place(bytesOf(kRows, shape.embedding * int64_t{4}));
  plan.normed = layout.place(bytesOf(kRows, shape.embedding * int64_t{4}));
  plan.projected = layout.place(bytesOf(kRows, shape.projectedWidth() * 4));
  plan.queries = layout.place(bytesOf(kRows, shape.queryWidth() * 2));
  plan.attention = layout.place(bytesOf(kRows, shape.queryWidth() * 2));
  plan.hidden = layout.place(bytesOf(kRows, shape.feedForward * int64_t{2}));
  plan.blockOutput = layout.place(bytesOf(kRows, shape.embedding * int64_t{4}));
  plan.logits = layout.place(bytesOf(kRows, roundRows(shape.vocabulary) * 4));

  int64_t attention = 0;
  for (int32_t rows = 1; rows <= kRows; ++rows) {
    DecodeTask task;
    task.shape = kv.shape;
    task.rows = rows;
    task.firstRow = kv.capacityRows - rows;
    task.tensors.capacityRows = kv.capacityRows;
    attention = std::max(attention, decodeWorkspaceBytes(task));
  }
  plan.attentionWorkspace = layout.place(static_cast<uint64_t>(attention));

  int64_t products = 0;
  const auto need = [&](std::span<const PlannedMatrix> matrices, ProductEpilogue epilogue) {
    ProductTask task;
    task.epilogue = epilogue;
    task.inputStride = matrices.front().columns;
    for (const PlannedMatrix& matrix : matrices) {
      ProductPart& part = task.parts[task.partCount++];
      part.matrix = {nullptr, matrix.type, matrix.rows, matrix.columns};
      part.outStride = matrix.rows;
    }
    for (task.rows = 1; task.rows <= kRows; ++task.rows)
      products = std::max(products, productWorkspaceBytes(task));
  };
  for (const PlannedLayer& layer : model.layers) {
    for (size_t which = 0; which < kProducts; ++which) {
      need(layer.products[which].matrices, static_cast<Product>(which) == Product::gateUp
                                               ? ProductEpilogue::swigluBf16
                                               : ProductEpilogue::storeF32);
    }
  }
  need({&model.output, 1}, ProductEpilogue::storeF32);
  plan.productWorkspaceBytes = static_cast<uint64_t>(products);
  plan.productWorkspace = layout.place(plan.productWorkspaceBytes);
  plan.bytes = roundUp(layout.bytes(), kBlockBytes);
  return plan;
}

SparseOptions sparseOptions(const LsAttentionParams& params, const float* headEpsilons) {
  SparseOptions options;
  // Dense segments say so themselves.
  options.policy = params.policy == LS_POLICY_MASS ? Policy::mass : Policy::peak;
  options.alpha = params.alpha;
  options.epsilon = params.epsilon;
  options.headEpsilons = headEpsilons;
  options.scoreDims = {{{{params.scoreDims[0][0], params.scoreDims[0][1]},
                         {params.scoreDims[1][0], params.scoreDims[1][1]}}}};
  options.sinkTokens = params.sinkTokens;
  options.maxListShare = params.maxListShare;
  options.auditRows = params.auditRows;
  return options;
}

void checkParams(const LsAttentionParams& params, const ModelShape& shape) {
  if (params.policy < LS_POLICY_DENSE || params.policy > LS_POLICY_PEAK)
    throw invalid("Policy " + std::to_string(params.policy) + " is none of 0 to 2.");
  // Everything else is checked with the segments.
  if (params.headEpsilons == nullptr || params.policy != LS_POLICY_PEAK) return;
  const int64_t count = int64_t{shape.layers} * shape.heads;
  for (int64_t i = 0; i < count; ++i) {
    const float epsilon = params.headEpsilons[i];
    if (epsilon >= 0 && epsilon < 1) continue;
    throw invalid("The epsilon of head " + std::to_string(i % shape.heads) + " of layer " +
                  std::to_string(i / shape.heads) + " is " + std::to_string(epsilon) +
                  ", expected 0 or more and below 1.");
  }
}

void checkSession(const ModelPlan& model, const LsSessionDesc& desc) {
  const ModelShape& shape = model.shape;
  if (desc.capacityRows < 1 || desc.capacityRows > kMostRows)
    throw invalid("A cache of " + std::to_string(desc.capacityRows) +
                  " rows is outside 1 to 2^30.");
  if (desc.kvType != LS_KV_BF16 && desc.kvType != LS_KV_Q8)
    throw invalid("KV type " + std::to_string(desc.kvType) + " is neither bf16 nor q8.");
  if (desc.chunkRows < 0 || desc.segmentRows < 0)
    throw invalid("chunkRows is " + std::to_string(desc.chunkRows) + " and segmentRows " +
                  std::to_string(desc.segmentRows) + ": neither may be negative.");
  const LsRope& rope = desc.rope;
  if (rope.rotatedDims < 2 || rope.rotatedDims % 2 != 0 || rope.rotatedDims > shape.headDim ||
      shape.headDim > kMostHeadDim || rope.frequencies == nullptr)
    throw invalid("RoPE of " + std::to_string(rope.rotatedDims) + " dimensions of a head of " +
                  std::to_string(shape.headDim) + ", or without frequencies.");
  if (rope.style != LS_ROPE_INTERLEAVED && rope.style != LS_ROPE_NEOX)
    throw invalid("RoPE style " + std::to_string(rope.style) + " is neither 0 nor 1.");
  for (int32_t i = 0; i < rope.rotatedDims / 2; ++i) {
    if (!std::isfinite(rope.frequencies[i]))
      throw invalid("The RoPE frequency of pair " + std::to_string(i) + " is not finite.");
  }
  checkParams(desc.params, shape);
}

SessionPlan planSession(const ModelPlan& model, const LsSessionDesc& desc, uint64_t freeBytes) {
  if (desc.chunkRows > 0) return planFor(model, desc, desc.chunkRows);
  SessionPlan plan;
  for (const int64_t rows : kChunkRows) {
    plan = planFor(model, desc, rows);
    if (plan.bytes() + kKernelBytes <= freeBytes) break;
  }
  return plan;
}

int64_t largestContextRows(const ModelPlan& model, const LsSessionDesc& desc, uint64_t freeBytes) {
  LsSessionDesc tried = desc;
  if (tried.chunkRows == 0) tried.chunkRows = kChunkRows.back();
  int64_t fits = 0, tooMany = kMostRows / kTileRows + 1;
  while (tooMany - fits > 1) {
    const int64_t middle = (fits + tooMany) / 2;
    tried.capacityRows = middle * kTileRows;
    const bool enough = planFor(model, tried, tried.chunkRows).bytes() + kKernelBytes <= freeBytes;
    (enough ? fits : tooMany) = middle;
  }
  return fits * kTileRows;
}

}  // namespace longsight::cuda
