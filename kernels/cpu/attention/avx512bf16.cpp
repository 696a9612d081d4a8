// AVX512_BF16: queries, keys, values and weights in bf16, sums in f32 by vdpbf16ps, which adds two
// products to each of 16 sums. A block is 6 rows x 64 columns in 24 of 32 registers.
//
// Queries are packed [row][dim], keys [dim pair][64 columns][2], values in chunks of 64 dims as
// [column pair][dims of the chunk][2], weights [row][column]: both products are the same code.
// Unnamed namespace, no library code: see blocked.h.
#include <immintrin.h>

#include "kernels/cpu/attention/key_row.h"
#include "kernels/cpu/linear/transpose_avx512.h"

namespace longsight {
namespace {

constexpr int kRows = 6;
constexpr int kLanes = 16;
constexpr int kChunk = 64;
static_assert(kTileKeys == 64 && kDimMultiple == kLanes);
constexpr float kMinusInfinity = -__builtin_huge_valf();

// A row of weights takes the place of its scores.
constexpr int64_t kWeightStride = 2 * kTileKeys;

inline int32_t roundUpTo(int32_t value, int32_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

inline __mmask32 firstLanes(int32_t count) {
  if (count <= 0) return 0;
  return count >= 32 ? 0xffffffffu : (1u << count) - 1;
}

// Adding 1.5 * 2^23 leaves the nearest integer in the low bits.
constexpr float kRoundMagic = 12582912.0f;

// 2^x for x <= 0 (a rounding error above it does no harm); below 2^-125 where x is smaller. The
// polynomials meet 2^f in the Chebyshev nodes of [-0.5, 0.5]: relative errors 3e-7, and 1e-4 for
// what bf16 rounds by up to 4e-3 anyway. The exponent is added as an integer, and additions round,
// since multiplications are what the products need as well.
template <bool kForBf16>
inline __m512 exp2(__m512 x) {
  x = _mm512_max_ps(x, _mm512_set1_ps(-126.0f));
  const __m512 shifted = _mm512_add_ps(x, _mm512_set1_ps(kRoundMagic));
  const __m512 f = _mm512_sub_ps(x, _mm512_sub_ps(shifted, _mm512_set1_ps(kRoundMagic)));
  __m512 p;
  if constexpr (kForBf16) {
    p = _mm512_fmadd_ps(_mm512_set1_ps(0.0558382829f), f, _mm512_set1_ps(0.242639479f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(0.693136734f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(0.999924557f));
  } else {
    p = _mm512_fmadd_ps(_mm512_set1_ps(0.00133908633f), f, _mm512_set1_ps(0.00967603177f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(0.0555035695f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(0.240221068f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(0.693147182f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(1.00000012f));
  }
  const __m512i exponent = _mm512_slli_epi32(_mm512_castps_si512(shifted), 23);
  return _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(p), exponent));
}

// sums[row][16 columns] += a[row][pair] * b[pair][16 columns], over pairs of elements.
template <int kVectors>
inline __attribute__((always_inline)) void multiplyAccumulate(const uint16_t* a, int64_t aStride,
                                                              const uint16_t* b, int64_t bStride,
                                                              int32_t pairs,
                                                              __m512 (&sums)[kRows][kVectors]) {
#pragma GCC unroll 4
  for (int32_t pair = 0; pair < pairs; ++pair, a += 2, b += bStride) {
    __m512bh columns[kVectors];
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      columns[v] = (__m512bh)_mm512_loadu_si512(b + 2 * kLanes * v);
    }
#pragma GCC unroll 6
    for (int row = 0; row < kRows; ++row) {
      int32_t both;
      __builtin_memcpy(&both, a + row * aStride, sizeof(both));
      const auto scalars = (__m512bh)_mm512_set1_epi32(both);
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) {
        sums[row][v] = _mm512_dpbf16_ps(sums[row][v], scalars, columns[v]);
      }
    }
  }
}

// Scores before scaling of a block of rows, [row][kTileKeys].
template <int kVectors>
void score(const uint16_t* queries, int32_t pairs, const uint16_t* keys, float* scores) {
  __m512 sums[kRows][kVectors];
#pragma GCC unroll 6
  for (int row = 0; row < kRows; ++row) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) sums[row][v] = _mm512_setzero_ps();
  }
  multiplyAccumulate<kVectors>(queries, 2 * pairs, keys, 2 * kTileKeys, pairs, sums);
#pragma GCC unroll 6
  for (int row = 0; row < kRows; ++row) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      _mm512_storeu_ps(scores + row * kTileKeys + v * kLanes, sums[row][v]);
    }
  }
}

// Adds the weighted values of 16 * kVectors dims to the output of a block of rows.
template <int kVectors>
void addValues(const uint16_t* weights, const uint16_t* values, int32_t pairs, float* output,
               int64_t stride) {
  __m512 sums[kRows][kVectors];
#pragma GCC unroll 6
  for (int row = 0; row < kRows; ++row) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      sums[row][v] = _mm512_loadu_ps(output + row * stride + v * kLanes);
    }
  }
  multiplyAccumulate<kVectors>(weights, kWeightStride, values, 2 * kVectors * kLanes, pairs, sums);
