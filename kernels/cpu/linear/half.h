// fp16 as weights hold it. Unnamed namespace: see expand.h.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__F16C__)
#include <immintrin.h>
#endif

namespace longsight {
namespace {

inline uint16_t loadHalfBits(const uint8_t* source) {
  uint16_t bits;
  std::memcpy(&bits, source, sizeof(bits));
  return bits;
}

inline float halfToFloat(uint16_t bits) {
#if defined(__F16C__)
  return _cvtsh_ss(bits);
#else
  // Normal numbers move their exponent from bias 15 to 127 by a product with 2^112, which also
  // makes normal numbers of subnormal ones.
  const uint32_t sign = static_cast<uint32_t>(bits & 0x8000u) << 16;
  const uint32_t rest = static_cast<uint32_t>(bits & 0x7fffu) << 13;
  uint32_t raw = rest;
  float value;
  std::memcpy(&value, &raw, sizeof(value));
  value *= 0x1p112f;
  std::memcpy(&raw, &value, sizeof(raw));
  raw |= sign | (rest >= 0x0f800000u ? 0x7f800000u : 0u);  // infinity, NaN
  std::memcpy(&value, &raw, sizeof(value));
  return value;
#endif
}

inline float loadHalf(const uint8_t* source) { return halfToFloat(loadHalfBits(source)); }

}  // namespace
}  // namespace longsight
