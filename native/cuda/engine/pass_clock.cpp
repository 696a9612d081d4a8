#include "cuda/engine/pass_clock.h"

#include <algorithm>
#include <thread>

namespace longsight::cuda {
namespace {

constexpr auto kPollEvery = std::chrono::milliseconds(10);
constexpr auto kSleep = std::chrono::microseconds(100);
// With one unit of kUnitMs that was predicted at half its time, a cancel takes under 250 ms.
constexpr double kMostAheadMs = 110;
// Shorter pieces tell more about their start than about their speed.
constexpr float kLeastMeasuredMs = 2.0f;
// How far the newest measurement moves a prediction.
constexpr double kNewest = 0.5;

}  // namespace

void Progress::poll(double shareDone) {
  if (proceed_ == nullptr) return;
  const auto now = Clock::now();
  if (now - last_ < kPollEvery) return;
  last_ = now;
  if (proceed_(context_, std::clamp(shareDone, 0.0, 1.0)) == 0) throw cancelled();
}

void waitFor(cudaEvent_t event, Progress& progress, double shareDone) {
  while (true) {
    const cudaError_t state = cudaEventQuery(event);
    if (state == cudaSuccess) return;
    if (state != cudaErrorNotReady) check(state, "Waiting for the GPU");
    // Not an error that others should find.
    cudaGetLastError();
    progress.poll(shareDone);
    std::this_thread::sleep_for(kSleep);
  }
}

PassClock::PassClock(cudaStream_t stream, size_t marks) : stream_(stream) {
  for (size_t i = 0; i < marks; ++i) spare_.emplace_back(cudaEventDefault);
}

void PassClock::forget() {
  totals_ = {};
  msPerWork_ = {};
}

Event PassClock::takeEvent() {
  if (spare_.empty()) return Event(cudaEventDefault);
  Event event = std::move(spare_.back());
  spare_.pop_back();
  return event;
}

void PassClock::begin(Progress& progress) {
  progress_ = &progress;
  shareDone_ = 0;
  aheadMs_ = 0;
  check(cudaEventRecord(last_, stream_), "Starting the clock");
}

void PassClock::mark(Part part, double work, double share) {
  Mark mark{takeEvent(), part, work, predict(part, work), share};
  check(cudaEventRecord(mark.event, stream_), "Recording an event");
  aheadMs_ += mark.predictedMs;
  ahead_.push_back(std::move(mark));
  collect();
  progress_->poll(shareDone_);
}

void PassClock::count(Mark& mark) {
  float ms = 0;
  check(cudaEventElapsedTime(&ms, last_, mark.event), "Reading the clock");
  totals_[static_cast<size_t>(mark.part)] += ms;
  double& rate = msPerWork_[static_cast<size_t>(mark.part)];
  const double measured = mark.work > 0 ? ms / mark.work : 0;
  // Even a short piece shows that its kind of work can be as fast as it was.
  if (mark.work > 0 && (ms >= kLeastMeasuredMs || measured < rate))
    rate += kNewest * (measured - rate);
  aheadMs_ -= mark.predictedMs;
  shareDone_ += mark.share;
  std::swap(last_, mark.event);
  spare_.push_back(std::move(mark.event));
}

void PassClock::collect() {
  while (!ahead_.empty()) {
    const cudaError_t state = cudaEventQuery(ahead_.front().event);
    if (state == cudaErrorNotReady) {
      cudaGetLastError();
      return;
    }
    check(state, "Computing on the GPU");
    count(ahead_.front());
    ahead_.pop_front();
  }
}

void PassClock::waitForOldest() {
  waitFor(ahead_.front().event, *progress_, shareDone_);
  count(ahead_.front());
  ahead_.pop_front();
}

void PassClock::admit(double ms) {
  while (!ahead_.empty() && aheadMs_ + ms > kMostAheadMs) waitForOldest();
}

void PassClock::finish() {
  while (!ahead_.empty()) waitForOldest();
  progress_ = nullptr;
}

void PassClock::abandon() noexcept {
  cudaStreamSynchronize(stream_);
  cudaGetLastError();
  for (Mark& mark : ahead_) spare_.push_back(std::move(mark.event));
  ahead_.clear();
  progress_ = nullptr;
}

}  // namespace longsight::cuda
