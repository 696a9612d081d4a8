// AVX512_BF16: queries, keys, values and weights in bf16, sums in f32 by vdpbf16ps, which adds two
// products to each of 16 sums. A block is 6 rows x 64 columns in 24 of 32 registers.
//
// Queries are packed [row][dim], keys [dim pair][64 columns][2], values in chunks of 64 dims as
// [column pair][dims of the chunk][2], weights [row][column]: both products are the same code.
// Unnamed namespace, no library code: see blocked.h.
#include <immintrin.h>

#include "kernels/cpu/attention/avx512bf16_pack.h"

namespace longsight {
namespace {

constexpr float kMinusInfinity = -__builtin_huge_valf();

// A row of weights takes the place of its scores.
constexpr int64_t kWeightStride = 2 * kTileKeys;

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

// The running softmax of one row.
struct Row {
  float* maximum;
  float* sum;
  float* output;  // null: not wanted
  int64_t dims;
};

// A new maximum rescales a row's output, so that it is taken over only when it is larger by this
// much (base 2): until then weights are up to 2^8, which rounds as well as below 1.
constexpr float kSlack = 8.0f;

// Scores before scaling above this raise a row's maximum. perScale: 1 / scale.
inline float limitOf(float maximum, float perScale) { return (maximum + kSlack) * perScale; }

// Raises the row's maximum to the largest of the scores before scaling.
inline void raiseMaximum(const Row& row, __m512 most, float scale) {
  const float maximum = _mm512_reduce_max_ps(most) * scale;
  const __m512 shrink = exp2<false>(_mm512_set1_ps(*row.maximum - maximum));
  *row.maximum = maximum;
  *row.sum *= _mm512_cvtss_f32(shrink);
  if (row.output == nullptr) return;
  for (int64_t dim = 0; dim < row.dims; dim += kLanes) {
    float* output = row.output + dim;
    _mm512_storeu_ps(output, _mm512_mul_ps(_mm512_loadu_ps(output), shrink));
  }
}

// Rounds the weights of 32 columns, stores them and adds them to the total: that of the rounded
// ones, so that they make a mean. Additions leave the multipliers free.
inline __attribute__((always_inline)) __m512 addWeights(__m512 low, __m512 high, uint16_t* target,
                                                        __m512 total) {
  const auto rounded = (__m512i)_mm512_cvtne2ps_pbh(high, low);
  _mm512_storeu_si512(target, rounded);
  const __m512i even = _mm512_slli_epi32(rounded, 16);
  const __m512i odd = _mm512_and_si512(rounded, _mm512_set1_epi32(~0xffff));
  total = _mm512_add_ps(total, _mm512_castsi512_ps(even));
  return _mm512_add_ps(total, _mm512_castsi512_ps(odd));
}

// Turns the scores of a row, before scaling, into bf16 weights in the same place. Only the columns
// in `visible` count. Without output the sum is exact.
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
  const __m512 limit = _mm512_set1_ps(limitOf(*row.maximum, 1.0f / scale));
  if (_mm512_cmp_ps_mask(most, limit, _CMP_GT_OQ) != 0) raiseMaximum(row, most, scale);

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
    uint16_t* weights = reinterpret_cast<uint16_t*>(scores);
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; v += 2) {
      total = addWeights(x[v], x[v + 1], weights + kLanes * v, total);
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

// Adds the weighted values of `pairs` column pairs to the output of a block of rows.
inline void addBlockValues(const AttendTile& tile, int64_t row0, const uint16_t* weights,
                           int32_t pairs) {
  const int64_t stride = tile.state.outputStride;
  const auto* values = static_cast<const uint16_t*>(tile.values);
  for (int64_t dim = 0; dim < stride; dim += kChunk, values += kTileKeys * kChunk) {
    const int64_t width = stride - dim < kChunk ? stride - dim : kChunk;
    kAddValues[width / kLanes - 1](weights, values, pairs, tile.state.output + row0 * stride + dim,
                                   stride);
  }
}

// Blocks of 6 rows and all 64 columns of a tile, as a pipeline: the products that make the scores
// of one block are interleaved with the softmax of the block before it, most of which other units
// do.
class FullTile {
 public:
  explicit FullTile(const AttendTile& tile)
      : state_(tile.state),
        tile_(tile),
        pairs_((tile.dims + 1) / 2),
        perScale_(1.0f / tile.scale) {}

  static bool fits(const AttendTile& tile) {
    return tile.keyCount == kTileKeys && tile.visibleBegin == nullptr &&
           tile.visibleEnd == nullptr && tile.state.output != nullptr &&
           (tile.dims + 1) / 2 >= kRows * kVectors;
  }

  void run() {
    score<false>(0);
    for (int32_t block = 1; block < tile_.blocks; ++block) {
      score<true>(block);
      addBlockValues(tile_, int64_t{block - 1} * kRows, weights_, kTileKeys / 2);
    }
    const int32_t last = tile_.blocks - 1;
    for (int row = 0; row < kRows; ++row) weigh(last, row, [] {});
    addBlockValues(tile_, int64_t{last} * kRows, weights_, kTileKeys / 2);
  }

 private:
  static constexpr int kVectors = kTileKeys / kLanes;
  using Sums = __m512[kRows][kVectors];

  // Scores of a block before scaling. kAfterAnother: and the weights of the block before.
  template <bool kAfterAnother>
  void score(int32_t block) {
    const auto* queries =
        static_cast<const uint16_t*>(tile_.queries) + int64_t{block} * kRows * 2 * pairs_;
    const auto* keys = static_cast<const uint16_t*>(tile_.keys);
    Sums sums;
#pragma GCC unroll 6
    for (int row = 0; row < kRows; ++row) {
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) sums[row][v] = _mm512_setzero_ps();
    }
    int32_t pair = 0;
    const auto addPairs = [&](int32_t count) __attribute__((always_inline)) {
      multiplyAccumulate<kVectors>(queries + 2 * pair, 2 * pairs_, keys + pair * 2 * kTileKeys,
                                   2 * kTileKeys, count, sums);
      pair += count;
    };
    if constexpr (kAfterAnother) {
      for (int row = 0; row < kRows; ++row) {
        prefetchOutput(block - 1, row);
        weigh(
            block - 1, row, [&]() __attribute__((always_inline)) { addPairs(1); });
      }
    }
    addPairs(pairs_ - pair);
    raiseMaxima(block, sums);
#pragma GCC unroll 6
    for (int row = 0; row < kRows; ++row) {
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) _mm512_store_ps(scores_[row] + v * kLanes, sums[row][v]);
    }
  }

