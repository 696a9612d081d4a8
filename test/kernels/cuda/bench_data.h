// Inputs of the benchmark, made on the device, and the read bandwidth it compares with.
#pragma once

#include <cstdint>

namespace longsight::cuda::test {

// Standard normal bf16 values in rows of `dim`. Queries share a direction; the first four keys of a
// head answer it strongly (sinks), one key in twelve somewhat (stripes).
void fillQueries(void* target, int64_t count, int dim, uint64_t seed);
void fillKeys(void* target, int64_t count, int dim, int64_t headRows, uint64_t seed);
void fillValues(void* target, int64_t count, int dim, uint64_t seed);

// Votes at random: each bit is set with probability `share`.
void fillRandomMask(uint32_t* mask, int64_t words, uint64_t seed, float share);

// Elements [first, first + count) of a sequence of exact_data.h.
void fillExact(void* target, int64_t count, uint64_t seed, int64_t first);

// Reads all bytes once.
void readThrough(const void* source, int64_t bytes, void* sink);

}  // namespace longsight::cuda::test
