// The attention kernels over a vector type V, written once for every instruction set.
//
// Included once by each instruction set's source file, after V. Everything is in an unnamed
// namespace and nothing of the standard library that has code is called: a function shared between
// sources that are compiled for different instruction sets could run where its instructions do not
// exist.
//
// V has: kLanes, load, loadBf16, loadIntegers (of int8), store, broadcast, zero, add, subtract,
// multiply, multiplyAdd(a, b, c) = a * b + c, max, power2(t) = 2^n as bits from t = n +
// kRoundMagic, horizontal sum and max, halfToFloat(fp16), transposePanel.
#pragma once

#include <cstdint>
#include <cstring>

#include "kernels/cpu/attention/key_row.h"

namespace longsight {
namespace {

constexpr float kMinusInfinity = -__builtin_huge_valf();

// Adding 1.5 * 2^23 leaves the nearest integer in the low bits.
constexpr float kRoundMagic = 12582912.0f;

inline float bf16ToFloat(uint16_t bits) {
  const uint32_t wide = static_cast<uint32_t>(bits) << 16;
  float value;
  std::memcpy(&value, &wide, sizeof(value));
  return value;
}

inline float wide(uint16_t bf16) { return bf16ToFloat(bf16); }
inline float wide(float value) { return value; }

template <typename V>
inline typename V::Type loadWide(const uint16_t* bf16) {
  return V::loadBf16(bf16);
}
template <typename V>
inline typename V::Type loadWide(const float* values) {
  return V::load(values);
}

// 2^x for x <= 0, relative error below 3e-7; 0 below -126.5 and for -inf. The polynomial of degree
// 5 meets 2^f in the Chebyshev nodes of [-0.5, 0.5].
template <typename V>
inline typename V::Type exp2NonPositive(typename V::Type x) {
  x = V::max(x, V::broadcast(-127.0f));
  const auto shifted = V::add(x, V::broadcast(kRoundMagic));
  const auto f = V::subtract(x, V::subtract(shifted, V::broadcast(kRoundMagic)));
  auto p = V::multiplyAdd(V::broadcast(0.00133908633f), f, V::broadcast(0.00967603177f));
  p = V::multiplyAdd(p, f, V::broadcast(0.0555035695f));
  p = V::multiplyAdd(p, f, V::broadcast(0.240221068f));
  p = V::multiplyAdd(p, f, V::broadcast(0.693147182f));
  p = V::multiplyAdd(p, f, V::broadcast(1.00000012f));
  return V::multiply(p, V::power2(shifted));
}

// c[kRows][2 vectors] += sum over k < depth of a(row, k) * b[k][2 vectors], with the element of row
// and k at a[row * kRowStride + k * kDepthStride].
template <typename V, int kRows, int kRowStride, int kDepthStride>
inline void multiplyAccumulate(const float* a, const float* b, int32_t depth,
                               typename V::Type (&c)[kRows][2]) {
  for (int32_t k = 0; k < depth; ++k) {
    const auto b0 = V::load(b);
    const auto b1 = V::load(b + V::kLanes);
#pragma GCC unroll 8
    for (int row = 0; row < kRows; ++row) {
      const auto scalar = V::broadcast(a[row * kRowStride]);
      c[row][0] = V::multiplyAdd(scalar, b0, c[row][0]);
      c[row][1] = V::multiplyAdd(scalar, b1, c[row][1]);
    }
    a += kDepthStride;
    b += 2 * V::kLanes;
  }
}

template <typename V, int kRows>
struct Blocked {
  static constexpr int32_t kPanel = 2 * V::kLanes;
  static_assert(kTileKeys % kPanel == 0 && kDimMultiple % kPanel == 0);

