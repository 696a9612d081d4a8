// Density and coverage of a prompt, as the specification defines them.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "attention/head_attention.h"

namespace longsight {

struct LayerDensity {
  std::optional<double> density;
  std::vector<std::optional<double>> heads;
};

struct AttentionStats {
  double density = 1;
  std::optional<double> sparseDensity;
  std::optional<double> coverageMean;
  // Nearest rank: the smallest sample that is >= 5 % of all samples.
  std::optional<double> coverageP5;
  std::vector<LayerDensity> layers;
  // Epsilons by head were used.
  bool calibrated = false;
};

// Counts what was computed. Pairs that no row needed (the last layer of rows without logits) are in
// neither the kept nor the causal pairs, so that dense prompts have density 1.
class AttentionCounter {
 public:
  AttentionCounter(int32_t layers, int32_t heads);
  // Rows [begin, end), dense in all layers; the last layer computed from `lastLayerBegin` on.
  void addDense(int64_t begin, int64_t end, int64_t lastLayerBegin);
  void addSparse(const SegmentAttention& segment);
  AttentionStats result() const;

 private:
  struct Pairs {
    double kept = 0;
    double causal = 0;
  };
  int32_t layers_;
  int32_t heads_;
  double densePairs_ = 0;
  // [layer][head], sparse segments only.
  std::vector<std::vector<Pairs>> sparse_;
  std::vector<float> coverage_;
};

}  // namespace longsight
