// CudaCase: outputs, log sums and coverage against the reference.
#include <algorithm>
#include <cmath>
#include <random>
#include <set>

#include "cuda_case.h"
#include "numbers.h"

namespace longsight::cuda::test {

double CudaCase::outputError(const std::vector<double>& expected, int64_t row, int32_t head,
                             const std::vector<uint16_t>& outputs, int64_t firstRow) const {
  const int32_t dim = options_.shape.headDim;
  double error = 0, norm = 0;
  for (int32_t d = 0; d < dim; ++d) {
    const size_t at =
        static_cast<size_t>(((row - firstRow) * options_.shape.heads + head) * dim + d);
    const double difference =
        fromDevice(outputs[at], options_.shape.element) - expected[static_cast<size_t>(d)];
    error += difference * difference;
    norm += expected[static_cast<size_t>(d)] * expected[static_cast<size_t>(d)];
  }
  return std::sqrt(error / std::max(norm, 1e-12));
}

void CudaCase::checkOutputs(CaseResult& result) {
  const auto outputs = deviceOutput_->read<uint16_t>(0, deviceOutput_->bytes() / 2);
  for (size_t i = 0; i < outputs.size(); ++i) {
    if (!std::isfinite(fromDevice(outputs[i], options_.shape.element))) {
      fail(result, "output " + std::to_string(i) + " is not a number");
      return;
    }
  }
  // The edges of all tiles up to a limit, and random rows; one random head each.
  std::mt19937_64 random(options_.tokens);
  std::set<int64_t> rows;
  const int64_t tokens = options_.tokens;
  const int64_t step = std::max<int64_t>(1, tokens / 128 * 4 / options_.outputRows);
  for (int64_t tile = 0; tile * 128 < tokens; tile += step) {
    rows.insert(tile * 128);
    rows.insert(std::min(tile * 128 + 127, tokens - 1));
  }
  rows.insert(tokens - 1);
  for (int i = 0; i < options_.outputRows; ++i)
    rows.insert(static_cast<int64_t>(random() % static_cast<uint64_t>(tokens)));
  struct Item {
    int64_t row;
    int32_t head;
    double error, logSumError;
  };
  std::vector<Item> items;
  for (const int64_t row : rows) {
    items.push_back(
        {row, static_cast<int32_t>(random() % static_cast<uint64_t>(options_.shape.heads)), 0, 0});
  }
  parallelFor(static_cast<int64_t>(items.size()), [&](int64_t i) {
    Item& item = items[static_cast<size_t>(i)];
    for (size_t c = 0; c < chunks_.size(); ++c) {
      const ChunkRun& run = chunks_[c];
      for (size_t s = 0; s < run.segments.size(); ++s) {
        const Segment& segment = run.segments[s];
        if (item.row < segment.begin || item.row >= segment.end) continue;
        const AttentionTask task = taskOf(segment);
        const reference::Kept kept = keptOf(run, static_cast<int32_t>(s), item.head);
        item.error = outputError(reference::attendRow(task, item.head, item.row, kept), item.row,
                                 item.head, outputs, 0);
        // The log sum of the kept columns, from the coverage of all of them.
        const double expected = reference::logSum(task, item.head, item.row) +
                                std::log(reference::coverage(task, item.head, item.row, kept));
        const int64_t begin = run.segments.front().begin;
        const int64_t rowsOfChunk = run.segments.back().end - begin;
        const float got =
            logSums_[c]->read<float>((item.head * rowsOfChunk + item.row - begin) * 4, 1)[0];
        item.logSumError = std::abs(got - expected) / std::max(1.0, std::abs(expected));
      }
    }
  });
  for (const Item& item : items) {
    result.worstOutput = std::max(result.worstOutput, item.error);
    result.worstLogSum = std::max(result.worstLogSum, item.logSumError);
    if (!(item.error <= 8e-3) || !(item.logSumError <= 1e-3)) {
      fail(result, "row " + std::to_string(item.row) + " head " + std::to_string(item.head) +
                       ": output off by " + std::to_string(item.error) + ", log sum by " +
                       std::to_string(item.logSumError));
    }
  }
}

void CudaCase::checkCoverage(CaseResult& result) {
  for (const ChunkRun& run : chunks_) {
    const WorkspaceOffsets offsets = workspaceOffsets(chunkOf(run));
    if (std::all_of(run.segments.begin(), run.segments.end(),
                    [](const Segment& s) { return s.dense; }))
      continue;
    const int32_t perSegment = options_.params.auditRows * options_.shape.heads;
    const auto coverage = run.workspace->read<float>(
        offsets.coverage, static_cast<int64_t>(run.segments.size()) * perSegment);
    std::vector<std::string> faults(run.segments.size());
    std::vector<double> worst(run.segments.size());
    const auto every = static_cast<int64_t>(std::max<size_t>(1, chunks_.size() * 4));
    parallelFor(static_cast<int64_t>(run.segments.size()), [&](int64_t s) {
      // In long prompts only some segments.
      if (chunks_.size() > 4 && s % every != 0) return;
      const Segment& segment = run.segments[static_cast<size_t>(s)];
      const std::vector<int64_t> rows = auditRows(segment, options_.params);
      const AttentionTask task = taskOf(segment);
      size_t valid = 0;
      for (int32_t i = 0; i < options_.params.auditRows; ++i) {
        for (int32_t head = 0; head < options_.shape.heads; ++head) {
          const float got =
              coverage[static_cast<size_t>(s * perSegment + i * options_.shape.heads + head)];
          if (head == 0 && got >= 0) ++valid;
          // One head a row is compared: the reference is slow.
          if (got < 0 || head != (i * 7 + s) % options_.shape.heads || valid > rows.size())
            continue;
          const double expected = reference::coverage(task, head, rows[valid - 1],
                                                      keptOf(run, static_cast<int32_t>(s), head));
          worst[static_cast<size_t>(s)] =
              std::max(worst[static_cast<size_t>(s)], std::abs(got - expected));
        }
      }
      if (valid != rows.size()) {
        faults[static_cast<size_t>(s)] = "segment " + std::to_string(s) + ": " +
                                         std::to_string(valid) + " audit rows, expected " +
                                         std::to_string(rows.size());
      }
      if (worst[static_cast<size_t>(s)] > 2e-3) {
        faults[static_cast<size_t>(s)] = "segment " + std::to_string(s) + ": coverage off by " +
                                         std::to_string(worst[static_cast<size_t>(s)]);
      }
    });
    for (size_t s = 0; s < faults.size(); ++s) {
      result.worstCoverage = std::max(result.worstCoverage, worst[s]);
      if (!faults[s].empty()) fail(result, faults[s]);
    }
  }
}

}  // namespace longsight::cuda::test
