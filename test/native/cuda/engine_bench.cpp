// Times the engine through its C boundary with random weights: a prefill with its parts, some new
// tokens on a long prefix, steps at several depths; memory beside its estimate.
//   engine_bench [--model llama-3.1-8b|qwen2.5-7b|tiny] [--weights bf16|q8_0|q4_k_m|...]
//                [--kv bf16|q8] [--tokens N] [--density D] [--repeat N] [--new N] [--depths
//                N,N,...]
//                [--steps N] [--rows N,N,...] [--chunk N]
// density: of forced lists; negative: what stage 1 finds; 1 is policy dense.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <sstream>
#include <string>

#include "attention/geometry.h"
#include "engine_library.h"

namespace longsight::cuda::test {
namespace {

using Clock = std::chrono::steady_clock;

double msSince(Clock::time_point start) {
  return std::chrono::duration<double, std::milli>(Clock::now() - start).count();
}

struct Options {
  std::string model = "llama-3.1-8b";
  std::string weights = "bf16";
  std::string kv = "bf16";
  int64_t tokens = 32768;
  double density = 0.13;
  int repeat = 2;
  int64_t newTokens = 200;
  std::vector<int64_t> depths;
  std::vector<int64_t> rows = {1};
  int steps = 20;
  int64_t chunk = 0;
};

std::vector<int64_t> numbers(const std::string& text) {
  std::vector<int64_t> out;
  std::istringstream in(text);
  for (std::string part; std::getline(in, part, ',');) out.push_back(std::atoll(part.c_str()));
  return out;
}

Options parse(int argc, char** argv) {
  Options options;
  for (int i = 1; i + 1 < argc; i += 2) {
    const std::string name = argv[i], value = argv[i + 1];
    if (name == "--model") options.model = value;
    if (name == "--weights") options.weights = value;
    if (name == "--kv") options.kv = value;
    if (name == "--tokens") options.tokens = std::atoll(value.c_str());
    if (name == "--density") options.density = std::atof(value.c_str());
    if (name == "--repeat") options.repeat = std::atoi(value.c_str());
    if (name == "--new") options.newTokens = std::atoll(value.c_str());
    if (name == "--depths") options.depths = numbers(value);
    if (name == "--rows") options.rows = numbers(value);
    if (name == "--steps") options.steps = std::atoi(value.c_str());
    if (name == "--chunk") options.chunk = std::atoll(value.c_str());
  }
  return options;
}

LsTimes minus(const LsTimes& a, const LsTimes& b) {
  return {a.linearMs - b.linearMs, a.expandMs - b.expandMs, a.pointwiseMs - b.pointwiseMs,
          a.stage1Ms - b.stage1Ms, a.stage2Ms - b.stage2Ms, a.stage3Ms - b.stage3Ms,
          a.auditMs - b.auditMs,   a.restMs - b.restMs,     a.stepMs - b.stepMs,
          a.logitsMs - b.logitsMs};
}

// How the calls of `proceed` come: the longest time between two, the last share.
struct Watch {
  Clock::time_point last = Clock::now();
  double longestMs = 0;
  double share = 0;
  bool fell = false;
  double stopAt = 2;
  Clock::time_point stopped;

  static int32_t proceed(void* context, double share) {
    auto& watch = *static_cast<Watch*>(context);
    watch.longestMs = std::max(watch.longestMs, msSince(watch.last));
    watch.last = Clock::now();
    watch.fell = watch.fell || share < watch.share;
    watch.share = share;
    if (share < watch.stopAt) return 1;
    watch.stopped = Clock::now();
    return 0;
  }
};

class Bench {
 public:
  explicit Bench(const Options& options)
      : options_(options), recipe_(namedSizes(options.model), options.weights) {
    std::mt19937_64 random(5);
    for (int64_t i = 0; i < options.tokens + 4096; ++i)
      tokens_.push_back(
          static_cast<int32_t>(random() % static_cast<uint64_t>(recipe_.sizes().vocabulary)));
  }

  void run() {
    open();
    for (int run = 0; run < options_.repeat; ++run) prefill(run);
    if (options_.newTokens > 0) newTokens();
    cancel();
    for (const int64_t depth : options_.depths) {
      for (const int64_t rows : options_.rows) steps(depth, static_cast<int32_t>(rows));
    }
    memory("at the end");
  }

 private:
  void open() {
    LsSessionDesc desc =
        recipe_.session(options_.tokens + 4096, options_.kv == "q8" ? LS_KV_Q8 : LS_KV_BF16);
    desc.chunkRows = options_.chunk;
    LsError error{};
    must(engine().estimateMemory(&recipe_.desc(), &desc, &estimate_, &error), error, "estimate");
    freeAtStart_ = estimate_.freeBytes;
    std::printf(
        "estimate: weights %.3f, cache %.3f, scratch %.3f, fixed %.3f GB; largest context "
        "%lld; fits %d; chunks of %lld rows\n",
        gb(estimate_.weightBytes), gb(estimate_.kvBytes), gb(estimate_.scratchBytes),
        gb(estimate_.fixedBytes), static_cast<long long>(estimate_.largestContextRows),
        estimate_.fits, static_cast<long long>(estimate_.chunkRows));
    const auto start = Clock::now();
    model_ = createModel(recipe_);
    must(engine().modelFillRandom(model_.get(), 1, &error), error, "fill");
    std::printf("weights made in %.0f ms\n", msSince(start));
    const auto sessionStart = Clock::now();
    session_ = createSession(model_.get(), desc);
    std::printf("session made in %.0f ms\n", msSince(sessionStart));
    memory("with the session");
    LsSpeed speed{};
    must(engine().sessionProbe(session_.get(), &speed, &error), error, "probe");
    std::printf("probe: %.4g ms a row and layer, %.4g ms a pair\n", speed.linearMsPerRow,
                speed.attentionMsPerPair);
  }

