// Parts of CPU attention that whole runs meet only for some models: score dims in odd ranges, and
// how rows of q8 are rounded.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "agreement.h"
#include "attention_case.h"
#include "kernels/cpu/attention/kernels.h"

namespace longsight::test {
namespace {

class Tiles : public testing::TestWithParam<std::string> {
 protected:
  std::mt19937_64 random{seed() + 11};

  int32_t pick(int32_t low, int32_t high) {
    return std::uniform_int_distribution<int32_t>(low, high)(random);
  }
  std::vector<float> normals(int64_t count) {
    std::normal_distribution<float> normal;
    std::vector<float> values(static_cast<size_t>(count));
    for (float& x : values) x = normal(random);
    return values;
  }
};

std::string setName(const testing::TestParamInfo<std::string>& info) { return info.param; }
INSTANTIATE_TEST_SUITE_P(Sets, Tiles, testing::ValuesIn(kernelSets()), setName);

// Partly rotated heads score with what is not rotated and the slow half of the rest: ranges whose
// ends are multiples of 4 alone.
TEST_P(Tiles, PeaksInAnyScoreDims) {
  const AttentionKernels& kernels = attentionKernels(*parseInstructionSet(GetParam()));
  constexpr int32_t kBlocks = 3;
  const int32_t rows = kBlocks * kernels.blockRows;
  for (int round = 0; round < 300; ++round) {
    const int32_t headDim = 16 * pick(1, 16);
    const KvType type = pick(0, 1) == 0 ? KvType::bf16 : KvType::q8;
    int32_t ends[4];
    for (int32_t& end : ends) end = 4 * pick(0, headDim / 4);
    std::sort(std::begin(ends), std::end(ends));
    const DimRanges dims = round == 0 ? DimRanges{{{{0, headDim / 4}, {headDim / 2, headDim}}}}
                                      : DimRanges{{{{ends[0], ends[1]}, {ends[2], ends[3]}}}};
    if (dims.count() == 0) continue;
    const int32_t keyCount = pick(1, kTileKeys);
    SCOPED_TRACE(testing::Message()
                 << "d " << headDim << (type == KvType::q8 ? " q8" : " bf16") << " dims "
                 << dims.ranges[0].begin << " to " << dims.ranges[0].end << ", "
                 << dims.ranges[1].begin << " to " << dims.ranges[1].end << ", keys " << keyCount);

    const std::vector<float> queries = normals(int64_t{rows} * headDim);
    std::vector<const float*> queryRows;
    for (int32_t row = 0; row < rows; ++row) {
      queryRows.push_back(queries.data() + int64_t{row} * headDim);
    }
    queryRows.back() = nullptr;
    std::vector<float> keys = normals(int64_t{kTileKeys} * headDim);
    // Exactly as large as the rows, for tools that watch the bounds of memory.
    const int64_t rowBytes = kvRowBytes(type, headDim);
    std::vector<std::byte> stored(static_cast<size_t>(keyCount * rowBytes));
    std::vector<int32_t> columns;
    for (int32_t key = 0; key < keyCount; ++key) {
      float* values = keys.data() + int64_t{key} * headDim;
      storeKvRow(type, values, headDim, stored.data() + key * rowBytes);
      loadKvRow(type, stored.data() + key * rowBytes, headDim, values);
      if (kernels.roundsQueries) {
        for (int32_t dim = 0; dim < headDim; ++dim) values[dim] = fromBf16(toBf16(values[dim]));
      }
      columns.push_back(key);
    }
    std::shuffle(columns.begin(), columns.end(), random);

    const auto bytes = static_cast<size_t>(kernels.rowBytes(dims.count()));
    std::vector<float> packedQueries(static_cast<size_t>(rows) * bytes / 4 + 1, NAN);
    std::vector<float> packedKeys(kTileKeys * bytes / 4 + 1, NAN);
    constexpr float kScale = 0.125f;
    kernels.packQueries(queryRows.data(), kBlocks, dims, kScale, packedQueries.data());
    kernels.packKeys({{stored.data(), type, headDim}, columns.data(), 0, keyCount}, dims,
                     packedKeys.data());
    const std::vector<float> anchors = normals(rows);
    std::vector<float> peaks(kTileKeys, -std::numeric_limits<float>::infinity());
    kernels.peaks({packedQueries.data(), kBlocks, dims.count(), kScale, anchors.data(),
                   packedKeys.data(), peaks.data()});

    for (int32_t i = 0; i < keyCount; ++i) {
      const float* key = keys.data() + int64_t{columns[static_cast<size_t>(i)]} * headDim;
      double expected = -std::numeric_limits<double>::infinity();
      for (int32_t row = 0; row < rows; ++row) {
        const float* query = queryRows[static_cast<size_t>(row)];
        double dot = 0;
        for (const DimRange& range : dims.ranges) {
          for (int32_t dim = range.begin; query != nullptr && dim < range.end; ++dim) {
            const float x = kernels.roundsQueries ? fromBf16(toBf16(query[dim])) : query[dim];
            dot += double{x} * key[dim];
          }
        }
        expected = std::max(expected, dot * kScale - anchors[static_cast<size_t>(row)]);
      }
      ASSERT_NEAR(peaks[static_cast<size_t>(i)], expected, 2e-5) << "column " << i;
    }
  }
}

TEST(KvRows, Q8ErrsByAtMostHalfTheScaleOfABlock) {
  std::mt19937_64 random(seed() + 12);
  std::normal_distribution<float> normal;
  for (const int32_t headDim : {16, 32, 64, 80, 96, 128, 256}) {
    for (int exponent = -40; exponent <= 20; ++exponent) {
      std::vector<float> values(static_cast<size_t>(headDim)), stored(values);
      for (float& x : values) x = std::ldexp(normal(random), exponent);
      if (exponent % 7 == 0) std::fill_n(values.begin(), 16, 0.0f);
      const auto bytes = static_cast<size_t>(kvRowBytes(KvType::q8, headDim));
      std::vector<std::byte> row(bytes + 1, std::byte{0x5a});
      storeKvRow(KvType::q8, values.data(), headDim, row.data());
      loadKvRow(KvType::q8, row.data(), headDim, stored.data());
      EXPECT_EQ(row[bytes], std::byte{0x5a});
      for (int32_t begin = 0; begin < headDim; begin += kQ8Block) {
        const int32_t end = std::min(headDim, begin + kQ8Block);
        float most = 0;
        for (int32_t i = begin; i < end; ++i) most = std::max(most, std::abs(values[size_t(i)]));
        // fp16 has 11 bits, and below 2^-14 steps of 2^-24.
        const double scale = std::max(most / 127.0 * (1 + 0x1p-10), most / 127.0 + 0x1p-24);
        for (int32_t i = begin; i < end; ++i) {
          ASSERT_NEAR(stored[size_t(i)], values[size_t(i)], scale * 0.50001)
              << "exponent " << exponent;
        }
      }
    }
  }
}

TEST(KvRows, Q8SaturatesAndKeepsZero) {
  std::vector<float> values(64, 0.0f), stored(64);
  values[0] = 1e30f;
  values[1] = -std::numeric_limits<float>::infinity();
  std::vector<std::byte> row(static_cast<size_t>(kvRowBytes(KvType::q8, 64)));
  storeKvRow(KvType::q8, values.data(), 64, row.data());
  loadKvRow(KvType::q8, row.data(), 64, stored.data());
  EXPECT_EQ(stored[0], 127 * 65504.0f);
  EXPECT_EQ(stored[1], -127 * 65504.0f);
  for (size_t i = 2; i < 64; ++i) EXPECT_EQ(stored[i], 0.0f);
}

}  // namespace
}  // namespace longsight::test
