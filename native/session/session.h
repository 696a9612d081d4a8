// One KV cache and everything asked of it: plan, generate, score.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "attention/epsilon_curves.h"
#include "attention/params.h"
#include "attention/plan.h"
#include "cpu/cancel_flag.h"
#include "session/attention_stats.h"
#include "session/backend.h"
#include "session/cache_ledger.h"
#include "session/model.h"
#include "session/prefill_prediction.h"
#include "session/prefill_work.h"
#include "session/sampler.h"
#include "session/session_file.h"
#include "session/session_options.h"

namespace longsight {

struct Prompt {
  std::vector<int32_t> tokens;
  // Ends of the parts, ascending; the last is tokens.size().
  std::vector<int64_t> borders;
  // First row of the chat and question.
  int64_t denseFrom = 0;
  SampleAttentionParams params;
  // Backend::Chunk::forcedDensity; above 0, up to 1.
  std::optional<double> forcedDensity;
};

struct PrefillPlan {
  int64_t promptTokens = 0;
  int64_t reusedTokens = 0;
  int64_t computedTokens = 0;
  double predictedPrefillMs = 0;
};

struct PrefillProgress {
  // Of the tokens that have to be computed.
  int64_t done = 0;
  int64_t total = 0;
  double tokensPerSecond = 0;
  std::optional<double> etaMs;
};

// Called on the thread that runs the operation.
struct SessionEvents {
  std::function<void(const PrefillProgress&)> onPrefill;
  std::function<void()> onPrefilled;
  std::function<void(const std::string&)> onText;
};

enum class StopReason { end, stop, length };

struct GenerateResult {
  PrefillPlan prefill;
  int64_t generatedTokens = 0;
  double prefillMs = 0;
  double decodeMs = 0;
  double prefillTokensPerSecond = 0;
  double decodeTokensPerSecond = 0;
  StopReason stopReason = StopReason::length;
  // Guessed and then verified; 0 where nothing was guessed.
  int64_t draftedTokens = 0;
  int64_t acceptedTokens = 0;
  AttentionStats attention;
  MemoryUse memory;
  BackendKind backend = BackendKind::cpu;
  // Of the prefill.
  ForwardTimes times;
};

struct GenerateOptions {
  // 0 = prefill only.
  int64_t maxTokens = 0;
  Sampling sampling;
  // Go on past the end-of-answer token.
  bool ignoreEnd = false;
  // Guess tokens from the text before and verify several at once: the answer is the same, sooner.
  bool speculate = true;
};

struct ScoreOutcome {
  double nll = 0;
  // Share of the predictions whose most likely token is the one that follows.
  double accuracy = 0;
  AttentionStats attention;
  // Of the scored prefill alone, without the one of the reference.
  int64_t computedTokens = 0;
  double prefillMs = 0;
  std::optional<double> kl;
  std::optional<double> top1Agreement;
};

// What a calibration is to reach at least density, on its texts; with neither, the density that the
// plain epsilon has.
struct CalibrationTarget {
  std::optional<double> coverage;
  // Mean KL(dense || calibrated) over the ends of the texts, in nats.
  std::optional<double> kl;
};

struct CalibrationOutcome {
  EpsilonChoice chosen;
  // The epsilon of the parameters for every head.
  EpsilonChoice plain;
  // With a target of KL: what the choice has.
  std::optional<double> kl;
};

// Epsilons by head for prompts with these parameters; alpha, denseBelowTokens, maxListShare and
// auditRows may differ.
struct Calibration {
  SampleAttentionParams params;
  std::vector<float> headEpsilons;

  bool fits(const SampleAttentionParams& other) const;
};

// What was saved to a file or restored from it.
struct SavedRows {
  int64_t rows = 0;
  uint64_t bytes = 0;
};

class Session {
 public:
  // Throws Error: invalidParams, notEnoughMemory and those of Model::weights.
  Session(std::shared_ptr<Model> model, const SessionOptions& options, const CancelFlag& cancel,
          const std::function<void(uint64_t, uint64_t)>& onProgress);

  int64_t contextTokens() const { return backend_->capacityRows(); }
  const Backend& backend() const { return *backend_; }

