// Units of weights in shared memory as the 16-row operand of mma.m16n8k16, for each type.
//
// A reader copies a unit to shared memory by cp.async and hands out, for a piece of 8 columns of a
// lane, four pairs of elements of row g and four of row g + 8 (g = lane / 4). Instructions of a
// weight, without the loads: Q4_K 1.9, Q5_K 2.4, Q6_K 2.3, Q8_0 1.8, IQ4_XS 3.1; at 2.9 TB/s and
// 132 processors of 1.7 GHz there is time for 5.6 at 4.5 bits a weight, 10 at 8.5.
#pragma once

#include <type_traits>

#include "device/mma_sm80.cuh"
#include "weights/groups.cuh"
#include "weights/matrix_layout.h"

namespace longsight::cuda {

// Weights are multiplied by this on their way to fp16, so that the factors of small weights do not
// become subnormal; those above 4,000 would overflow.
inline constexpr float kWeightScale = 16.0f;

__device__ __forceinline__ uint32_t asBits(__half2 pair) {
  return reinterpret_cast<const uint32_t&>(pair);
}
__device__ __forceinline__ __half2 asHalf2(uint32_t bits) {
  return reinterpret_cast<const __half2&>(bits);
}
__device__ __forceinline__ __half2 bothHalves(float value) {
  return __half2half2(__float2half_rn(value));
}
// (bits & mask) | raised in one instruction: with two constants the compiler makes it two.
__device__ __forceinline__ uint32_t maskAndRaise(uint32_t bits, uint32_t mask, uint32_t raised) {
  uint32_t result;
  asm("lop3.b32 %0, %1, %2, %3, 0xEA;" : "=r"(result) : "r"(bits), "r"(mask), "r"(raised));
  return result;
}
// A constant that stays in a register.
__device__ __forceinline__ uint32_t registerOf(uint32_t value) {
  asm volatile("" : "+r"(value));
  return value;
}
__device__ __forceinline__ uint32_t wordOf(const uint4& words, int i) {
  return i == 0 ? words.x : i == 1 ? words.y : i == 2 ? words.z : words.w;
}

// Copies 16 bytes of weights to shared memory, zeros when not valid. They are read once a step, so
// they are the first to leave the level-2 cache, which would otherwise lose what every launch needs
// again: its instructions, activations, norms.
__device__ __forceinline__ void copyWeights16(uint32_t target, const void* source, bool valid) {
  uint64_t policy;
  asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
  asm volatile(
      "cp.async.cg.shared.global.L2::cache_hint.L2::128B [%0], [%1], 16, %2, %3;" ::"r"(target),
      "l"(source), "r"(valid ? 16 : 0), "l"(policy)
      : "memory");
}

// Where a matrix lies, for the readers.
struct MatrixSource {
  const char* data;
  int32_t rows;
  int32_t columns;
};

template <int32_t kType>
struct BlockReader {
  using F = BlockFormat<kType>;
  using Operand = F16;
  static constexpr int kUnitBytes = F::kUnitBytes;
  // Columns that are cut from others only together, and units of them.
  static constexpr int kBlockColumns = F::kUnitColumns;
  static constexpr int kUnitsPerBlock = 1;
  static constexpr int kPieces = F::kHalves * 4;
  static constexpr float kScale = kWeightScale;

  static __device__ __forceinline__ void copyUnit(uint32_t target, const MatrixSource& source,
                                                  int tile, int unit, int lane) {
    const char* from = source.data + unitOffset<F>(source.columns, tile, unit) + lane * 16;
    constexpr int kCopies = kUnitBytes / 16;
#pragma unroll
    for (int i = 0; i < kCopies; i += 32) {
      if (i + 32 <= kCopies || lane < kCopies - i) {
        copyWeights16(target + (i + lane) * 16, from + i * 16, true);
      }
    }
  }

  const char* unit;
  int lane;
  // Of the current 128 columns, by row half.
  uint4 codes[2][F::kCodeBits == 8 ? 2 : 1];
  uint32_t upper[2][F::kUpperBits == 0 ? 1 : F::kUpperBits];
  __half2 factor[2][F::kScales == Scales::eightBit ? 2 : 1];
  __half2 offset[2];

  uint32_t raised;

  __device__ __forceinline__ BlockReader(const char* unit, int lane)
      : unit(unit), lane(lane), raised(registerOf(0x64006400u)) {}

