// One group, 32 weights of one row, at its place in a unit: written from codes and scales, read as
// floats. The products of few rows have a faster way to read (fragments.cuh).
#pragma once

#include "weights/formats.cuh"

namespace longsight::cuda {

// Where group `group` of row `row` of a tile lies.
struct GroupPlace {
  int lane;
  // 0: rows 0 to 7 of the tile, 1: the others.
  int rowHalf;
  // Which 128 columns of the unit.
  int half;
};

__host__ __device__ constexpr GroupPlace groupPlace(int row, int group) {
  return {row % 8 * 4 + group % 4, row / 8, group / 4};
}

// Bit of a 4-bit code in its word of 8 weights. Codes that a table translates are in order; others
// so that masks give pairs of neighbours in the halves of a word.
template <class F>
__host__ __device__ constexpr int codeShift(int weight) {
  return F::kScales == Scales::fourBitTable ? 4 * weight : weight / 2 * 4 + weight % 2 * 16;
}

// Bit of the upper bits of weight `weight` of a group in their word: neighbouring pairs are 4 bits
// apart, so that one shift serves two pairs.
template <class F>
__host__ __device__ constexpr int upperShift(int weight) {
  const int pair = weight / 2;
  const int side = pair % 2 * 4 + weight % 2 * 16;
  const int twoPairs = pair / 2;
  if constexpr (F::kUpperBits == 1) {
    return twoPairs % 4 + twoPairs / 4 * 8 + side;
  } else {
    return twoPairs % 2 * 2 + twoPairs / 2 % 2 * 8 + side;
  }
}

// Byte offset of the lower codes in the unit; with 8 bits a group has a second piece 512 bytes on.
template <class F>
__host__ __device__ constexpr int codesOffset(const GroupPlace& place) {
  const int section = place.half * 2 + place.rowHalf;
  return (section * (F::kCodeBits == 8 ? 64 : 32) + place.lane) * 16;
}

template <class F>
__host__ __device__ constexpr int upperOffset(const GroupPlace& place) {
  return F::kUpperOffset + (place.half * 32 + place.lane) * F::kUpperLaneBytes +
         place.rowHalf * F::kUpperLaneBytes / 2;
}

// The scales of the group, or those of its row where 256 weights share them.
template <class F>
__host__ __device__ constexpr int scalesOffset(const GroupPlace& place, int row) {
  if constexpr (!F::kSuper) {
    return F::kScalesOffset + (place.lane * 2 + place.rowHalf) * F::kScaleBytes;
  } else if constexpr (F::kScales == Scales::eightBit) {
    return F::kScalesOffset + place.lane * 8 + place.half * 4 + place.rowHalf * 2;
  } else {
    return F::kScalesOffset + row * F::kScaleBytes;
  }
}

// The fp16 factor of a row's 256 weights with Scales::eightBit.
template <class F>
__host__ __device__ constexpr int rowFactorOffset(int row) {
  return F::kScalesOffset + 256 + row % 8 * 4 + row / 8 * 2;
}

template <class F>
__device__ void writeCodes(char* unit, const GroupPlace& place, const uint8_t (&codes)[kGroup]) {
  if constexpr (F::kCodeBits == 8) {
#pragma unroll
    for (int piece = 0; piece < 2; ++piece) {
      uint32_t words[4] = {};
#pragma unroll
      for (int i = 0; i < 16; ++i) {
        words[i / 4] |= uint32_t{codes[16 * piece + i]} << (i % 4 * 8);
      }
      *reinterpret_cast<uint4*>(unit + codesOffset<F>(place) + 512 * piece) =
          make_uint4(words[0], words[1], words[2], words[3]);
    }
  } else {
    uint32_t words[4] = {};
#pragma unroll
    for (int i = 0; i < kGroup; ++i) {
      words[i / 8] |= uint32_t{codes[i] & 15u} << codeShift<F>(i % 8);
    }
    *reinterpret_cast<uint4*>(unit + codesOffset<F>(place)) =
        make_uint4(words[0], words[1], words[2], words[3]);
  }
  if constexpr (F::kUpperBits > 0) {
    uint32_t words[F::kUpperBits] = {};
#pragma unroll
    for (int i = 0; i < kGroup; ++i) {
      words[F::kUpperBits == 1 ? 0 : i / 16] |= uint32_t(codes[i] >> 4) << upperShift<F>(i);
    }
#pragma unroll
    for (int i = 0; i < F::kUpperBits; ++i) {
      reinterpret_cast<uint32_t*>(unit + upperOffset<F>(place))[i] = words[i];
    }
  }
}

template <class F>
__device__ void readCodes(const char* unit, const GroupPlace& place, uint8_t (&codes)[kGroup]) {
  const uint4 first = *reinterpret_cast<const uint4*>(unit + codesOffset<F>(place));
  if constexpr (F::kCodeBits == 8) {
    const uint4 second = *reinterpret_cast<const uint4*>(unit + codesOffset<F>(place) + 512);
    const uint32_t words[8] = {first.x,  first.y,  first.z,  first.w,
                               second.x, second.y, second.z, second.w};
#pragma unroll
    for (int i = 0; i < kGroup; ++i) codes[i] = words[i / 4] >> (i % 4 * 8);
  } else {
    const uint32_t words[4] = {first.x, first.y, first.z, first.w};
#pragma unroll
    for (int i = 0; i < kGroup; ++i) codes[i] = words[i / 8] >> codeShift<F>(i % 8) & 15;
  }
  if constexpr (F::kUpperBits > 0) {
    uint32_t words[F::kUpperBits];
#pragma unroll
    for (int i = 0; i < F::kUpperBits; ++i) {
      words[i] = reinterpret_cast<const uint32_t*>(unit + upperOffset<F>(place))[i];
    }
    constexpr uint32_t kMask = (1 << F::kUpperBits) - 1;
#pragma unroll
    for (int i = 0; i < kGroup; ++i) {
      const uint32_t word = words[F::kUpperBits == 1 ? 0 : i / 16];
      codes[i] |= (word >> upperShift<F>(i) & kMask) << 4;
    }
  }
}

// The 6-bit factor and offset of group `group` of 256 weights; 12 bytes from the row's record.
struct SixBitPair {
  uint32_t factor, offset;
};
__device__ __forceinline__ SixBitPair sixBitPair(const uint4& record, int group) {
  const int shift = group % 4 * 8;
  const uint32_t a = record.y >> shift, b = record.z >> shift, c = record.w >> shift;
  if (group < 4) return {a & 63, b & 63};
  return {(c & 15) | (a >> 2 & 48), (c >> 4 & 15) | (b >> 2 & 48)};
}

// The signed 6-bit number of group `group` of a record of Scales::fourBitTable.
__device__ __forceinline__ int tableFactor(const uint2& record, int group) {
  const uint32_t low = record.y >> (4 * group) & 15;
  const uint32_t high = record.x >> (16 + 2 * group) & 3;
  return static_cast<int>(low | high << 4) - 32;
}

__device__ __forceinline__ float halfBits(uint32_t bits) {
  return __half2float(__ushort_as_half(static_cast<unsigned short>(bits)));
}

// What codes of Scales::fourBitTable stand for, 128 added; sixteen bytes.
inline constexpr uint32_t kTable[4] = {0x3F2D1801, 0x766A5D4F, 0xA6998D81, 0xF1D9C5B5};

// The weights with the operations of ggml's dequantize_row_*, in their order and each rounded, so
// that the bits are equal.
template <class F>
__device__ void readGroup(const char* unit, int row, int group, float (&values)[kGroup]) {
  const GroupPlace place = groupPlace(row, group);
  uint8_t codes[kGroup];
  readCodes<F>(unit, place, codes);
  const char* scales = unit + scalesOffset<F>(place, row);
  float factors[2];
  float offset = 0.0f;  // added
  if constexpr (F::kScales == Scales::half) {
    factors[0] = factors[1] = halfBits(*reinterpret_cast<const uint16_t*>(scales));
  } else if constexpr (F::kScales == Scales::halfPair) {
    const uint32_t pair = *reinterpret_cast<const uint32_t*>(scales);
    factors[0] = factors[1] = halfBits(pair);
    offset = halfBits(pair >> 16);
  } else if constexpr (F::kScales == Scales::sixBit) {
    const uint4 record = *reinterpret_cast<const uint4*>(scales);
    const SixBitPair pair = sixBitPair(record, group);
    factors[0] = factors[1] = __fmul_rn(halfBits(record.x), static_cast<float>(pair.factor));
    offset = -__fmul_rn(halfBits(record.x >> 16), static_cast<float>(pair.offset));
  } else if constexpr (F::kScales == Scales::eightBit) {
    const float d = halfBits(*reinterpret_cast<const uint16_t*>(unit + rowFactorOffset<F>(row)));
    const auto* bytes = reinterpret_cast<const int8_t*>(scales);
    factors[0] = __fmul_rn(d, static_cast<float>(bytes[0]));
    factors[1] = __fmul_rn(d, static_cast<float>(bytes[1]));
  } else {
    const uint2 record = *reinterpret_cast<const uint2*>(scales);
    factors[0] = factors[1] =
        __fmul_rn(halfBits(record.x), static_cast<float>(tableFactor(record, group)));
  }
#pragma unroll
  for (int i = 0; i < kGroup; ++i) {
    int integer;
    if constexpr (F::kCodeBits == 8) {
      integer = static_cast<int8_t>(codes[i]);
    } else if constexpr (F::kScales == Scales::fourBitTable) {
      const uint32_t low = __byte_perm(kTable[0], kTable[1], codes[i] & 7);
      const uint32_t high = __byte_perm(kTable[2], kTable[3], codes[i] & 7);
      integer = static_cast<int>((codes[i] < 8 ? low : high) & 255) - 128;
    } else {
      integer = codes[i] - F::kBias;
    }
    values[i] = __fmul_rn(factors[i / 16], static_cast<float>(integer));
    if constexpr (F::kHasOffset) values[i] = __fadd_rn(values[i], offset);
  }
}

}  // namespace longsight::cuda
