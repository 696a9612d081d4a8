// Numbers as the device stores them, and a loop over all cores.
#pragma once

#include <algorithm>
#include <atomic>
#include <bit>
#include <cmath>
#include <cstdint>
#include <thread>
#include <vector>

#include "kernels/cuda/sample_attention.h"

namespace longsight::cuda::test {

inline uint16_t toBf16(float value) {
  const auto bits = std::bit_cast<uint32_t>(value);
  return static_cast<uint16_t>((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16);
}
inline float fromBf16(uint16_t bits) { return std::bit_cast<float>(uint32_t{bits} << 16); }

// A number that bf16 and f16 both hold exactly, as bf16.
inline uint16_t sharedValue(float value) {
  return std::abs(value) < 1e-3f ? uint16_t{0} : toBf16(std::clamp(value, -60000.0f, 60000.0f));
}

inline uint16_t toDevice(uint16_t bf16, Element element) {
  if (element == Element::bf16) return bf16;
  const auto bits = uint32_t{bf16} << 16;
  if ((bits & 0x7FFFFFFF) == 0) return 0;
  const auto exponent = static_cast<int>((bits >> 23) & 0xFF) - 127 + 15;
  return static_cast<uint16_t>((bits >> 16 & 0x8000) | exponent << 10 | (bits >> 13 & 0x3FF));
}

inline double fromDevice(uint16_t bits, Element element) {
  if (element == Element::bf16) return fromBf16(bits);
  const int exponent = bits >> 10 & 0x1F;
  const int mantissa = bits & 0x3FF;
  const double sign = bits & 0x8000 ? -1.0 : 1.0;
  if (exponent == 31) return mantissa == 0 ? sign * INFINITY : NAN;
  if (exponent == 0) return sign * std::ldexp(mantissa, -24);
  return sign * std::ldexp(1024 + mantissa, exponent - 25);
}

// The least fp16 number that is not below value; the largest where there is none. value >= 0.
inline uint16_t halfAtLeast(double value) {
  int low = 0, high = 0x7BFF;
  while (low < high) {
    const int middle = (low + high) / 2;
    if (fromDevice(static_cast<uint16_t>(middle), Element::f16) >= value) {
      high = middle;
    } else {
      low = middle + 1;
    }
  }
  return static_cast<uint16_t>(low);
}

// Calls body(i) for all i < count on all cores.
template <class Body>
void parallelFor(int64_t count, Body body) {
  std::atomic<int64_t> next{0};
  std::vector<std::jthread> threads;
  for (unsigned t = 0; t < std::max(1u, std::thread::hardware_concurrency()); ++t) {
    threads.emplace_back([&] {
      for (int64_t i = next++; i < count; i = next++) body(i);
    });
  }
}

}  // namespace longsight::cuda::test
