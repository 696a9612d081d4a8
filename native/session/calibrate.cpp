#include <algorithm>
#include <cmath>
#include <string>

#include "error.h"
#include "session/session.h"

namespace longsight {
namespace {

// Rows of a segment that are measured.
constexpr int32_t kMeasuredRows = 64;
// The end of each text is dense, as a question is; KL is measured there.
constexpr int64_t kTailRows = 1024;
// Measurements of KL, each of which halves the range of densities.
constexpr int kScores = 5;

SampleAttentionParams measuring(SampleAttentionParams params) {
  params.headEpsilons.clear();
  params.auditRows = kMeasuredRows;
  params.denseBelowTokens = 0;
  return params;
}

Prompt promptOf(const std::vector<int32_t>& text, const SampleAttentionParams& params) {
  Prompt prompt;
  const auto count = static_cast<int64_t>(text.size());
  prompt.tokens = text;
  prompt.denseFrom = count - std::min(kTailRows, count / 4);
  prompt.borders = {prompt.denseFrom, count};
  prompt.params = params;
  return prompt;
}

}  // namespace

CalibrationOutcome Session::calibrate(std::span<const std::vector<int32_t>> texts,
                                      const SampleAttentionParams& params,
                                      const CalibrationTarget& target,
                                      const SessionEvents& events) {
  if (params.policy != Policy::peak || !(params.epsilon > 0))
    throw Error(ErrorCode::invalidParams,
                "Calibration chooses epsilons of policy peak, above 0, by head.",
                "Use policy peak and an epsilon above 0.");
  if (!backend_->canMeasure())
    throw Error(ErrorCode::invalidParams,
                std::string("The backend ") + backendName(backend_->kind()) +
                    " does not measure epsilons by head.",
                "Calibrate with the backend cpu; the result holds for both.");
  calibration_.reset();
  int64_t allTokens = 0;
  for (const std::vector<int32_t>& text : texts) allTokens += static_cast<int64_t>(text.size());
  int64_t passed = 0;
  const int64_t passes = target.kl ? 1 + 2 * kScores : 1;
  SessionEvents within;
  within.onPrefill = [&](const PrefillProgress& progress) {
    if (!events.onPrefill) return;
    PrefillProgress whole = progress;
    whole.done = passed + progress.done;
    whole.total = passes * allTokens;
    if (progress.etaMs && progress.tokensPerSecond > 0)
      whole.etaMs = static_cast<double>(whole.total - whole.done) * 1000 / progress.tokensPerSecond;
    events.onPrefill(whole);
  };

  EpsilonCurves curves(model_->spec().layers, model_->spec().heads);
  for (const std::vector<int32_t>& text : texts) {
    Prompt prompt = promptOf(text, measuring(params));
    prompt.tokens.resize(static_cast<size_t>(prompt.denseFrom));
    prompt.borders = {prompt.denseFrom};
    check(prompt, 0);
    reset();
    prefill(prompt, prompt.denseFrom, nullptr, within.onPrefill, &curves);
    passed += static_cast<int64_t>(text.size());
  }
  if (curves.isEmpty())
    throw Error(ErrorCode::invalidParams,
                "The texts have " + std::to_string(allTokens) +
                    " tokens, in which nothing lies outside the window of " +
                    std::to_string(params.windowTokens) + " tokens.",
                "Use longer texts.");

  CalibrationOutcome outcome;
  outcome.plain = curves.uniform(params.epsilon);
  if (target.coverage) {
    outcome.chosen = curves.atCoverage(*target.coverage, params.epsilon);
  } else if (!target.kl) {
    outcome.chosen = curves.atDensity(outcome.plain.density, params.epsilon);
  } else {
    const auto meanKl = [&](const EpsilonChoice& choice) {
      double sum = 0;
      for (const std::vector<int32_t>& text : texts) {
        Prompt prompt = promptOf(text, measuring(params));
        prompt.params.headEpsilons = choice.epsilons;
        const auto count = static_cast<int64_t>(text.size());
        sum += *score(prompt, count - prompt.denseFrom, true, within).kl;
        passed += 2 * count;
      }
      return sum / static_cast<double>(texts.size());
    };
    // KL falls as density grows.
    double low = std::log(curves.atDensity(0, params.epsilon).density);
    double high = 0;
    for (int i = 0; i < kScores; ++i) {
      // The first guess is the density of the plain epsilon.
      const double middle = i == 0 ? std::log(outcome.plain.density) : (low + high) / 2;
      const EpsilonChoice choice = curves.atDensity(std::exp(middle), params.epsilon);
      const double kl = meanKl(choice);
      const bool isEnough = kl <= *target.kl;
      (isEnough ? high : low) = middle;
      if (isEnough || !outcome.kl) {
        outcome.chosen = choice;
        outcome.kl = kl;
      }
    }
    if (*outcome.kl > *target.kl)
      throw Error(ErrorCode::invalidParams,
                  "KL " + std::to_string(*target.kl) + " was not reached: the densest that was " +
                      "measured has " + std::to_string(*outcome.kl) + ".",
                  "Ask for a larger KL.");
  }
  reset();
  return outcome;
}

}  // namespace longsight
