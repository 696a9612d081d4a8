#include "cpu/linear_graphs.h"

#include <algorithm>
#include <cstring>
#include <string>

#include "error.h"

namespace longsight {
namespace {

constexpr size_t kGraphNodes = 256;
constexpr uint64_t kAlignment = 64;
constexpr int64_t kMaxBlockRows = 512;
constexpr int64_t kMaxLogitRows = 32;

uint64_t aligned(uint64_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

// Rows for which a matrix of `elements` takes at most 2 GFLOP: 100 ms at the 20 GFLOP/s of one slow
// core, so that cancel is noticed in time.
int64_t rowsWithin(int64_t elements, int64_t most) {
  constexpr int64_t kMaxNodeFlop = 2'000'000'000;
  const int64_t rows = kMaxNodeFlop / (2 * elements);
  return std::clamp<int64_t>(rows >= 16 ? rows / 16 * 16 : rows, 1, most);
}

int64_t largestLayerMatrix(const ModelSpec& spec) {
  return int64_t{spec.embedding} *
         std::max<int64_t>(spec.feedForward, int64_t{spec.heads} * spec.headDim);
}

int64_t blockRowsFor(const ModelSpec& spec) {
  return rowsWithin(largestLayerMatrix(spec), kMaxBlockRows);
}

int64_t logitRowsFor(const ModelSpec& spec) {
  return rowsWithin(int64_t{spec.embedding} * spec.vocabulary, kMaxLogitRows);
}

struct Layout {
  uint64_t residual, queries, attention, positions, ids, logitStates, logitOut, total;
};

Layout layoutFor(const ModelSpec& spec, int64_t rows) {
  const uint64_t width = static_cast<uint64_t>(spec.embedding) * sizeof(float);
  const uint64_t queryWidth =
      static_cast<uint64_t>(spec.heads) * static_cast<uint64_t>(spec.headDim) * sizeof(float);
  const uint64_t count = static_cast<uint64_t>(rows);
  const uint64_t logitRows = static_cast<uint64_t>(logitRowsFor(spec));
  Layout layout{};
  uint64_t at = 0;
  auto take = [&](uint64_t bytes) {
    const uint64_t offset = at;
    at += aligned(bytes);
    return offset;
  };
  layout.residual = take(count * width);
  layout.queries = take(count * queryWidth);
  layout.attention = take(count * queryWidth);
  layout.positions = take(static_cast<uint64_t>(kMaxBlockRows) * sizeof(int32_t));
  layout.ids = take(static_cast<uint64_t>(kMaxBlockRows) * sizeof(int32_t));
  layout.logitStates = take(logitRows * width);
  layout.logitOut = take(logitRows * static_cast<uint64_t>(spec.vocabulary) * sizeof(float));
  layout.total = at;
  return layout;
}

}  // namespace

// One graph under construction in the arena.
struct LinearGraphs::Graph {
  ggml_context* context;
  ggml_cgraph* nodes;
  ggml_tensor* positions = nullptr;

  explicit Graph(std::vector<uint8_t>& arena) {
    context = ggml_init({arena.size(), arena.data(), /*no_alloc=*/true});
    nodes = ggml_new_graph_custom(context, kGraphNodes, false);
  }
  ~Graph() { ggml_free(context); }
  Graph(const Graph&) = delete;
  Graph& operator=(const Graph&) = delete;

