// How a run of CPU attention is compared with the double-precision reference.
#pragma once

#include <random>
#include <string>
#include <vector>

#include "attention_case.h"
#include "kernels/cpu/instruction_set.h"

namespace longsight::test {

// The instruction sets with attention kernels of their own that run here.
std::vector<std::string> kernelSets();

// Forces an instruction set upon scratch made while it lives.
class ForcedSet {
 public:
  explicit ForcedSet(const std::string& name);
  ~ForcedSet();
  ForcedSet(const ForcedSet&) = delete;
  ForcedSet& operator=(const ForcedSet&) = delete;
};

struct Tolerance {
  double list = 1e-3;    // of a peak, natural logarithm
  double output = 2e-5;  // absolute, for values of size 1; more where weights are rounded to bf16
  double coverage = 1e-4;
  double mass = 1e-4;  // of a column's mass, relative
};

// Of an output between two runs that visit columns in different order; values of size 1, random
// scores of size 1, `columns` of them.
double reorderTolerance(const AttentionCase& c, int64_t columns);

struct Effort {
  int64_t rows = 12;   // of the output, for each head: the first, the last, random ones
  int32_t heads = 99;  // random ones when there are more
};

// Compares lists, pairs, fall-backs, coverage and rows of the output. Columns whose reference peak
// is within the tolerance of ln(epsilon), or whose mass is within it of the smallest that is kept,
// may differ: they are counted and printed. Kernels that round queries to bf16 are compared with
// the reference on rounded queries.
void expectAgreement(const AttentionCase& c, std::mt19937_64& random, const Effort& effort = {},
                     const Tolerance& tolerance = {});

}  // namespace longsight::test
