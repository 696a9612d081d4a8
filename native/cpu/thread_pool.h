// A fixed set of threads for attention tiles. The calling thread takes part.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>

namespace longsight {

class ThreadPool {
 public:
  // threads >= 1, the caller included.
  explicit ThreadPool(int32_t threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int32_t threads() const;

  // Calls body(item, thread) for every item in [0, items), items handed out in ascending order by
  // an atomic counter; thread is in [0, threads()). Returns when all are done.
  void forEach(int64_t items, const std::function<void(int64_t item, int32_t thread)>& body);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace longsight
