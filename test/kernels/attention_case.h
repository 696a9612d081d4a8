// Inputs of attention tests: random queries and a KV cache, with everything around them poisoned.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <random>
#include <vector>

#include "cpu/attention.h"

namespace longsight::test {

// LONGSIGHT_TEST_SEED, else fresh; printed once.
uint64_t seed();

uint16_t toBf16(float value);  // nearest even
float fromBf16(uint16_t bits);

struct Shape {
  int32_t heads = 1;
  int32_t kvHeads = 1;
  int32_t headDim = 64;
  KvType kvType = KvType::bf16;
};

// One layer of one segment. Rows of the cache after the segment are NaN, the output starts as NaN,
// and guard words stand before and after it.
class AttentionCase {
 public:
  AttentionCase(const Shape& shape, const Segment& segment, const SampleAttentionParams& params,
                std::mt19937_64& random);
  // `task` points into this object.
  AttentionCase(const AttentionCase&) = delete;
  AttentionCase& operator=(const AttentionCase&) = delete;

  float* query(int64_t row, int32_t head);
  const float* output(int64_t row, int32_t head) const;
  // Of a bf16 cache.
  uint16_t* key(int32_t kvHead, int64_t row);
  uint16_t* value(int32_t kvHead, int64_t row);
  // All outputs; fails the test when a guard word has changed.
  std::vector<float> outputs() const;
  void poisonOutput();

  // Heads of the last run that are sparse with a list of their own.
  int64_t listedHeads() const;

  // Runs the task and returns whether it finished.
  bool run(ThreadPool& pool);
  bool run(int32_t threads);
  // From a cancel, each delay after the start of a run, to the run's end: the shortest, since other
  // processes may hold the processor for a while. Fails the test when a run was not cancelled.
  double secondsToCancel(ThreadPool& pool, std::initializer_list<int> delaysMs);

  SampleAttentionParams params;
  AttentionTask task;
  CancelFlag cancel;
  AttentionScratch scratch;
  std::vector<HeadAttention> heads;

 private:
  std::vector<float> queries_;
  std::vector<float> output_;
  // In units that rows of either type are a multiple of.
  std::vector<uint16_t> keys_;
  std::vector<uint16_t> values_;
};

}  // namespace longsight::test
