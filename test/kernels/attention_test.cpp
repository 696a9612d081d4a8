// CPU attention against the double-precision reference.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <string>

#include "attention/geometry.h"
#include "attention_case.h"
#include "kernels/cpu/instruction_set.h"
#include "kernels/reference/reference.h"

namespace longsight::test {
namespace {

// The instruction sets with attention kernels of their own that run here.
std::vector<std::string> kernelSets() {
  std::vector<std::string> names = {"portable"};
  if (instructionSetRuns(InstructionSet::avx2)) names.push_back("avx2");
  return names;
}

// Forces an instruction set for scratch made while it lives.
class ForcedSet {
 public:
  explicit ForcedSet(const std::string& name) { setenv("LONGSIGHT_CPU", name.c_str(), 1); }
  ~ForcedSet() { unsetenv("LONGSIGHT_CPU"); }
};

struct Tolerance {
  double list = 1e-3;    // of a peak, natural logarithm
  double output = 2e-5;  // absolute, for values of size 1
};

// Compares lists, counts, fall-backs, coverage and some rows of the output with the reference.
// Columns whose reference peak is within the tolerance of the cut may differ; they are counted.
void expectAgreement(const AttentionCase& c, std::mt19937_64& random, int64_t rowsToCheck,
                     const Tolerance& tolerance = {}) {
  const Segment& segment = c.task.segment;
  ASSERT_EQ(c.heads.size(), static_cast<size_t>(c.task.heads));
  for (const float x : c.outputs()) ASSERT_TRUE(std::isfinite(x));

  const double cut = std::log(c.params.epsilon);
  int64_t differing = 0;
  int64_t listed = 0;
  for (int32_t head = 0; head < c.task.heads; ++head) {
    SCOPED_TRACE("head " + std::to_string(head));
    const HeadAttention& result = c.heads[static_cast<size_t>(head)];
    const auto span = c.scratch.columnList(head);
    reference::Kept kept{segment.dense || result.denseFallback, {span.begin(), span.end()}};

    if (!segment.dense) {
      const std::vector<double> peaks = reference::peaks(c.task, head);
      const std::vector<int32_t> expected = reference::columnList(c.task, peaks);
      listed += static_cast<int64_t>(expected.size());
      int64_t near = 0;
      for (const double peak : peaks) near += std::abs(peak - cut) <= tolerance.list;
      EXPECT_LE(std::abs(result.listLength - static_cast<int64_t>(expected.size())), near);
      if (near == 0) {
        EXPECT_EQ(result.denseFallback,
                  reference::fallsBackToDense(c.task, static_cast<int64_t>(expected.size())));
      }
      if (!result.denseFallback) {
        ASSERT_EQ(result.listLength, static_cast<int64_t>(kept.list.size()));
        std::vector<int32_t> difference;
        std::set_symmetric_difference(kept.list.begin(), kept.list.end(), expected.begin(),
                                      expected.end(), std::back_inserter(difference));
        for (const int32_t column : difference) {
          EXPECT_LE(std::abs(peaks[static_cast<size_t>(column)] - cut), tolerance.list)
              << "column " << column;
        }
        differing += static_cast<int64_t>(difference.size());
      }
    }
    EXPECT_EQ(result.keptPairs, reference::keptPairs(c.task, kept));
    EXPECT_EQ(result.causalPairs, causalPairCount(segment.begin, segment.end));

    const std::vector<int64_t> audits = auditRows(segment, c.params);
    ASSERT_EQ(result.coverage.size(), audits.size());
    for (size_t i = 0; i < audits.size(); ++i) {
      EXPECT_NEAR(result.coverage[i], reference::coverage(c.task, head, audits[i], kept), 1e-4);
    }

    const int64_t rows = segment.end - segment.begin;
    for (int64_t i = 0; i < std::min(rows, rowsToCheck); ++i) {
      // The first and the last row, and random ones.
      int64_t row =
          segment.begin +
          (rows <= rowsToCheck ? i : static_cast<int64_t>(random() % static_cast<uint64_t>(rows)));
      if (rows > rowsToCheck && i < 2) row = i == 0 ? segment.begin : segment.end - 1;
      const std::vector<double> expected = reference::attendRow(c.task, head, row, kept);
      const float* actual = c.output(row, head);
      double worst = 0;
      for (size_t dim = 0; dim < expected.size(); ++dim) {
        worst = std::max(worst, std::abs(actual[dim] - expected[dim]));
      }
      EXPECT_LE(worst, tolerance.output) << "row " << row;
    }
  }
  if (differing > 0) {
    std::printf("  %lld of %lld listed columns differ, all within %g of the cut\n",
                static_cast<long long>(differing), static_cast<long long>(listed), tolerance.list);
  }
}

TEST(Attention, SparseAgreesWithTheReference) {
  std::mt19937_64 random(seed());
  for (const std::string& set : kernelSets()) {
    const ForcedSet forced(set);
    SampleAttentionParams params;
    const Segment segment{700, 2100, false, 8, 256};
    AttentionCase c({6, 2, 64}, segment, params, random);
    ASSERT_TRUE(c.run(2));
    expectAgreement(c, random, 12);
  }
}

}  // namespace
}  // namespace longsight::test