  // [block][dim][row]
  static void packQueries(const float* const* rows, int32_t blocks, DimRanges dims, float scale,
                          void* target) {
    auto* packed = static_cast<float*>(target);
    for (int32_t block = 0; block < blocks; ++block, rows += kRows) {
      for (const DimRange& range : dims.ranges) {
        for (int32_t dim = range.begin; dim < range.end; ++dim) {
          for (int32_t row = 0; row < kRows; ++row) {
            *packed++ = rows[row] != nullptr ? rows[row][dim] * scale : 0.0f;
          }
        }
      }
    }
  }

  static void packFewQueries(const float* const* rows, int32_t count, int32_t headDim, float scale,
                             float* packed) {
    for (int32_t row = 0; row < count; ++row) {
      for (int32_t dim = 0; dim < headDim; ++dim) *packed++ = rows[row][dim] * scale;
    }
  }

  // A row of q8 as f32.
  static void widen(const std::byte* row, int32_t headDim, float* values) {
    for (int32_t begin = 0; begin < headDim; begin += kQ8Block) {
      const float scale = V::halfToFloat(halfScaleOf(row, headDim, begin));
      const int32_t end = begin + kQ8Block < headDim ? begin + kQ8Block : headDim;
      int32_t dim = begin;
      for (; dim + V::kLanes <= end; dim += V::kLanes) {
        const auto integers = V::loadIntegers(integersOf(row) + dim);
        V::store(values + dim, V::multiply(integers, V::broadcast(scale)));
      }
      for (; dim < end; ++dim) values[dim] = static_cast<float>(integersOf(row)[dim]) * scale;
    }
  }

  // [panel][dim][column]
  static void packKeys(const KeyRows& keys, DimRanges dims, void* target) {
    auto* packed = static_cast<float*>(target);
    const int32_t count = dims.count();
    for (int32_t begin = 0; begin < keys.count; begin += kPanel, packed += kPanel * count) {
      const int32_t rows = keys.count - begin < kPanel ? keys.count - begin : kPanel;
      if (keys.matrix.type == KvType::q8) {
        float values[kPanel][kMaxHeadDim];
        const float* pointers[kPanel] = {};
        for (int32_t i = 0; i < rows; ++i) {
          widen(keyRow(keys, begin + i), keys.matrix.headDim, values[i]);
          pointers[i] = values[i];
        }
        V::transposePanel(pointers, dims, packed);
      } else {
        const uint16_t* pointers[kPanel] = {};
        for (int32_t i = 0; i < rows; ++i) pointers[i] = bf16Of(keyRow(keys, begin + i));
        V::transposePanel(pointers, dims, packed);
      }
    }
  }

  // [panel of dims][column][dim]
  static void packValues(const KeyRows& values, void* panels) {
    auto* packed = static_cast<float*>(panels);
    for (int32_t key = 0; key < values.count; ++key) {
      const std::byte* row = keyRow(values, key);
      if (values.matrix.type == KvType::q8) {
        float unpacked[kMaxHeadDim];
        widen(row, values.matrix.headDim, unpacked);
        packValue(unpacked, values.matrix.headDim, packed + key * kPanel);
      } else {
        packValue(bf16Of(row), values.matrix.headDim, packed + key * kPanel);
      }
    }
  }

  template <typename Element>
  static void packValue(const Element* row, int32_t headDim, float* target) {
    const int32_t padded = (headDim + kDimMultiple - 1) / kDimMultiple * kDimMultiple;
    for (int32_t dim = 0; dim < padded; dim += kPanel, target += kPanel * kTileKeys) {
      if (dim + kPanel <= headDim) {
        V::store(target, loadWide<V>(row + dim));
        V::store(target + V::kLanes, loadWide<V>(row + dim + V::kLanes));
        continue;
      }
      for (int32_t i = 0; i < kPanel; ++i) {
        target[i] = dim + i < headDim ? wide(row[dim + i]) : 0.0f;
      }
    }
  }

