#include <algorithm>
#include <chrono>
#include <optional>

#include "error.h"
#include "session/drafter.h"
#include "session/session.h"
#include "session/text_stream.h"

namespace longsight {
namespace {

using Clock = std::chrono::steady_clock;

double msSince(Clock::time_point start) {
  return std::chrono::duration<double, std::milli>(Clock::now() - start).count();
}

double perSecond(int64_t count, double ms) {
  return ms > 0 ? static_cast<double>(count) * 1000 / ms : 0;
}

}  // namespace

void Session::step(std::span<const int32_t> tokens, const SampleAttentionParams& params,
                   std::span<float> logits) {
  const int64_t begin = ledger_.rows();
  if (!backend_->step(tokens, begin, logits.data(), cancel_)) throw cancelledError();
  ledger_.append({begin, begin + static_cast<int64_t>(tokens.size()), true, 0, 0}, tokens, params,
                 begin, {});
}

GenerateResult Session::generate(const Prompt& prompt, const GenerateOptions& options,
                                 const SessionEvents& events) {
  check(prompt, options.maxTokens > 0 ? 1 : 0);
  const ModelSpec& spec = model_->spec();
  if (const std::string wrong = validate(options.sampling, spec.vocabulary); !wrong.empty())
    throw Error(ErrorCode::invalidParams, wrong, "Correct the value and try again.");
  const auto count = static_cast<int64_t>(prompt.tokens.size());
  const bool answers = options.maxTokens > 0;
  std::vector<float> state(answers ? static_cast<size_t>(spec.embedding) : 0);

  GenerateResult result;
  const ForwardTimes timesBefore = backend_->times();
  const auto prefillStart = Clock::now();
  result.prefill = prefill(prompt, answers ? count - 1 : count, answers ? state.data() : nullptr,
                           events.onPrefill);
  result.prefillMs = msSince(prefillStart);
  result.times = backend_->times() - timesBefore;
  result.prefillTokensPerSecond = perSecond(result.prefill.computedTokens, result.prefillMs);
  if (events.onPrefilled) events.onPrefilled();

  if (answers) answer(prompt, options, events, state, result);
  result.attention = statsOf(prompt);
  result.memory = backend_->memory();
  result.backend = backend_->kind();
  return result;
}

// Decoding: each pass of the loop shows tokens that are chosen, then computes rows for the last of
// them and for guesses of what follows. Whatever is guessed, the sampler sees the same logits one
// row after the other.
void Session::answer(const Prompt& prompt, const GenerateOptions& options,
                     const SessionEvents& events, std::span<const float> state,
                     GenerateResult& result) {
  const auto vocabulary = static_cast<size_t>(model_->spec().vocabulary);
  const Tokenizer* tokenizer = model_->hasTokenizer() ? &model_->tokenizer() : nullptr;
  const auto start = Clock::now();
  Sampler sampler(options.sampling, prompt.tokens);
  TextStream stream(options.sampling.stop);
  auto show = [&](const std::string& text) {
    if (!text.empty() && events.onText) events.onText(text);
  };
  double firstTokenMs = 0;
  // Chooses and shows a token; none when the answer has ended.
  auto next = [&](std::span<const float> logits) -> std::optional<int32_t> {
    if (cancel_.isSet()) throw cancelledError();
    const int32_t token = sampler.pick(logits);
    if (tokenizer && tokenizer->isEndOfGeneration(token) && !options.ignoreEnd) {
      result.stopReason = StopReason::end;
      return std::nullopt;
    }
    ++result.generatedTokens;
    if (tokenizer) show(stream.push(tokenizer->piece(token, false)));
    if (result.generatedTokens == 1) firstTokenMs = msSince(start);
    if (stream.stopped()) {
      result.stopReason = StopReason::stop;
      return std::nullopt;
    }
    if (result.generatedTokens >= options.maxTokens) return std::nullopt;
    return token;
  };

  std::vector<float> logits(vocabulary);
  logitsOf(state.data(), 1, logits.data());
  std::optional<int32_t> token = next(logits);
  std::optional<Drafter> drafter;
  if (options.speculate && token) {
    // Only now, since the first token has not to wait for it.
    drafter.emplace(prompt.tokens);
    logits.resize(Backend::kMostStepRows * vocabulary);
  }
  while (token && ledger_.rows() < contextTokens()) {
    std::vector<int32_t> rows{*token};
    if (drafter) {
      drafter->append(*token);
      const int64_t room = std::min(contextTokens() - ledger_.rows() - 1,
                                    options.maxTokens - result.generatedTokens - 1);
      const std::vector<int32_t> draft = drafter->draft(static_cast<size_t>(room));
      rows.insert(rows.end(), draft.begin(), draft.end());
    }
    const auto stepStart = Clock::now();
    step(rows, prompt.params, logits);
    const double stepMs = msSince(stepStart);

    size_t right = 0;
    while (true) {
      token = next(std::span(logits).subspan(right * vocabulary, vocabulary));
      if (!token || right + 1 == rows.size() || *token != rows[right + 1]) break;
      ++right;
      drafter->append(*token);
    }
    const size_t drafted = rows.size() - 1;
    if (drafter) drafter->observe(drafted, right, stepMs);
    result.draftedTokens += static_cast<int64_t>(drafted);
    result.acceptedTokens += static_cast<int64_t>(right);
    ledger_.truncate(ledger_.rows() - static_cast<int64_t>(drafted - right));
  }
  show(stream.finish());
  result.decodeMs = msSince(start);
  result.decodeTokensPerSecond =
      perSecond(result.generatedTokens - 1, result.decodeMs - firstTokenMs);
}

}  // namespace longsight