#pragma GCC unroll 6
  for (int row = 0; row < kRows; ++row) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      _mm512_storeu_ps(output + row * stride + v * kLanes, sums[row][v]);
    }
  }
}

constexpr void (*kScore[])(const uint16_t*, int32_t, const uint16_t*, float*) = {
    score<1>, score<2>, score<3>, score<4>};
constexpr void (*kAddValues[])(const uint16_t*, const uint16_t*, int32_t, float*, int64_t) = {
    addValues<1>, addValues<2>, addValues<3>, addValues<4>};

void packQueries(const float* const* rows, int32_t blocks, DimRanges dims, float, void* target) {
  auto* packed = static_cast<uint16_t*>(target);
  const bool isOdd = dims.count() % 2 != 0;
  for (int32_t row = 0; row < blocks * kRows; ++row) {
    for (const DimRange& range : dims.ranges) {
      for (int32_t dim = range.begin; dim < range.end; dim += kLanes) {
        const int32_t count = range.end - dim < kLanes ? range.end - dim : kLanes;
        const auto mask = static_cast<__mmask16>(firstLanes(count));
        const __m512 values = rows[row] != nullptr ? _mm512_maskz_loadu_ps(mask, rows[row] + dim)
                                                   : _mm512_setzero_ps();
        _mm256_mask_storeu_epi16(packed, mask, (__m256i)_mm512_cvtneps_pbh(values));
        packed += count;
      }
    }
    if (isOdd) *packed++ = 0;
  }
}

void packFewQueries(const float* const* rows, int32_t count, int32_t headDim, float scale,
                    float* packed) {
  for (int32_t row = 0; row < count; ++row) {
    for (int32_t dim = 0; dim < headDim; dim += kLanes, packed += kLanes) {
      const __m256i rounded = (__m256i)_mm512_cvtneps_pbh(_mm512_loadu_ps(rows[row] + dim));
      const __m512i wide = _mm512_slli_epi32(_mm512_cvtepu16_epi32(rounded), 16);
      _mm512_storeu_ps(packed, _mm512_mul_ps(_mm512_castsi512_ps(wide), _mm512_set1_ps(scale)));
    }
  }
}

// A row of q8 rounded to bf16; values has room for kMaxHeadDim.
void round(const std::byte* row, int32_t headDim, uint16_t* values) {
  for (int32_t begin = 0; begin < headDim; begin += kQ8Block) {
    const __mmask32 inBlock = firstLanes(headDim - begin);
    const __m256i integers = _mm256_maskz_loadu_epi8(inBlock, integersOf(row) + begin);
    const __m512 scale = _mm512_set1_ps(_cvtsh_ss(halfScaleOf(row, headDim, begin)));
    const __m512 low = _mm512_mul_ps(
        _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm256_castsi256_si128(integers))), scale);
    const __m512 high = _mm512_mul_ps(
        _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm256_extracti128_si256(integers, 1))), scale);
    _mm512_storeu_si512(values + begin, (__m512i)_mm512_cvtne2ps_pbh(high, low));
  }
}

