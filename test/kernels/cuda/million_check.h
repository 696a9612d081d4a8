// Stages 2 and 3 of a layer of 2^20 rows with 28/4 heads, lists of density 0.05, in chunks; 64 rows
// are compared with the double-precision reference.
#pragma once

#include <cstdint>

#include "kernels/cuda/sample_attention.h"

namespace longsight::cuda::test {

struct MillionResult {
  int failures = 0;
  int rows = 0;
  double density = 0;
  double worstOutput = 0;
  double worstLogSum = 0;
};
MillionResult checkMillion(Path path, uint64_t seed);

}  // namespace longsight::cuda::test
