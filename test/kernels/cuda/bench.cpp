// Times the CUDA kernels; one line a measurement: name, milliseconds (median), TFLOP/s of useful
// work. L2 is flushed before each run.
//   bench_cuda_kernels [--seed N] [--only SUBSTRING]
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "attention/geometry.h"
#include "bench_clock.h"
#include "bench_data.h"
#include "bench_parts.h"
#include "device_memory.h"
#include "kernels/cuda/filter/drawn_votes.h"
#include "kernels/cuda/sample_attention.h"

namespace longsight::cuda::test {
namespace {

std::string only;

bool wanted(const std::string& name) {
  return only.empty() || name.find(only) != std::string::npos;
}

// One layer of `tokens` rows in chunks of 64 segments.
class Layer {
 public:
  Layer(int64_t tokens, HeadShape shape, uint64_t seed)
      : tokens_(tokens),
        shape_(shape),
        queries_(tokens * shape.heads * shape.headDim * 2),
        output_(tokens * shape.heads * shape.headDim * 2),
        seed_(seed) {
    const int dim = shape.headDim;
    const int64_t cacheElements = tokens * shape.kvHeads * dim;
    keys_ = std::make_unique<DeviceBuffer>(cacheElements * 2);
    values_ = std::make_unique<DeviceBuffer>(cacheElements * 2);
    fillQueries(queries_.data(), queries_.bytes() / 2, dim, seed);
    fillKeys(keys_->data(), cacheElements, dim, tokens, seed + 1);
    fillValues(values_->data(), cacheElements, dim, seed + 2);
    if (shape.storage == KvStorage::q8) {
      quantize(keys_, keyScales_);
      quantize(values_, valueScales_);
    }
    params_.denseBelowTokens = 0;
    options_.scoreDims = scoreDimRanges(ScoreDims::slowHalf, RopeStyle::neox, dim);
    plan(false);
  }

  // All segments dense, or as the defaults plan them.
  void plan(bool dense) {
    SampleAttentionParams params = params_;
    if (dense) params.policy = Policy::dense;
    segments_ = planSegments(tokens_, {}, tokens_, params);
    chunks_.clear();
    for (size_t i = 0; i < segments_.size(); i += kMaxChunkSegments) {
      const size_t count = std::min<size_t>(kMaxChunkSegments, segments_.size() - i);
      chunks_.push_back({std::span(segments_).subspan(i, count), shape_, options_});
    }
    // One workspace for all chunks, as the engine has it; only layers of one chunk keep results.
    int64_t bytes = 0;
    int64_t rows = 0;
    for (const Chunk& chunk : chunks_) {
      bytes = std::max(bytes, workspaceBytes(chunk));
      rows = std::max(rows, chunk.segments.back().end - chunk.segments.front().begin);
    }
    workspace_.reset();
    logSums_.reset();
    workspace_ = std::make_unique<DeviceBuffer>(bytes);
    logSums_ = std::make_unique<DeviceBuffer>(rows * shape_.heads * 4);
  }

  void setScoreNumbers(ScoreNumbers numbers) {
    options_.scoreNumbers = numbers;
    plan(false);
  }

  // Policy `mass` at stride 20: as the paper has it, or in segments with our window.
  void planMass(bool paper) {
    params_.policy = options_.policy = Policy::mass;
    params_.sampleStride = 20;
    if (paper) {
      params_.segmentRows = 0;
      params_.windowTokens = 128;
      params_.windowFraction = 0.08;
      params_.sinkTokens = options_.sinkTokens = 0;
    }
    plan(false);
  }

  void setMaxListShare(double share) {
    options_.maxListShare = share;
    plan(false);
  }
  size_t chunks() const { return chunks_.size(); }

