// The compiler's base target (SSE2, NEON, ...) through its vector extension: 4 rows x 8 columns.
#include "kernels/cpu/attention/blocked.h"

namespace longsight {
namespace {

struct Portable {
  typedef float Type __attribute__((vector_size(16)));
  typedef uint32_t Bits __attribute__((vector_size(16)));
  static constexpr int kLanes = 4;

  static Type load(const float* p) {
    Type v;
    std::memcpy(&v, p, sizeof(v));
    return v;
  }
  static void store(float* p, Type v) { std::memcpy(p, &v, sizeof(v)); }
  static Type broadcast(float x) { return Type{x, x, x, x}; }
  static Type zero() { return Type{}; }
  static Type add(Type a, Type b) { return a + b; }
  static Type subtract(Type a, Type b) { return a - b; }
  static Type multiply(Type a, Type b) { return a * b; }
  static Type multiplyAdd(Type a, Type b, Type c) { return a * b + c; }
  static Type max(Type a, Type b) { return a > b ? a : b; }

  static Type power2(Type t) {
    Bits bits;
    std::memcpy(&bits, &t, sizeof(bits));
    bits = (bits << 23) + (127u << 23);
    std::memcpy(&t, &bits, sizeof(t));
    return t;
  }
  static float horizontalMax(Type v) {
    const float a = v[0] > v[1] ? v[0] : v[1];
    const float b = v[2] > v[3] ? v[2] : v[3];
    return a > b ? a : b;
  }
  static float horizontalSum(Type v) { return (v[0] + v[2]) + (v[1] + v[3]); }

  static Type loadBf16(const uint16_t* p) {
    return Type{bf16ToFloat(p[0]), bf16ToFloat(p[1]), bf16ToFloat(p[2]), bf16ToFloat(p[3])};
  }
  static Type loadIntegers(const int8_t* p) {
    return Type{static_cast<float>(p[0]), static_cast<float>(p[1]), static_cast<float>(p[2]),
                static_cast<float>(p[3])};
  }
  static float halfToFloat(uint16_t half) {
    const uint32_t exponent = half >> 10 & 0x1f;
    const uint32_t fraction = half & 0x3ff;
    // The scales of stored rows are finite and not negative.
    if (exponent == 0) return static_cast<float>(fraction) * 0x1p-24f;
    const uint32_t bits = (exponent + 112) << 23 | fraction << 13;
    float value;
    std::memcpy(&value, &bits, sizeof(value));
    return value;
  }

  template <typename Element>
  static void transposePanel(const Element* const* rows, DimRanges dims, float* packed) {
    for (const DimRange& range : dims.ranges) {
      for (int32_t dim = range.begin; dim < range.end; ++dim) {
        for (int i = 0; i < 2 * kLanes; ++i) {
          *packed++ = rows[i] != nullptr ? wide(rows[i][dim]) : 0.0f;
        }
      }
    }
  }
};

constexpr AttentionKernels kKernels = Blocked<Portable, 4>::table(InstructionSet::portable);

}  // namespace

const AttentionKernels* portableAttentionKernels() { return &kKernels; }

}  // namespace longsight
