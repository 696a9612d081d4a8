// Pseudo-random bf16 numbers that host and device compute alike, element by element: prompts that
// are too long to be made on the host and copied.
#pragma once

#include <cstdint>

#include "attention/geometry.h"

namespace longsight::cuda::test {

// Element `index` of the sequence `seed`: a sum of four bytes, near normal with deviation 1.15 and
// mean 0, in steps of 1/64 so that bf16 holds it exactly. Returns its bits.
LONGSIGHT_HOST_DEVICE inline uint16_t exactValue(uint64_t seed, int64_t index) {
  uint64_t x = seed * 0x9E3779B97F4A7C15ull + static_cast<uint64_t>(index);
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ull;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBull;
  x ^= x >> 31;
  const int sum = static_cast<int>(x & 0xFF) + static_cast<int>(x >> 8 & 0xFF) +
                  static_cast<int>(x >> 16 & 0xFF) + static_cast<int>(x >> 24 & 0xFF);
  int steps = (sum - 510) / 2;
  const uint16_t sign = steps < 0 ? 0x8000 : 0;
  if (steps < 0) steps = -steps;
  if (steps == 0) return 0;
  int exponent = 0;
  while (steps >> (exponent + 1) != 0) ++exponent;
  const int mantissa = (steps << (7 - exponent)) & 0x7F;
  return static_cast<uint16_t>(sign | (127 - 6 + exponent) << 7 | mantissa);
}

}  // namespace longsight::cuda::test