  // Scores of a block of rows and `panels` panels of keys, [row][kTileKeys].
  static void score(const float* queries, int32_t dims, const float* keys, int32_t panels,
                    float* scores) {
    for (int32_t panel = 0; panel < panels; ++panel) {
      typename V::Type sum[kRows][2];
      for (auto& row : sum) row[0] = row[1] = V::zero();
      multiplyAccumulate<V, kRows, 1, kRows>(queries, keys + panel * dims * kPanel, dims, sum);
      for (int row = 0; row < kRows; ++row) {
        V::store(scores + row * kTileKeys + panel * kPanel, sum[row][0]);
        V::store(scores + row * kTileKeys + panel * kPanel + V::kLanes, sum[row][1]);
      }
    }
  }

  // Turns a row's scores into weights relative to its running maximum.
  static void weigh(float* scores, int32_t columns, float* maximum, float* sum, float* output,
                    int64_t dims) {
    auto most = V::load(scores);
    for (int32_t i = V::kLanes; i < columns; i += V::kLanes)
      most = V::max(most, V::load(scores + i));
    const float tileMaximum = V::horizontalMax(most);
    if (tileMaximum > *maximum) {
      const auto shrink = exp2NonPositive<V>(V::broadcast(*maximum - tileMaximum));
      float factor[V::kLanes];
      V::store(factor, shrink);
      *sum *= factor[0];
      *maximum = tileMaximum;
      if (output != nullptr) {
        for (int64_t i = 0; i < dims; i += V::kLanes) {
          V::store(output + i, V::multiply(V::load(output + i), shrink));
        }
      }
    }
    const auto reference = V::broadcast(*maximum);
    auto total = V::zero();
    for (int32_t i = 0; i < columns; i += V::kLanes) {
      const auto weight = exp2NonPositive<V>(V::subtract(V::load(scores + i), reference));
      V::store(scores + i, weight);
      total = V::add(total, weight);
    }
    *sum += V::horizontalSum(total);
  }

  static void attend(const AttendTile& tile) {
    for (int32_t block = 0; block < tile.blocks; ++block) {
      const int64_t row0 = int64_t{block} * kRows;
      int32_t begin[kRows];
      int32_t end[kRows];
      int32_t blockEnd = 0;
      for (int row = 0; row < kRows; ++row) {
        begin[row] = tile.visibleBegin != nullptr ? tile.visibleBegin[row0 + row] : 0;
        end[row] = tile.visibleEnd != nullptr ? tile.visibleEnd[row0 + row] : tile.keyCount;
        if (begin[row] < end[row] && end[row] > blockEnd) blockEnd = end[row];
      }
      if (blockEnd == 0) continue;

      const int32_t panels = (blockEnd + kPanel - 1) / kPanel;
      const int32_t columns = panels * kPanel;
      score(static_cast<const float*>(tile.queries) + row0 * tile.dims, tile.dims,
            static_cast<const float*>(tile.keys), panels, tile.scores);
      for (int row = 0; row < kRows; ++row) {
        float* scores = tile.scores + row * kTileKeys;
        if (begin[row] >= end[row]) {
          for (int32_t i = 0; i < columns; ++i) scores[i] = 0.0f;
          continue;
        }
        for (int32_t i = 0; i < begin[row]; ++i) scores[i] = kMinusInfinity;
        for (int32_t i = end[row]; i < columns; ++i) scores[i] = kMinusInfinity;
        float* output = tile.state.output == nullptr
                            ? nullptr
                            : tile.state.output + (row0 + row) * tile.state.outputStride;
        weigh(scores, columns, tile.state.maximum + row0 + row, tile.state.sum + row0 + row, output,
              tile.state.outputStride);
      }
      if (tile.state.output == nullptr) continue;
      addValues(tile, row0, blockEnd);
    }
  }

