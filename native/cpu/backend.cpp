#include "cpu/backend.h"

#include <algorithm>
#include <chrono>
#include <cstring>

#include "cpu/epsilon_probe.h"
#include "session/build_identity.h"
#include "session/machine.h"

namespace longsight {
namespace {

class Stopwatch {
 public:
  explicit Stopwatch(double& totalMs) : totalMs_(totalMs) {}
  ~Stopwatch() {
    totalMs_ += std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start_)
                    .count();
  }
  Stopwatch(const Stopwatch&) = delete;
  Stopwatch& operator=(const Stopwatch&) = delete;

 private:
  double& totalMs_;
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

constexpr int64_t kProbeFlop = 50'000'000'000;
constexpr int64_t kLeastProbeRows = 64;

// Mean time of run(), after one that pays for page faults and for waking the threads; over at least
// 100 ms, so that the share of the processor that other programs take is in it. Ends early when
// run() says false.
template <typename Run>
double meanMs(const Run& run) {
  double totalMs = 0;
  int runs = 0;
  if (!run()) return 0;
  while (runs < 2 || totalMs < 100) {
    const Stopwatch stopwatch(totalMs);
    if (!run()) return 0;
    ++runs;
  }
  return totalMs / runs;
}

}  // namespace

CpuBackend::CpuBackend(std::shared_ptr<const Weights> weights, KvType kvCache, int64_t capacityRows,
                       int32_t threads, double ropeBaseScale)
    : weights_(std::move(weights)),
      cache_(kvCache, weights_->spec().layers, weights_->spec().kvHeads, weights_->spec().headDim,
             capacityRows),
      pool_(threads),
      activations_(weights_->spec()),
      layers_(weights_, activations_, pool_,
              static_cast<float>(weights_->spec().rope.base * ropeBaseScale), capacityRows) {}

uint64_t CpuBackend::scratchBytes() const {
  return activations_.bytes() + attentionScratch_.bytes() + layers_.scratchBytes();
}

MemoryUse CpuBackend::memory() const {
  return {weights_->bytes(), cache_.bytes(), scratchBytes(), 0, {}};
}

Backend::ScratchNeed CpuBackend::scratchFor(const SampleAttentionParams& params,
                                            int64_t segmentRows) {
  return {estimateScratchBytes(spec(), params, segmentRows, capacityRows(), pool_.threads()),
          availableMemoryBytes() + scratchBytes()};
}

uint64_t CpuBackend::identity() const { return buildIdentity(); }

void CpuBackend::readRows(size_t plane, int64_t first, int64_t rows, std::byte* target) const {
  const std::span<const std::byte> source = cache_.rows(plane, first, rows);
  std::memcpy(target, source.data(), source.size());
}

void CpuBackend::writeRows(size_t plane, int64_t first, int64_t rows, const std::byte* source) {
  const std::span<std::byte> target = cache_.rows(plane, first, rows);
  std::memcpy(target.data(), source, target.size());
}

uint64_t CpuBackend::estimateScratchBytes(const ModelSpec& spec,
                                          const SampleAttentionParams& params, int64_t segmentRows,
                                          int64_t capacityRows, int32_t threads) {
  const AttentionShape shape{spec.heads, spec.kvHeads, spec.headDim, capacityRows};
  return Activations(spec).bytesFor(segmentRows) + attentionScratchBytes(shape, params, threads) +
         TransformerLayers::estimateScratchBytes(spec, threads);
}

template <typename Body>
bool CpuBackend::forBlocks(int64_t begin, int64_t end, int64_t position, const Body& body) {
  const Stopwatch stopwatch(times_.linearMs);
  for (int64_t row = begin; row < end; row += TransformerLayers::kBlockRows) {
    const int64_t blockEnd = std::min(end, row + TransformerLayers::kBlockRows);
    if (!body(RowBlock{row, blockEnd, position})) return false;
  }
  return true;
}

bool CpuBackend::attend(const Segment& segment, int32_t layer, int64_t segmentBegin,
                        int64_t outputBegin, const Chunk& chunk, const CancelFlag& cancel,
                        std::vector<HeadAttention>& heads) {
  const Stopwatch stopwatch(times_.attentionMs);
  const SampleAttentionParams& params = *chunk.params;
  const int64_t row = segment.begin - segmentBegin;
  AttentionTask task;
  task.segment = segment;
  task.params = &params;
  task.queries = activations_.queries(row);
  task.output = activations_.attention(row);
  task.heads = spec().heads;
  task.kv = cache_.layer(layer);
  task.scale = spec().attentionScale;
  task.outputBegin = outputBegin;
  task.ropeStyle = spec().rope.style;
  task.rotatedDims = spec().rope.rotatedDims;
  task.scratch = &attentionScratch_;
  if (!params.headEpsilons.empty()) {
    task.epsilons =
        std::span(params.headEpsilons)
            .subspan(static_cast<size_t>(layer * spec().heads), static_cast<size_t>(spec().heads));
  }
  if (chunk.forcedDensity) task.draw = {.density = *chunk.forcedDensity, .layer = layer};
  if (!runAttention(task, pool_, cancel, heads)) return false;
  if (chunk.curves != nullptr && !segment.dense)
    probeEpsilons(task, weights_->layer(layer)[Matrix::attentionOutput].matrix,
                  activations_.residual(row), layer, pool_, *chunk.curves);
  return true;
}

bool CpuBackend::forward(const Chunk& chunk, const CancelFlag& cancel,
                         std::vector<SegmentAttention>& attention) {
  attention.resize(chunk.segments.size());
  const auto rows = static_cast<double>(chunk.end() - chunk.begin());
  for (size_t i = 0; i < chunk.segments.size(); ++i) {
    const Segment& segment = chunk.segments[i];
    const int64_t outputBegin = std::clamp(chunk.outputBegin, segment.begin, segment.end);
    float* states = chunk.states
                        ? chunk.states + (outputBegin - chunk.outputBegin) * spec().embedding
                        : nullptr;
    std::function<void(double)> onProgress;
    if (chunk.onProgress)
      onProgress = [&](double share) {
        const auto done = static_cast<double>(segment.begin - chunk.begin());
        chunk.onProgress((done + share * static_cast<double>(segment.end - segment.begin)) / rows);
      };
    if (!forwardSegment(chunk, segment, outputBegin, states, false, onProgress, cancel,
                        attention[i]))
      return false;
  }
  return true;
}

bool CpuBackend::step(std::span<const int32_t> tokens, int64_t position, float* logits,
                      const CancelFlag& cancel) {
  const auto rows = static_cast<int64_t>(tokens.size());
  const SampleAttentionParams params;
  const Segment segment{position, position + rows, true, 0, 0};
  stepStates_.resize(kMostStepRows * static_cast<size_t>(spec().embedding));
  SegmentAttention attention;
  Chunk chunk;
  chunk.segments = {&segment, 1};
  chunk.tokens = tokens;
  chunk.params = &params;
  return forwardSegment(chunk, segment, position, stepStates_.data(), true, nullptr, cancel,
                        attention) &&
         layers_.logits(stepStates_.data(), rows, logits, cancel);
}

bool CpuBackend::forwardSegment(const Chunk& chunk, const Segment& segment, int64_t outputBegin,
                                float* states, bool rowByRow,
                                const std::function<void(double)>& onProgress,
                                const CancelFlag& cancel, SegmentAttention& attention) {
  const int32_t layers = spec().layers;
  const int64_t rows = segment.end - segment.begin;
  const int64_t wanted = outputBegin - segment.begin;
  const bool wantsOutput = wanted < rows;
  const std::span tokens = chunk.tokens.subspan(static_cast<size_t>(segment.begin - chunk.begin()),
                                                static_cast<size_t>(rows));
  activations_.reserve(rows);
  attention.assign(static_cast<size_t>(layers), {});

  // The last layer needs queries of the wanted rows only, or of all when the segment's rows vote.
  const int64_t lastQueries = !wantsOutput ? rows : (segment.dense ? wanted : 0);
  auto wantQueries = [&](int32_t layer, const RowBlock& block) {
    return layer + 1 < layers || block.end > lastQueries;
  };

  auto attendParts = [&](const Segment& whole, int32_t layer, int64_t outputFrom,
                         std::vector<HeadAttention>& heads) {
    const int64_t partRows = rowByRow ? 1 : whole.end - whole.begin;
    for (Segment part = whole; part.begin < whole.end; part.begin = part.end) {
      part.end = part.begin + partRows;
      if (!attend(part, layer, segment.begin, std::max(outputFrom, part.begin), chunk, cancel,
                  heads))
        return false;
    }
    return true;
  };
  const bool embedded = forBlocks(0, rows, segment.begin, [&](const RowBlock& block) {
    return layers_.embed(block,
                         tokens.subspan(static_cast<size_t>(block.begin),
                                        static_cast<size_t>(block.end - block.begin)),
                         cache_, wantQueries(0, block), cancel);
  });
  if (!embedded) return false;

  for (int32_t layer = 0; layer + 1 < layers; ++layer) {
    if (!attendParts(segment, layer, segment.begin, attention[static_cast<size_t>(layer)]))
      return false;
    const bool advanced = forBlocks(0, rows, segment.begin, [&](const RowBlock& block) {
      return layers_.advance(block, layer, cache_, wantQueries(layer + 1, block), cancel);
    });
    if (!advanced) return false;
    if (onProgress) onProgress(static_cast<double>(layer + 1) / layers);
  }

  if (wantsOutput) {
    Segment last = segment;
    if (segment.dense) last.begin = segment.begin + wanted;
    if (!attendParts(last, layers - 1, segment.begin + wanted,
                     attention[static_cast<size_t>(layers - 1)]))
      return false;
    if (!forBlocks(wanted, rows, segment.begin,
                   [&](const RowBlock& block) { return layers_.finish(block, cancel); }))
      return false;
    std::memcpy(states, activations_.residual(wanted),
                static_cast<size_t>((rows - wanted) * spec().embedding) * sizeof(float));
  }
  if (onProgress) onProgress(1.0);
  return true;
}

bool CpuBackend::logits(const float* states, int64_t rows, float* out, const CancelFlag& cancel) {
  return layers_.logits(states, rows, out, cancel);
}

Backend::Speed CpuBackend::probe(int64_t usedRows, const CancelFlag& cancel) {
  const ForwardTimes before = times_;
  const int64_t columns = std::min<int64_t>(capacityRows(), 1024);
  // A whole block, as prefill has them, unless one layer of it already takes a second or so.
  const int64_t flopPerRow = 2 * static_cast<int64_t>(spec().embedding) *
                             (3 * int64_t{spec().feedForward} + 2 * activations_.queryWidth());
  const int64_t rows = std::min(
      {columns, TransformerLayers::kBlockRows, std::max(kProbeFlop / flopPerRow, kLeastProbeRows)});
  // Keys and values of the probe's rows go where the cache holds nothing yet; in a full cache there
  // is no such place, and then nothing is left to predict.
  const int64_t freeRows = std::min(rows, capacityRows() - usedRows);
  Speed speed;
  if (freeRows <= 0 || spec().layers < 2) return speed;
  activations_.reserve(rows);

  const std::vector<int32_t> tokens(static_cast<size_t>(freeRows), 0);
  const RowBlock block{0, freeRows, usedRows};
  if (!layers_.embed(block, tokens, cache_, true, cancel)) return speed;
  std::memset(activations_.attention(0), 0,
              static_cast<size_t>(rows * activations_.queryWidth()) * sizeof(float));
  const double linearMs = meanMs([&] { return layers_.advance(block, 0, cache_, true, cancel); });
  Segment segment;
  segment.begin = columns - freeRows;
  segment.end = columns;
  const SampleAttentionParams params;
  Chunk chunk;
  chunk.params = &params;
  std::vector<HeadAttention> heads;
  const double attentionMs = meanMs(
      [&] { return attend(segment, 0, segment.begin, segment.begin, chunk, cancel, heads); });
  times_ = before;
  const double pairs = static_cast<double>(freeRows) *
                       (static_cast<double>(segment.begin + segment.end) + 1) / 2 * spec().heads;
  speed.linearMsPerRow = linearMs / static_cast<double>(freeRows);
  speed.attentionMsPerPair = attentionMs / pairs;
  return speed;
}

}  // namespace longsight
