#include "cpu/epsilon_probe.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "attention/geometry.h"
#include "cpu/attention_scratch.h"

namespace longsight {
namespace {

// Steps, then what no epsilon keeps out: sinks and window. Before them what no step keeps.
constexpr int kSteps = HeadCurve::kSteps;
constexpr int kBins = kSteps + 2;
constexpr int kAlways = kBins - 1;

class HeadProbe {
 public:
  HeadProbe(const AttentionTask& task, int32_t head) : task_(task), head_(head) {
    const AttentionScratch::State& state = task.scratch->state();
    remoteEnd_ = windowStart(task.segment.end - 1, task.segment.windowTokens);
    const float* votes = state.votes.data() + head * remoteEnd_;
    bins_.assign(static_cast<size_t>(remoteEnd_), 0);
    for (int64_t column = 0; column < remoteEnd_; ++column) {
      const double peak = votes[column] * std::log(2.0);
      const double step = std::floor((peak - HeadCurve::kFirstLog) / HeadCurve::kLogStep);
      bins_[static_cast<size_t>(column)] =
          1 + static_cast<int>(std::clamp(step, -1.0, kSteps - 1.0));
    }
  }

  void countPairs(HeadCurve& curve) const {
    const Segment& segment = task_.segment;
    const int32_t sinks = task_.params->sinkTokens;
    // Rows of the segment for which a block of columns is remote.
    std::vector<int64_t> rowsBeyond(bins_.size() / kTileRows, 0);
    const auto causal = static_cast<double>(causalPairCount(segment.begin, segment.end));
    double kept = causal;
    for (int64_t row = segment.begin; row < segment.end; ++row) {
      const int64_t window = windowStart(row, segment.windowTokens);
      kept -= static_cast<double>(std::max<int64_t>(0, window - sinks));
      for (int64_t block = 0; block < window / kTileRows; ++block)
        ++rowsBeyond[static_cast<size_t>(block)];
    }
    std::array<double, kBins> pairs{};
    for (int64_t column = sinks; column < remoteEnd_; ++column)
      pairs[static_cast<size_t>(bins_[static_cast<size_t>(column)])] +=
          static_cast<double>(rowsBeyond[static_cast<size_t>(column / kTileRows)]);
    curve.causalPairs += causal;
    for (size_t step = kSteps; step-- > 0;) {
      kept += pairs[step + 1];
      curve.keptPairs[step] += kept;
    }
  }

  // `gram` is that of the head's part of the projection, [headDim][headDim].
  void addRow(int64_t row, const std::vector<float>& gram, double streamSquare, HeadCurve& curve) {
    const int64_t dims = task_.kv.headDim;
    weigh(row);
    std::vector<double> sums(static_cast<size_t>(kBins * dims), 0.0);
    std::array<double, kBins> masses{};
    const KvMatrix values = task_.kv.valuesOf(kvHead());
    std::vector<float> value(static_cast<size_t>(dims));
    const int64_t window = windowStart(row, task_.segment.windowTokens);
    for (int64_t column = 0; column <= row; ++column) {
      const bool isRemote = column >= task_.params->sinkTokens && column < window;
      const int bin = isRemote ? bins_[static_cast<size_t>(column)] : kAlways;
      const double weight = weights_[static_cast<size_t>(column)];
      masses[static_cast<size_t>(bin)] += weight;
      double* sum = sums.data() + bin * dims;
      load(values, column, value);
      for (int64_t dim = 0; dim < dims; ++dim) sum[dim] += weight * value[static_cast<size_t>(dim)];
    }
    // From the back, bins become sums of everything that is kept at their step.
    for (int bin = kAlways - 1; bin >= 0; --bin) {
      masses[static_cast<size_t>(bin)] += masses[static_cast<size_t>(bin) + 1];
      for (int64_t dim = 0; dim < dims; ++dim)
        sums[bin * dims + dim] += sums[(bin + 1) * dims + dim];
    }
    std::vector<double> change(static_cast<size_t>(dims));
    for (size_t step = 0; step < kSteps; ++step) {
      const double* kept = sums.data() + (step + 1) * dims;
      for (size_t dim = 0; dim < change.size(); ++dim)
        change[dim] = kept[dim] / masses[step + 1] - sums[dim] / masses[0];
      curve.missed[step] += std::max(0.0, 1 - masses[step + 1] / masses[0]);
      curve.error[step] += squareUnder(gram, change) / streamSquare;
    }
    ++curve.rows;
  }

