// Linear layers against the product of the expanded weights in double precision.
#include "kernels/cpu/linear/linear.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "kernels/cpu/linear/kernels.h"

namespace longsight {
namespace {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr uint32_t kGuardBits = 0x7fc0dead;
constexpr int64_t kGuardFloats = 64;

// A new one each run, printed, or LONGSIGHT_TEST_SEED.
uint32_t seed() {
  static const uint32_t value = [] {
    const char* given = std::getenv("LONGSIGHT_TEST_SEED");
    const uint32_t chosen =
        given ? static_cast<uint32_t>(std::strtoul(given, nullptr, 10)) : std::random_device{}();
    std::printf("LONGSIGHT_TEST_SEED=%u\n", chosen);
    return chosen;
  }();
  return value;
}

std::vector<InstructionSet> setsThatRun() {
  std::vector<InstructionSet> sets;
  for (InstructionSet set : kInstructionSets) {
    if (instructionSetRuns(set)) sets.push_back(set);
  }
  return sets;
}

std::vector<ggml_type> weightTypes() {
  std::vector<ggml_type> types;
  for (int t = 0; t < GGML_TYPE_COUNT; ++t) {
    if (isLinearType(static_cast<ggml_type>(t))) types.push_back(static_cast<ggml_type>(t));
  }
  return types;
}

std::vector<float> randomFloats(std::mt19937& random, int64_t count) {
  std::normal_distribution<float> normal;
  std::vector<float> values(static_cast<size_t>(count));
  for (float& v : values) v = normal(random);
  return values;
}

// Random weights in a file type, and what ggml expands them to. Any bytes are a block of weights;
// blocks with a useless scale are drawn again.
struct Weights {
  Weights(std::mt19937& random, ggml_type type, int64_t rows, int64_t columns)
      : data(ggml_row_size(type, columns) * static_cast<size_t>(rows)),
        view{data.data(), type, rows, columns} {
    if (type == GGML_TYPE_F32) {
      expanded = randomFloats(random, rows * columns);
      std::memcpy(data.data(), expanded.data(), data.size());
      return;
    }
    expanded.resize(static_cast<size_t>(rows * columns));
    const ggml_type_traits* traits = ggml_get_type_traits(type);
    std::byte* block = data.data();
    for (int64_t i = 0; i < rows * columns; i += traits->blck_size, block += traits->type_size) {
      float largest = 0.0f;
      while (!(largest > 0.1f && largest < 10.0f)) {
        for (size_t b = 0; b < traits->type_size; ++b) block[b] = static_cast<std::byte>(random());
        traits->to_float(block, expanded.data() + i, traits->blck_size);
        largest = 0.0f;
        for (int64_t j = i; j < i + traits->blck_size; ++j) {
          const float size = std::fabs(expanded[static_cast<size_t>(j)]);
          if (!std::isfinite(size)) {
            largest = size;
            break;
          }
          largest = std::max(largest, size);
        }
      }
    }
  }

  std::vector<std::byte> data;
  std::vector<float> expanded;
  WeightView view;
};

// An output with NaN in every element and guard words around and between the rows.
class GuardedOutput {
 public:
  GuardedOutput(int64_t rows, int64_t width, int64_t gap)
      : rows_(rows), width_(width), stride_(width + gap) {
    float guard;
    std::memcpy(&guard, &kGuardBits, sizeof(guard));
    storage_.assign(static_cast<size_t>(rows * stride_ + 2 * kGuardFloats), guard);
    for (int64_t r = 0; r < rows; ++r) std::fill_n(data() + r * stride_, width, kNan);
  }
  float* data() { return storage_.data() + kGuardFloats; }
  int64_t stride() const { return stride_; }
  float at(int64_t row, int64_t column) const {
    return storage_[static_cast<size_t>(kGuardFloats + row * stride_ + column)];
  }
  bool guardsIntact() const {
    for (int64_t i = 0; i < static_cast<int64_t>(storage_.size()); ++i) {
      const int64_t inside = i - kGuardFloats;
      const bool isOutput = inside >= 0 && inside < rows_ * stride_ && inside % stride_ < width_;
      uint32_t bits;
      std::memcpy(&bits, &storage_[static_cast<size_t>(i)], sizeof(bits));
      if (!isOutput && bits != kGuardBits) return false;
    }
    return true;
  }
  bool sameBits(const GuardedOutput& other) const {
    return storage_.size() == other.storage_.size() &&
           std::memcmp(storage_.data(), other.storage_.data(), storage_.size() * sizeof(float)) ==
               0;
  }

