#include <algorithm>
#include <chrono>
#include <cmath>
#include <span>
#include <string>

#include "error.h"
#include "session/session.h"

namespace longsight {
namespace {

constexpr int64_t kRowsAtOnce = 32;

double logSumExp(std::span<const float> logits) {
  const double most = *std::max_element(logits.begin(), logits.end());
  double sum = 0;
  for (float logit : logits) sum += std::exp(static_cast<double>(logit) - most);
  return most + std::log(sum);
}

// KL(p || q) in nats of two rows of logits.
double divergence(std::span<const float> p, std::span<const float> q) {
  const double pTotal = logSumExp(p), qTotal = logSumExp(q);
  double sum = 0;
  for (size_t i = 0; i < p.size(); ++i) {
    const double logP = p[i] - pTotal;
    sum += std::exp(logP) * (logP - (q[i] - qTotal));
  }
  return sum;
}

}  // namespace

ScoreOutcome Session::score(const Prompt& prompt, int64_t tail, bool againstDense,
                            const SessionEvents& events) {
  check(prompt, 0);
  const ModelSpec& spec = model_->spec();
  const auto count = static_cast<int64_t>(prompt.tokens.size());
  if (tail < 2 || tail > count)
    throw Error(ErrorCode::invalidParams,
                "tail is " + std::to_string(tail) + ", expected 2 to " + std::to_string(count) +
                    ", the number of tokens.",
                "Use a tail within the text, or a longer text.");
  const int64_t from = count - tail;
  const auto width = static_cast<size_t>(spec.embedding);
  const auto vocabulary = static_cast<size_t>(spec.vocabulary);

  // Final states of both runs are kept, logits made of them block by block: the vocabulary is far
  // wider than the embedding.
  const bool needsReference =
      againstDense && (reference_.tokens != prompt.tokens || reference_.from > from);
  const bool isReference = prompt.params.policy == Policy::dense;
  const int passes = needsReference && !isReference ? 2 : 1;
  int64_t passed = 0;
  const auto report = [&](const PrefillProgress& progress) {
    if (!events.onPrefill) return;
    PrefillProgress whole = progress;
    whole.done = passed + progress.done;
    whole.total = passed + progress.total;
    if (passes == 2 && passed == 0) {
      whole.total += count;
      whole.etaMs.reset();
    }
    events.onPrefill(whole);
  };
  ScoreOutcome outcome;
  std::vector<float> states(static_cast<size_t>(tail) * width);
  const auto start = std::chrono::steady_clock::now();
  outcome.computedTokens = prefill(prompt, from, states.data(), report).computedTokens;
  outcome.prefillMs =
      std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count();
  passed = outcome.computedTokens;
  outcome.attention = statsOf(prompt);

  if (needsReference) {
    DenseReference reference{prompt.tokens, from, states};
    if (!isReference) {
      Prompt dense = prompt;
      dense.params.policy = Policy::dense;
      prefill(dense, from, reference.states.data(), report);
    }
    reference_ = std::move(reference);
  }
  if (events.onPrefilled) events.onPrefilled();

  double nll = 0, kl = 0;
  int64_t agreements = 0, hits = 0;
  const int64_t predictions = tail - 1;
  std::vector<float> logits(static_cast<size_t>(kRowsAtOnce) * vocabulary);
  std::vector<float> denseLogits(againstDense ? logits.size() : 0);
  const float* denseStates =
      againstDense ? reference_.states.data() + static_cast<size_t>(from - reference_.from) * width
                   : nullptr;
  const auto mostLikely = [](std::span<const float> row) {
    return std::max_element(row.begin(), row.end()) - row.begin();
  };
  for (int64_t row = 0; row < predictions; row += kRowsAtOnce) {
    const int64_t rows = std::min(kRowsAtOnce, predictions - row);
    logitsOf(states.data() + static_cast<size_t>(row) * width, rows, logits.data());
    if (againstDense)
      logitsOf(denseStates + static_cast<size_t>(row) * width, rows, denseLogits.data());
    for (int64_t i = 0; i < rows; ++i) {
      const std::span made(logits.data() + static_cast<size_t>(i) * vocabulary, vocabulary);
      const int32_t next = prompt.tokens[static_cast<size_t>(from + row + i + 1)];
      nll += logSumExp(made) - made[static_cast<size_t>(next)];
      const auto best = mostLikely(made);
      hits += best == next;
      if (!againstDense) continue;
      const std::span dense(denseLogits.data() + static_cast<size_t>(i) * vocabulary, vocabulary);
      kl += divergence(dense, made);
      agreements += mostLikely(dense) == best;
    }
    if (cancel_.isSet()) throw cancelledError();
  }
  const auto n = static_cast<double>(predictions);
  outcome.nll = nll / n;
  outcome.accuracy = static_cast<double>(hits) / n;
  if (againstDense) {
    outcome.kl = kl / n;
    outcome.top1Agreement = static_cast<double>(agreements) / n;
  }
  return outcome;
}

}  // namespace longsight
