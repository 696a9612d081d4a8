#include "cpu/transformer_layers.h"

#include <algorithm>

#include "cpu/pointwise.h"
#include "ggml.h"

namespace longsight {
namespace {

// Rows that a thread takes at a time: enough to pay for handing them out.
constexpr int64_t kRowsAtOnce = 8;

int64_t widestInput(const ModelSpec& spec) {
  return std::max<int64_t>({spec.embedding, spec.feedForward, int64_t{spec.heads} * spec.headDim});
}

int64_t floatsPerRow(const ModelSpec& spec) {
  return 2 * int64_t{spec.embedding} + 2 * int64_t{spec.feedForward} +
         2 * int64_t{spec.kvHeads} * spec.headDim + spec.rope.rotatedDims;
}

}  // namespace

TransformerLayers::TransformerLayers(std::shared_ptr<const Weights> weights,
                                     Activations& activations, ThreadPool& pool, float ropeBase,
                                     int64_t contextTokens)
    : weights_(std::move(weights)),
      spec_(weights_->spec()),
      activations_(activations),
      pool_(pool),
      rope_(spec_.rope, ropeBase, weights_->ropeFactors(contextTokens)),
      scratch_(kBlockRows, widestInput(spec_), pool.threads()),
      dots_(widestInput(spec_)) {
  const auto rows = static_cast<size_t>(kBlockRows);
  const auto keyWidth = static_cast<size_t>(spec_.kvHeads) * static_cast<size_t>(spec_.headDim);
  normed_.resize(rows * static_cast<size_t>(spec_.embedding));
  projected_.resize(rows * static_cast<size_t>(spec_.embedding));
  gate_.resize(rows * static_cast<size_t>(spec_.feedForward));
  up_.resize(rows * static_cast<size_t>(spec_.feedForward));
  keys_.resize(rows * keyWidth);
  values_.resize(rows * keyWidth);
  angles_.resize(rows * static_cast<size_t>(rope_.angleCount()));
}

uint64_t TransformerLayers::scratchBytes() const {
  return estimateScratchBytes(spec_, pool_.threads());
}

uint64_t TransformerLayers::estimateScratchBytes(const ModelSpec& spec, int32_t threads) {
  return static_cast<uint64_t>(kBlockRows * floatsPerRow(spec)) * sizeof(float) +
         LinearScratch::bytes(kBlockRows, widestInput(spec), threads) +
         DotProducts::bytesFor(widestInput(spec));
}

// All outputs have the input's width as columns; rows lie next to each other.
bool TransformerLayers::product(const float* input, int64_t rows,
                                std::span<const LinearOutput> outputs, const CancelFlag& cancel) {
  const int64_t stride = outputs.front().weight.columns;
  return rows <= DotProducts::kMaxRows
             ? dots_.multiply(input, rows, stride, outputs, pool_, cancel)
             : multiply(input, rows, stride, outputs, scratch_, pool_, cancel);
}

// body(row of the segment, row of the block)
template <typename Body>
void TransformerLayers::forRows(const RowBlock& block, const Body& body) {
  const int64_t rows = block.rows();
  pool_.forEach((rows + kRowsAtOnce - 1) / kRowsAtOnce, [&](int64_t item, int32_t) {
    const int64_t end = std::min(rows, (item + 1) * kRowsAtOnce);
    for (int64_t row = item * kRowsAtOnce; row < end; ++row) body(block.begin + row, row);
  });
}

bool TransformerLayers::front(const RowBlock& block, int32_t layer, const KvCache& cache,
                              bool wantQueries, const CancelFlag& cancel) {
  const LayerWeights& w = weights_->layer(layer);
  const int64_t width = spec_.embedding;
  const int32_t headDim = spec_.headDim;
  const int64_t keyWidth = int64_t{spec_.kvHeads} * headDim;
  const int64_t queryWidth = activations_.queryWidth();

  forRows(block, [&](int64_t row, int64_t i) {
    rmsNorm(activations_.residual(row), w[Norm::attention], spec_.normEpsilon,
            normed_.data() + i * width, width);
    rope_.angles(block.position + row, angles_.data() + i * rope_.angleCount());
  });
  const Linear& query = w[Matrix::query];
  const Linear& key = w[Matrix::key];
  const Linear& value = w[Matrix::value];
  LinearOutput outputs[3] = {
      {key.matrix, keys_.data(), keyWidth},
      {value.matrix, values_.data(), keyWidth},
      {query.matrix, wantQueries ? activations_.queries(block.begin) : nullptr, queryWidth}};
  if (!product(normed_.data(), block.rows(), std::span(outputs).first(wantQueries ? 3 : 2), cancel))
    return false;

  const KvLayer kv = cache.layer(layer);
  auto addBias = [](float* x, const float* bias, int64_t count) {
    if (bias) addTo(x, bias, nullptr, count);
  };
  auto turn = [&](float* head, const float* norm, const float* angles) {
    if (norm) rmsNorm(head, norm, spec_.normEpsilon, head, headDim);
    rope_.rotate(head, angles);
  };
  forRows(block, [&](int64_t row, int64_t i) {
    const float* angles = angles_.data() + i * rope_.angleCount();
    float* keys = keys_.data() + i * keyWidth;
    float* values = values_.data() + i * keyWidth;
    addBias(keys, key.bias, keyWidth);
    addBias(values, value.bias, keyWidth);
    for (int32_t head = 0; head < spec_.kvHeads; ++head) {
      float* keyHead = keys + int64_t{head} * headDim;
      turn(keyHead, w[Norm::key], angles);
      kv.store(head, block.position + row, keyHead, values + int64_t{head} * headDim);
    }
    if (!wantQueries) return;
    float* queries = activations_.queries(row);
    addBias(queries, query.bias, queryWidth);
    for (int32_t head = 0; head < spec_.heads; ++head)
      turn(queries + int64_t{head} * headDim, w[Norm::query], angles);
  });
  return true;
}

// x += y + bias, or norm(y + bias) where the architecture norms what a block adds; y is used up.
void TransformerLayers::addBlock(float* x, float* y, const float* bias, const float* norm) const {
  const int64_t width = spec_.embedding;
  if (!norm) return addTo(x, y, bias, width);
  if (bias) addTo(y, bias, nullptr, width);
  rmsNorm(y, norm, spec_.normEpsilon, y, width);
  addTo(x, y, nullptr, width);
}

bool TransformerLayers::back(const RowBlock& block, int32_t layer, const CancelFlag& cancel) {
  const LayerWeights& w = weights_->layer(layer);
  const int64_t width = spec_.embedding;
  const int64_t inner = spec_.feedForward;
  const int64_t rows = block.rows();

  const Linear& attentionOutput = w[Matrix::attentionOutput];
  const LinearOutput projection = {attentionOutput.matrix, projected_.data(), width};
  if (!product(activations_.attention(block.begin), rows, {&projection, 1}, cancel)) return false;
  forRows(block, [&](int64_t row, int64_t i) {
    float* x = activations_.residual(row);
    addBlock(x, projected_.data() + i * width, attentionOutput.bias, w[Norm::attentionOutput]);
    rmsNorm(x, w[Norm::feedForward], spec_.normEpsilon, normed_.data() + i * width, width);
  });
  const Linear& gate = w[Matrix::gate];
  const Linear& up = w[Matrix::up];
  const LinearOutput outputs[2] = {{gate.matrix, gate_.data(), inner},
                                   {up.matrix, up_.data(), inner}};
  if (!product(normed_.data(), rows, outputs, cancel)) return false;
  forRows(block, [&](int64_t, int64_t i) {
    swiglu(gate_.data() + i * inner, up_.data() + i * inner, gate.bias, up.bias, inner);
  });
  const Linear& down = w[Matrix::down];
  const LinearOutput shrunk = {down.matrix, projected_.data(), width};
  if (!product(gate_.data(), rows, {&shrunk, 1}, cancel)) return false;
  forRows(block, [&](int64_t row, int64_t i) {
    addBlock(activations_.residual(row), projected_.data() + i * width, down.bias,
             w[Norm::feedForwardOutput]);
  });
  return true;
}

bool TransformerLayers::embed(const RowBlock& block, std::span<const int32_t> tokens,
                              const KvCache& cache, bool wantQueries, const CancelFlag& cancel) {
  const WeightView& table = weights_->tokenEmbedding();
  const ggml_to_float_t expand = ggml_get_type_traits(table.type)->to_float;
  const size_t rowBytes = ggml_row_size(table.type, table.columns);
  forRows(block, [&](int64_t row, int64_t i) {
    const auto* source = static_cast<const uint8_t*>(table.data) +
                         static_cast<size_t>(tokens[static_cast<size_t>(i)]) * rowBytes;
    float* target = activations_.residual(row);
    if (expand)
      expand(source, target, spec_.embedding);
    else
      std::copy_n(reinterpret_cast<const float*>(source), spec_.embedding, target);
  });
  return front(block, 0, cache, wantQueries, cancel);
}

bool TransformerLayers::advance(const RowBlock& block, int32_t layer, const KvCache& cache,
                                bool wantQueries, const CancelFlag& cancel) {
  return back(block, layer, cancel) && front(block, layer + 1, cache, wantQueries, cancel);
}

bool TransformerLayers::finish(const RowBlock& block, const CancelFlag& cancel) {
  if (!back(block, spec_.layers - 1, cancel)) return false;
  forRows(block, [&](int64_t row, int64_t) {
    float* x = activations_.residual(row);
    rmsNorm(x, weights_->outputNorm(), spec_.normEpsilon, x, spec_.embedding);
  });
  return true;
}

bool TransformerLayers::logits(const float* states, int64_t rows, float* out,
                               const CancelFlag& cancel) {
  const Linear& output = weights_->output();
  const LinearOutput head = {output.matrix, out, spec_.vocabulary};
  if (!product(states, rows, {&head, 1}, cancel)) return false;
  if (output.bias)
    for (int64_t row = 0; row < rows; ++row)
      addTo(out + row * spec_.vocabulary, output.bias, nullptr, spec_.vocabulary);
  return true;
}

}  // namespace longsight
