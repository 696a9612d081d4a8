// Products for a few rows against the product of the expanded weights in double precision.
#include "kernels/cpu/linear/few_rows.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "linear_case.h"

namespace longsight {
namespace {

using namespace test;

class FewRows : public testing::Test {
 protected:
  void SetUp() override {
    if (!instructionSetRuns(InstructionSet::avx512vnni)) {
      GTEST_SKIP() << "this machine lacks avx512vnni";
    }
    kernels_ = avx512vnniFewRowKernels();
  }

  // Rows of activations as the kernels read them, in memory that held something else.
  struct Packed {
    struct alignas(64) Line {
      std::byte bytes[64];
    };
    std::vector<Line> lines;
    int64_t rowBytes;
    const std::byte* data() const { return lines.front().bytes; }
  };
  Packed pack(const Activations& a, int64_t first, int64_t rows, int64_t columns) const {
    Packed packed;
    packed.rowBytes = kernels_->rowBytes(columns);
    Packed::Line stale;
    std::memset(&stale, 0x7f, sizeof(stale));
    packed.lines.assign(static_cast<size_t>(rows * packed.rowBytes / 64), stale);
    for (int64_t row = 0; row < rows; ++row) {
      kernels_->packRow(a.values.data() + (first + row) * a.stride, columns,
                        packed.lines.front().bytes + row * packed.rowBytes);
    }
    return packed;
  }
  void multiply(const Packed& packed, int64_t rows, const Weights& weights,
                GuardedOutput& out) const {
    const ggml_type_traits* traits = ggml_get_type_traits(weights.view.type);
    const int64_t columns = weights.view.columns;
    kernels_->multiply({packed.data(), packed.rowBytes, static_cast<int32_t>(rows), columns,
                        weights.view.type, traits->blck_size,
                        static_cast<int64_t>(traits->type_size), weights.data.data(),
                        static_cast<int64_t>(ggml_row_size(weights.view.type, columns)),
                        weights.view.rows, out.data(), out.stride()});
  }

  const FewRowKernels* kernels_ = nullptr;
};

TEST_F(FewRows, everyTypeAndSizeGivesTheProduct) {
  std::mt19937 random(seed());
  int types = 0;
  for (ggml_type type : weightTypes()) {
    if (!kernels_->takes(type)) continue;
    ++types;
    const int64_t block = ggml_blck_size(type);
    for (int64_t columns : {block, 3 * block, int64_t{768}, int64_t{1536}, 9 * block + 768}) {
      for (int64_t outputs : {1, 3, 4, 9}) {
        const int64_t rows = 1 + static_cast<int64_t>(random() % kMaxFewRows);
        SCOPED_TRACE(std::string(ggml_type_name(type)) + " rows " + std::to_string(rows) +
                     " outputs " + std::to_string(outputs) + " columns " + std::to_string(columns) +
                     " seed " + std::to_string(seed()));
        const Weights weights(random, type, outputs, columns);
        const Activations a(random, rows, columns, 3);
        GuardedOutput out(rows, outputs, 5);
        multiply(pack(a, 0, rows, columns), rows, weights, out);
        EXPECT_TRUE(out.guardsIntact());
        expectProduct(out, a, rows, weights, InstructionSet::avx512vnni);
      }
    }
  }
  EXPECT_EQ(types, 9);
}

TEST_F(FewRows, bitsDoNotDependOnTheOtherRows) {
  std::mt19937 random(seed());
  constexpr int64_t kColumns = 1312, kOutputs = 37;
  for (ggml_type type : {GGML_TYPE_Q8_0, GGML_TYPE_Q4_1}) {
    const Weights weights(random, type, kOutputs, kColumns);
    const Activations a(random, kMaxFewRows, kColumns, 0);
    GuardedOutput all(kMaxFewRows, kOutputs, 0);
    multiply(pack(a, 0, kMaxFewRows, kColumns), kMaxFewRows, weights, all);
    for (int64_t rows = 1; rows < kMaxFewRows; ++rows) {
      const int64_t first = kMaxFewRows - rows;
      GuardedOutput some(rows, kOutputs, 0);
      multiply(pack(a, first, rows, kColumns), rows, weights, some);
      for (int64_t r = 0; r < rows; ++r) {
        for (int64_t n = 0; n < kOutputs; ++n)
          ASSERT_EQ(some.at(r, n), all.at(first + r, n)) << rows << " rows, seed " << seed();
      }
    }
  }
}

TEST_F(FewRows, nonFiniteActivationsStayInTheirRow) {
  std::mt19937 random(seed());
  const Weights weights(random, GGML_TYPE_Q4_0, 6, 64);
  Activations a(random, 3, 64, 0);
  a.values[64 + 5] = kNan;
  a.values[128 + 40] = std::numeric_limits<float>::infinity();
  GuardedOutput out(3, 6, 0);
  multiply(pack(a, 0, 3, 64), 3, weights, out);
  for (int64_t n = 0; n < 6; ++n) {
    EXPECT_TRUE(std::isfinite(out.at(0, n)));
    EXPECT_TRUE(std::isnan(out.at(1, n)));
    EXPECT_FALSE(std::isfinite(out.at(2, n)));
  }
}

}  // namespace
}  // namespace longsight
