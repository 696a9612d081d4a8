#include <chrono>

#include "error.h"
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
  const Tokenizer& tokenizer = model_->tokenizer();
  const auto count = static_cast<int64_t>(prompt.tokens.size());
  const bool answers = options.maxTokens > 0;
  std::vector<float> state(answers ? static_cast<size_t>(spec.embedding) : 0);

  GenerateResult result;
  const auto prefillStart = Clock::now();
  result.prefill = prefill(prompt, answers ? count - 1 : count, answers ? state.data() : nullptr,
                           events.onPrefill);
  result.prefillMs = msSince(prefillStart);
  result.prefillTokensPerSecond = perSecond(result.prefill.computedTokens, result.prefillMs);
  if (events.onPrefilled) events.onPrefilled();

  if (answers) {
    const auto decodeStart = Clock::now();
    Sampler sampler(options.sampling, prompt.tokens);
    TextStream stream(options.sampling.stop);
    auto show = [&](const std::string& text) {
      if (!text.empty() && events.onText) events.onText(text);
    };
    std::vector<float> logits(static_cast<size_t>(spec.vocabulary));
    logitsOf(state.data(), 1, logits.data());
    double firstTokenMs = 0;
    while (true) {
      if (cancel_.isSet()) throw cancelledError();
      const int32_t token = sampler.pick(logits);
      if (tokenizer.isEndOfGeneration(token) && !options.ignoreEnd) {
        result.stopReason = StopReason::end;
        break;
      }
      ++result.generatedTokens;
      show(stream.push(tokenizer.piece(token, false)));
      if (result.generatedTokens == 1) firstTokenMs = msSince(decodeStart);
      if (stream.stopped()) {
        result.stopReason = StopReason::stop;
        break;
      }
      if (result.generatedTokens >= options.maxTokens || ledger_.rows() >= contextTokens()) break;
      step({&token, 1}, prompt.params, logits);
    }
    show(stream.finish());
    result.decodeMs = msSince(decodeStart);
    result.decodeTokensPerSecond =
        perSecond(result.generatedTokens - 1, result.decodeMs - firstTokenMs);
  }
  result.attention = statsOf(prompt);
  result.memory = backend_->memory();
  return result;
}

}  // namespace longsight