 private:
  int64_t rows_, width_, stride_;
  std::vector<float> storage_;
};

// Activations with a stride, NaN in the gaps: reading one shows in the output.
struct Activations {
  Activations(std::mt19937& random, int64_t rows, int64_t columns, int64_t gap)
      : stride(columns + gap), values(static_cast<size_t>(rows * stride), kNan) {
    for (int64_t r = 0; r < rows; ++r) {
      const std::vector<float> row = randomFloats(random, columns);
      std::copy(row.begin(), row.end(), values.begin() + r * stride);
    }
  }
  int64_t stride;
  std::vector<float> values;
};

float roundToBf16(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  bits = (bits + 0x7fff + ((bits >> 16) & 1)) & 0xffff0000u;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

// Every output against the double-precision product. Where a set rounds its inputs to bf16, so does
// the reference here: what is left is the rounding of f32 sums. The cost of rounding the inputs is
// then bounded by the root mean square over all outputs.
void expectProduct(const GuardedOutput& out, const Activations& a, int64_t rows, const Weights& w,
                   InstructionSet set) {
  const int64_t columns = w.view.columns;
  const bool bf16 = set >= InstructionSet::avx512bf16;
  double squaredError = 0.0, squaredTerms = 0.0;
  for (int64_t r = 0; r < rows; ++r) {
    const float* x = a.values.data() + r * a.stride;
    for (int64_t n = 0; n < w.view.rows; ++n) {
      const float* y = w.expanded.data() + n * columns;
      double exact = 0.0, rounded = 0.0, magnitude = 0.0;
      for (int64_t k = 0; k < columns; ++k) {
        exact += static_cast<double>(x[k]) * y[k];
        rounded += bf16 ? static_cast<double>(roundToBf16(x[k])) * roundToBf16(y[k])
                        : static_cast<double>(x[k]) * y[k];
        magnitude += std::fabs(static_cast<double>(x[k]) * y[k]);
        squaredTerms += std::pow(static_cast<double>(x[k]) * y[k], 2);
      }
      // Rounding errors of a chain of f32 additions grow like the root of its length.
      const double tolerance =
          4.0 * std::sqrt(static_cast<double>(columns)) * 0x1p-24 * magnitude + 1e-30;
      const double got = out.at(r, n);
      ASSERT_LE(std::fabs(got - rounded), tolerance)
          << "row " << r << " output " << n << ": " << got << " instead of " << rounded;
      squaredError += (got - exact) * (got - exact);
    }
  }
  if (!bf16) return;
  // Both factors are off by 2^-8 / sqrt(3) in root mean square at most; few outputs scatter more.
  const double outputs = static_cast<double>(rows * w.view.rows);
  EXPECT_LE(std::sqrt(squaredError / squaredTerms), (1.0 + 4.0 / std::sqrt(outputs)) * 0x1p-8);
}

void multiplyAndCheck(ggml_type type, int64_t rows, int64_t outputs, int64_t columns,
                      InstructionSet set, int32_t threads, int64_t scratchRows = 0) {
  SCOPED_TRACE(std::string(ggml_type_name(type)) + " rows " + std::to_string(rows) + " outputs " +
               std::to_string(outputs) + " columns " + std::to_string(columns) + " " +
               instructionSetName(set) + " threads " + std::to_string(threads) + " seed " +
               std::to_string(seed()));
  std::mt19937 random(seed());
  const Weights weights(random, type, outputs, columns);
  const Activations a(random, rows, columns, 3);
  GuardedOutput out(rows, outputs, 5);
  ThreadPool pool(threads);
  LinearScratch scratch(scratchRows > 0 ? scratchRows : rows, columns, threads, set);
  scratch.fillForTest(0xff);
  ASSERT_TRUE(multiply(a.values.data(), rows, a.stride, weights.view, out.data(), out.stride(),
                       scratch, pool, CancelFlag{}));
  EXPECT_TRUE(out.guardsIntact());
  expectProduct(out, a, rows, weights, set);
}

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
  ASSERT_EQ(kernels->set, GetParam());
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
  EXPECT_EQ(chooseLinearSet(), InstructionSet::portable);
  EXPECT_EQ(LinearScratch(1, 32, 1).instructionSet(), InstructionSet::portable);
  setenv("LONGSIGHT_CPU", "mmx", 1);
  EXPECT_THROW(chooseInstructionSet(), std::runtime_error);
  setenv("LONGSIGHT_CPU", "", 1);
  EXPECT_EQ(chooseInstructionSet(), setsThatRun().back());
  EXPECT_TRUE(instructionSetRuns(chooseLinearSet()));
  EXPECT_EQ(chooseLinearSet(), chooseLinearSet());
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