void packKeys(const KeyRows& keys, DimRanges dims, void* target) {
  const int32_t count = dims.count();
  const int32_t pairs = (count + 1) / 2;
  const DimRange first = dims.ranges[0];
  const DimRange second = dims.ranges[1];
  const int32_t firstCount = first.end - first.begin;
  uint16_t rounded[kLanes][kMaxHeadDim];
  for (int32_t key = 0; key < keys.count; key += kLanes) {
    const uint16_t* rows[kLanes] = {};
    for (int32_t i = 0; i < kLanes && key + i < keys.count; ++i) {
      const std::byte* row = keyRow(keys, key + i);
      rows[i] = bf16Of(row);
      if (keys.matrix.type == KvType::q8) {
        round(row, keys.matrix.headDim, rounded[i]);
        rows[i] = rounded[i];
      }
    }
    for (int32_t dim = 0; dim < count; dim += 32) {
      // Of 32 dims, those of the first range and those of the second.
      const __mmask32 inFirst = firstLanes(firstCount - dim);
      const __mmask32 inSecond = firstLanes(count - dim) & ~inFirst;
      const int64_t firstOffset = first.begin + dim;
      const int64_t secondOffset = second.begin + dim - firstCount;
      __m512i columns[kLanes];
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; ++i) {
        columns[i] = _mm512_setzero_si512();
        if (rows[i] == nullptr) continue;
        columns[i] = _mm512_maskz_loadu_epi16(inFirst, rows[i] + firstOffset);
        if (inSecond != 0) {
          columns[i] = _mm512_mask_loadu_epi16(columns[i], inSecond, rows[i] + secondOffset);
        }
      }
      transpose16x16(columns);
      auto* packed = static_cast<uint16_t*>(target) + dim * int64_t{kTileKeys} + 2 * key;
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; ++i) {
        if (dim / 2 + i < pairs) _mm512_storeu_si512(packed + i * 2 * kTileKeys, columns[i]);
      }
    }
  }
}

void packValues(const KeyRows& values, void* target) {
  const int32_t headDim = values.matrix.headDim;
  const int32_t padded = roundUpTo(headDim, kDimMultiple);
  uint16_t rounded[2][kMaxHeadDim];
  for (int32_t key = 0; key < values.count; key += 2) {
    const bool hasOdd = key + 1 < values.count;
    const std::byte* rows[2] = {keyRow(values, key), keyRow(values, hasOdd ? key + 1 : key)};
    const uint16_t* even = bf16Of(rows[0]);
    const uint16_t* odd = bf16Of(rows[1]);
    if (values.matrix.type == KvType::q8) {
      for (int i = 0; i < 2; ++i) round(rows[i], headDim, rounded[i]);
      even = rounded[0];
      odd = rounded[1];
    }
    auto* chunk = static_cast<uint16_t*>(target);
    for (int32_t begin = 0; begin < padded; begin += kChunk, chunk += kTileKeys * kChunk) {
      const int32_t width = padded - begin < kChunk ? padded - begin : kChunk;
      uint16_t* packed = chunk + key * width;
      for (int32_t dim = begin; dim < begin + width; dim += kLanes, packed += 2 * kLanes) {
        const auto mask = static_cast<__mmask16>(firstLanes(headDim - dim) & 0xffff);
        const auto oddMask = static_cast<__mmask16>(hasOdd ? mask : 0);
        const __m512i low = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, even + dim));
        const __m512i high = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(oddMask, odd + dim));
        _mm512_storeu_si512(packed, _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
      }
    }
  }
}

// The running softmax of one row.
struct Row {
  float* maximum;
  float* sum;
  float* output;  // null: not wanted
  int64_t dims;
};

