// What stands between the matrix products of a layer, row by row.
#pragma once

#include <cstdint>
#include <vector>

namespace longsight {

// out[i] = x[i] / rms(x) * weight[i]; `out` may be `x`.
void rmsNorm(const float* x, const float* weight, float epsilon, float* out, int64_t width);

// x[i] += y[i] (+ bias[i] when there is one).
void addTo(float* x, const float* y, const float* bias, int64_t width);

// gate[i] = silu(gate[i]) * up[i], with the biases added before where they are not null.
void swiglu(float* gate, const float* up, const float* gateBias, const float* upBias,
            int64_t width);

// Rotary embedding of interleaved pairs (2i, 2i + 1), with ggml's arithmetic: f32 angles, each from
// the one before, so that rows made here and by ggml's graphs agree.
class Rope {
 public:
  // factors: f32 [headDim / 2] or null.
  Rope(int32_t headDim, float base, float scale, const float* factors);

  // Cosines and sines of a position, [headDim / 2][2].
  void angles(int64_t position, float* out) const;
  // Rotates one head in place.
  static void rotate(float* head, const float* angles, int32_t headDim);

 private:
  int32_t headDim_;
  float step_;
  float scale_;
  std::vector<float> factors_;
};

}  // namespace longsight
