// Parts of bench_cuda_kernels with files of their own.
#pragma once

#include <cstdint>

#include "bench_clock.h"

namespace longsight::cuda::test {

// Decode, and a few hundred dense rows, over a long cache.
void benchFewRows(Clock& clock, uint64_t seed);

// Norms, sums and RoPE: of a block of prefill rows against the bandwidth, and of decode.
void benchPointwise(Clock& clock, uint64_t seed);

}  // namespace longsight::cuda::test
