// One bit that stops a running operation; set on any thread, checked per tile and per graph node.
#pragma once

#include <atomic>

namespace longsight {

class CancelFlag {
 public:
  void set() { flag_.store(true, std::memory_order_relaxed); }
  void clear() { flag_.store(false, std::memory_order_relaxed); }
  bool isSet() const { return flag_.load(std::memory_order_relaxed); }

 private:
  std::atomic<bool> flag_{false};
};

}  // namespace longsight
