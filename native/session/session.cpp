#include "session/session.h"

#include <algorithm>
#include <chrono>
#include <string>

#include "error.h"
#include "session/machine.h"
#include "session/text_stream.h"

namespace longsight {
namespace {

// Dense rows go through all layers in blocks of this size: what a cancel loses at most.
constexpr int64_t kDenseRows = 512;
constexpr double kProgressEveryMs = 100;
constexpr int32_t kMaxThreads = 256;

using Clock = std::chrono::steady_clock;

double msSince(Clock::time_point start) {
  return std::chrono::duration<double, std::milli>(Clock::now() - start).count();
}

double perSecond(int64_t count, double ms) {
  return ms > 0 ? static_cast<double>(count) * 1000 / ms : 0;
}

Error invalid(const std::string& message) {
  return Error(ErrorCode::invalidParams, message, "Correct the value and try again.");
}

std::unique_ptr<CpuBackend> makeBackend(Model& model, const SessionOptions& options,
                                        const CancelFlag& cancel,
                                        const std::function<void(uint64_t, uint64_t)>& onProgress) {
  const auto [contextTokens, threads, ropeBaseScale, kvCache] = options;
  if (threads < 1 || threads > kMaxThreads)
    throw invalid("threads is " + std::to_string(threads) + ", expected 1 to " +
                  std::to_string(kMaxThreads) + ".");
  if (!(ropeBaseScale > 0) || ropeBaseScale > 1e6)
    throw invalid("ropeBaseScale is " + std::to_string(ropeBaseScale) +
                  ", expected above 0, up to 1e6.");
  const ModelSpec& spec = model.spec();
  const double longest = static_cast<double>(spec.contextTokens) * std::max(1.0, ropeBaseScale);
  if (contextTokens < 0 || static_cast<double>(contextTokens) > longest)
    throw invalid("contextTokens is " + std::to_string(contextTokens) + ", expected 0 to " +
                  std::to_string(static_cast<int64_t>(longest)) + ", the model's context.");
  const MemoryEstimate estimate = model.estimate(contextTokens, SampleAttentionParams{}, kvCache);
  if (!estimate.fits || estimate.contextTokens < 1)
    throw Error(
        ErrorCode::notEnoughMemory,
        "\"" + spec.name + "\" with a context of " + std::to_string(estimate.contextTokens) +
            " tokens needs " +
            std::to_string(estimate.weightBytes + estimate.kvBytes + estimate.scratchBytes) +
            " bytes (weights " + std::to_string(estimate.weightBytes) + ", cache " +
            std::to_string(estimate.kvBytes) + ", scratch " +
            std::to_string(estimate.scratchBytes) + "), but " +
            std::to_string(estimate.availableBytes) + " bytes are available.",
        estimate.largestContextTokens > 0
            ? "Use a context of at most " + std::to_string(estimate.largestContextTokens) +
                  " tokens."
            : "Choose a smaller model or quantization, or close other programs.");
  return std::make_unique<CpuBackend>(model.weights(cancel, onProgress), kvCache,
                                      estimate.contextTokens, threads, ropeBaseScale);
}

}  // namespace

Session::Session(std::shared_ptr<Model> model, const SessionOptions& options,
                 const CancelFlag& cancel,
                 const std::function<void(uint64_t, uint64_t)>& onProgress)
    : model_(std::move(model)),
      options_(options),
      backend_(makeBackend(*model_, options, cancel, onProgress)),
      prediction_(model_->spec().layers, model_->spec().heads) {}

void Session::check(const Prompt& prompt, int64_t reserveTokens) const {
  const auto count = static_cast<int64_t>(prompt.tokens.size());
  if (count == 0) throw invalid("The prompt has no tokens.");
  if (const std::string wrong = validate(prompt.params); !wrong.empty()) throw invalid(wrong);
  checkHeadEpsilons(prompt.params);
  int64_t before = 0;
  for (int64_t border : prompt.borders) {
    if (border < before || border > count)
      throw invalid("Border " + std::to_string(border) + " is out of order in a prompt of " +
                    std::to_string(count) + " tokens.");
    before = border;
  }
  if (before != count)
    throw invalid("The last border is " + std::to_string(before) + ", expected " +
                  std::to_string(count) + ", the number of tokens.");
  if (prompt.denseFrom < 0 || prompt.denseFrom > count)
    throw invalid("denseFrom is " + std::to_string(prompt.denseFrom) + ", expected 0 to " +
                  std::to_string(count) + ".");
  const int32_t vocabulary = model_->spec().vocabulary;
  for (int32_t token : prompt.tokens)
    if (token < 0 || token >= vocabulary)
      throw invalid("Token " + std::to_string(token) + " is not in the vocabulary of " +
                    std::to_string(vocabulary) + ".");
  if (count + reserveTokens > contextTokens())
    throw Error(ErrorCode::promptTooLong,
                "The prompt has " + std::to_string(count) + " tokens" +
                    (reserveTokens > 0 ? " and needs room for an answer" : "") +
                    ", but the context holds " + std::to_string(contextTokens()) + ".",
                "Use fewer or smaller files, or a larger context size.");
  checkMemory(prompt);
}

void Session::checkHeadEpsilons(const SampleAttentionParams& params) const {
  const auto heads = static_cast<size_t>(model_->spec().layers * model_->spec().heads);
  const size_t given = params.headEpsilons.size();
  if (given == 0 || given == heads) return;
  throw invalid("headEpsilons has " + std::to_string(given) + " values, expected " +
                std::to_string(heads) + ", one for each head of each layer.");
}

bool Calibration::fits(const SampleAttentionParams& other) const {
  SampleAttentionParams same = other;
  same.alpha = params.alpha;
  same.denseBelowTokens = params.denseBelowTokens;
  same.maxListShare = params.maxListShare;
  same.auditRows = params.auditRows;
  return same == params;
}

void Session::use(Calibration calibration) {
  SampleAttentionParams params = calibration.params;
  params.headEpsilons = calibration.headEpsilons;
  if (const std::string wrong = validate(params); !wrong.empty()) throw invalid(wrong);
  checkHeadEpsilons(params);
  calibration_ = std::move(calibration);
}

SampleAttentionParams Session::calibrated(const SampleAttentionParams& params) const {
  SampleAttentionParams result = params;
  if (calibration_ && calibration_->fits(params)) result.headEpsilons = calibration_->headEpsilons;
  return result;
}

// A prompt in one segment needs scratch memory for all its rows at once, more than the session was
// made for.
void Session::checkMemory(const Prompt& prompt) const {
  if (prompt.params.segmentRows > 0) return;
  const std::vector<Segment> segments = segmentsOf(prompt);
  if (segments.front().dense) return;
  const int64_t rows = segments.front().end;
  const uint64_t held = backend_->scratchBytes();
  const uint64_t scratch = backend_->mostScratchBytes(prompt.params, rows);
  if (scratch <= held || scratch - held <= availableMemoryBytes()) return;
  throw Error(ErrorCode::notEnoughMemory,
              "One segment of " + std::to_string(rows) + " rows needs " + std::to_string(scratch) +
                  " bytes of scratch memory, but " + std::to_string(availableMemoryBytes() + held) +
                  " bytes are available.",
              "Use fewer files, or segmentRows above 0.");
}

std::vector<Segment> Session::segmentsOf(const Prompt& prompt) const {
  return planSegments(static_cast<int64_t>(prompt.tokens.size()), prompt.borders, prompt.denseFrom,
                      prompt.params);
}

void Session::ensureSpeed() {
  if (!prediction_.hasSpeed()) prediction_.start(backend_->probe(ledger_.rows(), cancel_));
  if (cancel_.isSet()) throw cancelledError();
}

// The work of a prefill as pieces that are computed whole: sparse segments, blocks of dense rows.
struct Session::Prefill {
  std::vector<Segment> pieces;
  int64_t reused = 0;

