// Rotary embedding of queries and keys, with ggml's arithmetic: f32 angles, each from the one
// before, so that rows made here and by ggml's graphs agree.
#pragma once

#include <cstdint>
#include <vector>

#include "model/rope_spec.h"

namespace longsight {

class Rope {
 public:
  // `base` stands in for spec.base. factors: what the angle of each pair is divided by, f32
  // [rotatedDims / 2], or null.
  Rope(const RopeSpec& spec, float base, const float* factors);

  // Floats that angles() writes.
  int32_t angleCount() const { return spec_.rotatedDims; }
  // Cosines and sines of a position, in the order in which rotate() reads them.
  void angles(int64_t position, float* out) const;
  // Rotates one head in place.
  void rotate(float* head, const float* angles) const;

 private:
  RopeSpec spec_;
  float step_;
  // [pair].
  std::vector<float> factors_;
  // Share of the unscaled angle: 1 without scaling of any kind.
  std::vector<float> unscaled_;
};

}  // namespace longsight
