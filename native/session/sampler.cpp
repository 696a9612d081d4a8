#include "session/sampler.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <limits>
#include <unordered_set>

#include "error.h"

namespace longsight {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr double kMostTemperature = 5;
constexpr double kMostPenalty = 10;
constexpr double kMostBias = 1000;

// A million tokens below e^-51 of the best together weigh less than a draw of 53 bits can tell
// apart.
constexpr double kNegligible = 51;

// e^x for x <= 0, within 2 units in the last place. IEEE products, sums and shifts alone (this file
// is compiled without contraction), so the bits are the same everywhere, one at a time or several.
inline double expOf(double x) {
  constexpr double kLn2High = 0x1.62e42fee00000p-1, kLn2Low = 0x1.a39ef35793c76p-33;
  // Adding this rounds to a whole number and leaves it in the low bits.
  constexpr double kRound = 0x1.8p52;
  const double rounded = x * 0x1.71547652b82fep+0 + kRound;
  const double k = rounded - kRound;
  const double r = (x - k * kLn2High) - k * kLn2Low;
  // Taylor: |r| <= ln(2) / 2, where the first term left out is below 2^-57.
  double sum = 1.0 / 6227020800;
  for (const double term :
       {1.0 / 479001600, 1.0 / 39916800, 1.0 / 3628800, 1.0 / 362880, 1.0 / 40320, 1.0 / 5040,
        1.0 / 720, 1.0 / 120, 1.0 / 24, 1.0 / 6, 1.0 / 2, 1.0, 1.0})
    sum = sum * r + term;
  const double power = std::bit_cast<double>((std::bit_cast<uint64_t>(rounded) + 1023) << 52);
  return x < -700 ? 0 : sum * power;
}

double sumOf(std::span<const double> values) {
  double sum = 0;
  for (const double value : values) sum += value;
  return sum;
}

void expAll(std::span<double> values) {
  for (double& value : values) value = expOf(value);
}

// Throws Error internal when a logit is NaN or +infinity. In lanes, so that the compiler can take
// many at once: the vocabulary is large, and every token waits for this.
float largestOf(std::span<const float> logits) {
  constexpr size_t kLanes = 32;
  constexpr float kInfinite = std::numeric_limits<float>::infinity();
  std::array<float, kLanes> most;
  std::array<int32_t, kLanes> wrong{};
  most.fill(-kInfinite);
  size_t i = 0;
  for (; i + kLanes <= logits.size(); i += kLanes)
    for (size_t lane = 0; lane < kLanes; ++lane) {
      const float logit = logits[i + lane];
      most[lane] = logit > most[lane] ? logit : most[lane];
      wrong[lane] |= !(logit < kInfinite);
    }
  for (; i < logits.size(); ++i) {
    most[0] = std::max(most[0], logits[i]);
    wrong[0] |= !(logits[i] < kInfinite);
  }
  if (std::any_of(wrong.begin(), wrong.end(), [](int32_t bits) { return bits != 0; })) {
    const auto bad = std::find_if(logits.begin(), logits.end(),
                                  [](float logit) { return !(logit < kInfinite); });
    throw Error(ErrorCode::internal,
                "The model computed " + std::to_string(*bad) + " for token " +
                    std::to_string(bad - logits.begin()) + " of " + std::to_string(logits.size()) +
                    ".",
                "Ask again; when it happens again, use another model file.");
  }
  return *std::max_element(most.begin(), most.end());
}

std::string outside(const char* name, double value, const std::string& range) {
  return std::string(name) + " = " + std::to_string(value) + " is outside its range: " + range +
         ".";
}

}  // namespace

std::string validate(const Sampling& sampling, int32_t vocabulary) {
  const auto& [temperature, topP, topK, minP, penalty, logitBias, seed, stop] = sampling;
  if (!(temperature >= 0 && temperature <= kMostTemperature))
    return outside("temperature", temperature, "0 to 5");
  if (!(topP > 0 && topP <= 1)) return outside("topP", topP, "above 0, at most 1");
  if (topK < 0) return outside("topK", topK, "0 (off) or more");
  if (!(minP >= 0 && minP <= 1)) return outside("minP", minP, "0 to 1");
  if (!(penalty > 0 && penalty <= kMostPenalty))
    return outside("repetitionPenalty", penalty, "above 0, at most 10");
  std::unordered_set<int32_t> named;
  for (const auto& [token, bias] : logitBias) {
    const std::string name = "logitBias of token " + std::to_string(token);
    if (token < 0 || token >= vocabulary)
      return name + ": the vocabulary has the tokens 0 to " + std::to_string(vocabulary - 1) + ".";
    if (!named.insert(token).second) return name + " is given twice.";
    if (bias != -kInfinity && !(std::abs(bias) <= kMostBias))
      return outside(name.c_str(), bias, "-1000 to 1000, or -infinity");
  }
  return "";
}