 private:
  int32_t kvHead() const { return head_ / (task_.heads / task_.kv.kvHeads); }
  static void load(const KvMatrix& matrix, int64_t row, std::vector<float>& values) {
    const int64_t bytes = kvRowBytes(matrix.type, matrix.headDim);
    loadKvRow(matrix.type, matrix.data + row * bytes, matrix.headDim, values.data());
  }

  // Exponentials of the row's exact scores.
  void weigh(int64_t row) {
    const int64_t dims = task_.kv.headDim;
    const float* query = task_.queries + ((row - task_.segment.begin) * task_.heads + head_) * dims;
    const KvMatrix keys = task_.kv.keysOf(kvHead());
    std::vector<float> key(static_cast<size_t>(dims));
    weights_.resize(static_cast<size_t>(row) + 1);
    float most = -std::numeric_limits<float>::infinity();
    for (int64_t column = 0; column <= row; ++column) {
      load(keys, column, key);
      float score = 0;
      for (int64_t dim = 0; dim < dims; ++dim) score += query[dim] * key[static_cast<size_t>(dim)];
      weights_[static_cast<size_t>(column)] = score * task_.scale;
      most = std::max(most, score * task_.scale);
    }
    for (float& weight : weights_) weight = std::exp(weight - most);
  }

  // x' gram x.
  static double squareUnder(const std::vector<float>& gram, const std::vector<double>& x) {
    double total = 0;
    for (size_t i = 0; i < x.size(); ++i) {
      double row = 0;
      for (size_t j = 0; j < x.size(); ++j) row += gram[i * x.size() + j] * x[j];
      total += row * x[i];
    }
    return std::max(0.0, total);
  }

  const AttentionTask& task_;
  int32_t head_;
  int64_t remoteEnd_ = 0;
  // Of the remote columns: 0, or 1 + the last step that keeps it.
  std::vector<int> bins_;
  std::vector<float> weights_;
};

// Products of the columns of a head's part of the projection.
std::vector<float> gramOf(const WeightView& projection, int32_t head, int64_t dims) {
  const int64_t width = projection.columns;
  const ggml_to_float_t expand = ggml_get_type_traits(projection.type)->to_float;
  std::vector<float> expanded(static_cast<size_t>(width));
  std::vector<float> gram(static_cast<size_t>(dims * dims), 0.0f);
  for (int64_t output = 0; output < projection.rows; ++output) {
    const void* stored = static_cast<const char*>(projection.data) +
                         static_cast<size_t>(output) * ggml_row_size(projection.type, width);
    const float* row = static_cast<const float*>(stored);
    if (expand != nullptr) {
      expand(stored, expanded.data(), width);
      row = expanded.data();
    }
    row += head * dims;
    for (int64_t i = 0; i < dims; ++i) {
      for (int64_t j = 0; j < dims; ++j) gram[static_cast<size_t>(i * dims + j)] += row[i] * row[j];
    }
  }
  return gram;
}

}  // namespace

void probeEpsilons(const AttentionTask& task, const WeightView& projection, const float* residual,
                   int32_t layer, ThreadPool& pool, EpsilonCurves& curves) {
  const std::vector<int64_t> rows = auditRows(task.segment, *task.params);
  const int64_t width = projection.rows;
  pool.forEach(task.heads, [&](int64_t item, int32_t) {
    const auto head = static_cast<int32_t>(item);
    HeadCurve& curve = curves.head(layer, head);
    HeadProbe probe(task, head);
    probe.countPairs(curve);
    const std::vector<float> gram = gramOf(projection, head, task.kv.headDim);
    for (const int64_t row : rows) {
      const float* stream = residual + (row - task.segment.begin) * width;
      double square = 0;
      for (int64_t i = 0; i < width; ++i) square += double{stream[i]} * stream[i];
      probe.addRow(row, gram, square, curve);
    }
  });
}

}  // namespace longsight