  static double gb(uint64_t bytes) { return static_cast<double>(bytes) / 1e9; }

  void memory(const char* when) {
    LsMemory now{};
    LsError error{};
    must(engine().sessionMemory(session_.get(), &now, &error), error, "memory");
    const double used = static_cast<double>(freeAtStart_) - static_cast<double>(now.freeBytes);
    const double planned = static_cast<double>(estimate_.weightBytes + estimate_.kvBytes +
                                               estimate_.scratchBytes + estimate_.fixedBytes);
    std::printf("memory %s: %.3f GB taken, estimate %.3f (%+.2f %%)\n", when, used / 1e9,
                planned / 1e9, (planned / used - 1) * 100);
  }

  LsTimes times() const {
    LsTimes times{};
    engine().sessionTimes(session_.get(), &times);
    return times;
  }

  LsStatus forward(std::span<const LsSegment> segments, bool dense, bool last,
                   std::vector<float>& state, Watch& watch, double* kept, double* causal) {
    const ModelSizes& sizes = recipe_.sizes();
    LsForward request{};
    const int64_t end = segments.back().end;
    request.tokens = tokens_.data() + segments.front().begin;
    request.segments = segments.data();
    request.segmentCount = static_cast<int32_t>(segments.size());
    request.params = recipe_.params(dense ? LS_POLICY_DENSE : LS_POLICY_PEAK);
    request.outputBegin = last ? end - 1 : end;
    state.resize(static_cast<size_t>(sizes.embedding));
    request.states = state.data();
    const size_t pairs =
        static_cast<size_t>(sizes.layers) * segments.size() * static_cast<size_t>(sizes.heads);
    std::vector<LsHeadStats> stats(pairs);
    std::vector<float> coverage(pairs * static_cast<size_t>(request.params.auditRows));
    request.stats = stats.data();
    request.coverage = dense ? nullptr : coverage.data();
    request.forcedDensity = dense ? -1 : options_.density;
    request.proceed = Watch::proceed;
    request.context = &watch;
    LsError error{};
    const LsStatus status = engine().sessionForward(session_.get(), &request, &error);
    if (status != LS_CANCELLED) must(status, error, "forward");
    for (const LsHeadStats& s : stats) {
      *kept += static_cast<double>(s.keptPairs);
      *causal += static_cast<double>(s.causalPairs);
    }
    return status;
  }

  // Chunks of whole segments.
  std::vector<std::span<const LsSegment>> chunks(const std::vector<LsSegment>& segments) const {
    std::vector<std::span<const LsSegment>> out;
    for (size_t first = 0; first < segments.size();) {
      size_t end = first + 1;
      while (end < segments.size() &&
             segments[end].end - segments[first].begin <= estimate_.chunkRows)
        ++end;
      out.push_back(std::span(segments).subspan(first, end - first));
      first = end;
    }
    return out;
  }

  void prefill(int run) {
    SampleAttentionParams params;
    const bool dense = options_.density >= 1;
    if (dense) params.policy = Policy::dense;
    // The last rows are a question, dense.
    const int64_t question = std::min<int64_t>(512, options_.tokens / 8);
    const std::vector<LsSegment> segments =
        segmentsOf(planSegments(options_.tokens, {}, options_.tokens - question, params));
    const auto pieces = chunks(segments);
    const LsTimes before = times();
    Watch watch;
    std::vector<float> state, logits(static_cast<size_t>(recipe_.sizes().vocabulary));
    double kept = 0, causal = 0;
    const auto start = Clock::now();
    watch.last = start;
    for (size_t i = 0; i < pieces.size(); ++i) {
      watch.share = 0;
      forward(pieces[i], dense, i + 1 == pieces.size(), state, watch, &kept, &causal);
    }
    LsError error{};
    must(engine().sessionLogits(session_.get(), state.data(), 1, logits.data(), nullptr, nullptr,
                                &error),
         error, "logits");
    const double wall = msSince(start);
    const LsTimes t = minus(times(), before);
    std::printf(
        "prefill %d of %lld: %.1f ms, density %.4f; linear %.1f expand %.1f pointwise %.1f "
        "stage1 %.1f stage2 %.1f stage3 %.1f audit %.1f rest %.1f logits %.2f; longest "
        "without proceed %.1f ms%s; logit %g\n",
        run, static_cast<long long>(options_.tokens), wall, kept / causal, t.linearMs, t.expandMs,
        t.pointwiseMs, t.stage1Ms, t.stage2Ms, t.stage3Ms, t.auditMs, t.restMs, t.logitsMs,
        watch.longestMs, watch.fell ? "; SHARE FELL" : "", static_cast<double>(logits[0]));
    const double flop = 2 * recipe_.layerWeights() * static_cast<double>(options_.tokens);
    std::printf("  linear %.0f TFLOP/s of %.1f PFLOP; stage 3 %.0f TFLOP/s of its pairs\n",
                flop / t.linearMs / 1e9, flop / 1e15,
                kept * 4 * recipe_.sizes().headDim / t.stage3Ms / 1e9);
    std::fflush(stdout);
  }

