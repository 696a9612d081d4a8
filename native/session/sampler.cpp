#include "session/sampler.h"

#include <algorithm>
#include <cmath>

namespace longsight {

Sampler::Sampler(const Sampling& sampling)
    : temperature_(sampling.temperature), topP_(sampling.topP), random_(sampling.seed) {}

int32_t Sampler::pick(std::span<const float> logits) {
  const auto best = std::max_element(logits.begin(), logits.end());
  if (temperature_ <= 0) return static_cast<int32_t>(best - logits.begin());

  // Tokens below e^-30 of the best together weigh less than a draw of 53 bits can tell apart.
  const double floor = *best - 30.0 * temperature_;
  candidates_.clear();
  double total = 0;
  for (size_t i = 0; i < logits.size(); ++i) {
    if (!(logits[i] >= floor)) continue;
    const double weight = std::exp((static_cast<double>(logits[i]) - *best) / temperature_);
    candidates_.emplace_back(weight, static_cast<int32_t>(i));
    total += weight;
  }
  std::sort(candidates_.begin(), candidates_.end(), [](const auto& a, const auto& b) {
    return a.first != b.first ? a.first > b.first : a.second < b.second;
  });
  double kept = 0;
  size_t count = 0;
  while (count < candidates_.size() && (count == 0 || kept < topP_ * total))
    kept += candidates_[count++].first;

  double draw = static_cast<double>(random_() >> 11) * 0x1p-53 * kept;
  for (size_t i = 0; i < count; ++i) {
    draw -= candidates_[i].first;
    if (draw < 0) return candidates_[i].second;
  }
  return candidates_[count - 1].second;
}

}  // namespace longsight