  // A tensor over memory that is already there.
  ggml_tensor* place(ggml_backend_buffer_t buffer, ggml_tensor* tensor, void* address) {
    ggml_backend_tensor_alloc(buffer, tensor, address);
    return tensor;
  }
  ggml_tensor* multiply(ggml_tensor* matrix, ggml_tensor* rows, ggml_tensor* bias) {
    ggml_tensor* product = ggml_mul_mat(context, matrix, rows);
    return bias ? ggml_add(context, product, bias) : product;
  }
  void store(ggml_tensor* value, ggml_tensor* target) {
    ggml_build_forward_expand(nodes, ggml_cpy(context, value, target));
  }
};

LinearGraphs::LinearGraphs(std::shared_ptr<const Weights> weights, int32_t threads,
                           double ropeBaseScale)
    : weights_(std::move(weights)),
      spec_(weights_->spec()),
      cpu_(threads),
      ropeBase_(static_cast<float>(spec_.ropeBase * ropeBaseScale)),
      blockRows_(blockRowsFor(spec_)),
      logitRows_(logitRowsFor(spec_)),
      allocator_(ggml_gallocr_new(ggml_backend_cpu_buffer_type())),
      arena_(ggml_tensor_overhead() * kGraphNodes +
             ggml_graph_overhead_custom(kGraphNodes, false)) {}

LinearGraphs::~LinearGraphs() {
  ggml_gallocr_free(allocator_);
  ggml_backend_buffer_free(buffer_);
}

void LinearGraphs::reserve(int64_t rows) {
  if (rows <= rows_) return;
  const Layout layout = layoutFor(spec_, rows);
  ggml_backend_buffer_free(buffer_);
  rows_ = 0;
  buffer_ = ggml_backend_alloc_buffer(cpu_.handle(), layout.total);
  if (!buffer_)
    throw Error(ErrorCode::notEnoughMemory,
                "Scratch memory for " + std::to_string(rows) + " rows needs " +
                    std::to_string(layout.total) + " bytes, which the system did not give.",
                "Use smaller segments (segmentRows) or a smaller model.");
  auto* base = static_cast<uint8_t*>(ggml_backend_buffer_get_base(buffer_));
  residual_ = reinterpret_cast<float*>(base + layout.residual);
  queries_ = reinterpret_cast<float*>(base + layout.queries);
  attention_ = reinterpret_cast<float*>(base + layout.attention);
  positions_ = reinterpret_cast<int32_t*>(base + layout.positions);
  ids_ = reinterpret_cast<int32_t*>(base + layout.ids);
  logitStates_ = reinterpret_cast<float*>(base + layout.logitStates);
  logitOut_ = reinterpret_cast<float*>(base + layout.logitOut);
  rows_ = rows;
}

uint64_t LinearGraphs::scratchBytes() const {
  return (buffer_ ? ggml_backend_buffer_get_size(buffer_) : 0) +
         ggml_gallocr_get_buffer_size(allocator_, 0) + arena_.size();
}

uint64_t LinearGraphs::estimateScratchBytes(const ModelSpec& spec, int64_t rows) {
  // Inside a block the largest live set is: residual, its norm, gate and up, and ggml's work buffer
  // with the quantized copy of one of them.
  const uint64_t perRow =
      (3 * static_cast<uint64_t>(spec.embedding) + 4 * static_cast<uint64_t>(spec.feedForward)) *
      sizeof(float);
  return layoutFor(spec, rows).total + perRow * static_cast<uint64_t>(blockRowsFor(spec));
}

void LinearGraphs::fillPositions(const Block& block) {
  for (int64_t row = block.begin; row < block.end; ++row)
    positions_[row - block.begin] = static_cast<int32_t>(block.position + row);
}

bool LinearGraphs::run(Graph& graph, const CancelFlag& cancel) {
  if (!ggml_gallocr_alloc_graph(allocator_, graph.nodes))
    throw Error(ErrorCode::notEnoughMemory, "The system gave no memory for a block of rows.",
                "Close other programs or use a smaller model.");
  return cpu_.compute(graph.nodes, cancel);
}

// Norm, projections and RoPE of `layer`; returns nothing to compute further.
ggml_tensor* LinearGraphs::front(Graph& graph, ggml_tensor* x, const Block& block, int32_t layer,
                                 const KvCache& cache, bool wantQueries) {
  ggml_context* context = graph.context;
  const LayerWeights& w = weights_->layer(layer);
  const int64_t rows = block.end - block.begin;
  const int64_t headDim = spec_.headDim;

  fillPositions(block);
  ggml_tensor* positions =
      graph.place(buffer_, ggml_new_tensor_1d(context, GGML_TYPE_I32, rows), positions_);
  ggml_tensor* normed =
      ggml_mul(context, ggml_rms_norm(context, x, spec_.normEpsilon), w.attentionNorm);
  auto rope = [&](ggml_tensor* heads) {
    return ggml_rope_ext(context, heads, positions, weights_->ropeFactors(), spec_.headDim,
                         GGML_ROPE_TYPE_NORMAL, 0, ropeBase_, spec_.ropeScale, 0.0f, 1.0f, 32.0f,
                         1.0f);
  };
  // [headDim][row][kvHead] view of the block's rows in the cache.
  const KvLayer kv = cache.layer(layer);
  auto cacheRows = [&](uint16_t* base) {
    ggml_tensor* whole = graph.place(
        cache.buffer(),
        ggml_new_tensor_3d(context, GGML_TYPE_BF16, headDim, kv.capacityRows, spec_.kvHeads), base);
    return ggml_view_3d(context, whole, headDim, rows, spec_.kvHeads, whole->nb[1], whole->nb[2],
                        static_cast<size_t>(block.position + block.begin) * whole->nb[1]);
  };
  auto byHead = [&](ggml_tensor* projected, int64_t heads) {
    return ggml_reshape_3d(context, projected, headDim, heads, rows);
  };
  ggml_tensor* keys = rope(byHead(graph.multiply(w.key, normed, w.keyBias), spec_.kvHeads));
  graph.store(ggml_permute(context, keys, 0, 2, 1, 3), cacheRows(kv.keys));
  ggml_tensor* values = byHead(graph.multiply(w.value, normed, w.valueBias), spec_.kvHeads);
  graph.store(ggml_permute(context, values, 0, 2, 1, 3), cacheRows(kv.values));
  if (wantQueries) {
    ggml_tensor* queries = rope(byHead(graph.multiply(w.query, normed, w.queryBias), spec_.heads));
    ggml_tensor* target =
        graph.place(buffer_, ggml_new_tensor_3d(context, GGML_TYPE_F32, headDim, spec_.heads, rows),
                    queries_ + block.begin * spec_.heads * headDim);
    graph.store(queries, target);
  }
  return normed;
}

// Output projection, residual, feed-forward, residual of `layer`.
ggml_tensor* LinearGraphs::back(Graph& graph, const Block& block, int32_t layer) {
  ggml_context* context = graph.context;
  const LayerWeights& w = weights_->layer(layer);
  const int64_t rows = block.end - block.begin;
  const int64_t queryWidth = int64_t{spec_.heads} * spec_.headDim;
  ggml_tensor* residual =
      graph.place(buffer_, ggml_new_tensor_2d(context, GGML_TYPE_F32, spec_.embedding, rows),
                  residual_ + block.begin * spec_.embedding);
  ggml_tensor* attention =
      graph.place(buffer_, ggml_new_tensor_2d(context, GGML_TYPE_F32, queryWidth, rows),
                  attention_ + block.begin * queryWidth);
  ggml_tensor* x = ggml_add(
      context, graph.multiply(w.attentionOutput, attention, w.attentionOutputBias), residual);
  ggml_tensor* normed =
      ggml_mul(context, ggml_rms_norm(context, x, spec_.normEpsilon), w.feedForwardNorm);
  ggml_tensor* gate = graph.multiply(w.gate, normed, w.gateBias);
  ggml_tensor* up = graph.multiply(w.up, normed, w.upBias);
  ggml_tensor* inner = ggml_swiglu_split(context, gate, up);
  return ggml_add(context, graph.multiply(w.down, inner, w.downBias), x);
}

bool LinearGraphs::embed(const Block& block, std::span<const int32_t> tokens, const KvCache& cache,
                         bool wantQueries, const CancelFlag& cancel) {
  Graph graph(arena_);
  const int64_t rows = block.end - block.begin;
  std::copy(tokens.begin(), tokens.end(), ids_);
  ggml_tensor* ids =
      graph.place(buffer_, ggml_new_tensor_1d(graph.context, GGML_TYPE_I32, rows), ids_);
  ggml_tensor* x = ggml_get_rows(graph.context, weights_->tokenEmbedding(), ids);
  graph.store(
      x,
      graph.place(buffer_, ggml_new_tensor_2d(graph.context, GGML_TYPE_F32, spec_.embedding, rows),
                  residual_ + block.begin * spec_.embedding));
  front(graph, x, block, 0, cache, wantQueries);
  return run(graph, cancel);
}

bool LinearGraphs::advance(const Block& block, int32_t layer, const KvCache& cache,
                           bool wantQueries, const CancelFlag& cancel) {
  Graph graph(arena_);
  ggml_tensor* x = back(graph, block, layer);
  graph.store(x, graph.place(buffer_,
                             ggml_new_tensor_2d(graph.context, GGML_TYPE_F32, spec_.embedding,
                                                block.end - block.begin),
                             residual_ + block.begin * spec_.embedding));
  front(graph, x, block, layer + 1, cache, wantQueries);
  return run(graph, cancel);
}

bool LinearGraphs::finish(const Block& block, const CancelFlag& cancel) {
  Graph graph(arena_);
  ggml_tensor* x = back(graph, block, spec_.layers - 1);
  ggml_tensor* normed = ggml_mul(graph.context, ggml_rms_norm(graph.context, x, spec_.normEpsilon),
                                 weights_->outputNorm());
  graph.store(normed, graph.place(buffer_,
                                  ggml_new_tensor_2d(graph.context, GGML_TYPE_F32, spec_.embedding,
                                                     block.end - block.begin),
                                  residual_ + block.begin * spec_.embedding));
  return run(graph, cancel);
}

bool LinearGraphs::logits(const float* states, int64_t rows, float* out, const CancelFlag& cancel) {
  Graph graph(arena_);
  const size_t stateBytes = static_cast<size_t>(rows * spec_.embedding) * sizeof(float);
  const size_t outBytes = static_cast<size_t>(rows * spec_.vocabulary) * sizeof(float);
  std::memcpy(logitStates_, states, stateBytes);
  ggml_tensor* input =
      graph.place(buffer_, ggml_new_tensor_2d(graph.context, GGML_TYPE_F32, spec_.embedding, rows),
                  logitStates_);
  graph.store(
      ggml_mul_mat(graph.context, weights_->output(), input),
      graph.place(buffer_, ggml_new_tensor_2d(graph.context, GGML_TYPE_F32, spec_.vocabulary, rows),
                  logitOut_));
  if (!run(graph, cancel)) return false;
  std::memcpy(out, logitOut_, outBytes);
  return true;
}

}  // namespace longsight