  void prefetchOutput(int32_t block, int row) const {
    const float* output = state_.output + (int64_t{block} * kRows + row) * state_.outputStride;
#pragma GCC unroll 1
    for (int64_t dim = 0; dim < state_.outputStride; dim += kLanes) {
      _mm_prefetch(reinterpret_cast<const char*>(output + dim), _MM_HINT_T0);
    }
  }

  inline __attribute__((always_inline)) void raiseMaxima(int32_t block, const Sums& sums) const {
    const int64_t row0 = int64_t{block} * kRows;
    float limit[kRows];
    __m512 most[kRows];
    __m512 above = _mm512_set1_ps(kMinusInfinity);
#pragma GCC unroll 6
    for (int row = 0; row < kRows; ++row) {
      limit[row] = limitOf(state_.maximum[row0 + row], perScale_);
      most[row] = _mm512_max_ps(_mm512_max_ps(sums[row][0], sums[row][1]),
                                _mm512_max_ps(sums[row][2], sums[row][3]));
      above = _mm512_max_ps(above, _mm512_sub_ps(most[row], _mm512_set1_ps(limit[row])));
    }
    if (_mm512_cmp_ps_mask(above, _mm512_setzero_ps(), _CMP_GT_OQ) == 0) return;
#pragma GCC unroll 6
    for (int row = 0; row < kRows; ++row) {
      const __m512 rowLimit = _mm512_set1_ps(limit[row]);
      if (_mm512_cmp_ps_mask(most[row], rowLimit, _CMP_GT_OQ) == 0) continue;
      const int64_t slot = row0 + row;
      raiseMaximum({state_.maximum + slot, state_.sum + slot,
                    state_.output + slot * state_.outputStride, state_.outputStride},
                   most[row], tile_.scale);
    }
  }

  // Weights of a row; between(), called once a vector, gives the processor something else to do
  // meanwhile.
  template <typename Between>
  inline __attribute__((always_inline)) void weigh(int32_t block, int row, const Between& between) {
    const int64_t slot = int64_t{block} * kRows + row;
    const __m512 factor = _mm512_set1_ps(tile_.scale);
    const __m512 maximum = _mm512_set1_ps(state_.maximum[slot]);
    __m512 total = _mm512_setzero_ps();
    for (int v = 0; v < kVectors; v += 2) {
      const float* scores = scores_[row] + v * kLanes;
      between();
      const __m512 low = exp2<true>(_mm512_fmsub_ps(_mm512_load_ps(scores), factor, maximum));
      between();
      const __m512 high =
          exp2<true>(_mm512_fmsub_ps(_mm512_load_ps(scores + kLanes), factor, maximum));
      total = addWeights(low, high, weights_ + row * kWeightStride + v * kLanes, total);
    }
    state_.sum[slot] += _mm512_reduce_add_ps(total);
  }

  const RowState state_;
  const AttendTile& tile_;
  const int32_t pairs_;
  const float perScale_;
  alignas(64) float scores_[kRows][kTileKeys];
  alignas(64) uint16_t weights_[kRows * kWeightStride];
};

void attend(const AttendTile& tile) {
  if (FullTile::fits(tile)) return FullTile(tile).run();
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
    addBlockValues(tile, row0, reinterpret_cast<const uint16_t*>(tile.scores), (blockEnd + 1) / 2);
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
