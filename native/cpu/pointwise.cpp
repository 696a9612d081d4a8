#include "cpu/pointwise.h"

#include <bit>
#include <cmath>

#include "cpu/by_processor.h"

namespace longsight {
namespace {

// e^x with a relative error below 3e-7: 2^n times a polynomial of degree 6 on [-ln2/2, ln2/2]
// (Taylor, whose remainder there is 1.2e-7). Plain operations, so that loops over it are
// vectorized.
inline float expOf(float x) {
  constexpr float kLog2E = 1.44269504f;
  constexpr float kLn2High = 0.693359375f, kLn2Low = -2.12194440e-4f;
  // Beyond these silu is 0 or x to the last bit of f32.
  x = x < -87.0f ? -87.0f : (x > 88.0f ? 88.0f : x);
  // Adding and subtracting 1.5 * 2^23 rounds to a whole number.
  constexpr float kRound = 12582912.0f;
  const float shifted = x * kLog2E + kRound;
  const float whole = shifted - kRound;
  const float r = (x - whole * kLn2High) - whole * kLn2Low;
  float p = 1.0f / 720;
  p = p * r + 1.0f / 120;
  p = p * r + 1.0f / 24;
  p = p * r + 1.0f / 6;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  const int32_t exponent = std::bit_cast<int32_t>(shifted) - std::bit_cast<int32_t>(kRound);
  return p * std::bit_cast<float>((exponent + 127) << 23);
}

}  // namespace

LONGSIGHT_BY_PROCESSOR
void rmsNorm(const float* x, const float* weight, float epsilon, float* out, int64_t width) {
  // Partial sums that the compiler may keep in vector lanes.
  constexpr int64_t kLanes = 16;
  double lanes[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= width; i += kLanes)
    for (int64_t lane = 0; lane < kLanes; ++lane) {
      const double value = x[i + lane];
      lanes[lane] += value * value;
    }
  double sum = 0;
  for (; i < width; ++i) sum += static_cast<double>(x[i]) * x[i];
  for (double lane : lanes) sum += lane;
  const float scale =
      1.0f / std::sqrt(static_cast<float>(sum / static_cast<double>(width)) + epsilon);
  for (int64_t j = 0; j < width; ++j) out[j] = x[j] * scale * weight[j];
}

LONGSIGHT_BY_PROCESSOR
void addTo(float* x, const float* y, const float* bias, int64_t width) {
  if (bias)
    for (int64_t i = 0; i < width; ++i) x[i] += y[i] + bias[i];
  else
    for (int64_t i = 0; i < width; ++i) x[i] += y[i];
}

LONGSIGHT_BY_PROCESSOR
void swiglu(float* gate, const float* up, const float* gateBias, const float* upBias,
            int64_t width) {
  if (gateBias)
    for (int64_t i = 0; i < width; ++i) gate[i] += gateBias[i];
  for (int64_t i = 0; i < width; ++i) gate[i] = gate[i] / (1.0f + expOf(-gate[i]));
  if (upBias)
    for (int64_t i = 0; i < width; ++i) gate[i] *= up[i] + upBias[i];
  else
    for (int64_t i = 0; i < width; ++i) gate[i] *= up[i];
}

}  // namespace longsight
