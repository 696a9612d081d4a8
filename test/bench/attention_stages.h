// Which kernels a run of attention spends its time in: counts it around every call.
#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>

#include "cpu/attention_scratch.h"
#include "kernels/cpu/attention/kernels.h"

namespace longsight::bench {

// Seconds of all threads.
struct StageSeconds {
  // Stage 1: keys and queries in the score dims, anchors, votes.
  double vote = 0;
  // Stage 3: queries, consecutive and gathered keys and values.
  double pack = 0;
  // Products and softmax.
  double attend = 0;
};

// Counting kernels for one AttentionScratch. Only one at a time.
class CountedKernels {
 public:
  explicit CountedKernels(AttentionScratch& scratch)
      : state_(scratch.state()), original_(state_.kernels), counted_(*original_) {
    chosen_ = original_;
    for (auto& stage : nanoseconds_) stage = 0;
    for (auto& stage : calls_) stage = 0;
    for (auto& stage : interrupted_) stage = 0;
    counted_.packQueries = [](auto* rows, int32_t blocks, DimRanges dims, float scale, void* to) {
      // Voters are packed a block at a time.
      const Span span(blocks == 1 ? kVote : kPack);
      chosen_->packQueries(rows, blocks, dims, scale, to);
    };
    counted_.packKeys = [](const KeyRows& keys, DimRanges dims, void* to) {
      const Span span(dims.count() < keys.matrix.headDim ? kVote : kPack);
      chosen_->packKeys(keys, dims, to);
    };
    counted_.packValues = [](const KeyRows& values, void* to) {
      const Span span(kPack);
      chosen_->packValues(values, to);
    };
    counted_.attend = [](const AttendTile& tile) {
      const Span span(tile.state.output == nullptr ? kVote : kAttend);
      chosen_->attend(tile);
    };
    counted_.peaks = [](const VoteTile& tile) {
      const Span span(kVote);
      chosen_->peaks(tile);
    };
    counted_.masses = [](const VoteTile& tile) {
      const Span span(kVote);
      chosen_->masses(tile);
    };
    state_.kernels = &counted_;
  }
  ~CountedKernels() { state_.kernels = original_; }
  CountedKernels(const CountedKernels&) = delete;
  CountedKernels& operator=(const CountedKernels&) = delete;

  static StageSeconds seconds() {
    const auto of = [](Stage stage) {
      const auto calls = static_cast<double>(calls_[stage]);
      const double counted = calls - static_cast<double>(interrupted_[stage]);
      const double mean = static_cast<double>(nanoseconds_[stage]) * 1e-9 / std::max(counted, 1.0);
      return mean * calls;
    };
    return {of(kVote), of(kPack), of(kAttend)};
  }

 private:
  enum Stage { kVote, kPack, kAttend, kStages };
  using Clock = std::chrono::steady_clock;

  class Span {
   public:
    explicit Span(Stage stage) : stage_(stage) {}
    // A call takes up to about 0.1 ms: in a longer one another process had the processor, and it
    // counts as an average one.
    ~Span() {
      using std::chrono::nanoseconds;
      const auto taken = std::chrono::duration_cast<nanoseconds>(Clock::now() - start_).count();
      ++calls_[stage_];
      if (taken > 1'000'000)
        ++interrupted_[stage_];
      else
        nanoseconds_[stage_] += taken;
    }
    Span(const Span&) = delete;
    Span& operator=(const Span&) = delete;

   private:
    Stage stage_;
    Clock::time_point start_ = Clock::now();
  };

  static inline const AttentionKernels* chosen_ = nullptr;
  static inline std::atomic<int64_t> nanoseconds_[kStages];
  static inline std::atomic<int64_t> calls_[kStages];
  static inline std::atomic<int64_t> interrupted_[kStages];
  AttentionScratch::State& state_;
  const AttentionKernels* original_;
  AttentionKernels counted_;
};

}  // namespace longsight::bench
