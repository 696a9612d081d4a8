// How long a prefill will take: measured speeds times counted work.
#pragma once

#include <cstdint>
#include <span>

#include "attention/params.h"
#include "attention/plan.h"
#include "session/backend.h"

namespace longsight {

class PrefillPrediction {
 public:
  PrefillPrediction(int32_t layers, int32_t heads) : layers_(layers), heads_(heads) {}

  bool hasSpeed() const { return speed_.linearMsPerRow > 0; }
  // From a probe of the backend.
  void start(const Backend::Speed& speed) { speed_ = speed; }

  // Milliseconds for the segments through all layers.
  double chunkMs(std::span<const Segment> segments, const SampleAttentionParams& params) const;

  // Corrects the speeds by what a chunk really took.
  void observe(std::span<const Segment> segments, const SampleAttentionParams& params,
               const ForwardTimes& times);

 private:
  double attentionWork(const Segment& segment, const SampleAttentionParams& params) const;

  int32_t layers_;
  int32_t heads_;
  // For one layer.
  Backend::Speed speed_;
  // Real over estimated work of sparse segments.
  double sparseCorrection_ = 1;
};

}  // namespace longsight