  __device__ __forceinline__ void loadHalf(int half) {
#pragma unroll
    for (int rowHalf = 0; rowHalf < 2; ++rowHalf) {
      const GroupPlace place{lane, rowHalf, half};
      const int row = lane / 4 + 8 * rowHalf;
      const char* at = unit + codesOffset<F>(place);
      codes[rowHalf][0] = *reinterpret_cast<const uint4*>(at);
      if constexpr (F::kCodeBits == 8) {
        codes[rowHalf][1] = *reinterpret_cast<const uint4*>(at + 512);
      }
      const char* scales = unit + scalesOffset<F>(place, row);
      if constexpr (F::kScales == Scales::half) {
        factor[rowHalf][0] = __hmul2(__half2half2(*reinterpret_cast<const __half*>(scales)),
                                     bothHalves(kWeightScale));
      } else if constexpr (F::kScales == Scales::halfPair) {
        const __half2 pair =
            __hmul2(*reinterpret_cast<const __half2*>(scales), bothHalves(kWeightScale));
        factor[rowHalf][0] = __low2half2(pair);
        offset[rowHalf] = __high2half2(pair);
      } else if constexpr (F::kScales == Scales::sixBit) {
        const uint4 record = *reinterpret_cast<const uint4*>(scales);
        // group = 4 half + t; half is known at compile time.
        const int shift = lane % 4 * 8;
        const uint32_t a = record.y >> shift, b = record.z >> shift, c = record.w >> shift;
        const uint32_t s = half == 0 ? a & 63 : (c & 15) | (a >> 2 & 48);
        const uint32_t m = half == 0 ? b & 63 : (c >> 4 & 15) | (b >> 2 & 48);
        const float2 d = __half22float2(asHalf2(record.x));
        factor[rowHalf][0] = bothHalves(d.x * kWeightScale * static_cast<float>(s));
        offset[rowHalf] = bothHalves(d.y * -kWeightScale * static_cast<float>(m));
      } else if constexpr (F::kScales == Scales::eightBit) {
        const float d =
            kWeightScale *
            __half2float(*reinterpret_cast<const __half*>(unit + rowFactorOffset<F>(row)));
        const char2 bytes = *reinterpret_cast<const char2*>(scales);
        factor[rowHalf][0] = bothHalves(d * static_cast<float>(bytes.x));
        factor[rowHalf][1] = bothHalves(d * static_cast<float>(bytes.y));
      } else {
        const uint2 record = *reinterpret_cast<const uint2*>(scales);
        factor[rowHalf][0] =
            bothHalves(kWeightScale * halfBits(record.x) *
                       static_cast<float>(tableFactor(record, half * 4 + lane % 4)));
      }
    }
    if constexpr (F::kUpperBits > 0) {
      const char* at = unit + upperOffset<F>({lane, 0, half});
      if constexpr (F::kUpperBits == 1) {
        const uint2 both = *reinterpret_cast<const uint2*>(at);
        upper[0][0] = both.x;
        upper[1][0] = both.y;
      } else {
        const uint4 both = *reinterpret_cast<const uint4*>(at);
        upper[0][0] = both.x;
        upper[0][1] = both.y;
        upper[1][0] = both.z;
        upper[1][1] = both.w;
      }
    }
  }

  // A code in the lowest bits of the fp16 number 1024 reads as 1024 + code; four bits higher as
  // 1024 + 16 code.
  __device__ __forceinline__ __half2 scaled(__half2 integer, int rowHalf, int piece) const {
    if constexpr (F::kHasOffset) {
      return __hfma2(integer, factor[rowHalf][0], offset[rowHalf]);
    } else {
      return __hmul2(integer, factor[rowHalf][F::kScales == Scales::eightBit ? piece / 2 : 0]);
    }
  }

  // Two pairs from four bytes that hold integers with 128 added.
  __device__ __forceinline__ void pairsOfBytes(uint32_t bytes, int rowHalf, int piece,
                                               uint32_t* pairs) const {
    const __half2 less = __half2half2(__ushort_as_half(0xE480));  // -1152
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const uint32_t raised = __byte_perm(bytes, 0x64646464u, i == 0 ? 0x4140 : 0x4342);
      pairs[i] = asBits(scaled(__hadd2(asHalf2(raised), less), rowHalf, piece));
    }
  }

