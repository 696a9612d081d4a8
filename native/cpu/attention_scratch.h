// The memory of runAttention: what threads own, and what the stages hand to each other.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>
#include <vector>

#include "cpu/attention.h"
#include "kernels/cpu/attention/kernels.h"

namespace longsight {

// Uninitialized elements on a cache line; grows, never shrinks, does not keep what it held.
template <typename T>
class GrowBuffer {
 public:
  T* reserve(int64_t count) {
    if (count > capacity_) {
      data_.reset();
      capacity_ = 0;
      const auto bytes = static_cast<size_t>(count) * sizeof(T);
      data_.reset(static_cast<T*>(::operator new(bytes, kAlignment)));
      capacity_ = count;
    }
    return data_.get();
  }
  T* data() const { return data_.get(); }
  uint64_t bytes() const { return static_cast<uint64_t>(capacity_) * sizeof(T); }

 private:
  static constexpr std::align_val_t kAlignment{64};
  struct Free {
    void operator()(T* data) const { ::operator delete(data, kAlignment); }
  };
  std::unique_ptr<T, Free> data_;
  int64_t capacity_ = 0;
};

// What one thread needs for the rows of a work item and one tile of columns.
struct ThreadScratch {
  GrowBuffer<std::byte> queries, keys, values;  // packed
  GrowBuffer<float> fewQueries, scores, output, maximum, sum;
  GrowBuffer<const float*> rows;
  // Columns that a row sees: from, to (exclusive), in the order in which columns are visited.
  GrowBuffer<int64_t> seesFrom, seesTo;
  // The same within one tile.
  GrowBuffer<int32_t> visibleBegin, visibleEnd;
  // Rows of the current item when attendFew takes them, else 0.
  int32_t fewRows = 0;

  void reserve(int64_t slots, int32_t headDim, int32_t paddedDim, const AttentionKernels& kernels);
  uint64_t bytes() const;
};

struct AttentionScratch::State {
  explicit State(const AttentionKernels& chosen) : kernels(&chosen) {}

  const AttentionKernels* kernels;
  std::vector<ThreadScratch> threads;

  // Stage 1: queries of the voters in the score dims, packed [head][block]; what is subtracted from
  // a voter's scores [head][voter]; what the voters say together [head][column < remoteEnd].
  GrowBuffer<std::byte> voterQueries;
  GrowBuffer<float> references, votes;
  // Stage 2, [head]: the sinks, then the list; how many of these lie before each 128-block.
  GrowBuffer<int32_t> columns, countBefore;
  int64_t columnStride = 0;
  int64_t blockStride = 0;
  int32_t sinkTokens = 0;
  std::vector<int64_t> listLength;
  std::vector<uint8_t> isDense;
  // Softmax states of column chunks, before they are joined: [item][slot] and [item][slot][dim].
  GrowBuffer<float> partialMaximum, partialSum, partialOutput;

  uint64_t bytes() const;
};

// Items of a few dense rows whose columns are cut into chunks, at most.
inline constexpr int64_t kMaxChunkItems = 64;

// Rows of a work item of runAttention at most: a tile of rows of every head of a KV group, each
// head padded to whole blocks.
int64_t maxSlots(int32_t headsPerKvHead, int32_t blockRows);

// Voters of a segment at most.
int64_t maxVoters(int64_t tokens, const SampleAttentionParams& params);

inline int64_t roundUp(int64_t value, int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

}  // namespace longsight