  void newTokens() {
    const LsSegment segment{options_.tokens, options_.tokens + options_.newTokens, 1, 0, 0};
    std::vector<float> state, logits(static_cast<size_t>(recipe_.sizes().vocabulary));
    for (int run = 0; run < 3; ++run) {
      const LsTimes before = times();
      Watch watch;
      double kept = 0, causal = 0;
      const auto start = Clock::now();
      forward({&segment, 1}, true, true, state, watch, &kept, &causal);
      LsError error{};
      must(engine().sessionLogits(session_.get(), state.data(), 1, logits.data(), nullptr, nullptr,
                                  &error),
           error, "logits");
      const double wall = msSince(start);
      const LsTimes t = minus(times(), before);
      std::printf(
          "%lld new tokens on %lld: %.2f ms; linear %.2f expand %.2f pointwise %.2f stage3 "
          "%.2f rest %.2f logits %.2f\n",
          static_cast<long long>(options_.newTokens), static_cast<long long>(options_.tokens), wall,
          t.linearMs, t.expandMs, t.pointwiseMs, t.stage3Ms, t.restMs, t.logitsMs);
    }
    std::fflush(stdout);
  }

  void cancel() {
    SampleAttentionParams params;
    params.policy = Policy::dense;
    const int64_t begin = std::max<int64_t>(0, options_.tokens - estimate_.chunkRows) / 2048 * 2048;
    const std::vector<LsSegment> all =
        segmentsOf(planSegments(options_.tokens, {}, options_.tokens, params));
    std::vector<LsSegment> segments;
    for (const LsSegment& segment : all)
      if (segment.begin >= begin) segments.push_back(segment);
    for (const double share : {0.01, 0.05}) {
      Watch watch;
      watch.stopAt = share;
      std::vector<float> state;
      double kept = 0, causal = 0;
      const LsStatus status = forward(segments, true, false, state, watch, &kept, &causal);
      std::printf(
          "cancel of a dense pass at share %.2f: status %d, %.1f ms, longest without "
          "proceed %.1f ms\n",
          share, status, msSince(watch.stopped), watch.longestMs);
    }
    // The rows behind are gone: steps read what is there.
    std::fflush(stdout);
  }

  void steps(int64_t depth, int32_t rows) {
    LsError error{};
    must(engine().sessionRestored(session_.get(), depth, &error), error, "restored");
    std::vector<float> logits(static_cast<size_t>(rows * recipe_.sizes().vocabulary));
    for (int i = 0; i < 3; ++i)
      must(engine().sessionStep(session_.get(), depth, tokens_.data(), rows, logits.data(), &error),
           error, "step");
    const LsTimes before = times();
    const auto start = Clock::now();
    for (int i = 0; i < options_.steps; ++i)
      must(engine().sessionStep(session_.get(), depth + i * rows, tokens_.data() + i, rows,
                                logits.data(), &error),
           error, "step");
    const double wall = msSince(start) / options_.steps;
    const double device = (times().stepMs - before.stepMs) / options_.steps;
    const ModelSizes& sizes = recipe_.sizes();
    const double rowBytes = options_.kv == "q8" ? sizes.headDim * 1.0625 : sizes.headDim * 2.0;
    const double bytes = static_cast<double>(recipe_.matrixBytes()) +
                         2.0 * rowBytes * sizes.layers * sizes.kvHeads * static_cast<double>(depth);
    std::printf("step of %d rows at %lld: %.3f ms, on the device %.3f; %.2f GB, %.0f GB/s\n", rows,
                static_cast<long long>(depth), wall, device, bytes / 1e9, bytes / device / 1e6);
    std::fflush(stdout);
  }

  const Options options_;
  Recipe recipe_;
  std::vector<int32_t> tokens_;
  uint64_t freeAtStart_ = 0;
  LsMemory estimate_{};
  ModelHandle model_;
  SessionHandle session_;
};

}  // namespace
}  // namespace longsight::cuda::test

int main(int argc, char** argv) {
  using namespace longsight::cuda::test;
  const Options options = parse(argc, argv);
  if (namedSizes(options.model).name.empty()) {
    std::fprintf(stderr, "no model %s\n", options.model.c_str());
    return 1;
  }
  std::printf("== %s %s, cache %s, %lld tokens, density %g\n", options.model.c_str(),
              options.weights.c_str(), options.kv.c_str(), static_cast<long long>(options.tokens),
              options.density);
  Bench(options).run();
  return 0;
}
