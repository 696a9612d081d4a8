#include "cpu/thread_pool.h"

#include <atomic>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>

namespace longsight {

struct ThreadPool::State {
  using Body = std::function<void(int64_t, int32_t)>;

  // A job is announced by a new generation under the mutex, so that a worker sees its body and
  // items.
  std::mutex mutex;
  std::condition_variable announced;
  std::condition_variable finished;
  uint64_t generation = 0;
  // Workers may still join the job; those that have and are not done.
  bool open = false;
  int32_t working = 0;
  bool stopping = false;

  const Body* body = nullptr;
  int64_t items = 0;
  std::atomic<int64_t> next{0};
  std::vector<std::thread> workers;

  // Here rather than in the pool, so that a thread that does not start leaves none running.
  ~State() {
    {
      const std::lock_guard lock(mutex);
      stopping = true;
    }
    announced.notify_all();
    for (std::thread& worker : workers) worker.join();
  }

  void drain(int32_t thread) {
    for (;;) {
      const int64_t item = next.fetch_add(1, std::memory_order_relaxed);
      if (item >= items) return;
      (*body)(item, thread);
    }
  }

  void work(int32_t thread) {
    uint64_t seen = 0;
    std::unique_lock lock(mutex);
    for (;;) {
      announced.wait(lock, [&] { return stopping || generation != seen; });
      if (stopping) return;
      seen = generation;
      // On a busy machine a worker may wake after the others have finished: nobody waits for it.
      if (!open) continue;
      ++working;
      lock.unlock();
      drain(thread);
      lock.lock();
      if (--working == 0) finished.notify_one();
    }
  }
};

ThreadPool::ThreadPool(int32_t threads) : state_(std::make_unique<State>()) {
  for (int32_t thread = 1; thread < threads; ++thread) {
    state_->workers.emplace_back([state = state_.get(), thread] { state->work(thread); });
  }
}

ThreadPool::~ThreadPool() = default;

int32_t ThreadPool::threads() const { return static_cast<int32_t>(state_->workers.size()) + 1; }

void ThreadPool::forEach(int64_t items,
                         const std::function<void(int64_t item, int32_t thread)>& body) {
  if (items <= 0) return;
  State& state = *state_;
  // Waking workers costs more than one item is worth.
  if (items == 1 || state.workers.empty()) {
    for (int64_t item = 0; item < items; ++item) body(item, 0);
    return;
  }
  {
    const std::lock_guard lock(state.mutex);
    state.body = &body;
    state.items = items;
    state.next.store(0, std::memory_order_relaxed);
    state.open = true;
    ++state.generation;
  }
  state.announced.notify_all();
  state.drain(0);
  std::unique_lock lock(state.mutex);
  state.open = false;
  state.finished.wait(lock, [&] { return state.working == 0; });
}

}  // namespace longsight
