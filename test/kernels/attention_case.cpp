#include "attention_case.h"

#include <algorithm>
#include <bit>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <stdexcept>
#include <thread>

namespace longsight::test {
namespace {

constexpr int64_t kGuardFloats = 64;
constexpr uint32_t kGuardBits = 0x7fc0dead;  // a NaN
constexpr int64_t kGarbageRows = 70;
constexpr uint16_t kNan = 0x7fc1;  // as bf16 and as fp16

// About normal, mean 0 and variance 1: the sum of four uniform numbers, from one draw.
float draw(std::mt19937_64& random) {
  const uint64_t bits = random();
  const auto sum = static_cast<float>((bits & 0xffff) + (bits >> 16 & 0xffff) +
                                      (bits >> 32 & 0xffff) + (bits >> 48));
  return (sum - 131070.0f) / 37837.0f;
}

}  // namespace

uint64_t seed() {
  static const uint64_t value = [] {
    const char* fixed = std::getenv("LONGSIGHT_TEST_SEED");
    const uint64_t chosen =
        fixed != nullptr ? std::strtoull(fixed, nullptr, 10) : std::random_device{}();
    std::printf("LONGSIGHT_TEST_SEED=%llu\n", static_cast<unsigned long long>(chosen));
    return chosen;
  }();
  return value;
}

uint16_t toBf16(float value) {
  const auto bits = std::bit_cast<uint32_t>(value);
  return static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

float fromBf16(uint16_t bits) { return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16); }

AttentionCase::AttentionCase(const Shape& shape, const Segment& segment,
                             const SampleAttentionParams& chosen, std::mt19937_64& random)
    : params(chosen) {
  const int64_t rows = segment.end - segment.begin;
  const int64_t capacity = segment.end + kGarbageRows;
  const int64_t dim = shape.headDim;
  queries_.resize(static_cast<size_t>(rows * shape.heads * dim));
  for (float& x : queries_) x = draw(random);
  const int64_t cacheBytes = capacity * shape.kvHeads * kvRowBytes(shape.kvType, shape.headDim);
  keys_.assign(static_cast<size_t>(cacheBytes) / sizeof(uint16_t), kNan);
  values_ = keys_;
  task.kv = {reinterpret_cast<std::byte*>(keys_.data()),
             reinterpret_cast<std::byte*>(values_.data()),
             capacity,
             shape.kvHeads,
             shape.headDim,
             shape.kvType};
  std::vector<float> key(static_cast<size_t>(dim)), value(static_cast<size_t>(dim));
  for (int32_t head = 0; head < shape.kvHeads; ++head) {
    for (int64_t row = 0; row < segment.end; ++row) {
      for (size_t i = 0; i < key.size(); ++i) {
        key[i] = draw(random);
        value[i] = draw(random);
      }
      task.kv.store(head, row, key.data(), value.data());
    }
  }
  output_.resize(queries_.size() + 2 * kGuardFloats);
  poisonOutput();

  task.segment = segment;
  task.params = &params;
  task.queries = queries_.data();
  task.output = output_.data() + kGuardFloats;
  task.heads = shape.heads;
  task.scale = 1.0f / std::sqrt(static_cast<float>(dim));
  task.outputBegin = segment.begin;
  task.scratch = &scratch;
}

float* AttentionCase::query(int64_t row, int32_t head) {
  return queries_.data() +
         ((row - task.segment.begin) * task.heads + head) * int64_t{task.kv.headDim};
}

const float* AttentionCase::output(int64_t row, int32_t head) const {
  return task.output + ((row - task.segment.begin) * task.heads + head) * int64_t{task.kv.headDim};
}

uint16_t* AttentionCase::key(int32_t kvHead, int64_t row) {
  return keys_.data() + (kvHead * task.kv.capacityRows + row) * task.kv.headDim;
}

uint16_t* AttentionCase::value(int32_t kvHead, int64_t row) {
  return values_.data() + (kvHead * task.kv.capacityRows + row) * task.kv.headDim;
}

std::vector<float> AttentionCase::outputs() const {
  for (int64_t i = 0; i < kGuardFloats; ++i) {
    const auto before = std::bit_cast<uint32_t>(output_[static_cast<size_t>(i)]);
    const auto after =
        std::bit_cast<uint32_t>(output_[output_.size() - 1 - static_cast<size_t>(i)]);
    if (before != kGuardBits || after != kGuardBits) {
      throw std::runtime_error("output was written outside its bounds");
    }
  }
  return {output_.begin() + kGuardFloats, output_.end() - kGuardFloats};
}

void AttentionCase::poisonOutput() {
  for (float& x : output_) x = std::bit_cast<float>(kGuardBits);
}

int64_t AttentionCase::listedHeads() const {
  int64_t count = 0;
  for (const HeadAttention& head : heads) count += !head.denseFallback && head.listLength > 0;
  return count;
}

bool AttentionCase::run(ThreadPool& pool) { return runAttention(task, pool, cancel, heads); }

bool AttentionCase::run(int32_t threads) {
  ThreadPool pool(threads);
  return run(pool);
}

double AttentionCase::secondsToCancel(ThreadPool& pool, std::initializer_list<int> delaysMs) {
  double fastest = std::numeric_limits<double>::infinity();
  for (const int delayMs : delaysMs) {
    cancel.clear();
    std::chrono::steady_clock::time_point set;
    std::thread canceller([&] {
      std::this_thread::sleep_for(std::chrono::milliseconds(delayMs));
      set = std::chrono::steady_clock::now();
      cancel.set();
    });
    const bool finished = run(pool);
    const auto end = std::chrono::steady_clock::now();
    canceller.join();
    if (finished) throw std::runtime_error("the run ended before it was cancelled");
    fastest = std::min(fastest, std::chrono::duration<double>(end - set).count());
  }
  return fastest;
}

}  // namespace longsight::test
