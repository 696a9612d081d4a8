// Inputs of linear layers and their comparison with double precision, both on the device: results
// of more than 2^31 elements need no room on the host.
#pragma once

#include <cstdint>

#include "kernels/cuda/linear/linear.h"

namespace longsight::cuda::test {

// Values of about -2 to 2, or integers of -3 to 3, whose sums fp32 holds exactly.
enum class LinearData { real, integers };

void fillBf16(void* target, int64_t count, LinearData data, uint64_t seed);
void fillE4m3(void* target, int64_t count, LinearData data, uint64_t seed);
// 0.5 to 1.5, or powers of two.
void fillScales(void* target, int64_t count, LinearData data, uint64_t seed);
void fillF32(void* target, int64_t count, LinearData data, uint64_t seed);

struct Difference {
  // Results that are further off than rounding explains, or not a number.
  int64_t wrong = 0;
  // The largest error as a share of what rounding explains.
  double worstShare = 0;
  // One of the wrong results.
  int64_t row = -1;
  int64_t output = -1;
  double got = 0;
  double expected = 0;
};

// Compares task.output. `before`: what addToF32 was added to, otherwise not read.
Difference compareWithDouble(const LinearTask& task, const float* before, LinearData data);

// Checks what launchToE4m3() made of the rows: the scales, and values as near as e4m3 can be.
Difference compareE4m3Rows(const void* source, int64_t rows, int32_t inner, const void* target,
                           const float* scales);

// Bytes that differ.
int64_t countDifferent(const void* a, const void* b, int64_t bytes);

}  // namespace longsight::cuda::test
