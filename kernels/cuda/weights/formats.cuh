// The weight types in blocks: how a file has them and how the device has them.
//
// On the device a matrix is cut into tiles of 16 rows and these into units of 128 or 256 columns,
// one after the other. In a unit, lane 4 g + t of a warp owns columns [32 t, 32 t + 32) of each 128
// in the rows g and g + 8: with those 32 it fills its part of the 16-row operand of eight
// mma.m16n8k16, whose columns may be numbered at will as long as the other operand agrees. A unit
// is
//   codes    [128-half][row half][lane] 16 bytes: 4 bits a weight (8 bits: two such sections)
//   upper    [128-half][lane][row half] the bits of a code above the lower four
//   scales   as the type has them
// so a warp reads 16 bytes a lane, and the whole unit is one piece of memory.
#pragma once

#include <cuda_fp16.h>

#include <cstdint>

namespace longsight::cuda {

// Numbers of the ggml_type.
inline constexpr int32_t kTypeF32 = 0, kTypeF16 = 1, kTypeQ4_0 = 2, kTypeQ4_1 = 3, kTypeQ5_0 = 6,
                         kTypeQ5_1 = 7, kTypeQ8_0 = 8, kTypeQ4_K = 12, kTypeQ5_K = 13,
                         kTypeQ6_K = 14, kTypeIQ4_XS = 23, kTypeBF16 = 30;

inline constexpr int kTileRows = 16;
// Weights of a row that one lane owns in 128 columns.
inline constexpr int kGroup = 32;

// What turns a code into a value:
enum class Scales {
  half,         // an fp16 factor for 32 weights
  halfPair,     // factor and offset for 32 weights, fp16
  sixBit,       // for 256 weights fp16 factors d, dmin and eight 6-bit pairs: d s q - dmin m
  eightBit,     // for 256 weights an fp16 factor and sixteen signed bytes
  fourBitTable  // for 256 weights an fp16 factor and eight 6-bit numbers; codes index a table
};

// Facts about the blocks: ggml-common.h of ggml.
template <int32_t kType>
struct BlockFormat;

template <int kCodeBits_, int kBias_, Scales kScales_>
struct Blocks {
  static constexpr int kCodeBits = kCodeBits_;
  // Subtracted from a code.
  static constexpr int kBias = kBias_;
  static constexpr Scales kScales = kScales_;
  static constexpr bool kSuper = kScales != Scales::half && kScales != Scales::halfPair;
  static constexpr bool kHasOffset = kScales == Scales::halfPair || kScales == Scales::sixBit;

  // In the file.
  static constexpr int kBlockColumns = kSuper ? 256 : 32;
  static constexpr int kScaleBytes =  // of one block
      kScales == Scales::half       ? 2
      : kScales == Scales::halfPair ? 4
      : kScales == Scales::sixBit   ? 16
      : kScales == Scales::eightBit ? 18
                                    : 8;
  static constexpr int kBlockBytes = kBlockColumns * kCodeBits / 8 + kScaleBytes;

  // On the device.
  static constexpr int kUnitColumns = kSuper ? 256 : 128;
  static constexpr int kHalves = kUnitColumns / 128;
  static constexpr int kGroups = kUnitColumns / kGroup;
  static constexpr int kUpperBits = kCodeBits == 8 ? 0 : kCodeBits - 4;
  // Of one lane, both rows, in 128 columns.
  static constexpr int kUpperLaneBytes = 8 * kUpperBits;
  static constexpr int kUpperOffset = kHalves * (kCodeBits == 8 ? 2048 : 1024);
  static constexpr int kScalesOffset = kUpperOffset + kHalves * 32 * kUpperLaneBytes;
  static constexpr int kUnitBytes =
      kScalesOffset + kTileRows * (kUnitColumns / kBlockColumns) * kScaleBytes;
  static_assert(kUnitBytes == kTileRows * (kUnitColumns / kBlockColumns) * kBlockBytes);
  static_assert(kUnitBytes % 16 == 0);
};

template <>
struct BlockFormat<kTypeQ4_0> : Blocks<4, 8, Scales::half> {};
template <>
struct BlockFormat<kTypeQ4_1> : Blocks<4, 0, Scales::halfPair> {};
template <>
struct BlockFormat<kTypeQ5_0> : Blocks<5, 16, Scales::half> {};
template <>
struct BlockFormat<kTypeQ5_1> : Blocks<5, 0, Scales::halfPair> {};
template <>
struct BlockFormat<kTypeQ8_0> : Blocks<8, 0, Scales::half> {};
template <>
struct BlockFormat<kTypeQ4_K> : Blocks<4, 0, Scales::sixBit> {};
template <>
struct BlockFormat<kTypeQ5_K> : Blocks<5, 0, Scales::sixBit> {};
template <>
struct BlockFormat<kTypeQ6_K> : Blocks<6, 32, Scales::eightBit> {};
template <>
struct BlockFormat<kTypeIQ4_XS> : Blocks<4, 0, Scales::fourBitTable> {};

// Calls body.operator()<kType>() for a type in blocks; false when the type is none.
template <class Body>
bool dispatchBlocks(int32_t type, Body&& body) {
  switch (type) {
    case kTypeQ4_0:
      body.template operator()<kTypeQ4_0>();
      return true;
    case kTypeQ4_1:
      body.template operator()<kTypeQ4_1>();
      return true;
    case kTypeQ5_0:
      body.template operator()<kTypeQ5_0>();
      return true;
    case kTypeQ5_1:
      body.template operator()<kTypeQ5_1>();
      return true;
    case kTypeQ8_0:
      body.template operator()<kTypeQ8_0>();
      return true;
    case kTypeQ4_K:
      body.template operator()<kTypeQ4_K>();
      return true;
    case kTypeQ5_K:
      body.template operator()<kTypeQ5_K>();
      return true;
    case kTypeQ6_K:
      body.template operator()<kTypeQ6_K>();
      return true;
    case kTypeIQ4_XS:
      body.template operator()<kTypeIQ4_XS>();
      return true;
    default:
      return false;
  }
}

// Elements that are not in blocks.
inline int plainElementBytes(int32_t type) {
  return type == kTypeF32 ? 4 : type == kTypeF16 || type == kTypeBF16 ? 2 : 0;
}

}  // namespace longsight::cuda