  Tensors tensors(size_t chunk) const {
    Tensors t;
    const int64_t offset =
        chunks_[chunk].segments.front().begin * shape_.heads * shape_.headDim * 2;
    t.queries = static_cast<char*>(queries_.data()) + offset;
    t.output = static_cast<char*>(output_.data()) + offset;
    t.keys = keys_->data();
    t.values = values_->data();
    if (keyScales_) {
      t.keyScales = keyScales_->data();
      t.valueScales = valueScales_->data();
    }
    t.capacityRows = tokens_;
    t.scale = 1.0f / std::sqrt(static_cast<float>(shape_.headDim));
    t.logSumExp = static_cast<float*>(logSums_->data());
    return t;
  }

  cudaError_t dequantize(size_t chunk = 0) const {
    return launchDequantize(chunks_[chunk], tensors(chunk), workspace_->data(), nullptr);
  }
  cudaError_t prefill(Path path, size_t chunk = 0) const {
    return launchPrefill(chunks_[chunk], tensors(chunk), workspace_->data(), path, nullptr);
  }
  cudaError_t sample(Path path, size_t chunk = 0) const {
    return launchSample(chunks_[chunk], tensors(chunk), workspace_->data(), path, nullptr);
  }
  cudaError_t lists(size_t chunk = 0) const {
    return launchColumnLists(chunks_[chunk], workspace_->data(), nullptr);
  }
  cudaError_t attend(Path path, size_t chunk = 0) const {
    return launchAttend(chunks_[chunk], tensors(chunk), workspace_->data(), path, nullptr);
  }
  cudaError_t audit(size_t chunk = 0) const {
    return launchAudit(chunks_[chunk], tensors(chunk), workspace_->data(), nullptr);
  }

  void randomVotes(double density, size_t chunk = 0) {
    require(launchDrawnVotes(chunks_[chunk], {density, seed_}, workspace_->data(), nullptr),
            "launchDrawnVotes");
  }

  // Kept pairs of all heads of a chunk, from the statistics on the device.
  double keptPairs(double* causal = nullptr, size_t chunk = 0) const {
    double kept = 0, all = 0;
    const auto stats = workspace_->read<HeadStats>(
        workspaceOffsets(chunks_[chunk]).stats,
        static_cast<int64_t>(chunks_[chunk].segments.size()) * shape_.heads);
    for (const HeadStats& s : stats) {
      kept += static_cast<double>(s.keptPairs);
      all += static_cast<double>(s.causalPairs);
    }
    if (causal != nullptr) *causal = all;
    return kept;
  }
  int dim() const { return shape_.headDim; }
  const HeadShape& shape() const { return shape_; }
  int64_t tokens() const { return tokens_; }
  int64_t cacheBytes() const {
    return 2 * (keys_->bytes() + (keyScales_ ? keyScales_->bytes() : 0));
  }

 private:
  // Replaces a cache of elements, one head after the other since its rows lie next to each other.
  void quantize(std::unique_ptr<DeviceBuffer>& cache, std::unique_ptr<DeviceBuffer>& scales) {
    const int64_t blocks = q8Blocks(shape_.headDim);
    auto integers = std::make_unique<DeviceBuffer>(cache->bytes() / 2);
    scales = std::make_unique<DeviceBuffer>(tokens_ * shape_.kvHeads * blocks * 2);
    for (int64_t head = 0; head < shape_.kvHeads; ++head) {
      const int64_t elements = head * tokens_ * shape_.headDim;
      QuantizeTask task;
      task.shape = shape_;
      task.shape.kvHeads = 1;
      task.source = static_cast<char*>(cache->data()) + elements * 2;
      task.rows = task.capacityRows = tokens_;
      task.values = static_cast<char*>(integers->data()) + elements;
      task.scales = static_cast<char*>(scales->data()) + head * tokens_ * blocks * 2;
      require(launchQuantizeRows(task, nullptr), "launchQuantizeRows");
    }
    require(cudaDeviceSynchronize(), "quantize");
    cache = std::move(integers);
  }

