#include "session/attention_stats.h"

#include <algorithm>
#include <cmath>

namespace longsight {
namespace {

// Causal pairs of rows [begin, end): row r sees r + 1 columns.
double causalPairs(int64_t begin, int64_t end) {
  const auto first = static_cast<double>(begin), last = static_cast<double>(end);
  return end <= begin ? 0 : (last * (last + 1) - first * (first + 1)) / 2;
}

std::optional<double> share(double kept, double causal) {
  return causal > 0 ? std::optional(kept / causal) : std::nullopt;
}

}  // namespace

AttentionCounter::AttentionCounter(int32_t layers, int32_t heads)
    : layers_(layers),
      heads_(heads),
      sparse_(static_cast<size_t>(layers), std::vector<Pairs>(static_cast<size_t>(heads))) {}

void AttentionCounter::addDense(int64_t begin, int64_t end, int64_t lastLayerBegin) {
  const double pairs =
      causalPairs(begin, end) * (layers_ - 1) + causalPairs(std::max(begin, lastLayerBegin), end);
  densePairs_ += pairs * heads_;
}

void AttentionCounter::addSparse(const SegmentAttention& segment) {
  for (size_t layer = 0; layer < segment.size(); ++layer)
    for (size_t head = 0; head < segment[layer].size(); ++head) {
      const HeadAttention& made = segment[layer][head];
      sparse_[layer][head].kept += static_cast<double>(made.keptPairs);
      sparse_[layer][head].causal += static_cast<double>(made.causalPairs);
      coverage_.insert(coverage_.end(), made.coverage.begin(), made.coverage.end());
    }
}

AttentionStats AttentionCounter::result() const {
  AttentionStats stats;
  double kept = 0, causal = 0;
  for (const std::vector<Pairs>& layer : sparse_) {
    LayerDensity density;
    double layerKept = 0, layerCausal = 0;
    for (const Pairs& head : layer) {
      density.heads.push_back(share(head.kept, head.causal));
      layerKept += head.kept;
      layerCausal += head.causal;
    }
    density.density = share(layerKept, layerCausal);
    kept += layerKept;
    causal += layerCausal;
    stats.layers.push_back(std::move(density));
  }
  stats.sparseDensity = share(kept, causal);
  stats.density = share(kept + densePairs_, causal + densePairs_).value_or(1);
  if (!coverage_.empty()) {
    // Millions of samples for a million tokens: only the one that is asked for is put in its place.
    std::vector<float> samples = coverage_;
    double sum = 0;
    for (float value : samples) sum += value;
    const auto count = static_cast<double>(samples.size());
    stats.coverageMean = sum / count;
    const auto rank =
        std::max<std::ptrdiff_t>(static_cast<std::ptrdiff_t>(std::ceil(0.05 * count)), 1);
    const auto place = samples.begin() + rank - 1;
    std::nth_element(samples.begin(), place, samples.end());
    stats.coverageP5 = *place;
  }
  return stats;
}

}  // namespace longsight