  // One operation at a time; each throws Error, among others `cancelled` after cancel().
  PrefillPlan plan(const Prompt& prompt);
  GenerateResult generate(const Prompt& prompt, const GenerateOptions& options,
                          const SessionEvents& events);
  // Over the tail's own predictions: token i from row i - 1 for tokens - tail < i < tokens, so
  // tail - 1 of them, all made by rows of the tail. 2 <= tail <= tokens. With `againstDense` also
  // the mean KL(dense || this) in nats and the share of equal most likely tokens over the same
  // rows. Final states of the dense run are kept, tail * embedding floats, until another text or a
  // longer tail is asked for: further policies of the same text cost one prefill each.
  ScoreOutcome score(const Prompt& prompt, int64_t tail, bool againstDense,
                     const SessionEvents& events);

  // Chooses epsilons by head from sample texts. Forgets what is cached and the calibration in use.
  // Throws Error, among others
  // invalidParams for another policy than peak and for texts that are too short.
  CalibrationOutcome calibrate(std::span<const std::vector<int32_t>> texts,
                               const SampleAttentionParams& params, const CalibrationTarget& target,
                               const SessionEvents& events);
  // From now on prompts that fit have these epsilons. Throws Error when there are more or fewer
  // than heads, or one is outside its range.
  void use(Calibration calibration);

  // Logits f32 [tokens - from][vocabulary] of the rows from `from` on. For tests and tools.
  std::vector<float> logits(const Prompt& prompt, int64_t from);

  // Writes rows [0, rows) at most, whole sparse segments only, to a file that takes the place of
  // `path` in one step (session_file.h). The cache is read only. Throws also invalidParams when
  // there are no rows.
  SavedRows save(const std::string& path, int64_t rows, const FileProgress& onProgress);
  // Length of the file that save would write.
  uint64_t savedBytes(int64_t rows) const;
  // Fills the cache with what a session of the same model, build and options saved; its capacity
  // may have been another. A file that is refused leaves the cache as it was, unless its rows
  // themselves are damaged or reading is cancelled: then the cache is empty.
  SavedRows restore(const std::string& path, const FileProgress& onProgress);

  // Any thread.
  void cancel() { cancel_.set(); }
  // Before an operation is started; a cancel after this counts.
  void arm() { cancel_.clear(); }
  // Forgets the rows of the cache.
  void reset() { ledger_.truncate(0); }

 private:
  // Dense final states f32 [tokens - from][embedding] of a text, to compare with.
  struct DenseReference {
    std::vector<int32_t> tokens;
    int64_t from = 0;
    std::vector<float> states;
  };
  void check(const Prompt& prompt, int64_t reserveTokens) const;
  void checkMemory(const Prompt& prompt) const;
  void checkHeadEpsilons(const SampleAttentionParams& params) const;
  // With the epsilons of the calibration in use, where it fits.
  SampleAttentionParams calibrated(const SampleAttentionParams& params) const;
  AttentionStats statsOf(const Prompt& prompt) const;
  std::vector<Segment> segmentsOf(const Prompt& prompt) const;
  PrefillWork workFor(const Prompt& prompt, const SampleAttentionParams& params,
                      int64_t limit) const;
  // Brings rows [0, tokens) into the cache. `states` gets the final states of rows >= statesFrom.
  PrefillPlan prefill(const Prompt& prompt, int64_t statesFrom, float* states,
                      const std::function<void(const PrefillProgress&)>& onProgress,
                      EpsilonCurves* curves = nullptr);
  void answer(const Prompt& prompt, const GenerateOptions& options, const SessionEvents& events,
              std::span<const float> state, GenerateResult& result);
  void checkForcedDensity(std::optional<double> density) const;
  // More rows after the last; logits [tokens][vocabulary].
  void step(std::span<const int32_t> tokens, const SampleAttentionParams& params,
            std::span<float> logits);
  SessionKey key() const;
  void logitsOf(const float* states, int64_t rows, float* out);
  void ensureSpeed();

  std::shared_ptr<Model> model_;
  SessionOptions options_;
  std::unique_ptr<Backend> backend_;
  CacheLedger ledger_;
  PrefillPrediction prediction_;
  std::optional<Calibration> calibration_;
  DenseReference reference_;
  // Prompt::forcedDensity of the rows in the cache.
  std::optional<double> forcedDensity_;
  CancelFlag cancel_;
};

}  // namespace longsight
