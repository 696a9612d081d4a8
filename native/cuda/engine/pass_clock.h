// The clock of a forward pass: device time by part from events, how much is done, and how much may
// be enqueued ahead so that a cancel ends soon.
#pragma once

#include <array>
#include <chrono>
#include <cstddef>
#include <deque>
#include <vector>

#include "cuda/api.h"
#include "cuda/engine/memory.h"

namespace longsight::cuda {

enum class Part { linear, expand, pointwise, stage1, stage2, stage3, audit, rest };
inline constexpr size_t kParts = 8;

// Calls `proceed` often enough while something else goes on.
class Progress {
 public:
  // `proceed` may be null.
  Progress(LsProceed proceed, void* context) : proceed_(proceed), context_(context) {}
  // Calls it when it is time to; throws cancelled() when it says stop.
  void poll(double shareDone);

 private:
  using Clock = std::chrono::steady_clock;
  LsProceed proceed_;
  void* context_;
  Clock::time_point last_ = Clock::now() - std::chrono::hours(1);
};

// Waits for an event while `progress` is polled.
void waitFor(cudaEvent_t event, Progress& progress, double shareDone);

class PassClock {
 public:
  // Events are made for so many marks ahead: making one while the device works waits for it.
  PassClock(cudaStream_t stream, size_t marks);

  // Starts a pass on the stream.
  void begin(Progress& progress);
  // What was enqueued since the last mark belongs to `part`. `work` is what it has to do, in units
  // of the part, 0 where it is too little to count; `share` its share of the whole pass.
  void mark(Part part, double work = 0, double share = 0);
  // Waits until `ms` of predicted work more may be enqueued.
  void admit(double ms);
  // Waits for everything. The totals are then complete.
  void finish();
  // After a cancel or an error: waits without asking anyone, forgets the pass.
  void abandon() noexcept;

  // Milliseconds that such work will probably take, by what was measured lately.
  double predict(Part part, double work) const {
    return work * msPerWork_[static_cast<size_t>(part)];
  }
  // Before anything was measured.
  void expect(Part part, double msPerWork) { msPerWork_[static_cast<size_t>(part)] = msPerWork; }
  // Most work that is to be enqueued at once.
  static constexpr double kUnitMs = 60;

  using Totals = std::array<double, kParts>;
  const Totals& totals() const { return totals_; }
  void setTotals(const Totals& totals) { totals_ = totals; }
  // All that was measured.
  void forget();

 private:
  struct Mark {
    Event event;
    Part part;
    double work;
    double predictedMs;
    double share;
  };
  Event takeEvent();
  void waitForOldest();
  // Counts marks that the device has reached.
  void collect();
  void count(Mark& mark);

  cudaStream_t stream_;
  Progress* progress_ = nullptr;
  double shareDone_ = 0;
  double aheadMs_ = 0;
  std::deque<Mark> ahead_;
  // The mark before the oldest of those ahead.
  Event last_{cudaEventDefault};
  std::vector<Event> spare_;
  Totals totals_{};
  std::array<double, kParts> msPerWork_{};
};

}  // namespace longsight::cuda
