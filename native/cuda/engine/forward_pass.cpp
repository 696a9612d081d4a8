#include "cuda/engine/forward_pass.h"

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <string>

#include "attention/geometry.h"

namespace longsight::cuda {
namespace {

// Floating point operations of a weight and a row, of a dimension and a pair.
constexpr double kWeightFlop = 2;
constexpr double kPairFlop = 4;

double layerWeights(const ModelPlan& plan, int32_t layer) {
  double weights = 0;
  for (const PlannedProduct& product : plan.layers[static_cast<size_t>(layer)].products)
    weights += static_cast<double>(product.rows) * static_cast<double>(product.columns);
  return weights;
}

}  // namespace

ForwardPass::ForwardPass(Session& session, const LsForward& request)
    : session_(session),
      model_(session.model_),
      shape_(session.model_.shape()),
      request_(request),
      progress_(request.proceed, request.context),
      clock_(session.clock_),
      stream_(session.stream_),
      layers_(shape_.layers) {
  if (request.segmentCount < 1 || request.segments == nullptr || request.tokens == nullptr)
    throw invalid("A pass needs segments and tokens.");
  for (int32_t i = 0; i < request.segmentCount; ++i) {
    const LsSegment& from = request.segments[i];
    Segment segment;
    segment.begin = from.begin;
    segment.end = from.end;
    segment.dense = from.dense != 0;
    segment.stride = from.dense ? 0 : from.stride;
    segment.windowTokens = from.dense ? 0 : from.windowTokens;
    segments_.push_back(segment);
  }
  begin_ = segments_.front().begin;
  end_ = segments_.back().end;
  checkRequest();

  wanted_ = request.outputBegin - begin_;
  lastQueries_ = rows();
  for (const Segment& segment : segments_) {
    if (segment.end <= request.outputBegin) continue;
    lastQueries_ =
        (segment.dense ? std::max(segment.begin, request.outputBegin) : segment.begin) - begin_;
    break;
  }
}

void ForwardPass::checkRequest() const {
  checkParams(request_.params, shape_);
  for (size_t i = 0; i < segments_.size(); ++i) {
    // What the kernels ask of one segment, then of neighbours.
    if (std::string fault = validate(chunkOf(std::span(segments_).subspan(i, 1), 0));
        !fault.empty())
      throw invalid("Segment " + std::to_string(i) + ": " + fault + ".");
    if (i > 0 && segments_[i].begin != segments_[i - 1].end)
      throw invalid("Segment " + std::to_string(i) + " begins at " +
                    std::to_string(segments_[i].begin) + ", the one before ends at " +
                    std::to_string(segments_[i - 1].end) + ".");
  }
  if (begin_ > session_.rows_)
    throw invalid("The pass begins at row " + std::to_string(begin_) + ", but the cache holds " +
                  std::to_string(session_.rows_) + ".");
  if (end_ > session_.capacityRows_)
    throw invalid("The pass ends at row " + std::to_string(end_) + " of a cache of " +
                  std::to_string(session_.capacityRows_) + ".");
  if (request_.outputBegin < begin_ || request_.outputBegin > end_ ||
      (request_.outputBegin < end_ && request_.states == nullptr))
    throw invalid("States are wanted from row " + std::to_string(request_.outputBegin) +
                  " of rows [" + std::to_string(begin_) + ", " + std::to_string(end_) +
                  "), or there is no place for them.");
  if (request_.forcedDensity > 1)
    throw invalid("A forced density of " + std::to_string(request_.forcedDensity) + " is above 1.");
  for (int64_t i = 0; i < rows(); ++i) {
    if (request_.tokens[i] < 0 || request_.tokens[i] >= shape_.vocabulary)
      throw invalid("Token " + std::to_string(request_.tokens[i]) + " of row " +
                    std::to_string(begin_ + i) + " is not in the vocabulary of " +
                    std::to_string(shape_.vocabulary) + ".");
  }
}

uint64_t ForwardPass::leastWorkspaceBytes() const {
  int64_t most = 0;
  for (size_t i = 0; i < segments_.size(); ++i)
    most = std::max(most, workspaceBytes(chunkOf(std::span(segments_).subspan(i, 1), 0)));
  // Fewer rows may need more: their columns are split.
  const std::vector<Segment> last = lastSegments();
  if (!last.empty()) most = std::max(most, workspaceBytes(chunkOf(std::span(last).first(1), 0)));
  return static_cast<uint64_t>(most);
}

void ForwardPass::run(int32_t layers) {
  layers_ = layers;
  clock_.begin(progress_);
  // By about how long they take, so that progress moves evenly.
  double linearWork = 0;
  for (int32_t layer = 0; layer < layers; ++layer)
    linearWork += kWeightFlop * layerWeights(model_.plan(), layer) * static_cast<double>(rows());
  const double attentionWork = pairWork(segments_) * kPairFlop * shape_.headDim * layers;
  const double total = linearWork + attentionWork;
  linearShare_ = linearWork / total / static_cast<double>(rows()) / layers;
  attentionShare_ = attentionWork / total / std::max(pairWork(segments_) * layers, 1.0);

  uploadInputs();
  embed();
  expand(0, Product::queryKeyValue);
  forBlocks(0, [&](const Block& block) { front(block, 0); });
  const bool wantsStates = layers == shape_.layers && wanted_ < rows();
  for (int32_t layer = 0; layer < layers; ++layer) {
    const bool last = layer + 1 == layers;
    if (last && !wantsStates) break;
    attend(layer);
    for (const Product which : {Product::attentionOutput, Product::gateUp, Product::down})
      expand(layer, which);
    if (!last) expand(layer + 1, Product::queryKeyValue);
    forBlocks(last ? wanted_ : 0, [&](const Block& block) {
      back(block, layer);
      if (!last) front(block, layer + 1);
    });
  }
  if (wantsStates) normStates();
  clock_.finish();
  deliver(wantsStates);
}

void ForwardPass::uploadInputs() {
  const bool hasEpsilons = request_.params.headEpsilons != nullptr;
  const int64_t stride = epsilonStride(shape_.heads);
  const auto pairs =
      static_cast<uint64_t>(shape_.layers) * segments_.size() * static_cast<uint64_t>(shape_.heads);
  const auto audits = static_cast<uint64_t>(std::max(request_.params.auditRows, 0));
  Layout layout;
  host_.tokens = layout.place(static_cast<uint64_t>(rows()) * 4);
  host_.epsilons =
      layout.place(hasEpsilons ? static_cast<uint64_t>(shape_.layers * stride) * 4 : 0);
  host_.stats = layout.place(request_.stats != nullptr ? pairs * sizeof(HeadStats) : 0);
  host_.coverage = layout.place(request_.coverage != nullptr ? pairs * audits * 4 : 0);
  host_.bytes = layout.bytes();
  PinnedBlock& pinned = session_.passHost_;
  if (pinned.bytes() < host_.bytes) {
    pinned = PinnedBlock();
    pinned = PinnedBlock(host_.bytes);
  }
  const ScratchPlan& plan = session_.plan_.scratch;
  std::memcpy(pinned.data() + host_.tokens, request_.tokens, static_cast<size_t>(rows()) * 4);
  check(cudaMemcpyAsync(session_.scratch<char>(plan.tokens), pinned.data() + host_.tokens,
                        static_cast<size_t>(rows()) * 4, cudaMemcpyHostToDevice, stream_),
        "Copying tokens");
  // What no layer computes stays so.
  if (request_.stats != nullptr)
    std::memset(pinned.data() + host_.stats, 0, pairs * sizeof(HeadStats));
  if (request_.coverage != nullptr)
    std::fill_n(reinterpret_cast<float*>(pinned.data() + host_.coverage), pairs * audits, -1.0f);
  if (hasEpsilons) {
    auto* epsilons = reinterpret_cast<float*>(pinned.data() + host_.epsilons);
    for (int32_t layer = 0; layer < shape_.layers; ++layer)
      std::copy_n(request_.params.headEpsilons + int64_t{layer} * shape_.heads, shape_.heads,
                  epsilons + layer * stride);
    check(cudaMemcpyAsync(session_.scratch<char>(plan.epsilons), epsilons,
                          static_cast<size_t>(shape_.layers * stride) * 4, cudaMemcpyHostToDevice,
                          stream_),
          "Copying epsilons");
  }
}

void ForwardPass::embed() {
  const ScratchPlan& plan = session_.plan_.scratch;
  check(launchEmbed(model_.matrix(model_.plan().tokenEmbedding),
                    session_.scratch<int32_t>(plan.tokens), rows(),
                    session_.scratch<float>(plan.residual), stream_),
        "Reading embeddings");
  clock_.mark(Part::rest);
}

template <class Body>
void ForwardPass::forBlocks(int64_t begin, const Body& body) {
  for (int64_t row = begin; row < rows(); row += session_.plan_.scratch.blockRows) {
    const Block block{row, std::min(rows(), row + session_.plan_.scratch.blockRows)};
    clock_.admit(clock_.predict(Part::linear, kWeightFlop * layerWeights(model_.plan(), 0) *
                                                  static_cast<double>(block.rows())));
    body(block);
  }
}

// ---- linear layers -----------------------------------------------------------------------------

void ForwardPass::expand(int32_t layer, Product which) {
  const PlannedProduct& product = model_.plan().product(layer, which);
  if (product.isPlainBf16()) return;
  char* to = session_.scratch<char>(session_.plan_.scratch.expanded[static_cast<size_t>(which)]);
  for (const PlannedMatrix& matrix : product.matrices) {
    check(launchExpand(model_.matrix(matrix), 0, matrix.rows,
                       to + matrix.firstRow * matrix.columns * 2, matrix.columns, stream_),
          "Expanding weights");
  }
  clock_.mark(Part::expand);
}

const char* ForwardPass::bf16Weights(int32_t layer, Product which) const {
  const PlannedProduct& product = model_.plan().product(layer, which);
  if (product.isPlainBf16())
    return static_cast<const char*>(model_.matrix(product.matrices.front()).data);
  return session_.scratch<char>(session_.plan_.scratch.expanded[static_cast<size_t>(which)]);
}

void ForwardPass::linear(int32_t layer, Product which, const void* input, int64_t rows,
                         LinearEpilogue epilogue, void* output, int64_t firstOutput) {
  const PlannedProduct& product = model_.plan().product(layer, which);
  const float* bias = model_.vector(product.bias);
  LinearTask task;
  task.input = input;
  task.weight = bf16Weights(layer, which) + firstOutput * product.columns * 2;
  task.bias = bias == nullptr ? nullptr : bias + firstOutput;
  task.output = output;
  task.rows = rows;
  task.outputs = static_cast<int32_t>(product.rows - firstOutput);
  task.inner = static_cast<int32_t>(product.columns);
  task.epilogue = epilogue;
  check(launchLinear(task, session_.scratch<char>(session_.plan_.scratch.linearWorkspace),
                     Path::best, stream_),
        "A matrix product");
  const double weights = static_cast<double>(task.outputs) * static_cast<double>(task.inner);
  const double share =
      linearShare_ * static_cast<double>(rows) * weights / layerWeights(model_.plan(), layer);
  clock_.mark(Part::linear, kWeightFlop * weights * static_cast<double>(rows), share);
}

void ForwardPass::norm(const Block& block, const float* weights, Number number, void* output) {
  RmsNormTask task;
  task.input =
      session_.scratch<float>(session_.plan_.scratch.residual) + block.begin * shape_.embedding;
  task.weight = weights;
  task.output = output;
  task.outputNumber = number;
  task.rows = block.rows();
  task.width = shape_.embedding;
  task.epsilon = shape_.normEpsilon;
  check(launchRmsNorm(task, stream_), "A norm");
  clock_.mark(Part::pointwise);
}

void ForwardPass::front(const Block& block, int32_t layer) {
  const char* normed = session_.scratch<char>(session_.plan_.scratch.normed);
  norm(block, model_.norm(layer, LS_NORM_ATTENTION), Number::bf16,
       session_.scratch<char>(session_.plan_.scratch.normed));
  // In the last layer most rows need keys and values only.
  const int64_t queriesFrom =
      layer + 1 == shape_.layers ? std::clamp(lastQueries_, block.begin, block.end) : block.begin;
  project({block.begin, queriesFrom}, layer, normed, false);
  project({queriesFrom, block.end}, layer,
          normed + (queriesFrom - block.begin) * shape_.embedding * 2, true);
}

void ForwardPass::project(const Block& block, int32_t layer, const char* normed, bool withQueries) {
  if (block.rows() == 0) return;
  const ScratchPlan& plan = session_.plan_.scratch;
  char* projected = session_.scratch<char>(plan.wide);
  const int64_t queryWidth = withQueries ? shape_.queryWidth() : 0;
  linear(layer, Product::queryKeyValue, normed, block.rows(), LinearEpilogue::storeBf16, projected,
         shape_.queryWidth() - queryWidth);

  const Session::Layer cache = session_.layer(layer);
  RopeStoreTask task;
  task.shape = session_.plan_.kv.shape;
  task.projectedQueries = withQueries ? projected : nullptr;
  task.projectedKeys = projected + queryWidth * 2;
  task.projectedValues = projected + (queryWidth + shape_.keyWidth()) * 2;
  task.rowStride = queryWidth + 2 * shape_.keyWidth();
  task.queryNorm = model_.norm(layer, LS_NORM_QUERY);
  task.keyNorm = model_.norm(layer, LS_NORM_KEY);
  task.epsilon = shape_.normEpsilon;
  task.rope = session_.ropeTable();
  task.rows = block.rows();
  task.firstRow = begin_ + block.begin;
  task.queries = withQueries
                     ? session_.scratch<char>(plan.queries) + block.begin * shape_.queryWidth() * 2
                     : nullptr;
  task.keys = cache.keys;
  task.values = cache.values;
  task.keyScales = cache.keyScales;
  task.valueScales = cache.valueScales;
  task.capacityRows = session_.plan_.kv.capacityRows;
  check(launchRopeStore(task, stream_), "RoPE");
  clock_.mark(Part::pointwise);
}

void ForwardPass::addProduct(const Block& block, int32_t layer, Product which, const void* input) {
  const ScratchPlan& plan = session_.plan_.scratch;
  float* residual = session_.scratch<float>(plan.residual) + block.begin * shape_.embedding;
  const float* blockNorm =
      model_.norm(layer, which == Product::attentionOutput ? LS_NORM_ATTENTION_OUTPUT
                                                           : LS_NORM_FEED_FORWARD_OUTPUT);
  if (blockNorm == nullptr)
    return linear(layer, which, input, block.rows(), LinearEpilogue::addToF32, residual);
  float* output = session_.scratch<float>(plan.blockOutput);
  linear(layer, which, input, block.rows(), LinearEpilogue::storeF32, output);
  AddBlockTask task;
  task.residual = residual;
  task.block = output;
  task.blockNumber = Number::f32;
  task.blockNorm = blockNorm;
  task.rows = block.rows();
  task.width = shape_.embedding;
  task.epsilon = shape_.normEpsilon;
  check(launchAddBlock(task, stream_), "The norm of a block's output");
  clock_.mark(Part::pointwise);
}

void ForwardPass::back(const Block& block, int32_t layer) {
  const ScratchPlan& plan = session_.plan_.scratch;
  addProduct(block, layer, Product::attentionOutput,
             session_.scratch<char>(plan.attention) + block.begin * shape_.queryWidth() * 2);
  char* normed = session_.scratch<char>(plan.normed);
  norm(block, model_.norm(layer, LS_NORM_FEED_FORWARD), Number::bf16, normed);
  char* hidden = session_.scratch<char>(plan.wide);
  linear(layer, Product::gateUp, normed, block.rows(), LinearEpilogue::swigluBf16, hidden);
  addProduct(block, layer, Product::down, hidden);
}

void ForwardPass::normStates() {
  const Block block{wanted_, rows()};
  norm(block, model_.vector(model_.plan().outputNorm), Number::f32,
       session_.scratch<float>(session_.plan_.scratch.residual) + block.begin * shape_.embedding);
}

void ForwardPass::deliver(bool states) {
  if (states) {
    const float* from =
        session_.scratch<float>(session_.plan_.scratch.residual) + wanted_ * shape_.embedding;
    session_.transfer_.toHost(
        request_.states, reinterpret_cast<const char*>(from),
        static_cast<uint64_t>((rows() - wanted_) * shape_.embedding) * sizeof(float));
  }
  static_assert(sizeof(LsHeadStats) == sizeof(HeadStats) &&
                offsetof(LsHeadStats, dense) == offsetof(HeadStats, dense));
  const char* from = session_.passHost_.data();
  const size_t pairs =
      static_cast<size_t>(shape_.layers) * segments_.size() * static_cast<size_t>(shape_.heads);
  if (request_.stats != nullptr)
    std::memcpy(request_.stats, from + host_.stats, pairs * sizeof(HeadStats));
  if (request_.coverage != nullptr)
    std::memcpy(request_.coverage, from + host_.coverage,
                pairs * static_cast<size_t>(request_.params.auditRows) * sizeof(float));
}

}  // namespace longsight::cuda