  static void addValues(const AttendTile& tile, int64_t row0, int32_t keyCount) {
    const int64_t stride = tile.state.outputStride;
    for (int64_t dim = 0; dim < stride; dim += kPanel) {
      float* output = tile.state.output + row0 * stride + dim;
      typename V::Type sum[kRows][2];
      for (int row = 0; row < kRows; ++row) {
        sum[row][0] = V::load(output + row * stride);
        sum[row][1] = V::load(output + row * stride + V::kLanes);
      }
      multiplyAccumulate<V, kRows, kTileKeys, 1>(
          tile.scores, static_cast<const float*>(tile.values) + dim * kTileKeys, keyCount, sum);
      for (int row = 0; row < kRows; ++row) {
        V::store(output + row * stride, sum[row][0]);
        V::store(output + row * stride + V::kLanes, sum[row][1]);
      }
    }
  }

  // Two vectors of a stored row, from a multiple of kPanel on. Blocks of q8 have whole panels.
  struct Pair {
    typename V::Type low, high;
  };
  template <KvType kType>
  static Pair loadPair(const std::byte* row, int32_t headDim, int32_t dim) {
    static_assert(kQ8Block % kPanel == 0);
    if constexpr (kType == KvType::q8) {
      const auto scale = V::broadcast(V::halfToFloat(halfScaleOf(row, headDim, dim)));
      const int8_t* integers = integersOf(row) + dim;
      return {V::multiply(V::loadIntegers(integers), scale),
              V::multiply(V::loadIntegers(integers + V::kLanes), scale)};
    } else {
      return {V::loadBf16(bf16Of(row) + dim), V::loadBf16(bf16Of(row) + dim + V::kLanes)};
    }
  }

  // Scores of kFew rows, [row][kTileKeys].
  template <int kFew, KvType kType>
  static void scoreFew(const float* queries, const KeyRows& keys, float* scores) {
    const int32_t headDim = keys.matrix.headDim;
    for (int32_t key = 0; key < keys.count; ++key) {
      const std::byte* stored = keyRow(keys, key);
      typename V::Type sum[kFew][2];
      for (auto& row : sum) row[0] = row[1] = V::zero();
      for (int32_t dim = 0; dim < headDim; dim += kPanel) {
        const auto [key0, key1] = loadPair<kType>(stored, headDim, dim);
        for (int row = 0; row < kFew; ++row) {
          const float* query = queries + row * headDim + dim;
          sum[row][0] = V::multiplyAdd(V::load(query), key0, sum[row][0]);
          sum[row][1] = V::multiplyAdd(V::load(query + V::kLanes), key1, sum[row][1]);
        }
      }
      for (int row = 0; row < kFew; ++row) {
        scores[row * kTileKeys + key] = V::horizontalSum(V::add(sum[row][0], sum[row][1]));
      }
    }
  }

  template <int kFew, KvType kType>
  static void addFewValues(const float* weights, const KeyRows& values, float* output,
                           int64_t stride) {
    const int32_t headDim = values.matrix.headDim;
    for (int32_t dim = 0; dim < headDim; dim += kPanel) {
      typename V::Type sum[kFew][2];
      for (int row = 0; row < kFew; ++row) {
        sum[row][0] = V::load(output + row * stride + dim);
        sum[row][1] = V::load(output + row * stride + dim + V::kLanes);
      }
      for (int32_t key = 0; key < values.count; ++key) {
        const auto [value0, value1] = loadPair<kType>(keyRow(values, key), headDim, dim);
        for (int row = 0; row < kFew; ++row) {
          const auto weight = V::broadcast(weights[row * kTileKeys + key]);
          sum[row][0] = V::multiplyAdd(weight, value0, sum[row][0]);
          sum[row][1] = V::multiplyAdd(weight, value1, sum[row][1]);
        }
      }
      for (int row = 0; row < kFew; ++row) {
        V::store(output + row * stride + dim, sum[row][0]);
        V::store(output + row * stride + dim + V::kLanes, sum[row][1]);
      }
    }
  }

