// Linear layers against the product of the expanded weights in double precision.
#include "kernels/cpu/linear/linear.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "kernels/cpu/linear/kernels.h"
#include "linear_case.h"

namespace longsight {
namespace {

using namespace test;

class LinearOnEachSet : public testing::TestWithParam<InstructionSet> {
 protected:
  void SetUp() override {
    if (!instructionSetRuns(GetParam())) {
      GTEST_SKIP() << "this machine lacks " << instructionSetName(GetParam());
    }
  }
};

INSTANTIATE_TEST_SUITE_P(Sets, LinearOnEachSet, testing::ValuesIn(kInstructionSets),
                         [](const auto& info) { return instructionSetName(info.param); });

TEST_P(LinearOnEachSet, everyTypeGivesTheProduct) {
  for (ggml_type type : weightTypes()) {
    const int64_t block = ggml_blck_size(type);
    for (int64_t columns : {block, 32 * block / std::gcd(block, int64_t{32}), int64_t{768}}) {
      multiplyAndCheck(type, 7, 70, columns, GetParam(), 2);
    }
  }
}

TEST_P(LinearOnEachSet, uglySizes) {
  for (ggml_type type : {GGML_TYPE_Q4_1, GGML_TYPE_Q8_0, GGML_TYPE_F16}) {
    for (int64_t rows : {1, 2, 5, 127, 129}) {
      for (int64_t outputs : {1, 63, 64, 65, 200}) {
        for (int64_t columns : {32, 96, 576}) {
          multiplyAndCheck(type, rows, outputs, columns, GetParam(), 2);
        }
      }
    }
  }
  for (int64_t columns : {1, 2, 31, 33, 257, 1023, 1025}) {
    multiplyAndCheck(GGML_TYPE_F32, 5, 65, columns, GetParam(), 1);
    multiplyAndCheck(GGML_TYPE_BF16, 6, 17, columns, GetParam(), 1);
  }
  // More columns than a panel is deep.
  multiplyAndCheck(GGML_TYPE_Q4_1, 13, 67, 1536, GetParam(), 2);
  multiplyAndCheck(GGML_TYPE_Q4_K, 13, 67, 4864, GetParam(), 2);
  multiplyAndCheck(GGML_TYPE_Q6_K, 13, 64, 4352, GetParam(), 2);
  multiplyAndCheck(GGML_TYPE_F32, 7, 65, 2048 + 33, GetParam(), 2);
  // More rows than the scratch is for.
  multiplyAndCheck(GGML_TYPE_Q4_0, 131, 65, 64, GetParam(), 2, 40);
}

TEST_P(LinearOnEachSet, bitsDependOnNeitherThreadsNorNeighbours) {
  std::mt19937 random(seed());
  constexpr int64_t kRows = 131, kColumns = 2304;
  const Weights q(random, GGML_TYPE_Q4_K, 320, kColumns), k(random, GGML_TYPE_Q6_K, 70, kColumns);
  const Activations a(random, kRows, kColumns, 0);
  const CancelFlag cancel;
  GuardedOutput firstQ(kRows, 320, 0), firstK(kRows, 70, 0);
  bool haveFirst = false;
  for (int32_t threads : {1, 2, 3, 1}) {
    ThreadPool pool(threads);
    LinearScratch scratch(kRows, kColumns, threads, GetParam());
    scratch.fillForTest(0xff);
    GuardedOutput outQ(kRows, 320, 0), outK(kRows, 70, 0);
    const LinearOutput both[] = {{q.view, outQ.data(), outQ.stride()},
                                 {k.view, outK.data(), outK.stride()}};
    ASSERT_TRUE(multiply(a.values.data(), kRows, a.stride, both, scratch, pool, cancel));
    if (!haveFirst) {
      expectProduct(outQ, a, kRows, q, GetParam());
      expectProduct(outK, a, kRows, k, GetParam());
      firstQ = outQ;
      firstK = outK;
      haveFirst = true;
    }
    EXPECT_TRUE(outQ.sameBits(firstQ)) << threads << " threads, seed " << seed();
    EXPECT_TRUE(outK.sameBits(firstK)) << threads << " threads, seed " << seed();
  }
  // Each row and weight alone, with blocks of another size.
  ThreadPool pool(2);
  LinearScratch scratch(17, kColumns, 2, GetParam());
  GuardedOutput alone(kRows, 70, 0);
  ASSERT_TRUE(multiply(a.values.data(), kRows, a.stride, k.view, alone.data(), alone.stride(),
                       scratch, pool, cancel));
  EXPECT_TRUE(alone.sameBits(firstK)) << "seed " << seed();
  for (int64_t row : {0, 64, 130}) {
    GuardedOutput one(1, 70, 0);
    ASSERT_TRUE(multiply(a.values.data() + row * a.stride, 1, a.stride, k.view, one.data(),
                         one.stride(), scratch, pool, cancel));
    for (int64_t n = 0; n < 70; ++n) ASSERT_EQ(one.at(0, n), firstK.at(row, n));
  }
}

TEST_P(LinearOnEachSet, ownExpansionHasTheBitsOfGgml) {
  const LinearKernels* kernels = linearKernels(GetParam());
  ASSERT_NE(kernels, nullptr);
  // avx512vnni has nothing of its own for all types.
  ASSERT_EQ(kernels->set,
            GetParam() == InstructionSet::avx512vnni ? InstructionSet::avx512 : GetParam());
  std::mt19937 random(seed());
  int checked = 0;
  for (ggml_type type : weightTypes()) {
    const ExpandRow own = kernels->expander(type);
    if (own == nullptr || type == GGML_TYPE_F32) continue;
    ++checked;
    // Any bytes are weights; scales that are infinite or NaN included.
    constexpr int64_t kCount = 256 * 64;
    std::vector<std::byte> bytes(ggml_row_size(type, kCount));
    for (std::byte& b : bytes) b = static_cast<std::byte>(random());
    std::vector<float> got(kCount), expected(kCount);
    own(bytes.data(), got.data(), kCount);
    ggml_get_type_traits(type)->to_float(bytes.data(), expected.data(), kCount);
    for (int64_t i = 0; i < kCount; ++i) {
      const size_t at = static_cast<size_t>(i);
      if (std::isnan(expected[at]) && std::isnan(got[at])) continue;
      ASSERT_EQ(std::memcmp(&got[at], &expected[at], sizeof(float)), 0)
          << ggml_type_name(type) << " weight " << i << ": " << got[at] << " instead of "
          << expected[at] << ", seed " << seed();
    }
  }
  EXPECT_EQ(checked, 7);
}

TEST_P(LinearOnEachSet, cancelEndsTheCall) {
  std::mt19937 random(seed());
  const Weights weights(random, GGML_TYPE_Q4_0, 640, 256);
  const Activations a(random, 64, 256, 0);
  GuardedOutput out(64, 640, 0);
  ThreadPool pool(2);
  LinearScratch scratch(64, 256, 2, GetParam());
  CancelFlag cancel;
  cancel.set();
  EXPECT_FALSE(multiply(a.values.data(), 64, a.stride, weights.view, out.data(), out.stride(),
                        scratch, pool, cancel));
  for (int64_t n = 0; n < 640; ++n)
    ASSERT_TRUE(std::isnan(out.at(0, n))) << "computed all the same";
  cancel.clear();
  EXPECT_TRUE(multiply(a.values.data(), 64, a.stride, weights.view, out.data(), out.stride(),
                       scratch, pool, cancel));
  expectProduct(out, a, 64, weights, GetParam());
}

TEST_P(LinearOnEachSet, nonFiniteActivationsStayInTheirRow) {
  std::mt19937 random(seed());
  const Weights weights(random, GGML_TYPE_Q8_0, 65, 64);
  Activations a(random, 3, 64, 0);
  a.values[64 + 5] = kNan;
  GuardedOutput out(3, 65, 0);
  ThreadPool pool(1);
  LinearScratch scratch(3, 64, 1, GetParam());
  ASSERT_TRUE(multiply(a.values.data(), 3, a.stride, weights.view, out.data(), out.stride(),
                       scratch, pool, CancelFlag{}));
  for (int64_t n = 0; n < 65; ++n) {
    EXPECT_TRUE(std::isfinite(out.at(0, n)));
    EXPECT_TRUE(std::isnan(out.at(1, n)));
    EXPECT_TRUE(std::isfinite(out.at(2, n)));
  }
}

// Channels that are far larger than the rest, as transformers have them, up to one for each group
// of columns that is kept wide.
TEST_P(LinearOnEachSet, largeChannelsDoNotCoarsenTheRest) {
  std::mt19937 random(seed());
  constexpr int64_t kRows = 9, kColumns = 256;
  for (ggml_type type : {GGML_TYPE_Q8_0, GGML_TYPE_Q4_1, GGML_TYPE_Q4_K}) {
    const Weights weights(random, type, 70, kColumns);
    Activations a(random, kRows, kColumns, 0);
    for (int64_t r = 0; r < kRows; ++r) {
      float* row = a.values.data() + r * a.stride;
      for (int64_t block = 0; block < kColumns; block += 32) {
        const auto at = static_cast<int64_t>(random() % 32);
        row[block + at] *= 60.0f;
        row[block + (at + 7) % 32] *= -90.0f;
      }
    }
    GuardedOutput out(kRows, 70, 0);
    ThreadPool pool(2);
    LinearScratch scratch(kRows, kColumns, 2, GetParam());
    ASSERT_TRUE(multiply(a.values.data(), kRows, a.stride, weights.view, out.data(), out.stride(),
                         scratch, pool, CancelFlag{}));
    expectProduct(out, a, kRows, weights, GetParam());
  }
}

// As fine as that: of normally distributed activations the third largest group reaches 1.9, a step
// is a 127th of it and a rounding error a step / sqrt(12) in root mean square.
TEST(Linear, integersAreAFewThousandthsOffActivations) {
  std::mt19937 random(seed());
  constexpr int64_t kCount = 32 * 512;
  std::vector<float> values = randomFloats(random, kCount);
  for (int64_t i = 0; i < kCount; i += 32) values[static_cast<size_t>(i)] *= 100.0f;
  const std::vector<double> rounded = roundToIntegers(values.data(), kCount);
  double squaredError = 0.0;
  for (size_t i = 0; i < values.size(); ++i) squaredError += std::pow(rounded[i] - values[i], 2);
  EXPECT_LE(std::sqrt(squaredError / kCount), 0.005);
}

// The sums of integers at their largest: no 32 bits may overflow.
TEST_P(LinearOnEachSet, extremeIntegersDoNotOverflow) {
  constexpr int64_t kColumns = 64, kOutputs = 64;
  std::mt19937 random(seed());
  Weights weights(random, GGML_TYPE_Q8_0, kOutputs, kColumns);
  std::byte* block = weights.data.data();
  for (int64_t i = 0; i < kOutputs * kColumns; i += 32, block += 34) {
    constexpr uint16_t kOne = 0x3c00;
    std::memcpy(block, &kOne, sizeof(kOne));
    std::memset(block + 2, i / kColumns % 2 == 0 ? -128 : 127, 32);
    ggml_get_type_traits(GGML_TYPE_Q8_0)->to_float(block, weights.expanded.data() + i, 32);
  }
  for (const float sign : {1.0f, -1.0f}) {
    Activations a(random, 4, kColumns, 0);
    for (int64_t i = 0; i < 4 * kColumns; ++i) {
      const bool isWide = i / kColumns % 2 == 0 && i % 32 < 8;
      a.values[static_cast<size_t>(i)] = sign * (isWide ? 16256.0f : 127.0f);
    }
    GuardedOutput out(4, kOutputs, 0);
    ThreadPool pool(1);
    LinearScratch scratch(4, kColumns, 1, GetParam());
    ASSERT_TRUE(multiply(a.values.data(), 4, a.stride, weights.view, out.data(), out.stride(),
                         scratch, pool, CancelFlag{}));
    expectProduct(out, a, 4, weights, GetParam());
  }
}

// Blocks of zeros, of numbers without a reciprocal, and of the largest ones.
TEST_P(LinearOnEachSet, anyFiniteActivationsGiveFiniteOutputs) {
  std::mt19937 random(seed());
  const Weights weights(random, GGML_TYPE_Q4_1, 64, 96);
  Activations a(random, 3, 96, 0);
  std::fill_n(a.values.begin(), 96, 0.0f);
  std::fill_n(a.values.begin() + 96, 96, 1e-42f);
  for (int64_t i = 0; i < 96; ++i) a.values[static_cast<size_t>(192 + i)] *= 1e30f;
  GuardedOutput out(3, 64, 0);
  ThreadPool pool(1);
  LinearScratch scratch(3, 96, 1, GetParam());
  ASSERT_TRUE(multiply(a.values.data(), 3, a.stride, weights.view, out.data(), out.stride(),
                       scratch, pool, CancelFlag{}));
  for (int64_t n = 0; n < 64; ++n) {
    EXPECT_EQ(out.at(0, n), 0.0f);
    EXPECT_LE(std::fabs(out.at(1, n)), 1e-36f);
    EXPECT_TRUE(std::isfinite(out.at(2, n)));
  }
}

TEST(Linear, refusesWhatDoesNotFit) {
  std::mt19937 random(seed());
  const Weights weights(random, GGML_TYPE_Q4_1, 64, 64);
  const std::vector<float> a(256 * 4, 1.0f);
  std::vector<float> out(64 * 4, 0.0f);
  ThreadPool pool(2);
  const CancelFlag cancel;
  LinearScratch scratch(4, 64, 2), oneThread(4, 64, 1);
  const auto call = [&](WeightView view, int64_t rows, int64_t aStride, int64_t outStride,
                        LinearScratch& s) {
    multiply(a.data(), rows, aStride, view, out.data(), outStride, s, pool, cancel);
  };
  EXPECT_NO_THROW(call(weights.view, 4, 64, 64, scratch));
  EXPECT_NO_THROW(call(weights.view, 0, 64, 64, scratch));
  std::fill(out.begin(), out.end(), -1.0f);
  WeightView odd = weights.view, wide = weights.view, index = weights.view;
  odd.columns = 48;
  wide.columns = 128;
  index.type = GGML_TYPE_I32;
  EXPECT_THROW(call(odd, 4, 64, 64, scratch), std::invalid_argument);
  EXPECT_THROW(call(wide, 4, 128, 64, scratch), std::invalid_argument);
  EXPECT_THROW(call(index, 4, 64, 64, scratch), std::invalid_argument);
  EXPECT_THROW(call(weights.view, 4, 63, 64, scratch), std::invalid_argument);
  EXPECT_THROW(call(weights.view, 4, 64, 63, scratch), std::invalid_argument);
  EXPECT_THROW(call(weights.view, 4, 64, 64, oneThread), std::invalid_argument);
  EXPECT_THROW(LinearScratch(0, 64, 1), std::invalid_argument);
  for (float value : out) ASSERT_EQ(value, -1.0f);
  EXPECT_FALSE(isLinearType(GGML_TYPE_I8));
  EXPECT_FALSE(isLinearType(GGML_TYPE_COUNT));
}

TEST(Linear, theEnvironmentForcesASet) {
  const char* before = std::getenv("LONGSIGHT_CPU");
  const std::string saved = before ? before : "";
  setenv("LONGSIGHT_CPU", "portable", 1);
  EXPECT_EQ(chooseInstructionSet(), InstructionSet::portable);
  EXPECT_EQ(chooseLinearSets(), LinearSets(InstructionSet::portable));
  EXPECT_EQ(LinearScratch(1, 32, 1).sets(), LinearSets(InstructionSet::portable));
  EXPECT_EQ(linearSetsName(chooseLinearSets()), "portable");
  setenv("LONGSIGHT_CPU", "mmx", 1);
  EXPECT_THROW(chooseInstructionSet(), std::runtime_error);
  setenv("LONGSIGHT_CPU", "", 1);
  EXPECT_EQ(chooseInstructionSet(), setsThatRun().back());
  EXPECT_TRUE(instructionSetRuns(chooseLinearSets().general));
  EXPECT_TRUE(instructionSetRuns(chooseLinearSets().integers));
  EXPECT_EQ(chooseLinearSets(), chooseLinearSets());
  if (before) {
    setenv("LONGSIGHT_CPU", saved.c_str(), 1);
  } else {
    unsetenv("LONGSIGHT_CPU");
  }
}

#if defined(__x86_64__)
struct alignas(64) TileConfig {
  uint8_t bytes[64] = {};
};

__attribute__((target("amx-tile"))) void loadTiles(const TileConfig& config) {
  asm volatile("ldtilecfg %0" : : "m"(config));
}

__attribute__((target("amx-tile"))) TileConfig storeTiles() {
  TileConfig config;
  asm volatile("sttilecfg %0" : "=m"(config));
  return config;
}

TEST(Linear, leavesTheTileConfigurationOfTheThread) {
  if (!instructionSetRuns(InstructionSet::amx)) GTEST_SKIP() << "this machine lacks amx";
  std::mt19937 random(seed());
  const Weights weights(random, GGML_TYPE_Q4_0, 64, 64);
  const Activations a(random, 40, 64, 0);
  GuardedOutput out(40, 64, 0);
  ThreadPool pool(1);
  LinearScratch scratch(40, 64, 1, InstructionSet::amx);
  TileConfig other;
  other.bytes[0] = 1;    // palette
  other.bytes[16] = 32;  // bytes in a row of tile 0
  other.bytes[48] = 3;   // its rows
  for (const TileConfig& before : {other, TileConfig{}}) {
    loadTiles(before);
    ASSERT_TRUE(multiply(a.values.data(), 40, a.stride, weights.view, out.data(), out.stride(),
                         scratch, pool, CancelFlag{}));
    const TileConfig after = storeTiles();
    EXPECT_EQ(std::memcmp(&before, &after, sizeof(before)), 0);
    expectProduct(out, a, 40, weights, InstructionSet::amx);
  }
}
#endif

TEST(Linear, scratchSizeFollowsFromItsShape) {
  for (InstructionSet set : setsThatRun()) {
    const size_t one = LinearScratch::bytes(512, 4096, 1, set);
    EXPECT_EQ(one, LinearScratch::bytes(512, 4096, 1, set));
    const size_t perThread = LinearScratch::bytes(512, 4096, 2, set) - one;
    EXPECT_EQ(LinearScratch::bytes(512, 4096, 5, set), one + 4 * perThread);
    EXPECT_LT(perThread, size_t{1} << 19);
  }
}

}  // namespace
}  // namespace longsight