  // Pairs of the columns 8 piece .. 8 piece + 7 of the lane's 32; loadHalf comes first.
  __device__ __forceinline__ void pairs(int piece, int rowHalf, uint32_t (&pairs)[4]) const {
    piece %= 4;
    if constexpr (F::kCodeBits == 8) {
      const uint4& words = codes[rowHalf][piece / 2];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        pairsOfBytes(wordOf(words, piece % 2 * 2 + i) ^ 0x80808080u, rowHalf, piece, pairs + 2 * i);
      }
    } else if constexpr (F::kScales == Scales::fourBitTable) {
      const uint32_t word = wordOf(codes[rowHalf][0], piece);
      const uint32_t index = word & 0x77777777u;
      // Byte i of the one or of the other, by the upper bit of code i.
      const uint32_t side = (word >> 1 & 0x44444444u) | 0x32103210u;
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const uint32_t low = __byte_perm(kTable[0], kTable[1], index >> (16 * i));
        const uint32_t high = __byte_perm(kTable[2], kTable[3], index >> (16 * i));
        pairsOfBytes(__byte_perm(low, high, side >> (16 * i)), rowHalf, piece, pairs + 2 * i);
      }
    } else {
      const uint32_t word = wordOf(codes[rowHalf][0], piece);
      const __half2 less = __float2half2_rn(-1024.0f - F::kBias);
      const __half2 lessShifted = __float2half2_rn(-64.0f - F::kBias);
      const __half2 sixteenth = __float2half2_rn(0.0625f);
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const uint32_t shifted = word >> (8 * i);
        uint32_t even = maskAndRaise(shifted, 0x000F000Fu, raised);
        uint32_t odd = maskAndRaise(shifted, 0x00F000F0u, raised);
        if constexpr (F::kUpperBits > 0) {
          const int twoPairs = piece * 2 + i;
          const uint32_t bits = upper[rowHalf][F::kUpperBits == 1 ? 0 : twoPairs / 4];
          // Bit of the first of the two pairs, which has to come to bit 4.
          const int at = upperShift<F>(4 * twoPairs);
          const uint32_t moved = at <= 4 ? bits << (4 - at) : bits >> (at - 4);
          even = maskAndRaise(moved, F::kUpperBits == 1 ? 0x00100010u : 0x00300030u, even);
          odd = maskAndRaise(moved, F::kUpperBits == 1 ? 0x01000100u : 0x03000300u, odd);
        }
        pairs[2 * i] = asBits(scaled(__hadd2(asHalf2(even), less), rowHalf, piece));
        pairs[2 * i + 1] =
            asBits(scaled(__hfma2(asHalf2(odd), sixteenth, lessShifted), rowHalf, piece));
      }
    }
  }

  // Which 8 columns of all of a row, counted in pieces by lane: 128-column block and piece of it.
  static __device__ __forceinline__ int block128(int unit, int piece) {
    return unit * F::kHalves + piece / 4;
  }
  static __device__ __forceinline__ int pieceOfBlock(int, int piece) { return piece % 4; }
};

// F16, BF16 and F32 lie row by row. A unit is 16 rows x 128 columns, of F32 half of every 32.
template <int32_t kType>
struct PlainReader {
  using Operand = std::conditional_t<kType == kTypeF16, F16, Bf16>;
  static constexpr bool kWide = kType == kTypeF32;
  static constexpr int kUnitBytes = 4096;
  static constexpr int kBlockColumns = 128;
  static constexpr int kUnitsPerBlock = kWide ? 2 : 1;
  static constexpr int kPieces = kWide ? 2 : 4;
  static constexpr float kScale = 1.0f;

  // Byte offset of 16-byte piece `piece` of what lane 4 g + t holds of a row: permuted so that the
  // 8 lanes that read at a time meet 8 different groups of banks.
  static __device__ __forceinline__ int pieceOffset(int row, int t, int piece) {
    const int permuted = kWide ? piece ^ t ^ (row & 1) : piece ^ (t >> 1) ^ ((row & 1) << 1);
    return row * 256 + t * 64 + permuted * 16;
  }

  static __device__ __forceinline__ void copyUnit(uint32_t target, const MatrixSource& source,
                                                  int tile, int unit, int lane) {
    constexpr int kElementBytes = kWide ? 4 : 2;
    constexpr int kElements = 16 / kElementBytes;
    const int t = lane % 16 / 4, piece = lane % 4;
    const int column = kWide ? unit / 2 * 128 + t * 32 + unit % 2 * 16 + piece * kElements
                             : unit * 128 + t * 32 + piece * kElements;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const int rowOfTile = 2 * i + lane / 16;
      const int row = tile * kTileRows + rowOfTile;
      const bool valid = row < source.rows && column < source.columns;
      const int64_t element = valid ? int64_t{row} * source.columns + column : 0;
      copyWeights16(target + pieceOffset(rowOfTile, t, piece),
                    source.data + element * kElementBytes, valid);
    }
  }

  const char* unit;
  int lane;
  __device__ __forceinline__ PlainReader(const char* unit, int lane) : unit(unit), lane(lane) {}
  __device__ __forceinline__ void loadHalf(int) {}

  __device__ __forceinline__ void pairs(int piece, int rowHalf, uint32_t (&pairs)[4]) const {
    const int row = lane / 4 + 8 * rowHalf, t = lane % 4;
    if constexpr (kWide) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const float4 v =
            *reinterpret_cast<const float4*>(unit + pieceOffset(row, t, 2 * piece + i));
        pairs[2 * i] = packPair<Bf16>(v.x, v.y);
        pairs[2 * i + 1] = packPair<Bf16>(v.z, v.w);
      }
    } else {
      const uint4 v = *reinterpret_cast<const uint4*>(unit + pieceOffset(row, t, piece));
      pairs[0] = v.x;
      pairs[1] = v.y;
      pairs[2] = v.z;
      pairs[3] = v.w;
    }
  }

  static __device__ __forceinline__ int block128(int unit, int) { return kWide ? unit / 2 : unit; }
  static __device__ __forceinline__ int pieceOfBlock(int unit, int piece) {
    return kWide ? unit % 2 * 2 + piece : piece;
  }
};

template <int32_t kType>
using UnitReader = std::conditional_t<kType == kTypeF32 || kType == kTypeF16 || kType == kTypeBF16,
                                      PlainReader<kType>, BlockReader<kType>>;

}  // namespace longsight::cuda
