// AVX512_VNNI: products of integer weights for a few rows of activations, as decoding has them.
// Weights are read once in the order of the file, four of their rows at a time; rows of
// activations come as rounded_block.h has them, spread out so that 64 columns are four vectors.
#include <immintrin.h>

#include "kernels/cpu/linear/few_rows.h"
#include "kernels/cpu/linear/integers.h"
#include "kernels/cpu/linear/rounded_block.h"

namespace longsight {
namespace {

constexpr int kPair = 2 * kBlock;
// Weights are unpacked this many columns and rows at a time: a multiple of the largest block of a
// type, and little enough for the first-level cache.
constexpr int kChunk = 768;
constexpr int kWeightRows = 4;
constexpr int kChunkBlocks = kChunk / kBlock;

// Two blocks of activations; numbers of a block are in the half of its integers.
struct alignas(64) FewPair {
  int8_t low[kPair];
  int8_t high[kPair];  // zero outside of the wide groups
  int32_t start[16];   // what the bias of the weights adds, in the first lane
  float scale[16];
};

bool takes(int32_t ggmlType) { return integerType(ggmlType).unpack != nullptr; }

int64_t pairsOf(int64_t columns) { return (columns + kPair - 1) / kPair; }
int64_t chunksOf(int64_t columns) { return (columns + kChunk - 1) / kChunk; }

// Pairs, then the sum of the values of each block.
int64_t rowBytes(int64_t columns) {
  const int64_t sums = chunksOf(columns) * kChunkBlocks * static_cast<int64_t>(sizeof(float));
  return (pairsOf(columns) * static_cast<int64_t>(sizeof(FewPair)) + sums + 63) / 64 * 64;
}

const float* sumsOf(const void* packed, int64_t columns) {
  return reinterpret_cast<const float*>(static_cast<const FewPair*>(packed) + pairsOf(columns));
}

void packRow(const float* source, int64_t columns, void* target) {
  __builtin_memset(target, 0, static_cast<size_t>(rowBytes(columns)));
  auto* pairs = static_cast<FewPair*>(target);
  auto* sums = const_cast<float*>(sumsOf(target, columns));
  for (int64_t i = 0; i < columns / kBlock; ++i) {
    RoundedBlock block;
    roundBlock(source + i * kBlock, block);
    FewPair& pair = pairs[i / 2];
    const int half = static_cast<int>(i % 2);
    __builtin_memcpy(pair.low + kBlock * half, block.low, kBlock);
    for (int wide = 0; wide < kWideGroups; ++wide) {
      __builtin_memcpy(pair.high + kBlock * half + kGroup * block.group[wide], &block.high[wide],
                       kGroup);
    }
    pair.start[8 * half] = block.negatedSum;
    for (int lane = 0; lane < 8; ++lane) pair.scale[8 * half + lane] = block.scale;
    sums[i] = block.valueSum;
  }
}

// Up to kChunk columns of kWeightRows rows of weights.
struct alignas(64) Unpacked {
  uint8_t integers[kWeightRows][kChunk];
  float scales[kWeightRows][kChunkBlocks];
  float minima[kWeightRows][kChunkBlocks];
};

// The dot products of kWeightRows rows of weights with `Rows` of activations. Each is one chain of
// additions, whatever `Rows` is.
template <int Rows>
void dot(const FewProduct& product, const IntegerType& type, const uint8_t* const* weights,
         int64_t firstOutput, __mmask8 outputs) {
  const int64_t blockColumns = product.blockColumns;
  __m512 sum[Rows][kWeightRows];
  __m512 minimumSum[Rows][kWeightRows];
  for (int r = 0; r < Rows; ++r) {
    for (int w = 0; w < kWeightRows; ++w) {
      sum[r][w] = _mm512_setzero_ps();
      minimumSum[r][w] = _mm512_setzero_ps();
    }
  }
  Unpacked unpacked;
  for (int64_t column = 0; column < product.columns; column += kChunk) {
    const int64_t left = product.columns - column;
    const int64_t count = left < kChunk ? left : kChunk;
    const int64_t offset = column / blockColumns * product.blockBytes;
    const int64_t bytes = count / blockColumns * product.blockBytes;
    for (int w = 0; w < kWeightRows; ++w) {
      const uint8_t* source = weights[w] + offset;
      // The same part of the rows that come next: four streams are too many for the hardware.
      for (int64_t at = 0; at < bytes; at += 64) {
        _mm_prefetch(
            reinterpret_cast<const char*>(source) + 2 * kWeightRows * product.weightRowBytes + at,
            _MM_HINT_T0);
      }
      type.unpack(source, count, {unpacked.integers[w], unpacked.scales[w], unpacked.minima[w]});
      // What stands behind the columns counts nothing.
      for (int64_t block = count / kBlock; block < kChunkBlocks; ++block) {
        unpacked.scales[w][block] = 0.0f;
        unpacked.minima[w][block] = 0.0f;
      }
    }
    const auto pairs = static_cast<int>(pairsOf(count));
    alignas(64) float scales[kChunkBlocks / 2][kWeightRows][16];
    for (int pair = 0; pair < pairs; ++pair) {
      for (int w = 0; w < kWeightRows; ++w) {
        const float* both = unpacked.scales[w] + 2 * pair;
        _mm512_store_ps(scales[pair][w],
                        _mm512_insertf32x8(_mm512_set1_ps(both[0]), _mm256_set1_ps(both[1]), 1));
      }
    }
    for (int r = 0; r < Rows; ++r) {
      const auto* a = static_cast<const FewPair*>(product.row(r)) + column / kPair;
      __m512 own[kWeightRows];
#pragma GCC unroll 4
      for (int w = 0; w < kWeightRows; ++w) own[w] = sum[r][w];
      for (int pair = 0; pair < pairs; ++pair, ++a) {
        const __m512i low = _mm512_load_si512(a->low), high = _mm512_load_si512(a->high);
        const __m512i start = _mm512_load_si512(a->start);
        const __m512 scale = _mm512_load_ps(a->scale);
#pragma GCC unroll 4
        for (int w = 0; w < kWeightRows; ++w) {
          const __m512i integers = _mm512_load_si512(unpacked.integers[w] + kPair * pair);
          __m512i products = _mm512_dpbusd_epi32(start, integers, high);
          products = _mm512_slli_epi32(products, kHighShift);
          products = _mm512_dpbusd_epi32(products, integers, low);
          own[w] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(products),
                                   _mm512_mul_ps(scale, _mm512_load_ps(scales[pair][w])), own[w]);
        }
      }
#pragma GCC unroll 4
      for (int w = 0; w < kWeightRows; ++w) sum[r][w] = own[w];
      if (!type.hasMinima) continue;
      for (int64_t block = 0; block < count / kBlock; block += 16) {
        const auto inChunk = static_cast<__mmask16>(
            kChunkBlocks - block >= 16 ? 0xffff : (1u << (kChunkBlocks - block)) - 1);
        const __m512 values = _mm512_maskz_loadu_ps(
            inChunk, sumsOf(product.row(r), product.columns) + column / kBlock + block);
#pragma GCC unroll 4
        for (int w = 0; w < kWeightRows; ++w) {
          const __m512 minima = _mm512_maskz_loadu_ps(inChunk, unpacked.minima[w] + block);
          minimumSum[r][w] = _mm512_fmadd_ps(values, minima, minimumSum[r][w]);
        }
      }
    }
  }
  for (int r = 0; r < Rows; ++r) {
    __m256 half[kWeightRows];
#pragma GCC unroll 4
    for (int w = 0; w < kWeightRows; ++w) {
      const __m512 whole = _mm512_add_ps(sum[r][w], minimumSum[r][w]);
      half[w] = _mm256_add_ps(_mm512_castps512_ps256(whole), _mm512_extractf32x8_ps(whole, 1));
    }
    const __m256 quarters =
        _mm256_hadd_ps(_mm256_hadd_ps(half[0], half[1]), _mm256_hadd_ps(half[2], half[3]));
    const __m128 results =
        _mm_add_ps(_mm256_castps256_ps128(quarters), _mm256_extractf128_ps(quarters, 1));
    _mm_mask_storeu_ps(product.out + r * product.outStride + firstOutput, outputs, results);
  }
}

void multiply(const FewProduct& product) {
  using Dot =
      void (*)(const FewProduct&, const IntegerType&, const uint8_t* const*, int64_t, __mmask8);
  static constexpr Dot dots[kMaxFewRows] = {dot<1>, dot<2>, dot<3>, dot<4>,
                                            dot<5>, dot<6>, dot<7>, dot<8>};
  const IntegerType type = integerType(product.ggmlType);
  for (int64_t first = 0; first < product.weightRows; first += kWeightRows) {
    const int64_t left = product.weightRows - first;
    const uint8_t* weights[kWeightRows];
    for (int w = 0; w < kWeightRows; ++w) {
      const int64_t row = first + (w < left ? w : left - 1);
      weights[w] = reinterpret_cast<const uint8_t*>(product.weights) + row * product.weightRowBytes;
    }
    const int outputs = left < kWeightRows ? (1 << left) - 1 : (1 << kWeightRows) - 1;
    dots[product.rows - 1](product, type, weights, first, static_cast<__mmask8>(outputs));
  }
}

}  // namespace

const FewRowKernels* avx512vnniFewRowKernels() {
  static constexpr FewRowKernels kernels = {
      .takes = takes, .rowBytes = rowBytes, .packRow = packRow, .multiply = multiply};
  return &kernels;
}

}  // namespace longsight