  int64_t tokens_;
  HeadShape shape_;
  DeviceBuffer queries_, output_;
  std::unique_ptr<DeviceBuffer> keys_, values_, keyScales_, valueScales_;
  uint64_t seed_;
  SampleAttentionParams params_;
  SparseOptions options_;
  std::vector<Segment> segments_;
  std::vector<Chunk> chunks_;
  std::unique_ptr<DeviceBuffer> workspace_, logSums_;
};

void benchLayer(Clock& clock, int64_t tokens, HeadShape shape, uint64_t seed) {
  const std::string label = std::to_string(tokens) + " " + std::to_string(shape.heads) + "/" +
                            std::to_string(shape.kvHeads) + " d" + std::to_string(shape.headDim);
  if (!wanted(label)) return;
  Layer layer(tokens, shape, seed);
  const double pairFlop = 4.0 * shape.headDim;
  for (const Path path : {Path::best, Path::mmaSync}) {
    const std::string suffix = path == Path::best ? "" : ", mma.sync";
    layer.plan(true);
    require(layer.lists(), "lists");
    print(label + " dense" + suffix, clock.median(3, [&] { return layer.attend(path); }),
          layer.keptPairs() * pairFlop);
    layer.plan(false);
    const double votes = clock.median(3, [&] { return layer.sample(path); });
    double causal = 0;
    require(layer.lists(), "lists");
    const double planted = layer.keptPairs(&causal) / causal;
    print(label + " stage 1" + suffix, votes, causal / 8 * shape.headDim);
    layer.setScoreNumbers(ScoreNumbers::int8);
    print(label + " stage 1, int8" + suffix, clock.median(3, [&] { return layer.sample(path); }),
          causal / 8 * shape.headDim);
    layer.setScoreNumbers(ScoreNumbers::stored);
    require(layer.sample(path), "stage 1");
    const double filter = clock.median(3, [&] { return layer.lists(); });
    char text[64];
    std::snprintf(text, sizeof text, " stage 2, planted density %.3f", planted);
    print(label + text + suffix, filter, 0);
    for (const double density : {0.05, 0.13, 0.20, 0.30}) {
      if (path == Path::mmaSync && density != 0.13) continue;
      layer.randomVotes(density);
      require(layer.lists(), "lists");
      const double kept = layer.keptPairs();
      const double lists = clock.median(3, [&] { return layer.lists(); });
      const double attend = clock.median(3, [&] { return layer.attend(path); });
      const double audit = clock.median(3, [&] { return layer.audit(); });
      std::snprintf(text, sizeof text, " stage 3, density %.3f", kept / causal);
      print(label + text + suffix, attend, kept * pairFlop);
      std::snprintf(text, sizeof text, " all of it, density %.2f (lists %.2f audit %.2f)", density,
                    lists, audit);
      print(label + text + suffix, votes + lists + attend + audit, kept * pairFlop);
    }
    // Stage 1 and 2 in vain: every list is too long. Dense, and stages 1 and 2, in turns with it.
    layer.setMaxListShare(0);
    const auto search = [&] {
      const cudaError_t error = layer.sample(path);
      return error == cudaSuccess ? layer.lists() : error;
    };
    require(search(), "stage 1 and 2");
    const std::vector<double> inVain =
        clock.medians(5, {[&] {
                            const cudaError_t error = search();
                            return error == cudaSuccess ? layer.attend(path) : error;
                          },
                          [&] { return layer.attend(path); }, search});
    print(label + " every head falls back" + suffix, inVain[0], layer.keptPairs() * pairFlop);
    std::printf("%s: falls back / (dense %.3f + stage 1 and 2 %.3f): %.3f\n",
                (label + suffix).c_str(), inVain[1], inVain[2],
                inVain[0] / (inVain[1] + inVain[2]));
    layer.setMaxListShare(0.6);
  }
}

// What a prefill costs beside its attention where no stage 1 runs.
void benchNoStage1(Clock& clock, int64_t tokens, uint64_t seed) {
  const std::string label = std::to_string(tokens) + " 32/8 d128";
  if (!wanted(label + " no stage 1")) return;
  Layer layer(tokens, {32, 8, 128}, seed);
  layer.plan(true);
  require(layer.lists(), "lists");
  const std::vector<double> times = clock.medians(
      21, {[&] { return layer.prefill(Path::best); }, [&] { return layer.attend(Path::best); }});
  print(label + " prefill, no stage 1", times[0], layer.keptPairs() * 4 * layer.dim());
  std::printf("%s: prefill / dense %.3f without stage 1: %.3f\n", label.c_str(), times[1],
              times[0] / times[1]);
}

// Dense and at one density, for shapes that need no more.
void benchDim(Clock& clock, int64_t tokens, HeadShape shape, uint64_t seed) {
  const std::string label = std::to_string(tokens) + " " + std::to_string(shape.heads) + "/" +
                            std::to_string(shape.kvHeads) + " d" + std::to_string(shape.headDim);
  if (!wanted(label)) return;
  Layer layer(tokens, shape, seed);
  const double pairFlop = 4.0 * shape.headDim;
  for (const Path path : {Path::best, Path::mmaSync}) {
    const std::string suffix = path == Path::best ? "" : ", mma.sync";
    layer.plan(true);
    require(layer.lists(), "lists");
    print(label + " dense" + suffix, clock.median(3, [&] { return layer.attend(path); }),
          layer.keptPairs() * pairFlop);
    layer.plan(false);
    layer.randomVotes(0.13);
    require(layer.lists(), "lists");
    print(label + " stage 3, density 0.13" + suffix,
          clock.median(3, [&] { return layer.attend(path); }), layer.keptPairs() * pairFlop);
  }
}

// A whole prefill with a q8 cache in turns with one of elements.
void benchQ8(Clock& clock, int64_t tokens, HeadShape shape, uint64_t seed) {
  const std::string label = std::to_string(tokens) + " " + std::to_string(shape.heads) + "/" +
                            std::to_string(shape.kvHeads) + " d" + std::to_string(shape.headDim);
  if (!wanted(label + " q8")) return;
  Layer elements(tokens, shape, seed);
  shape.storage = KvStorage::q8;
  Layer q8(tokens, shape, seed);
  std::vector<std::function<cudaError_t()>> works;
  for (Layer* layer : {&elements, &q8}) {
    works.push_back([layer] {
      cudaError_t error = layer->dequantize();
      if (error == cudaSuccess) error = layer->sample(Path::best);
      if (error == cudaSuccess) error = layer->lists();
      if (error == cudaSuccess) error = layer->attend(Path::best);
      return error == cudaSuccess ? layer->audit() : error;
    });
  }
  works.push_back([&] { return q8.dequantize(); });
  const std::vector<double> times = clock.medians(5, works);
  double causal = 0;
  const double kept = q8.keptPairs(&causal);
  const std::string density = std::to_string(kept / causal).substr(0, 5);
  print(label + " all of it, planted density " + density, times[0], kept * 4 * shape.headDim);
  print(label + " the same, q8 cache", times[1], kept * 4 * shape.headDim);
  print(label + " of which q8 to elements", times[2], 0);
  std::printf("%s: q8 / elements: %.3f\n", label.c_str(), times[1] / times[0]);
}

// Stages 1 and 2 of policy `mass`. Useful FLOP: two products of the voters with all they see.
void benchMass(Clock& clock, int64_t tokens, HeadShape shape, uint64_t seed) {
  const std::string label = std::to_string(tokens) + " " + std::to_string(shape.heads) + "/" +
                            std::to_string(shape.kvHeads) + " d" + std::to_string(shape.headDim);
  if (!wanted(label + " mass")) return;
  for (const bool paper : {true, false}) {
    Layer layer(tokens, shape, seed);
    layer.planMass(paper);
    for (const Path path : {Path::best, Path::mmaSync}) {
      const std::string suffix = std::string(paper ? ", one segment" : ", segments of 2048") +
                                 (path == Path::best ? "" : ", mma.sync");
      const double sample = clock.median(3, [&] { return layer.sample(path); });
      const double lists = clock.median(3, [&] { return layer.lists(); });
      double causal = 0;
      const double density = layer.keptPairs(&causal) / causal;
      print(label + " mass stage 1, stride 20" + suffix, sample, causal / 20 * 4 * shape.headDim);
      char text[64];
      std::snprintf(text, sizeof text, " mass stage 2, density %.3f", density);
      print(label + text + suffix, lists, 0);
      print(label + " mass stage 1 and 2, stride 20" + suffix, sample + lists,
            causal / 20 * 4 * shape.headDim);
    }
  }
}

// Stage 2 and 3 of a whole layer of 2^20 rows at density 0.05, in chunks, against the time that
// its kept pairs take at 131,072 rows.
void benchMillion(Clock& clock, uint64_t seed) {
  if (!wanted("million")) return;
  const HeadShape shape{28, 4, 128};
  double perPair[2] = {};
  for (const int64_t tokens : {131072, 1 << 20}) {
    Layer layer(tokens, shape, seed);
    double votes = 0, attend = 0, kept = 0, causal = 0;
    for (size_t chunk = 0; chunk < layer.chunks(); ++chunk) {
      votes += clock.median(1, [&] { return layer.sample(Path::best, chunk); });
      layer.randomVotes(0.05, chunk);
      attend += clock.median(1, [&] {
        const cudaError_t error = layer.lists(chunk);
        return error == cudaSuccess ? layer.attend(Path::best, chunk) : error;
      });
      double all = 0;
      kept += layer.keptPairs(&all, chunk);
      causal += all;
    }
    perPair[tokens > 131072] = attend / kept;
    const std::string label = "million: " + std::to_string(tokens) + " 28/4 d128";
    print(label + " stage 1", votes, causal / 8 * shape.headDim);
    print(label + " stage 2 and 3, density " + std::to_string(kept / causal).substr(0, 5), attend,
          kept * 4 * shape.headDim);
  }
  std::printf("million: time a pair / that at 131072: %.3f\n", perPair[1] / perPair[0]);
}

}  // namespace
}  // namespace longsight::cuda::test

