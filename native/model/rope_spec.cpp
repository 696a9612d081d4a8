#include "model/rope_spec.h"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <string>

namespace longsight {
namespace {

// Far above every real model.
constexpr int64_t kMaxOriginalContext = int64_t{1} << 30;

// What YaRN multiplies queries and keys with: (0.1 ln s + 1), section 3.4 of the paper.
double yarnMagnitude(double factor) { return factor > 1 ? 0.1 * std::log(factor) + 1 : 1; }

// The pair, as a fraction, that makes this many turns in `tokens` positions (YaRN, appendix A).
float pairWithTurns(float turns, int64_t tokens, int32_t dims, float base) {
  constexpr float kTurn = 2 * std::numbers::pi_v<float>;
  return static_cast<float>(dims) * std::log(static_cast<float>(tokens) / (turns * kTurn)) /
         (2 * std::log(base));
}

}  // namespace

std::vector<float> unscaledShares(const RopeSpec& spec, float base) {
  std::vector<float> shares(static_cast<size_t>(spec.rotatedDims / 2), 0.0f);
  if (spec.extrapolation == 0) return shares;
  const int32_t dims = spec.rotatedDims;
  const int64_t tokens = spec.originalContextTokens;
  const float fast = std::max(0.0f, std::floor(pairWithTurns(spec.betaFast, tokens, dims, base)));
  const float slow = std::min(static_cast<float>(dims - 1),
                              std::ceil(pairWithTurns(spec.betaSlow, tokens, dims, base)));
  for (size_t pair = 0; pair < shares.size(); ++pair) {
    const float ramp = (static_cast<float>(pair) - fast) / std::max(0.001f, slow - fast);
    shares[pair] = spec.extrapolation * (1 - std::clamp(ramp, 0.0f, 1.0f));
  }
  return shares;
}

std::vector<double> ropeFrequencies(const RopeSpec& spec, float base, const float* factors) {
  const std::vector<float> unscaled = unscaledShares(spec, base);
  std::vector<double> frequencies(unscaled.size());
  for (size_t pair = 0; pair < frequencies.size(); ++pair) {
    const double share = unscaled[pair];
    const double whole =
        std::pow(double{base}, -2.0 * static_cast<double>(pair) / spec.rotatedDims) /
        (factors ? double{factors[pair]} : 1.0);
    frequencies[pair] = whole * (double{spec.angleScale} * (1 - share) + share);
  }
  return frequencies;
}

RopeSpec readRope(const Metadata& metadata, const Architecture& architecture, int32_t headDim,
                  int64_t contextTokens) {
  const std::string prefix = std::string(architecture.name) + ".rope.";
  RopeSpec rope;
  rope.style = architecture.ropeStyle;
  rope.rotatedDims =
      static_cast<int32_t>(metadata.integerOr(prefix + "dimension_count", headDim, 1, headDim));
  if (rope.rotatedDims != headDim && !architecture.partialRotary)
    throw unsupported(quoted(metadata.path()) + " rotates " + std::to_string(rope.rotatedDims) +
                      " of " + std::to_string(headDim) +
                      " dimensions of a head; with architecture " + std::string(architecture.name) +
                      " supported is the whole head.");
  if (rope.rotatedDims % 2 != 0)
    throw damaged(metadata.path(), prefix + "dimension_count is " +
                                       std::to_string(rope.rotatedDims) +
                                       ", expected an even number");
  rope.base = static_cast<float>(metadata.positiveOr(prefix + "freq_base", 10000.0));

  const std::string scaling = metadata.text(prefix + "scaling.type").value_or("linear");
  if (scaling != "none" && scaling != "linear" && scaling != "yarn" && scaling != "longrope")
    throw unsupported(quoted(metadata.path()) + " uses RoPE scaling " + quoted(scaling) +
                      "; supported are none, linear, yarn, longrope and frequency factors.");
  rope.originalContextTokens = metadata.integerOr(prefix + "scaling.original_context_length",
                                                  contextTokens, 1, kMaxOriginalContext);
  // `scale_linear` is the older name of the factor; 0 means none, as in libllama.
  const std::string factorKey =
      metadata.has(prefix + "scaling.factor") ? "scaling.factor" : "scale_linear";
  double factor = 1;
  if (scaling != "none" && metadata.number(prefix + factorKey).value_or(0) != 0)
    factor = metadata.positiveOr(prefix + factorKey, 1);
  rope.angleScale = static_cast<float>(1 / factor);

  double magnitude = metadata.positiveOr(prefix + "scaling.attn_factor", 1);
  if (scaling == "yarn") {
    const double extrapolation = metadata.number(prefix + "scaling.yarn_ext_factor").value_or(1);
    if (!std::isfinite(extrapolation) || extrapolation > 1)
      throw damaged(metadata.path(), prefix + "scaling.yarn_ext_factor is " +
                                         std::to_string(extrapolation) + ", expected 0 to 1");
    // Negative is libllama's "not set".
    rope.extrapolation = extrapolation < 0 ? 1.0f : static_cast<float>(extrapolation);
    rope.betaFast = static_cast<float>(metadata.positiveOr(prefix + "scaling.yarn_beta_fast", 32));
    rope.betaSlow = static_cast<float>(metadata.positiveOr(prefix + "scaling.yarn_beta_slow", 1));
    // `yarn_attn_factor` is what a model's configuration calls attention_factor: it stands in for
    // the magnitude that the paper derives from the factor.
    if (rope.extrapolation > 0)
      magnitude *= metadata.positiveOr(prefix + "scaling.yarn_attn_factor", yarnMagnitude(factor));
  }
  rope.magnitude = static_cast<float>(magnitude);
  return rope;
}

}  // namespace longsight
