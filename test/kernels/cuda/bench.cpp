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
#include "bench_data.h"
#include "device_memory.h"
#include "kernels/cuda/sample_attention.h"

namespace longsight::cuda::test {
namespace {

std::string only;

class Clock {
 public:
  Clock() : flush_(int64_t{128} << 20) {
    require(cudaEventCreate(&begin_), "event");
    require(cudaEventCreate(&end_), "event");
  }
  // Median of `runs` after one warm-up, milliseconds.
  double median(int runs, const std::function<cudaError_t()>& work) {
    std::vector<float> times;
    for (int i = 0; i <= runs; ++i) {
      flush_.poison();
      require(cudaEventRecord(begin_), "record");
      require(work(), "launch");
      require(cudaEventRecord(end_), "record");
      require(cudaEventSynchronize(end_), "run");
      float ms = 0;
      require(cudaEventElapsedTime(&ms, begin_, end_), "time");
      if (i > 0) times.push_back(ms);
    }
    std::sort(times.begin(), times.end());
    return times[times.size() / 2];
  }

 private:
  DeviceBuffer flush_;
  cudaEvent_t begin_, end_;
};

void print(const std::string& name, double ms, double flop) {
  std::printf("%-66s %10.3f ms %8.1f TFLOP/s\n", name.c_str(), ms, flop / ms / 1e9);
  std::fflush(stdout);
}

// One layer of `tokens` rows in chunks of 64 segments.
class Layer {
 public:
  Layer(int64_t tokens, HeadShape shape, uint64_t seed)
      : tokens_(tokens),
        shape_(shape),
        queries_(tokens * shape.heads * shape.headDim * 2),
        output_(tokens * shape.heads * shape.headDim * 2),
        keys_(tokens * shape.kvHeads * shape.headDim * 2),
        values_(tokens * shape.kvHeads * shape.headDim * 2),
        seed_(seed) {
    const int dim = shape.headDim;
    fillQueries(queries_.data(), queries_.bytes() / 2, dim, seed);
    fillKeys(keys_.data(), keys_.bytes() / 2, dim, tokens, seed + 1);
    fillValues(values_.data(), values_.bytes() / 2, dim, seed + 2);
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
    t.keys = keys_.data();
    t.values = values_.data();
    t.capacityRows = tokens_;
    t.scale = 1.0f / std::sqrt(static_cast<float>(shape_.headDim));
    t.logSumExp = static_cast<float*>(logSums_->data());
    return t;
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

  // Independent random votes for one chunk. Densities of (segment, head) are log-normal with sigma
  // 0.8, scaled to the wanted mean over all pairs; one head is raised over one half.
  void randomVotes(double density, size_t chunk = 0) {
    std::mt19937_64 random(seed_ + 99 + chunk);
    std::normal_distribution<double> normal;
    const std::span<const Segment> segments = chunks_[chunk].segments;
    const auto heads = static_cast<size_t>(shape_.heads);
    std::vector<double> shares(segments.size() * heads);
    for (double& share : shares) share = std::exp(0.8 * normal(random));
    double scale = density;
    const auto shareOf = [&](size_t i) {
      return i == heads * (segments.size() / 2) ? 0.55 : std::min(0.58, scale * shares[i]);
    };
    for (int step = 0; step < 30; ++step) {
      double kept = 0, causal = 0;
      for (size_t i = 0; i < shares.size(); ++i) {
        const Segment& segment = segments[i / heads];
        const auto pairs = static_cast<double>(causalPairCount(segment.begin, segment.end));
        const double always =
            std::min(pairs, 336.0 * static_cast<double>(segment.end - segment.begin));
        kept += always + shareOf(i) * (pairs - always);
        causal += pairs;
      }
      scale *= density / (kept / causal);
    }
    const WorkspaceOffsets offsets = workspaceOffsets(chunks_[chunk]);
    auto* masks =
        reinterpret_cast<uint32_t*>(static_cast<char*>(workspace_->data()) + offsets.votes);
    for (size_t i = 0; i < shares.size(); ++i) {
      const size_t segment = i / heads;
      if (segments[segment].dense) continue;
      fillRandomMask(
          masks + offsets.maskWords(static_cast<int32_t>(segment), static_cast<int32_t>(i % heads)),
          offsets.maskStride[segment], random(), static_cast<float>(shareOf(i)));
    }
    require(cudaDeviceSynchronize(), "random votes");
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
  const DeviceBuffer& keys() const { return keys_; }

 private:
  int64_t tokens_;
  HeadShape shape_;
  DeviceBuffer queries_, output_, keys_, values_;
  uint64_t seed_;
  SampleAttentionParams params_;
  SparseOptions options_;
  std::vector<Segment> segments_;
  std::vector<Chunk> chunks_;
  std::unique_ptr<DeviceBuffer> workspace_, logSums_;
};

bool wanted(const std::string& name) {
  return only.empty() || name.find(only) != std::string::npos;
}

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
    // Stage 1 and 2 in vain: every list is too long.
    layer.setMaxListShare(0);
    const double inVain = clock.median(3, [&] {
      cudaError_t error = layer.sample(path);
      if (error == cudaSuccess) error = layer.lists();
      return error == cudaSuccess ? layer.attend(path) : error;
    });
    print(label + " every head falls back" + suffix, inVain, layer.keptPairs() * pairFlop);
    layer.setMaxListShare(0.6);
  }
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

void benchDecode(Clock& clock, uint64_t seed) {
  if (!wanted("decode")) return;
  Layer layer(131072, {32, 8, 128}, seed);
  DeviceBuffer sink(256);
  const DeviceBuffer big(int64_t{2} << 30);
  const double read = clock.median(9, [&] {
    readThrough(big.data(), big.bytes(), sink.data());
    return cudaGetLastError();
  });
  std::printf("%-66s %10.3f ms %8.1f GB/s\n", "read bandwidth, 2 GiB", read,
              big.bytes() / read / 1e6);
  for (const int32_t rows : {1, 4, 16}) {
    DecodeTask task;
    task.shape = layer.shape();
    task.rows = rows;
    task.firstRow = layer.tokens() - rows;
    task.tensors = layer.tensors(0);
    task.tensors.logSumExp = nullptr;
    const DeviceBuffer workspace(decodeWorkspaceBytes(task));
    const double ms =
        clock.median(9, [&] { return launchDecode(task, workspace.data(), nullptr); });
    std::printf("%-66s %10.3f ms %8.1f GB/s\n", ("decode, rows " + std::to_string(rows)).c_str(),
                ms, 2 * layer.keys().bytes() / ms / 1e6);
  }
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
  benchDecode(clock, seed);
  benchMillion(clock, seed);
  return 0;
}