  template <int kFew, KvType kType>
  static void attendGroup(const FewTile& tile, int32_t row0) {
    const int32_t columns = (tile.keys.count + V::kLanes - 1) / V::kLanes * V::kLanes;
    const int64_t stride = tile.state.outputStride;
    float* output = tile.state.output + row0 * stride;
    scoreFew<kFew, kType>(tile.queries + row0 * tile.keys.matrix.headDim, tile.keys, tile.scores);
    for (int row = 0; row < kFew; ++row) {
      const int32_t end =
          tile.visibleEnd != nullptr ? tile.visibleEnd[row0 + row] : tile.keys.count;
      float* scores = tile.scores + row * kTileKeys;
      for (int32_t i = end; i < columns; ++i) scores[i] = end > 0 ? kMinusInfinity : 0.0f;
      if (end == 0) continue;
      weigh(scores, columns, tile.state.maximum + row0 + row, tile.state.sum + row0 + row,
            output + row * stride, stride);
    }
    addFewValues<kFew, kType>(tile.scores, tile.values, output, stride);
  }

  template <KvType kType>
  static void attendFewOf(const FewTile& tile) {
    int32_t row = 0;
    for (; row + 4 <= tile.rows; row += 4) attendGroup<4, kType>(tile, row);
    switch (tile.rows - row) {
      case 3:
        return attendGroup<3, kType>(tile, row);
      case 2:
        return attendGroup<2, kType>(tile, row);
      case 1:
        return attendGroup<1, kType>(tile, row);
      default:
        return;
    }
  }

  static void attendFew(const FewTile& tile) {
    if (tile.keys.matrix.type == KvType::q8) return attendFewOf<KvType::q8>(tile);
    attendFewOf<KvType::bf16>(tile);
  }

  // Adds the rows' votes by add(votes so far, scores minus reference), for a vector of columns.
  template <typename Add>
  static inline __attribute__((always_inline)) void vote(const VoteTile& tile, const Add& add) {
    for (int32_t block = 0; block < tile.blocks; ++block) {
      const float* queries =
          static_cast<const float*>(tile.queries) + int64_t{block} * kRows * tile.dims;
      const auto* keys = static_cast<const float*>(tile.keys);
      const float* references = tile.references + int64_t{block} * kRows;
      for (int32_t panel = 0; panel < kTileKeys / kPanel; ++panel) {
        typename V::Type sum[kRows][2];
        for (auto& row : sum) row[0] = row[1] = V::zero();
        multiplyAccumulate<V, kRows, 1, kRows>(queries, keys + panel * tile.dims * kPanel,
                                               tile.dims, sum);
        float* votes = tile.votes + panel * kPanel;
        auto votes0 = V::load(votes);
        auto votes1 = V::load(votes + V::kLanes);
        for (int row = 0; row < kRows; ++row) {
          const auto reference = V::broadcast(references[row]);
          votes0 = add(votes0, V::subtract(sum[row][0], reference));
          votes1 = add(votes1, V::subtract(sum[row][1], reference));
        }
        V::store(votes, votes0);
        V::store(votes + V::kLanes, votes1);
      }
    }
  }

  static void peaks(const VoteTile& tile) {
    vote(tile, [](auto votes, auto score) { return V::max(votes, score); });
  }

  static void masses(const VoteTile& tile) {
    vote(tile, [](auto votes, auto score) { return V::add(votes, exp2NonPositive<V>(score)); });
  }

  static constexpr AttentionKernels table(InstructionSet set) {
    return {.set = set,
            .blockRows = kRows,
            .elementBytes = sizeof(float),
            .dimMultiple = 1,
            .roundsQueries = false,
            .packQueries = packQueries,
            .packFewQueries = packFewQueries,
            .packKeys = packKeys,
            .packValues = packValues,
            .attend = attend,
            .attendFew = attendFew,
            .peaks = peaks,
            .masses = masses};
  }
};

}  // namespace
}  // namespace longsight
