#include "session/session.h"

#include <algorithm>
#include <chrono>
#include <string>

#include "error.h"
#include "session/open_backend.h"

namespace longsight {
namespace {

constexpr double kProgressEveryMs = 100;

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

}  // namespace

Session::Session(std::shared_ptr<Model> model, const SessionOptions& options,
                 const CancelFlag& cancel,
                 const std::function<void(uint64_t, uint64_t)>& onProgress)
    : model_(std::move(model)),
      options_(options),
      backend_(openBackend(*model_, options, cancel, onProgress)),
      prediction_(model_->spec().layers, model_->spec().heads) {}

void Session::check(const Prompt& prompt, int64_t reserveTokens) const {
  const auto count = static_cast<int64_t>(prompt.tokens.size());
  if (count == 0) throw invalid("The prompt has no tokens.");
  if (const std::string wrong = validate(prompt.params); !wrong.empty()) throw invalid(wrong);
  checkHeadEpsilons(prompt.params);
  checkForcedDensity(prompt.forcedDensity);
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

void Session::checkForcedDensity(std::optional<double> density) const {
  if (!density) return;
  if (!(*density > 0 && *density <= 1))
    throw invalid("forcedDensity is " + std::to_string(*density) + ", expected above 0, up to 1.");
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
  const auto [needed, available] = backend_->scratchFor(prompt.params, rows);
  if (needed <= available) return;
  throw Error(ErrorCode::notEnoughMemory,
              "One segment of " + std::to_string(rows) + " rows needs " + std::to_string(needed) +
                  " bytes of scratch memory, but " + std::to_string(available) +
                  " bytes are available.",
              "Use fewer files, or segmentRows above 0.");
}

std::vector<Segment> Session::segmentsOf(const Prompt& prompt) const {
  return planSegments(static_cast<int64_t>(prompt.tokens.size()), prompt.borders, prompt.denseFrom,
                      prompt.params);
}

// Rows up to `limit` may be reused.
PrefillWork Session::workFor(const Prompt& prompt, const SampleAttentionParams& params,
                             int64_t limit) const {
  const std::vector<Segment> segments = segmentsOf(prompt);
  // Rows with lists of another kind are no prefix.
  const int64_t reused = prompt.forcedDensity == forcedDensity_
                             ? ledger_.reusableRows(prompt.tokens, segments, params, limit)
                             : 0;
  return planWork(segments, reused, backend_->chunking());
}

void Session::ensureSpeed() {
  if (!prediction_.hasSpeed()) prediction_.start(backend_->probe(ledger_.rows(), cancel_));
  if (cancel_.isSet()) throw cancelledError();
}

PrefillPlan Session::plan(const Prompt& prompt) {
  check(prompt, 0);
  ensureSpeed();
  const auto count = static_cast<int64_t>(prompt.tokens.size());
  const SampleAttentionParams params = calibrated(prompt.params);
  const PrefillWork work = workFor(prompt, params, count - 1);
  PrefillPlan plan{count, work.reused, count - work.reused, 0};
  for (const std::vector<Segment>& chunk : work.chunks)
    plan.predictedPrefillMs += prediction_.chunkMs(chunk, params);
  return plan;
}

PrefillPlan Session::prefill(const Prompt& prompt, int64_t statesFrom, float* states,
                             const std::function<void(const PrefillProgress&)>& onProgress,
                             EpsilonCurves* curves) {
  const auto count = static_cast<int64_t>(prompt.tokens.size());
  const int32_t width = model_->spec().embedding;
  const SampleAttentionParams params = calibrated(prompt.params);
  const PrefillWork work = workFor(prompt, params, statesFrom);
  ledger_.truncate(work.reused);
  forcedDensity_ = prompt.forcedDensity;

  const auto start = Clock::now();
  double lastReportMs = -kProgressEveryMs;
  auto predicted = [&](std::span<const std::vector<Segment>> chunks) {
    double ms = 0;
    for (const std::vector<Segment>& chunk : chunks) ms += prediction_.chunkMs(chunk, params);
    return ms;
  };
  const double predictedMs = predicted(work.chunks);

  for (size_t index = 0; index < work.chunks.size(); ++index) {
    Backend::Chunk chunk;
    chunk.segments = work.chunks[index];
    const int64_t begin = chunk.begin(), end = chunk.end();
    // What was seen so far has corrected the prediction: past and future by the same measure.
    const double chunkMs = prediction_.chunkMs(chunk.segments, params);
    const double beforeMs = predicted(std::span(work.chunks).first(index));
    const double afterMs = predicted(std::span(work.chunks).subspan(index + 1));
    auto report = [&](double share) {
      const double elapsedMs = msSince(start);
      const bool isLast = share >= 1 && end == count;
      if (!onProgress || (elapsedMs - lastReportMs < kProgressEveryMs && !isLast)) return;
      lastReportMs = elapsedMs;
      PrefillProgress progress;
      progress.done =
          begin - work.reused + static_cast<int64_t>(share * static_cast<double>(end - begin));
      progress.total = count - work.reused;
      progress.tokensPerSecond = perSecond(progress.done, elapsedMs);
      const double predictedSoFarMs = beforeMs + share * chunkMs;
      const double leftMs = (1 - share) * chunkMs + afterMs;
      // Scaled by how the prediction has held so far, once there is something to compare.
      if (predictedSoFarMs > 0 && elapsedMs > 500)
        progress.etaMs = leftMs * elapsedMs / predictedSoFarMs;
      else if (predictedMs > 0)
        progress.etaMs = leftMs;
      onProgress(progress);
    };
    if (cancel_.isSet()) throw cancelledError();
    report(0);

    chunk.tokens = std::span(prompt.tokens)
                       .subspan(static_cast<size_t>(begin), static_cast<size_t>(end - begin));
    chunk.params = &params;
    chunk.outputBegin = std::clamp(statesFrom, begin, end);
    chunk.states = states ? states + (chunk.outputBegin - statesFrom) * width : nullptr;
    chunk.curves = curves;
    chunk.forcedDensity = forcedDensity_;
    chunk.onProgress = report;
    const ForwardTimes before = backend_->times();
    std::vector<SegmentAttention> attention;
    if (!backend_->forward(chunk, cancel_, attention)) throw cancelledError();
    prediction_.observe(chunk.segments, params, backend_->times() - before);
    for (size_t i = 0; i < chunk.segments.size(); ++i) {
      const Segment& segment = chunk.segments[i];
      ledger_.append(segment,
                     chunk.tokens.subspan(static_cast<size_t>(segment.begin - begin),
                                          static_cast<size_t>(segment.end - segment.begin)),
                     params, std::clamp(chunk.outputBegin, segment.begin, segment.end),
                     std::move(attention[i]));
    }
  }
  return {count, work.reused, count - work.reused, predictedMs};
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
