#include "cuda_case.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <random>
#include <set>

#include "attention/geometry.h"
#include "numbers.h"

namespace longsight::cuda::test {
namespace {

// The specification's agreement rule: of a peak with 16-bit scores and
// with int8 ones; of a mass relative to the cut.
constexpr double kPeakTolerance = 1e-3;
constexpr double kQuantizedPeakTolerance = 0.05;
constexpr double kMassTolerance = 1e-4;

// What the reference says of one column of (segment, head).
struct ColumnVerdict {
  double value;  // peak or mass
  bool kept;
  bool near;  // so close to the cut that either is right
};

std::vector<ColumnVerdict> judgeColumns(const AttentionTask& task, int32_t head, int64_t remoteEnd,
                                        double epsilon, ScoreNumbers scoreNumbers) {
  std::vector<ColumnVerdict> verdicts;
  if (task.params->policy == Policy::mass) {
    const reference::Masses masses = reference::masses(task, head);
    const reference::MassList list = reference::massList(task, masses);
    for (int64_t column = 0; column < remoteEnd; ++column) {
      const double mass = masses.columns[static_cast<size_t>(column)];
      const bool near = task.params->alpha < 1 && mass >= list.largestLeft * (1 - kMassTolerance) &&
                        mass <= list.smallestKept * (1 + kMassTolerance);
      verdicts.push_back({mass, false, near});
    }
    for (const int32_t column : list.columns) verdicts[static_cast<size_t>(column)].kept = true;
    return verdicts;
  }
  const double cut = std::log(epsilon);
  const double tolerance =
      scoreNumbers == ScoreNumbers::int8 ? kQuantizedPeakTolerance : kPeakTolerance;
  const std::vector<double> peaks = reference::peaks(task, head);
  for (int64_t column = 0; column < remoteEnd; ++column) {
    const double peak = peaks[static_cast<size_t>(column)];
    verdicts.push_back({peak, peak >= cut, std::abs(peak - cut) <= tolerance});
  }
  return verdicts;
}

}  // namespace

CudaCase::CudaCase(const CaseOptions& options, uint64_t seed) : options_(options) {
  const HeadShape& shape = options_.shape;
  const int64_t tokens = options_.tokens;
  const int32_t dim = shape.headDim;
  queries_.resize(static_cast<size_t>(tokens * shape.heads * dim));
  keys_.resize(static_cast<size_t>(tokens * shape.kvHeads * dim));
  values_.resize(keys_.size());
  const float size = options_.data == Data::huge   ? 6.0f
                     : options_.data == Data::tiny ? 0.02f
                                                   : 1.0f;
  const bool planted = options_.data == Data::planted;
  // A direction that queries share and stripes answer; needles answer single rows.
  const auto direction = [](int d) { return d % 3 == 0 ? 1.0f : -0.5f; };
  parallelFor(tokens, [&](int64_t row) {
    std::mt19937_64 random(seed * 1000003 + static_cast<uint64_t>(row));
    std::normal_distribution<float> normal;
    const bool stripe = planted && (row < 4 || random() % 23 == 0);
    for (int32_t i = 0; i < shape.heads * dim; ++i) {
      const float shift = planted ? 0.5f * direction(i % dim) : 0.0f;
      const uint16_t value = sharedValue(size * normal(random) + shift);
      queries_[static_cast<size_t>(row * shape.heads * dim + i)] = fromBf16(value);
    }
    std::mt19937_64 same(seed);
    std::normal_distribution<float> sameNormal;
    for (int32_t head = 0; head < shape.kvHeads; ++head) {
      for (int32_t d = 0; d < dim; ++d) {
        const size_t at = static_cast<size_t>((head * tokens + row) * dim + d);
        float key = size * (options_.data == Data::ties ? sameNormal(same) : normal(random));
        if (stripe && (head + row) % 3 != 0) key += 1.5f * direction(d);
        keys_[at] = sharedValue(key);
        values_[at] = sharedValue(normal(random));
      }
    }
  });
  if (planted) {
    std::mt19937_64 random(seed);
    for (int needle = 0; needle < 20; ++needle) {
      const int64_t column = static_cast<int64_t>(random() % static_cast<uint64_t>(tokens));
      const int64_t row =
          column + static_cast<int64_t>(random() % static_cast<uint64_t>(tokens - column));
      for (int32_t head = 0; head < shape.kvHeads; ++head) {
        for (int32_t d = 0; d < dim; ++d) {
          const float query = queries_[static_cast<size_t>(
              (row * shape.heads + head * (shape.heads / shape.kvHeads)) * dim + d)];
          keys_[static_cast<size_t>((head * tokens + column) * dim + d)] =
              sharedValue(query * 1.5f);
        }
      }
    }
  }

  // The device's copies: the cache has room for more rows, all of them poisoned.
  const bool q8 = shape.storage == KvStorage::q8;
  const int64_t cacheRows = shape.kvHeads * capacityRows();
  deviceQueries_ = std::make_unique<DeviceBuffer>(tokens * shape.heads * dim * 2);
  deviceOutput_ = std::make_unique<DeviceBuffer>(tokens * shape.heads * dim * 2);
  deviceKeys_ = std::make_unique<DeviceBuffer>(cacheRows * dim * (q8 ? 1 : 2));
  deviceValues_ = std::make_unique<DeviceBuffer>(cacheRows * dim * (q8 ? 1 : 2));
  std::vector<uint16_t> staged(queries_.size());
  for (size_t i = 0; i < staged.size(); ++i) {
    staged[i] = toDevice(toBf16(queries_[i]), shape.element);
  }
  require(
      cudaMemcpy(deviceQueries_->data(), staged.data(), staged.size() * 2, cudaMemcpyHostToDevice),
      "queries");
  if (q8) {
    deviceKeyScales_ = std::make_unique<DeviceBuffer>(cacheRows * q8Blocks(dim) * 2);
    deviceValueScales_ = std::make_unique<DeviceBuffer>(cacheRows * q8Blocks(dim) * 2);
    unroundedKeys_ = keys_;
    uploadQ8(keys_, *deviceKeys_, *deviceKeyScales_);
    uploadQ8(values_, *deviceValues_, *deviceValueScales_);
  } else {
    uploadCache(keys_, *deviceKeys_);
    uploadCache(values_, *deviceValues_);
  }

  if (const std::vector<float>& epsilons = options_.params.headEpsilons; !epsilons.empty()) {
    headEpsilons_ = std::make_unique<DeviceBuffer>(shape.heads * 4);
    headEpsilons_->write(0, epsilons);
  }
  const int64_t denseFrom = options_.denseFrom < 0 ? tokens : options_.denseFrom;
  const std::vector<Segment> segments =
      planSegments(tokens, options_.borders, denseFrom, options_.params);
  for (size_t i = 0; i < segments.size(); i += static_cast<size_t>(options_.segmentsPerChunk)) {
    const size_t end =
        std::min(segments.size(), i + static_cast<size_t>(options_.segmentsPerChunk));
    ChunkRun run{
        {segments.begin() + static_cast<int64_t>(i), segments.begin() + static_cast<int64_t>(end)},
        nullptr};
    run.workspace = std::make_unique<DeviceBuffer>(workspaceBytes(chunkOf(run)));
    logSums_.push_back(std::make_unique<DeviceBuffer>(
        (run.segments.back().end - run.segments.front().begin) * shape.heads * 4));
    chunks_.push_back(std::move(run));
  }
}

int64_t CudaCase::capacityRows() const {
  const int64_t rows = options_.tokens + options_.spareRows;
  return options_.shape.storage == KvStorage::q8 ? (rows + 7) / 8 * 8 : rows;
}

void CudaCase::uploadCache(std::vector<uint16_t>& source, DeviceBuffer& target) {
  const HeadShape& shape = options_.shape;
  std::vector<uint16_t> staged(source.size());
  for (size_t i = 0; i < staged.size(); ++i) staged[i] = toDevice(source[i], shape.element);
  const size_t width = static_cast<size_t>(options_.tokens) * shape.headDim * 2;
  require(cudaMemcpy2D(target.data(), static_cast<size_t>(capacityRows()) * shape.headDim * 2,
                       staged.data(), width, width, static_cast<size_t>(shape.kvHeads),
                       cudaMemcpyHostToDevice),
          "cache");
}

Chunk CudaCase::chunkOf(const ChunkRun& run) const {
  SparseOptions sparse;
  const SampleAttentionParams& params = options_.params;
  sparse.policy = params.policy;
  sparse.alpha = params.alpha;
  sparse.epsilon = params.epsilon;
  if (headEpsilons_) sparse.headEpsilons = static_cast<const float*>(headEpsilons_->data());
  sparse.scoreNumbers = options_.scoreNumbers;
  sparse.scoreDims = scoreDimRanges(params.scoreDims, options_.ropeStyle, options_.shape.headDim);
  sparse.sinkTokens = params.sinkTokens;
  sparse.maxListShare = params.maxListShare;
  sparse.auditRows = params.auditRows;
  return {run.segments, options_.shape, sparse};
}

Tensors CudaCase::tensorsOf(int64_t firstRow) const {
  Tensors tensors;
  const int64_t offset = firstRow * options_.shape.heads * options_.shape.headDim * 2;
  tensors.queries = static_cast<char*>(deviceQueries_->data()) + offset;
  tensors.output = static_cast<char*>(deviceOutput_->data()) + offset;
  tensors.keys = deviceKeys_->data();
  tensors.values = deviceValues_->data();
  if (deviceKeyScales_) {
    tensors.keyScales = deviceKeyScales_->data();
    tensors.valueScales = deviceValueScales_->data();
  }
  tensors.capacityRows = capacityRows();
  tensors.scale = 1.0f / std::sqrt(static_cast<float>(options_.shape.headDim));
  return tensors;
}

AttentionTask CudaCase::taskOf(const Segment& segment) const {
  AttentionTask task;
  task.segment = segment;
  task.params = &options_.params;
  task.queries = queries_.data() + segment.begin * options_.shape.heads * options_.shape.headDim;
  task.heads = options_.shape.heads;
  task.kv.keys = reinterpret_cast<std::byte*>(const_cast<uint16_t*>(keys_.data()));
  task.kv.values = reinterpret_cast<std::byte*>(const_cast<uint16_t*>(values_.data()));
  task.kv.capacityRows = options_.tokens;
  task.kv.kvHeads = options_.shape.kvHeads;
  task.kv.headDim = options_.shape.headDim;
  task.scale = 1.0f / std::sqrt(static_cast<float>(options_.shape.headDim));
  task.ropeStyle = options_.ropeStyle;
  return task;
}

double CudaCase::epsilonOf(int32_t head) const {
  return headEpsilons_ ? double{options_.params.headEpsilons[static_cast<size_t>(head)]}
                       : options_.params.epsilon;
}

void CudaCase::fail(CaseResult& result, const std::string& what) const {
  if (++result.failures <= 5) std::printf("  FAIL %s: %s\n", options_.name.c_str(), what.c_str());
}

void CudaCase::runChunks(Path path) {
  for (size_t i = 0; i < chunks_.size(); ++i) {
    const Chunk chunk = chunkOf(chunks_[i]);
    if (const std::string fault = validate(chunk); !fault.empty()) {
      std::printf("  %s\n", fault.c_str());
    }
    Tensors tensors = tensorsOf(chunk.segments.front().begin);
    tensors.logSumExp = static_cast<float*>(logSums_[i]->data());
    void* workspace = chunks_[i].workspace->data();
    if (options_.drawnDensity < 0) {
      require(launchPrefill(chunk, tensors, workspace, path, nullptr), "launchPrefill");
      continue;
    }
    require(launchDequantize(chunk, tensors, workspace, nullptr), "launchDequantize");
    drawVotes(chunks_[i]);
    require(launchColumnLists(chunk, workspace, nullptr), "launchColumnLists");
    require(launchAttend(chunk, tensors, workspace, path, nullptr), "launchAttend");
    require(launchAudit(chunk, tensors, workspace, nullptr), "launchAudit");
  }
  require(cudaDeviceSynchronize(), options_.name.c_str());
}

void CudaCase::drawVotes(const ChunkRun& run) {
  const WorkspaceOffsets offsets = workspaceOffsets(chunkOf(run));
  std::mt19937_64 random(static_cast<uint64_t>(run.segments.front().begin) + 1);
  std::bernoulli_distribution kept(options_.drawnDensity);
  for (int32_t s = 0; s < static_cast<int32_t>(run.segments.size()); ++s) {
    if (run.segments[static_cast<size_t>(s)].dense) continue;
    for (int32_t head = 0; head < options_.shape.heads; ++head) {
      std::vector<uint32_t> mask(static_cast<size_t>(offsets.maskStride[s]));
      for (uint32_t& word : mask) {
        word = 0;
        for (int bit = 0; bit < 32; ++bit) word |= uint32_t{kept(random)} << bit;
      }
      run.workspace->write(offsets.votes + offsets.maskWords(s, head) * 4, mask);
    }
  }
}

CaseResult CudaCase::check(Path path) {
  CaseResult result;
  const auto poisonAll = [&] {
    deviceOutput_->poison();
    for (size_t i = 0; i < chunks_.size(); ++i) {
      chunks_[i].workspace->poison();
      logSums_[i]->poison();
    }
  };
  const auto readOutput = [&] {
    return deviceOutput_->read<uint16_t>(0, deviceOutput_->bytes() / 2);
  };
  poisonAll();
  runChunks(path);
  const std::vector<uint16_t> first = readOutput();
  poisonAll();
  runChunks(path);
  if (readOutput() != first) fail(result, "a second run gives other bits");
  std::vector<const DeviceBuffer*> buffers = {deviceQueries_.get(), deviceKeys_.get(),
                                              deviceValues_.get(), deviceOutput_.get()};
  for (size_t i = 0; i < chunks_.size(); ++i) {
    buffers.push_back(chunks_[i].workspace.get());
    buffers.push_back(logSums_[i].get());
  }
  for (size_t i = 0; i < buffers.size(); ++i) {
    if (!buffers[i]->guardsIntact())
      fail(result, "guard words of buffer " + std::to_string(i) + " changed");
  }
  checkLists(result);
  checkOutputs(result);
  checkCoverage(result);
  return result;
}

reference::Kept CudaCase::keptOf(const ChunkRun& run, int32_t segment, int32_t head) const {
  const WorkspaceOffsets offsets = workspaceOffsets(chunkOf(run));
  const int64_t slot = segment * options_.shape.heads + head;
  const auto stats =
      run.workspace->read<HeadStats>(offsets.stats + slot * int64_t{sizeof(HeadStats)}, 1)[0];
  reference::Kept kept;
  kept.dense = stats.dense != 0;
  if (!kept.dense) {
    const int64_t blocks = (run.segments[static_cast<size_t>(segment)].end + 127) / 128;
    const int32_t entries = run.workspace->read<int32_t>(
        offsets.before + (offsets.countsBegin(segment, head) + blocks) * 4, 1)[0];
    kept.list = run.workspace->read<int32_t>(offsets.indices + offsets.listBegin(segment, head) * 4,
                                             entries);
  }
  return kept;
}

void CudaCase::checkLists(CaseResult& result) {
  struct Item {
    const ChunkRun* run;
    int32_t segment;
    int32_t head;
    double massError;
  };
  std::vector<Item> items;
  for (const ChunkRun& run : chunks_) {
    for (int32_t s = 0; s < static_cast<int32_t>(run.segments.size()); ++s) {
      for (int32_t h = 0; h < std::min(options_.shape.heads, options_.listHeads); ++h) {
        items.push_back({&run, s, options_.shape.heads - 1 - h, 0});
      }
    }
  }
  std::atomic<int64_t> columns{0}, borderline{0};
  std::vector<std::string> faults(items.size());
  parallelFor(static_cast<int64_t>(items.size()), [&](int64_t i) {
    Item& item = items[static_cast<size_t>(i)];
    const Segment& segment = item.run->segments[static_cast<size_t>(item.segment)];
    const WorkspaceOffsets offsets = workspaceOffsets(chunkOf(*item.run));
    const auto stats = item.run->workspace->read<HeadStats>(
        offsets.stats +
            (item.segment * options_.shape.heads + item.head) * int64_t{sizeof(HeadStats)},
        1)[0];
    std::string& fault = faults[static_cast<size_t>(i)];
    const std::string where = "segment [" + std::to_string(segment.begin) + ", " +
                              std::to_string(segment.end) + ") head " + std::to_string(item.head);
    if (stats.causalPairs != causalPairCount(segment.begin, segment.end)) {
      fault = where + ": causal pairs " + std::to_string(stats.causalPairs);
      return;
    }
    if (segment.dense) {
      if (stats.dense != 1 || stats.keptPairs != stats.causalPairs) fault = where + ": not dense";
      return;
    }
    const AttentionTask task = taskOf(segment);
    const int64_t remoteEnd = windowStart(segment.end - 1, segment.windowTokens);
    const bool drawn = options_.drawnDensity >= 0;
    const std::vector<ColumnVerdict> verdicts =
        drawn
            ? std::vector<ColumnVerdict>(static_cast<size_t>(remoteEnd), {0, false, true})
            : judgeColumns(task, item.head, remoteEnd, epsilonOf(item.head), options_.scoreNumbers);
    const auto mask = item.run->workspace->read<uint32_t>(
        offsets.votes + offsets.maskWords(item.segment, item.head) * 4, remoteEnd / 32);
    if (options_.params.policy == Policy::mass && !drawn) {
      const auto masses = item.run->workspace->read<float>(
          offsets.masses + offsets.maskWords(item.segment, item.head) * 128, remoteEnd);
      // Relative to the mass of a column that matters: a thousandth of what all get on average.
      const double floor =
          1e-3 * static_cast<double>(votingRows(segment).size()) / static_cast<double>(segment.end);
      for (int64_t column = options_.params.sinkTokens; column < remoteEnd; ++column) {
        const double expected = verdicts[static_cast<size_t>(column)].value;
        const double error =
            std::abs(masses[static_cast<size_t>(column)] - expected) / std::max(expected, floor);
        item.massError = error <= item.massError ? item.massError : error;
      }
    }
    std::vector<int32_t> expectedList;
    for (int64_t column = 0; column < remoteEnd; ++column) {
      const bool voted = mask[static_cast<size_t>(column / 32)] >> (column % 32) & 1;
      const ColumnVerdict& verdict = verdicts[static_cast<size_t>(column)];
      if (column < options_.params.sinkTokens) {
        expectedList.push_back(static_cast<int32_t>(column));
        continue;
      }
      if (voted) expectedList.push_back(static_cast<int32_t>(column));
      borderline += verdict.near && !drawn;
      if (voted != verdict.kept && !verdict.near) {
        fault = where + " column " + std::to_string(column) + ": voted " + std::to_string(voted) +
                ", expected " + std::to_string(verdict.kept) + ", peak or mass " +
                std::to_string(verdict.value);
        return;
      }
    }
    const int32_t sinks = remoteEnd > 0 ? options_.params.sinkTokens : 0;
    const auto length = static_cast<int64_t>(expectedList.size()) - sinks;
    columns += length;
    if (stats.listLength != length) {
      fault = where + ": list length " + std::to_string(stats.listLength) + ", mask has " +
              std::to_string(length);
      return;
    }
    if ((stats.dense != 0) != reference::fallsBackToDense(task, length)) {
      fault =
          where + ": dense " + std::to_string(stats.dense) + " at length " + std::to_string(length);
      return;
    }
    if (stats.dense != 0) {
      if (stats.keptPairs != stats.causalPairs) fault = where + ": kept pairs of a dense head";
      return;
    }
    if (keptOf(*item.run, item.segment, item.head).list != expectedList) {
      fault = where + ": the list is not its mask";
      return;
    }
    const auto before = item.run->workspace->read<int32_t>(
        offsets.before + offsets.countsBegin(item.segment, item.head) * 4,
        (segment.end + 127) / 128 + 1);
    int64_t kept = 0;
    for (size_t block = 0; block < before.size(); ++block) {
      const auto expected = std::lower_bound(expectedList.begin(), expectedList.end(),
                                             static_cast<int32_t>(block * 128)) -
                            expectedList.begin();
      if (before[block] != expected)
        fault = where + ": count before block " + std::to_string(block);
    }
    for (int64_t row = segment.begin; row < segment.end; ++row) {
      const int64_t window = windowStart(row, segment.windowTokens);
      kept += row + 1 - window + before[static_cast<size_t>(window / 128)];
    }
    if (stats.keptPairs != kept)
      fault = where + ": kept pairs " + std::to_string(stats.keptPairs) + ", counted " +
              std::to_string(kept);
  });
  for (const std::string& fault : faults) {
    if (!fault.empty()) fail(result, fault);
  }
  for (const Item& item : items) {
    result.worstMass = std::max(result.worstMass, item.massError);
    if (!(item.massError <= kMassTolerance)) {
      fail(result, "head " + std::to_string(item.head) + ": masses off by " +
                       std::to_string(item.massError));
    }
  }
  result.listColumns = columns;
  result.borderline = borderline;
}

}  // namespace longsight::cuda::test
