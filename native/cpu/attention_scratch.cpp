#include "cpu/attention_scratch.h"

#include <algorithm>

#include "attention/geometry.h"

namespace longsight {

void ThreadScratch::reserve(int64_t slots, int32_t headDim, int32_t paddedDim,
                            const AttentionKernels& kernels) {
  queries.reserve(slots * kernels.rowBytes(headDim));
  keys.reserve(kTileKeys * kernels.rowBytes(headDim));
  values.reserve(int64_t{kTileKeys} * paddedDim * kernels.elementBytes);
  fewQueries.reserve(int64_t{kFewRows} * headDim);
  scores.reserve(int64_t{std::max(kernels.blockRows, kFewRows)} * kTileKeys);
  output.reserve(slots * paddedDim);
  maximum.reserve(slots);
  sum.reserve(slots);
  rows.reserve(slots);
  seesFrom.reserve(slots);
  seesTo.reserve(slots);
  visibleBegin.reserve(slots);
  visibleEnd.reserve(slots);
}

uint64_t ThreadScratch::bytes() const {
  return queries.bytes() + keys.bytes() + values.bytes() + fewQueries.bytes() + scores.bytes() +
         output.bytes() + maximum.bytes() + sum.bytes() + rows.bytes() + seesFrom.bytes() +
         seesTo.bytes() + visibleBegin.bytes() + visibleEnd.bytes();
}

uint64_t AttentionScratch::State::bytes() const {
  uint64_t total = voterQueries.bytes() + references.bytes() + votes.bytes() + columns.bytes() +
                   countBefore.bytes() + partialMaximum.bytes() + partialSum.bytes() +
                   partialOutput.bytes();
  for (const ThreadScratch& thread : threads) total += thread.bytes();
  return total;
}

AttentionScratch::AttentionScratch() : state_(std::make_unique<State>(chooseAttentionKernels())) {}
AttentionScratch::~AttentionScratch() = default;

uint64_t AttentionScratch::bytes() const { return state_->bytes(); }

std::span<const int32_t> AttentionScratch::columnList(int32_t head) const {
  const auto index = static_cast<size_t>(head);
  if (index >= state_->isDense.size() || state_->isDense[index]) return {};
  return {state_->columns.data() + head * state_->columnStride + state_->sinkTokens,
          static_cast<size_t>(state_->listLength[index])};
}

int64_t maxSlots(int32_t headsPerKvHead, int32_t blockRows) {
  return headsPerKvHead * roundUp(kTileRows, blockRows);
}

int64_t maxVoters(int64_t tokens, const SampleAttentionParams& params) {
  if (params.segmentRows == 0) return tokens / params.sampleStride + 1;
  // A segment just short of the length at which the stride grows from k to k + 1 has the most
  // voters for k = 1: almost twice those of a full one.
  return std::min<int64_t>(
      {2 * params.segmentRows / params.sampleStride + 1, params.segmentRows, tokens});
}

uint64_t attentionScratchBytes(const AttentionShape& shape, const SampleAttentionParams& params,
                               int32_t threads) {
  // Blocks are at most 16 rows in any instruction set.
  const int64_t slots = maxSlots(shape.heads / shape.kvHeads, 16);
  const int64_t padded = roundUp(shape.headDim, kDimMultiple);
  // Packed elements have at most 4 bytes.
  const int64_t thread = (int64_t{kTileKeys} + slots) * (shape.headDim + padded) * 4 +
                         (kFewRows * int64_t{shape.headDim} + 16 * kTileKeys) * 4 +
                         slots * (8 + 8 + 24);
  // Stage 1 and 2: voters with references, a vote and an index for each column.
  int64_t shared = 0;
  if (params.policy != Policy::dense) {
    const int64_t voters = roundUp(maxVoters(shape.tokens, params), 16);
    shared += shape.heads * voters * (shape.headDim + 1) * 4;
    shared +=
        shape.heads * (shape.tokens * 8 + (params.sinkTokens + shape.tokens / kTileRows + 1) * 4);
  }
  // Chunks of a few dense rows.
  shared += kMaxChunkItems * slots * (padded + 2) * 4;
  return static_cast<uint64_t>(thread * threads + shared);
}

}  // namespace longsight
