#include "cpu/thread_pool.h"

#include <gtest/gtest.h>

#include <atomic>
#include <vector>

namespace longsight::test {
namespace {

TEST(ThreadPool, VisitsEveryItemOnceWithAThreadInRange) {
  for (const int32_t threads : {1, 2, 5}) {
    ThreadPool pool(threads);
    EXPECT_EQ(pool.threads(), threads);
    for (const int64_t items : {0, 1, 2, 3, 100, 1000}) {
      std::vector<std::atomic<int>> visits(static_cast<size_t>(items));
      std::atomic<int> outside{0};
      pool.forEach(items, [&](int64_t item, int32_t thread) {
        visits[static_cast<size_t>(item)]++;
        if (thread < 0 || thread >= threads) outside++;
      });
      for (const auto& count : visits) ASSERT_EQ(count.load(), 1);
      EXPECT_EQ(outside.load(), 0);
    }
  }
}

TEST(ThreadPool, NoThreadIsUsedByTwoItemsAtOnce) {
  ThreadPool pool(4);
  std::vector<std::atomic<int>> busy(4);
  std::atomic<int> clashes{0};
  for (int round = 0; round < 200; ++round) {
    pool.forEach(16, [&](int64_t, int32_t thread) {
      if (busy[static_cast<size_t>(thread)]++ != 0) clashes++;
      busy[static_cast<size_t>(thread)]--;
    });
  }
  EXPECT_EQ(clashes.load(), 0);
}

TEST(ThreadPool, WhatItemsWroteIsVisibleAfterwards) {
  ThreadPool pool(3);
  std::vector<int64_t> sums(64, 0);
  for (int64_t round = 1; round <= 500; ++round) {
    pool.forEach(64, [&](int64_t item, int32_t) { sums[static_cast<size_t>(item)] += item; });
    for (int64_t item = 0; item < 64; ++item) {
      ASSERT_EQ(sums[static_cast<size_t>(item)], item * round);
    }
  }
}

}  // namespace
}  // namespace longsight::test