int main(int argc, char** argv) {
  using namespace longsight::cuda::test;
  uint64_t seed = std::random_device{}();
  for (int i = 1; i + 1 < argc; ++i) {
    if (std::strcmp(argv[i], "--seed") == 0) seed = std::stoull(argv[i + 1]);
    if (std::strcmp(argv[i], "--only") == 0) only = argv[i + 1];
  }
  int devices = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
    std::printf("No CUDA device here\n");
    return 77;
  }
  std::printf("seed %llu\n", static_cast<unsigned long long>(seed));
  Clock clock;
  benchLayer(clock, 32768, {32, 8, 128}, seed);
  benchLayer(clock, 131072, {32, 8, 128}, seed);
  benchLayer(clock, 131072, {14, 2, 64}, seed);
  benchMass(clock, 32768, {32, 8, 128}, seed);
  benchMass(clock, 131072, {32, 8, 128}, seed);
  benchMass(clock, 131072, {14, 2, 64}, seed);
  for (const int32_t dim : {80, 96, 256}) {
    benchDim(clock, 32768, {dim == 256 ? 16 : 32, dim == 256 ? 4 : 8, dim}, seed);
  }
  benchQ8(clock, 32768, {32, 8, 128}, seed);
  benchQ8(clock, 131072, {32, 8, 128}, seed);
  for (const int64_t tokens : {4096, 32768}) benchNoStage1(clock, tokens, seed);
  if (wanted("few rows")) benchFewRows(clock, seed);
  if (wanted("pointwise")) benchPointwise(clock, seed);
  benchMillion(clock, seed);
  return 0;
}
