// How long a prefill will take: measured speeds times counted work.
#pragma once

#include <cstdint>
#include <span>

#include "attention/params.h"
#include "attention/plan.h"
#include "cpu/backend.h"

namespace longsight {

class PrefillPrediction {
 public:
  PrefillPrediction(int32_t layers, int32_t heads) : layers_(layers), heads_(heads) {}

  bool hasSpeed() const { return speed_.linearMsPerRow > 0; }
  // From a probe of the backend.
  void start(const CpuBackend::Speed& speed) { speed_ = speed; }

  // Milliseconds for the segment through all layers.
  double segmentMs(const Segment& segment, const SampleAttentionParams& params) const;

  // Corrects the speeds by what a segment really took.
  void observe(const Segment& segment, const SampleAttentionParams& params, double linearMs,
               double attentionMs);

 private:
  double attentionWork(const Segment& segment, const SampleAttentionParams& params) const;

  int32_t layers_;
  int32_t heads_;
  // For one layer.
  CpuBackend::Speed speed_;
  // Real over estimated work of sparse segments.
  double sparseCorrection_ = 1;
};

}  // namespace longsight
