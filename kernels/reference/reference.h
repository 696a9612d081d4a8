// SampleAttention in double precision with plain loops: what every backend is tested against.
// One function a stage of docs/sample-attention.md; reads queries, keys and values as stored.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "cpu/attention.h"

namespace longsight::reference {

// Stage 1: peak of each column in [0, segment.end), natural logarithm; -inf where no voter sees the
// column as remote. The segment must not be dense.
std::vector<double> peaks(const AttentionTask& task, int32_t head);

// Stage 2: columns that are kept, ascending.
std::vector<int32_t> columnList(const AttentionTask& task, std::span<const double> peaks);

// What stage 1 of policy mass knows of a head.
struct Masses {
  // c_j of each column in [0, segment.end); 0 where no voter sees the column as remote.
  std::vector<double> columns;
  // Of the voters' windows and sinks.
  double free = 0.0;
  int64_t voters = 0;
};
Masses masses(const AttentionTask& task, int32_t head);

struct MassList {
  // Columns that are kept, ascending.
  std::vector<int32_t> columns;
  // Those at the edge: the smallest c_j that is kept and the largest that is not. Infinite and 0
  // where there is none.
  double smallestKept = 0.0;
  double largestLeft = 0.0;
  // Kept mass minus alpha * voters.
  double surplus = 0.0;
};
// Stage 2 of policy mass.
MassList massList(const AttentionTask& task, const Masses& masses);

// Stage 2: whether a list of this length makes the head dense.
bool fallsBackToDense(const AttentionTask& task, int64_t listLength);

// What a head keeps in a segment: everything when `dense`, else sinks, window and list.
struct Kept {
  bool dense = false;
  std::vector<int32_t> list;
};

// Stage 3 for one row of the segment: the probability of each column in [0, segment.end).
std::vector<double> rowWeights(const AttentionTask& task, int32_t head, int64_t row,
                               const Kept& kept);

// Stage 3 for one row of the segment: headDim values.
std::vector<double> attendRow(const AttentionTask& task, int32_t head, int64_t row,
                              const Kept& kept);

// Natural logarithm of the row's softmax sum over all columns up to it.
double logSum(const AttentionTask& task, int32_t head, int64_t row);

// Share of the row's probability over all columns that the kept ones hold.
double coverage(const AttentionTask& task, int32_t head, int64_t row, const Kept& kept);

// Pairs (row, column) of the segment that are attended, counted one by one.
int64_t keptPairs(const AttentionTask& task, const Kept& kept);

}  // namespace longsight::reference
