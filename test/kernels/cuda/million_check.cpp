#include "million_check.h"

#include <algorithm>
#include <cmath>
#include <random>
#include <span>

#include "attention/plan.h"
#include "bench_data.h"
#include "device_memory.h"
#include "exact_data.h"
#include "kernels/reference/reference.h"
#include "numbers.h"

namespace longsight::cuda::test {
namespace {

constexpr int64_t kTokens = int64_t{1} << 20;
constexpr HeadShape kShape{28, 4, 128};
constexpr double kDensity = 0.05;
constexpr int kRowsAChunk = 8;

struct Sample {
  int64_t row;
  int32_t head;
  Segment segment;
  reference::Kept kept;
  std::vector<uint16_t> output;
  float logSum;
  double outputError, logSumError;
};

Sample readSample(const Chunk& chunk, int64_t row, int32_t head, const DeviceBuffer& workspace,
                  const DeviceBuffer& output, const DeviceBuffer& logSums) {
  Sample sample{row, head, {}, {}, {}, 0, 0, 0};
  size_t index = 0;
  while (chunk.segments[index].end <= row) ++index;
  sample.segment = chunk.segments[index];
  const auto segment = static_cast<int32_t>(index);
  const WorkspaceOffsets offsets = workspaceOffsets(chunk);
  const auto stats = workspace.read<HeadStats>(
      offsets.stats + (segment * kShape.heads + head) * int64_t{sizeof(HeadStats)}, 1)[0];
  sample.kept.dense = stats.dense != 0;
  if (!sample.kept.dense) {
    const int64_t blocks = (sample.segment.end + 127) / 128;
    const int32_t entries = workspace.read<int32_t>(
        offsets.before + (offsets.countsBegin(segment, head) + blocks) * 4, 1)[0];
    sample.kept.list =
        workspace.read<int32_t>(offsets.indices + offsets.listBegin(segment, head) * 4, entries);
  }
  const int64_t begin = chunk.segments.front().begin;
  const int64_t rows = chunk.segments.back().end - begin;
  sample.output = output.read<uint16_t>(((row - begin) * kShape.heads + head) * kShape.headDim * 2,
                                        kShape.headDim);
  sample.logSum = logSums.read<float>((head * rows + row - begin) * 4, 1)[0];
  return sample;
}

}  // namespace

MillionResult checkMillion(Path path, uint64_t seed) {
  SampleAttentionParams params;
  const std::vector<Segment> segments = planSegments(kTokens, {}, kTokens, params);
  const int64_t rowElements = int64_t{kShape.heads} * kShape.headDim;
  const int64_t cacheElements = kShape.kvHeads * kTokens * kShape.headDim;
  const uint64_t keySeed = seed + 1, valueSeed = seed + 2;
  const DeviceBuffer keys(cacheElements * 2), values(cacheElements * 2);
  fillExact(keys.data(), cacheElements, keySeed, 0);
  fillExact(values.data(), cacheElements, valueSeed, 0);

  std::mt19937_64 random(seed);
  std::normal_distribution<double> normal;
  std::vector<Sample> samples;
  double kept = 0, causal = 0;
  for (size_t i = 0; i < segments.size(); i += kMaxChunkSegments) {
    Chunk chunk;
    chunk.segments =
        std::span(segments).subspan(i, std::min<size_t>(kMaxChunkSegments, segments.size() - i));
    chunk.shape = kShape;
    chunk.options.scoreDims = allDims(kShape.headDim);
    const int64_t begin = chunk.segments.front().begin;
    const int64_t rows = chunk.segments.back().end - begin;
    const DeviceBuffer queries(rows * rowElements * 2), output(rows * rowElements * 2);
    const DeviceBuffer logSums(rows * kShape.heads * 4), workspace(workspaceBytes(chunk));
    fillExact(queries.data(), rows * rowElements, seed, begin * rowElements);
    const WorkspaceOffsets offsets = workspaceOffsets(chunk);
    auto* masks = reinterpret_cast<uint32_t*>(static_cast<char*>(workspace.data()) + offsets.votes);
    for (int32_t s = 0; s < static_cast<int32_t>(chunk.segments.size()); ++s) {
      for (int32_t head = 0; head < kShape.heads && !chunk.segments[s].dense; ++head) {
        // Log-normal densities of the wanted mean, some beyond what a list may hold.
        const double share = kDensity * std::exp(0.8 * normal(random) - 0.32);
        fillRandomMask(masks + offsets.maskWords(s, head), offsets.maskStride[s], random(),
                       static_cast<float>(share));
      }
    }
    Tensors tensors;
    tensors.queries = queries.data();
    tensors.output = output.data();
    tensors.keys = keys.data();
    tensors.values = values.data();
    tensors.capacityRows = kTokens;
    tensors.logSumExp = static_cast<float*>(logSums.data());
    tensors.scale = 1.0f / std::sqrt(static_cast<float>(kShape.headDim));
    require(launchColumnLists(chunk, workspace.data(), nullptr), "launchColumnLists");
    require(launchAttend(chunk, tensors, workspace.data(), path, nullptr), "launchAttend");
    require(cudaDeviceSynchronize(), "a million rows");
    for (const HeadStats& stats : workspace.read<HeadStats>(
             offsets.stats, static_cast<int64_t>(chunk.segments.size()) * kShape.heads)) {
      kept += static_cast<double>(stats.keptPairs);
      causal += static_cast<double>(stats.causalPairs);
    }
    for (int k = 0; k < kRowsAChunk; ++k) {
      const int64_t row =
          k == 0 ? begin + rows - 1
                 : begin + static_cast<int64_t>(random() % static_cast<uint64_t>(rows));
      samples.push_back(readSample(chunk, row, static_cast<int32_t>(random() % kShape.heads),
                                   workspace, output, logSums));
    }
  }

  std::vector<uint16_t> hostKeys(static_cast<size_t>(cacheElements)), hostValues(hostKeys.size());
  parallelFor(kShape.kvHeads * kTokens, [&](int64_t row) {
    for (int64_t at = row * kShape.headDim; at < (row + 1) * kShape.headDim; ++at) {
      hostKeys[static_cast<size_t>(at)] = exactValue(keySeed, at);
      hostValues[static_cast<size_t>(at)] = exactValue(valueSeed, at);
    }
  });
  parallelFor(static_cast<int64_t>(samples.size()), [&](int64_t i) {
    Sample& sample = samples[static_cast<size_t>(i)];
    std::vector<float> queries(static_cast<size_t>(rowElements));
    for (int64_t at = 0; at < rowElements; ++at) {
      queries[static_cast<size_t>(at)] = fromBf16(exactValue(seed, sample.row * rowElements + at));
    }
    AttentionTask task;
    task.params = &params;
    task.segment = sample.segment;
    // The task holds the queries of this row alone.
    task.segment.begin = sample.row;
    task.queries = queries.data();
    task.heads = kShape.heads;
    task.kv.keys = reinterpret_cast<std::byte*>(hostKeys.data());
    task.kv.values = reinterpret_cast<std::byte*>(hostValues.data());
    task.kv.capacityRows = kTokens;
    task.kv.kvHeads = kShape.kvHeads;
    task.kv.headDim = kShape.headDim;
    task.scale = 1.0f / std::sqrt(static_cast<float>(kShape.headDim));
    const std::vector<double> expected =
        reference::attendRow(task, sample.head, sample.row, sample.kept);
    double error = 0, norm = 0;
    for (size_t d = 0; d < expected.size(); ++d) {
      const double difference = fromBf16(sample.output[d]) - expected[d];
      error += difference * difference;
      norm += expected[d] * expected[d];
    }
    sample.outputError = std::sqrt(error / norm);
    const double logSum = reference::logSum(task, sample.head, sample.row) +
                          std::log(reference::coverage(task, sample.head, sample.row, sample.kept));
    sample.logSumError = std::abs(sample.logSum - logSum) / std::max(1.0, std::abs(logSum));
  });
  MillionResult result;
  result.rows = static_cast<int>(samples.size());
  result.density = kept / causal;
  for (const Sample& sample : samples) {
    result.worstOutput = std::max(result.worstOutput, sample.outputError);
    result.worstLogSum = std::max(result.worstLogSum, sample.logSumError);
    if (!(sample.outputError <= 8e-3) || !(sample.logSumError <= 1e-3)) ++result.failures;
  }
  return result;
}

}  // namespace longsight::cuda::test