  Prefill(std::span<const Segment> segments, int64_t reusedRows) : reused(reusedRows) {
    for (const Segment& segment : segments) {
      if (segment.end <= reused) continue;
      if (!segment.dense) {
        pieces.push_back(segment);
        continue;
      }
      for (int64_t row = std::max(segment.begin, reused); row < segment.end;) {
        Segment piece = segment;
        piece.begin = row;
        piece.end = std::min(segment.end, (row / kDenseRows + 1) * kDenseRows);
        pieces.push_back(piece);
        row = piece.end;
      }
    }
  }
};

PrefillPlan Session::plan(const Prompt& prompt) {
  check(prompt, 0);
  ensureSpeed();
  const auto count = static_cast<int64_t>(prompt.tokens.size());
  const std::vector<Segment> segments = segmentsOf(prompt);
  const SampleAttentionParams params = calibrated(prompt.params);
  const Prefill work(segments, ledger_.reusableRows(prompt.tokens, segments, params, count - 1));
  PrefillPlan plan{count, work.reused, count - work.reused, 0};
  for (const Segment& piece : work.pieces)
    plan.predictedPrefillMs += prediction_.segmentMs(piece, params);
  return plan;
}

PrefillPlan Session::prefill(const Prompt& prompt, int64_t statesFrom, float* states,
                             const std::function<void(const PrefillProgress&)>& onProgress,
                             EpsilonCurves* curves) {
  const auto count = static_cast<int64_t>(prompt.tokens.size());
  const int32_t width = model_->spec().embedding;
  const std::vector<Segment> segments = segmentsOf(prompt);
  const SampleAttentionParams params = calibrated(prompt.params);
  const Prefill work(segments, ledger_.reusableRows(prompt.tokens, segments, params, statesFrom));
  ledger_.truncate(work.reused);

  const auto start = Clock::now();
  double lastReportMs = -kProgressEveryMs;
  auto predicted = [&](std::span<const Segment> pieces) {
    double ms = 0;
    for (const Segment& piece : pieces) ms += prediction_.segmentMs(piece, params);
    return ms;
  };
  const double predictedMs = predicted(work.pieces);

  for (size_t index = 0; index < work.pieces.size(); ++index) {
    const Segment& piece = work.pieces[index];
    // What was seen so far has corrected the prediction: past and future by the same measure.
    const double pieceMs = prediction_.segmentMs(piece, params);
    const double beforeMs = predicted(std::span(work.pieces).first(index));
    const double afterMs = predicted(std::span(work.pieces).subspan(index + 1));
    auto report = [&](double share) {
      const double elapsedMs = msSince(start);
      const bool isLast = share >= 1 && piece.end == count;
      if (!onProgress || (elapsedMs - lastReportMs < kProgressEveryMs && !isLast)) return;
      lastReportMs = elapsedMs;
      PrefillProgress progress;
      progress.done = piece.begin - work.reused +
                      static_cast<int64_t>(share * static_cast<double>(piece.end - piece.begin));
      progress.total = count - work.reused;
      progress.tokensPerSecond = perSecond(progress.done, elapsedMs);
      const double predictedSoFarMs = beforeMs + share * pieceMs;
      const double leftMs = (1 - share) * pieceMs + afterMs;
      // Scaled by how the prediction has held so far, once there is something to compare.
      if (predictedSoFarMs > 0 && elapsedMs > 500)
        progress.etaMs = leftMs * elapsedMs / predictedSoFarMs;
      else if (predictedMs > 0)
        progress.etaMs = leftMs;
      onProgress(progress);
    };
    if (cancel_.isSet()) throw cancelledError();
    report(0);

    CpuBackend::Request request;
    request.segment = piece;
    request.tokens = std::span(prompt.tokens)
                         .subspan(static_cast<size_t>(piece.begin),
                                  static_cast<size_t>(piece.end - piece.begin));
    request.params = &params;
    request.outputBegin = std::clamp(statesFrom, piece.begin, piece.end);
    request.states = states ? states + (request.outputBegin - statesFrom) * width : nullptr;
    request.curves = curves;
    request.onProgress = report;
    const ForwardTimes before = backend_->times();
    SegmentAttention attention;
    if (!backend_->forward(request, cancel_, attention)) throw cancelledError();
    prediction_.observe(piece, params, backend_->times().linearMs - before.linearMs,
                        backend_->times().attentionMs - before.attentionMs);
    ledger_.append(piece, request.tokens, params, request.outputBegin, std::move(attention));
  }
  return {count, work.reused, count - work.reused, predictedMs};
}

void Session::step(int32_t token, const SampleAttentionParams& params, std::vector<float>& logits) {
  const ModelSpec& spec = model_->spec();
  std::vector<float> state(static_cast<size_t>(spec.embedding));
  CpuBackend::Request request;
  request.segment.begin = ledger_.rows();
  request.segment.end = ledger_.rows() + 1;
  request.segment.dense = true;
  request.tokens = std::span(&token, 1);
  request.params = &params;
  request.outputBegin = request.segment.begin;
  request.states = state.data();
  SegmentAttention attention;
  if (!backend_->forward(request, cancel_, attention)) throw cancelledError();
  ledger_.append(request.segment, request.tokens, params, request.outputBegin,
                 std::move(attention));
  logitsOf(state.data(), 1, logits.data());
}

void Session::logitsOf(const float* states, int64_t rows, float* out) {
  if (!backend_->logits(states, rows, out, cancel_)) throw cancelledError();
}

AttentionStats Session::statsOf(const Prompt& prompt) const {
  const ModelSpec& spec = model_->spec();
  AttentionStats stats =
      ledger_.stats(static_cast<int64_t>(prompt.tokens.size()), spec.layers, spec.heads);
  stats.calibrated = !calibrated(prompt.params).headEpsilons.empty();
  return stats;
}

MemoryUse Session::memory() const {
  return {backend_->weightBytes(), backend_->kvBytes(), backend_->scratchBytes()};
}

GenerateResult Session::generate(const Prompt& prompt, const GenerateOptions& options,
                                 const SessionEvents& events) {
  check(prompt, options.maxTokens > 0 ? 1 : 0);
  const ModelSpec& spec = model_->spec();
  if (const std::string wrong = validate(options.sampling, spec.vocabulary); !wrong.empty())
    throw invalid(wrong);
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
      step(token, prompt.params, logits);
    }
    show(stream.finish());
    result.decodeMs = msSince(decodeStart);
    result.decodeTokensPerSecond =
        perSecond(result.generatedTokens - 1, result.decodeMs - firstTokenMs);
  }
  result.attention = statsOf(prompt);
  result.memory = memory();
  return result;
}

std::vector<float> Session::logits(const Prompt& prompt, int64_t from) {
  check(prompt, 0);
  const ModelSpec& spec = model_->spec();
  const int64_t rows = static_cast<int64_t>(prompt.tokens.size()) - from;
  std::vector<float> states(static_cast<size_t>(rows * spec.embedding));
  std::vector<float> out(static_cast<size_t>(rows) * static_cast<size_t>(spec.vocabulary));
  prefill(prompt, from, states.data(), nullptr);
  logitsOf(states.data(), rows, out.data());
  return out;
}

}  // namespace longsight
