#include "cpu/rope.h"

#include <cmath>

namespace longsight {

Rope::Rope(const RopeSpec& spec, float base, const float* factors)
    : spec_(spec),
      step_(std::pow(base, -2.0f / static_cast<float>(spec.rotatedDims))),
      factors_(static_cast<size_t>(spec.rotatedDims / 2), 1.0f),
      unscaled_(unscaledShares(spec, base)) {
  if (factors) factors_.assign(factors, factors + spec.rotatedDims / 2);
}

void Rope::angles(int64_t position, float* out) const {
  const int32_t pairs = spec_.rotatedDims / 2;
  const bool neighbours = spec_.style == RopeStyle::interleaved;
  auto theta = static_cast<float>(position);
  for (int32_t pair = 0; pair < pairs; ++pair) {
    const auto i = static_cast<size_t>(pair);
    const float whole = theta / factors_[i];
    const float angle = spec_.angleScale * whole * (1 - unscaled_[i]) + whole * unscaled_[i];
    out[neighbours ? 2 * pair : pair] = std::cos(angle) * spec_.magnitude;
    out[neighbours ? 2 * pair + 1 : pairs + pair] = std::sin(angle) * spec_.magnitude;
    theta *= step_;
  }
}

void Rope::rotate(float* head, const float* angles) const {
  const int32_t dims = spec_.rotatedDims;
  if (spec_.style == RopeStyle::interleaved) {
    for (int32_t i = 0; i < dims; i += 2) {
      const float x = head[i], y = head[i + 1], cosine = angles[i], sine = angles[i + 1];
      head[i] = x * cosine - y * sine;
      head[i + 1] = x * sine + y * cosine;
    }
    return;
  }
  const int32_t half = dims / 2;
  for (int32_t i = 0; i < half; ++i) {
    const float x = head[i], y = head[half + i], cosine = angles[i], sine = angles[half + i];
    head[i] = x * cosine - y * sine;
    head[half + i] = x * sine + y * cosine;
  }
}

}  // namespace longsight