Sampler::Sampler(const Sampling& sampling, std::span<const int32_t> prompt)
    : sampling_(sampling), random_(sampling.seed) {
  const auto last = prompt.last(std::min(prompt.size(), kRepetitionTokens));
  recent_.assign(last.begin(), last.end());
}

void Sampler::remember(int32_t token) {
  if (recent_.size() < kRepetitionTokens) {
    recent_.push_back(token);
    return;
  }
  recent_[oldest_] = token;
  oldest_ = (oldest_ + 1) % kRepetitionTokens;
}

void Sampler::adjust(std::span<const float> logits) {
  adjusted_.assign(logits.begin(), logits.end());
  for (const auto& [token, bias] : sampling_.logitBias)
    adjusted_[static_cast<size_t>(token)] += bias;
  if (sampling_.repetitionPenalty == 1) return;
  for (const int32_t token : std::unordered_set<int32_t>(recent_.begin(), recent_.end())) {
    double& logit = adjusted_[static_cast<size_t>(token)];
    if (logit > 0)
      logit /= sampling_.repetitionPenalty;
    else
      logit *= sampling_.repetitionPenalty;
  }
}

int32_t Sampler::pick(std::span<const float> logits) {
  const float largest = largestOf(logits);
  const bool isPlain =
      sampling_.temperature == 0 && sampling_.logitBias.empty() && sampling_.repetitionPenalty == 1;
  if (isPlain && largest > -kInfinity) {
    const auto token =
        static_cast<int32_t>(std::find(logits.begin(), logits.end(), largest) - logits.begin());
    remember(token);
    return token;
  }
  adjust(logits);
  const auto best = std::max_element(adjusted_.begin(), adjusted_.end());
  if (best == adjusted_.end() || *best == -kInfinity)
    throw Error(ErrorCode::invalidParams, "logitBias leaves no token to choose from.",
                "Ban fewer tokens.");
  const int32_t token =
      sampling_.temperature == 0 ? static_cast<int32_t>(best - adjusted_.begin()) : draw(*best);
  remember(token);
  return token;
}

int32_t Sampler::draw(double best) {
  const double temperature = sampling_.temperature;
  const double floor = best - kNegligible * std::max(1.0, temperature);
  candidates_.clear();
  sorted_ = 0;
  for (size_t i = 0; i < adjusted_.size(); ++i)
    if (adjusted_[i] >= floor) candidates_.push_back({adjusted_[i], static_cast<int32_t>(i)});
  keepTopK();
  keepTopP(best);
  keepMinP(best);
  if (sorted_ > 0) std::ranges::sort(candidates_, {}, &Candidate::token);

  weigh(best, temperature);
  double left = static_cast<double>(random_() >> 11) * 0x1p-53 * sumOf(weights_);
  for (size_t i = 0; i < weights_.size(); ++i) {
    left -= weights_[i];
    if (left < 0) return candidates_[i].token;
  }
  // Rounding may leave nothing for the last one that has a share.
  size_t last = weights_.size() - 1;
  while (weights_[last] == 0) --last;
  return candidates_[last].token;
}

void Sampler::weigh(double best, double temperature) {
  weights_.resize(candidates_.size());
  for (size_t i = 0; i < weights_.size(); ++i)
    weights_[i] = (candidates_[i].logit - best) / temperature;
  expAll(weights_);
}

void Sampler::keepTopK() {
  const auto k = static_cast<size_t>(sampling_.topK);
  if (k == 0 || k >= candidates_.size()) return;
  sortTo(k);
  candidates_.resize(k);
  sorted_ = k;
}

void Sampler::keepTopP(double best) {
  if (sampling_.topP >= 1) return;
  weigh(best, 1);
  const double total = sumOf(weights_);
  double kept = 0;
  size_t count = 0;
  while (count < candidates_.size() && (count == 0 || kept < sampling_.topP * total)) {
    sortTo(count + 1);
    kept += expOf(candidates_[count++].logit - best);
  }
  candidates_.resize(count);
  sorted_ = count;
}

void Sampler::keepMinP(double best) {
  if (sampling_.minP == 0) return;
  weigh(best, 1);
  size_t kept = 0;
  for (size_t i = 0; i < weights_.size(); ++i)
    if (weights_[i] >= sampling_.minP) candidates_[kept++] = candidates_[i];
  candidates_.resize(kept);
}

// Usually few are wanted of very many: they are sorted in steps.
void Sampler::sortTo(size_t count) {
  if (count <= sorted_) return;
  count = std::min(candidates_.size(), std::max({count, 4 * sorted_, size_t{64}}));
  const auto begin = candidates_.begin();
  std::partial_sort(begin + static_cast<std::ptrdiff_t>(sorted_),
                    begin + static_cast<std::ptrdiff_t>(count), candidates_.end(),
                    [](const Candidate& a, const Candidate& b) {
                      return a.logit != b.logit ? a.logit > b.logit : a.token < b.token;
                    });
  sorted_ = count;
}

}  // namespace longsight