// Raises the row's maximum to the largest score, if that is larger.
inline void raiseMaximum(const Row& row, __m512 most) {
  if (_mm512_cmp_ps_mask(most, _mm512_set1_ps(*row.maximum), _CMP_GT_OQ) == 0) return;
  const float maximum = _mm512_reduce_max_ps(most);
  const __m512 shrink = exp2<false>(_mm512_set1_ps(*row.maximum - maximum));
  *row.maximum = maximum;
  *row.sum *= _mm512_cvtss_f32(shrink);
  if (row.output == nullptr) return;
  for (int64_t dim = 0; dim < row.dims; dim += kLanes) {
    float* output = row.output + dim;
    _mm512_storeu_ps(output, _mm512_mul_ps(_mm512_loadu_ps(output), shrink));
  }
}

// Turns the scores of a row, before scaling, into bf16 weights in the same place. Only the columns
// in `visible` count. The sum is that of the rounded weights, so that they make a mean; without
// output it is exact.
template <int kVectors>
void weigh(float* scores, uint64_t visible, float scale, const Row& row) {
  const __m512 factor = _mm512_set1_ps(scale);
  __m512 x[4];
#pragma GCC unroll 4
  for (int v = 0; v < kVectors; ++v) {
    x[v] =
        _mm512_mask_loadu_ps(_mm512_set1_ps(kMinusInfinity),
                             static_cast<__mmask16>(visible >> (kLanes * v)), scores + kLanes * v);
  }
  __m512 most = x[0];
#pragma GCC unroll 4
  for (int v = 1; v < kVectors; ++v) most = _mm512_max_ps(most, x[v]);
  raiseMaximum(row, _mm512_mul_ps(most, factor));

  const __m512 maximum = _mm512_set1_ps(*row.maximum);
#pragma GCC unroll 4
  for (int v = 0; v < kVectors; ++v) x[v] = _mm512_fmsub_ps(x[v], factor, maximum);
  __m512 total = _mm512_setzero_ps();
  if (row.output == nullptr) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) total = _mm512_add_ps(total, exp2<false>(x[v]));
  } else {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) x[v] = exp2<true>(x[v]);
#pragma GCC unroll 4
    for (int v = kVectors; v < 4; ++v) x[v] = _mm512_setzero_ps();
    const auto ones = (__m512bh)_mm512_set1_epi16(0x3f80);
    uint16_t* weights = reinterpret_cast<uint16_t*>(scores);
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; v += 2) {
      const __m512bh rounded = _mm512_cvtne2ps_pbh(x[v + 1], x[v]);
      total = _mm512_dpbf16_ps(total, rounded, ones);
      _mm512_storeu_si512(weights + kLanes * v, (__m512i)rounded);
    }
  }
  *row.sum += _mm512_reduce_add_ps(total);
}

constexpr void (*kWeigh[])(float*, uint64_t, float, const Row&) = {weigh<1>, weigh<2>, weigh<3>,
                                                                   weigh<4>};

// Bits [0, count).
inline uint64_t firstColumns(int32_t count) {
  return count >= 64 ? ~uint64_t{0} : (uint64_t{1} << count) - 1;
}

