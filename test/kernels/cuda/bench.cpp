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
  std::printf("%-58s %10.3f ms %8.1f TFLOP/s\n", name.c_str(), ms, flop / ms / 1e9);
  std::fflush(stdout);
}

// One layer of `tokens` rows in chunks of 64 segments; only the last chunk when `lastChunk`.
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
    fillPlanted(queries_.data(), queries_.bytes() / 2, dim, seed, 0.5f, 1);
    fillPlanted(keys_.data(), keys_.bytes() / 2, dim, seed + 1, 1.5f, 23);
    fillPlanted(values_.data(), values_.bytes() / 2, dim, seed + 2, 0.0f, 0);
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
    workspaces_.clear();
    logSums_.clear();
    for (const Chunk& chunk : chunks_) {
      workspaces_.push_back(std::make_unique<DeviceBuffer>(workspaceBytes(chunk)));
      logSums_.push_back(std::make_unique<DeviceBuffer>(
          (chunk.segments.back().end - chunk.segments.front().begin) * shape_.heads * 4));
    }
  }

  void setMaxListShare(double share) { options_.maxListShare = share; }

  Tensors tensors(size_t chunk) const {
    Tensors t;
    const int64_t offset = chunks_[chunk].segments.front().begin * shape_.heads * shape_.headDim * 2;
    t.queries = static_cast<char*>(queries_.data()) + offset;
    t.output = static_cast<char*>(output_.data()) + offset;
    t.keys = keys_.data();
    t.values = values_.data();
    t.capacityRows = tokens_;
    t.scale = 1.0f / std::sqrt(static_cast<float>(shape_.headDim));
    t.logSumExp = static_cast<float*>(logSums_[chunk]->data());
    return t;
  }

  cudaError_t votes(Path path) const {
    return each([&](size_t i) {
      return launchPeakVotes(chunks_[i], tensors(i), workspaces_[i]->data(), path, nullptr);
    });
  }
  cudaError_t lists() const {
    return each([&](size_t i) { return launchColumnLists(chunks_[i], workspaces_[i]->data(), nullptr); });
  }
  cudaError_t attend(Path path) const {
    return each([&](size_t i) {
      return launchAttend(chunks_[i], tensors(i), workspaces_[i]->data(), path, nullptr);
    });
  }
  cudaError_t audit() const {
    return each([&](size_t i) {
      return launchAudit(chunks_[i], tensors(i), workspaces_[i]->data(), nullptr);
    });
  }

  // Independent random votes; densities of heads log-normal with sigma 0.8 around a mean, the
  // largest of the first segment raised over one half.
  void randomVotes(double density) {
    std::mt19937_64 random(seed_ + 99);
    std::normal_distribution<double> normal;
    bool raised = false;
    for (size_t c = 0; c < chunks_.size(); ++c) {
      const WorkspaceOffsets offsets = workspaceOffsets(chunks_[c]);
      auto* masks = reinterpret_cast<uint32_t*>(static_cast<char*>(workspaces_[c]->data()) + offsets.votes);
      for (size_t s = 0; s < chunks_[c].segments.size(); ++s) {
        const Segment& segment = chunks_[c].segments[s];
        if (segment.dense) continue;
        const double always = std::min(1.0, 400.0 / (0.5 * static_cast<double>(segment.begin + segment.end)));
        const double remote = std::max(0.0, (density - always) / (1 - always));
        for (int32_t head = 0; head < shape_.heads; ++head) {
          double share = remote * std::exp(0.8 * normal(random) - 0.32);
          if (!raised && s > 4) {
            share = 0.55;
            raised = true;
          }
          fillRandomMask(masks + offsets.maskWords(static_cast<int32_t>(s), head), offsets.maskStride[s],
                         random(), static_cast<float>(std::min(share, 0.58)));
        }
      }
    }
    require(cudaDeviceSynchronize(), "random votes");
  }

  // Kept pairs of all heads, from the statistics on the device.
  double keptPairs(double* causal = nullptr) const {
    double kept = 0, all = 0;
    for (size_t c = 0; c < chunks_.size(); ++c) {
      const auto stats = workspaces_[c]->read<HeadStats>(
          workspaceOffsets(chunks_[c]).stats, static_cast<int64_t>(chunks_[c].segments.size()) * shape_.heads);
      for (const HeadStats& s : stats) {
        kept += static_cast<double>(s.keptPairs);
        all += static_cast<double>(s.causalPairs);
      }
    }
    if (causal != nullptr) *causal = all;
    return kept;
  }
  int dim() const { return shape_.headDim; }
  const HeadShape& shape() const { return shape_; }
  int64_t tokens() const { return tokens_; }
  const DeviceBuffer& keys() const { return keys_; }

 private:
  cudaError_t each(const std::function<cudaError_t(size_t)>& launch) const {
    for (size_t i = 0; i < chunks_.size(); ++i) {
      if (const cudaError_t error = launch(i); error != cudaSuccess) return error;
    }
    return cudaSuccess;
  }

  int64_t tokens_;
  HeadShape shape_;
  DeviceBuffer queries_, output_, keys_, values_;
  uint64_t seed_;
  SampleAttentionParams params_;
  SparseOptions options_;
  std::vector<Segment> segments_;
  std::vector<Chunk> chunks_;
  std::vector<std::unique_ptr<DeviceBuffer>> workspaces_;
  std::vector<std::unique_ptr<DeviceBuffer>> logSums_;
};

bool wanted(const std::string& name) { return only.empty() || name.find(only) != std::string::npos; }

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
    const double votes = clock.median(3, [&] { return layer.votes(path); });
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
      std::snprintf(text, sizeof text, " all of it, density %.2f (lists %.2f audit %.2f)", density, lists, audit);
      print(label + text + suffix, votes + lists + attend + audit, kept * pairFlop);
    }
  }
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
  std::printf("%-58s %10.3f ms %8.1f GB/s\n", "read bandwidth, 2 GiB", read, big.bytes() / read / 1e6);
  for (const int32_t rows : {1, 4, 16}) {
    DecodeTask task;
    task.shape = layer.shape();
    task.rows = rows;
    task.firstRow = layer.tokens() - rows;
    task.tensors = layer.tensors(0);
    task.tensors.logSumExp = nullptr;
    const DeviceBuffer workspace(decodeWorkspaceBytes(task));
    const double ms = clock.median(9, [&] { return launchDecode(task, workspace.data(), nullptr); });
    std::printf("%-58s %10.3f ms %8.1f GB/s\n", ("decode, rows " + std::to_string(rows)).c_str(), ms,
                2 * layer.keys().bytes() / ms / 1e6);
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
  benchDecode(clock, seed);
  return 0;
}