void attend(const AttendTile& tile) {
  const int32_t pairs = (tile.dims + 1) / 2;
  const int64_t stride = tile.state.outputStride;
  for (int32_t block = 0; block < tile.blocks; ++block) {
    const int64_t row0 = int64_t{block} * kRows;
    uint64_t visible[kRows];
    uint64_t any = 0;
    for (int row = 0; row < kRows; ++row) {
      const int32_t begin = tile.visibleBegin != nullptr ? tile.visibleBegin[row0 + row] : 0;
      const int32_t end = tile.visibleEnd != nullptr ? tile.visibleEnd[row0 + row] : tile.keyCount;
      visible[row] = firstColumns(end) & ~firstColumns(begin);
      any |= visible[row];
    }
    if (any == 0) continue;

    const int32_t blockEnd = 64 - __builtin_clzll(any);
    const int32_t vectors = (blockEnd + kLanes - 1) / kLanes;
    kScore[vectors - 1](static_cast<const uint16_t*>(tile.queries) + row0 * 2 * pairs, pairs,
                        static_cast<const uint16_t*>(tile.keys), tile.scores);
    for (int row = 0; row < kRows; ++row) {
      float* scores = tile.scores + row * kTileKeys;
      if (visible[row] == 0) {
        _mm512_storeu_si512(scores, _mm512_setzero_si512());
        _mm512_storeu_si512(scores + kLanes, _mm512_setzero_si512());
        continue;
      }
      float* output =
          tile.state.output != nullptr ? tile.state.output + (row0 + row) * stride : nullptr;
      kWeigh[vectors - 1](
          scores, visible[row], tile.scale,
          {tile.state.maximum + row0 + row, tile.state.sum + row0 + row, output, stride});
    }
    if (tile.state.output == nullptr) continue;
    const auto* values = static_cast<const uint16_t*>(tile.values);
    for (int64_t dim = 0; dim < stride; dim += kChunk, values += kTileKeys * kChunk) {
      const int64_t width = stride - dim < kChunk ? stride - dim : kChunk;
      kAddValues[width / kLanes - 1](reinterpret_cast<const uint16_t*>(tile.scores), values,
                                     (blockEnd + 1) / 2, tile.state.output + row0 * stride + dim,
                                     stride);
    }
  }
}

// Adds the rows' votes by add(votes so far, scores minus reference), for 16 columns.
template <typename Add>
inline __attribute__((always_inline)) void vote(const VoteTile& tile, const Add& add) {
  const int32_t pairs = (tile.dims + 1) / 2;
  const auto* queries = static_cast<const uint16_t*>(tile.queries);
  const __m512 factor = _mm512_set1_ps(tile.scale);
  for (int32_t block = 0; block < tile.blocks; ++block, queries += kRows * 2 * pairs) {
    __m512 sums[kRows][4];
#pragma GCC unroll 6
    for (int row = 0; row < kRows; ++row) {
#pragma GCC unroll 4
      for (int v = 0; v < 4; ++v) sums[row][v] = _mm512_setzero_ps();
    }
    multiplyAccumulate<4>(queries, 2 * pairs, static_cast<const uint16_t*>(tile.keys),
                          2 * kTileKeys, pairs, sums);
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v) {
      __m512 votes = _mm512_loadu_ps(tile.votes + v * kLanes);
#pragma GCC unroll 6
      for (int row = 0; row < kRows; ++row) {
        const __m512 reference = _mm512_set1_ps(tile.references[block * kRows + row]);
        votes = add(votes, _mm512_fmsub_ps(sums[row][v], factor, reference));
      }
      _mm512_storeu_ps(tile.votes + v * kLanes, votes);
    }
  }
}

void peaks(const VoteTile& tile) {
  vote(tile, [](__m512 votes, __m512 score) { return _mm512_max_ps(votes, score); });
}

void masses(const VoteTile& tile) {
  vote(tile, [](__m512 votes, __m512 score) { return _mm512_add_ps(votes, exp2<false>(score)); });
}

}  // namespace

const AttentionKernels* avx512bf16AttentionKernels() {
  static constexpr int kBf16Bytes = 2;
  // A few rows are bound by memory: the AVX2 kernel reads as fast.
  static const AttentionKernels kernels = {.set = InstructionSet::avx512bf16,
                                           .blockRows = kRows,
                                           .elementBytes = kBf16Bytes,
                                           .dimMultiple = 2,
                                           .roundsQueries = true,
                                           .packQueries = packQueries,
                                           .packFewQueries = packFewQueries,
                                           .packKeys = packKeys,
                                           .packValues = packValues,
                                           .attend = attend,
                                           .attendFew = avx2AttentionKernels()->attendFew,
                                           .peaks = peaks,
                                           .masses = masses};
  return &kernels;
}

}  // namespace longsight
