// Policy mass on the CPU against the double-precision reference, and against itself.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "agreement.h"
#include "attention/geometry.h"

namespace longsight::test {
namespace {

class Mass : public testing::TestWithParam<std::string> {
 protected:
  std::mt19937_64 random{seed() + 13};
  ForcedSet forced{GetParam()};
  static constexpr Shape kShape{6, 2, 64};
  static constexpr Segment kSegment{1000, 2300, false, 8, 256};

  int64_t pick(int64_t low, int64_t high) {
    return std::uniform_int_distribution<int64_t>(low, high)(random);
  }
  static SampleAttentionParams mass(double alpha) {
    SampleAttentionParams params;
    params.policy = Policy::mass;
    params.alpha = alpha;
    params.maxListShare = 1.0;
    return params;
  }
  // Flat heads and heads that look at a few columns.
  void sharpen(AttentionCase& c) {
    for (int32_t head = 0; head < c.task.heads; ++head) {
      const float factor = std::exp2(static_cast<float>(pick(-1, 2)));
      for (int64_t row = c.task.segment.begin; row < c.task.segment.end; ++row) {
        for (int32_t dim = 0; dim < c.task.kv.headDim; ++dim) c.query(row, head)[dim] *= factor;
      }
    }
  }
  static void equalKeys(AttentionCase& c) {
    for (int32_t head = 0; head < c.task.kv.kvHeads; ++head) {
      for (int64_t row = 0; row < c.task.segment.end; ++row) {
        std::fill_n(c.key(head, row), c.task.kv.headDim, toBf16(0.5f));
      }
    }
  }
};

std::string setName(const testing::TestParamInfo<std::string>& info) { return info.param; }
INSTANTIATE_TEST_SUITE_P(Sets, Mass, testing::ValuesIn(kernelSets()), setName);

TEST_P(Mass, UglySizes) {
  for (const Shape& shape :
       {Shape{9, 3, 64}, Shape{14, 2, 64}, Shape{8, 2, 128}, Shape{1, 1, 20}}) {
    for (const int64_t rows : {1, 127, 128, 129, 1000}) {
      for (const int64_t begin : {0, 77}) {
        SCOPED_TRACE(testing::Message() << shape.heads << '/' << shape.kvHeads << " d "
                                        << shape.headDim << " rows " << rows << " at " << begin);
        AttentionCase c(shape, {begin, begin + rows, false, 8, 128}, mass(0.9), random);
        sharpen(c);
        ASSERT_TRUE(c.run(2));
        expectAgreement(c, random, {4, 3});
      }
    }
  }
}

TEST_P(Mass, ThePaperInOneSegment) {
  SampleAttentionParams params = mass(0.95);
  params.sampleStride = 20;
  params.windowFraction = 0.08;
  params.windowTokens = 128;
  params.sinkTokens = 0;
  params.segmentRows = 0;
  params.denseBelowTokens = 0;
  params.maxListShare = 0.6;
  constexpr int64_t kTokens = 4111;
  const int64_t borders[] = {1000, 2000, kTokens};
  const std::vector<Segment> segments = planSegments(kTokens, borders, kTokens, params);
  ASSERT_EQ(segments.size(), 1u);
  ASSERT_EQ(segments[0].windowTokens, 328);
  AttentionCase c({9, 3, 64}, segments[0], params, random);
  sharpen(c);
  ASSERT_TRUE(c.run(2));
  EXPECT_GT(c.listedHeads(), 0);
  expectAgreement(c, random, {6, 4});
  EXPECT_LE(c.scratch.bytes(), attentionScratchBytes({9, 3, 64, kTokens}, params, 2));
}

TEST_P(Mass, RandomTasks) {
  int64_t listedHeads = 0;
  for (int round = 0; round < 30; ++round) {
    SampleAttentionParams params = mass(1.0 - std::exp(-static_cast<double>(pick(1, 700)) / 100));
    params.sinkTokens = static_cast<int32_t>(pick(0, 2) == 0 ? pick(0, 1) * 128 : pick(0, 128));
    params.maxListShare = static_cast<double>(pick(1, 10)) / 10;
    params.auditRows = static_cast<int32_t>(pick(0, 9));
    params.scoreDims = pick(0, 1) == 0 ? ScoreDims::all : ScoreDims::slowHalf;
    const auto kvHeads = static_cast<int32_t>(pick(1, 3));
    const Shape shape{kvHeads * static_cast<int32_t>(pick(1, 5)), kvHeads,
                      static_cast<int32_t>(4 * pick(4, 36))};
    const int64_t begin = pick(0, 1000);
    const Segment segment{begin, begin + pick(1, 900), false, static_cast<int32_t>(pick(1, 64)),
                          pick(128, 300)};
    SCOPED_TRACE(testing::Message()
                 << shape.heads << '/' << shape.kvHeads << " d " << shape.headDim << " rows "
                 << segment.begin << " to " << segment.end << " stride " << segment.stride
                 << " window " << segment.windowTokens << " sinks " << params.sinkTokens
                 << " alpha " << params.alpha);
    AttentionCase c(shape, segment, params, random);
    c.task.ropeStyle = pick(0, 1) == 0 ? RopeStyle::neox : RopeStyle::interleaved;
    sharpen(c);
    ASSERT_TRUE(c.run(static_cast<int32_t>(pick(1, 3))));
    expectAgreement(c, random, {3, 3});
    listedHeads += c.listedHeads();
  }
  EXPECT_GT(listedHeads, 0);
}

TEST_P(Mass, AlphaOneEqualsDense) {
  for (const Shape& shape : {Shape{9, 3, 64}, Shape{4, 2, 128}}) {
    AttentionCase c(shape, {900, 2500, false, 20, 256}, mass(1.0), random);
    ASSERT_TRUE(c.run(2));
    const std::vector<float> kept = c.outputs();
    for (const HeadAttention& head : c.heads) {
      EXPECT_FALSE(head.denseFallback);
      EXPECT_EQ(head.listLength, windowStart(2499, 256) - c.params.sinkTokens);
      EXPECT_EQ(head.keptPairs, head.causalPairs);
      for (const float share : head.coverage) EXPECT_NEAR(share, 1.0f, 1e-6f);
    }
    c.task.segment = {900, 2500, true, 0, 0};
    c.poisonOutput();
    ASSERT_TRUE(c.run(2));
    const std::vector<float> all = c.outputs();
    for (size_t i = 0; i < all.size(); ++i) ASSERT_NEAR(kept[i], all[i], reorderTolerance(c, 900));
  }
}

TEST_P(Mass, AlphaNearItsEnds) {
  for (const double alpha : {1e-12, 1e-3, 0.9999, 1.0 - 1e-9}) {
    SCOPED_TRACE(alpha);
    AttentionCase c(kShape, kSegment, mass(alpha), random);
    ASSERT_TRUE(c.run(2));
    expectAgreement(c, random, {4, 3});
    const int64_t remote = windowStart(2299, 256) - c.params.sinkTokens;
    for (const HeadAttention& head : c.heads) {
      EXPECT_LE(head.listLength, alpha < 0.01 ? 0 : remote);
      EXPECT_GE(head.listLength, alpha < 0.01 ? 0 : remote * 9 / 10);
    }
  }
}

TEST_P(Mass, PlantedColumnsAreTheList) {
  AttentionCase c(kShape, kSegment, mass(0.99), random);
  std::vector<int32_t> planted;
  while (planted.size() < 3) planted.push_back(static_cast<int32_t>(pick(16, 1000 - 384)));
  std::sort(planted.begin(), planted.end());
  planted.erase(std::unique(planted.begin(), planted.end()), planted.end());
  // Every query asks for them, in head 4 alone.
  for (int64_t row = kSegment.begin; row < kSegment.end; ++row) c.query(row, 4)[3] = 40.0f;
  for (int64_t row = 0; row < kSegment.end; ++row) {
    const bool isPlanted = std::binary_search(planted.begin(), planted.end(), row);
    for (int32_t head = 0; head < 2; ++head) c.key(head, row)[3] = toBf16(isPlanted ? 8.0f : 0.0f);
  }
  ASSERT_TRUE(c.run(2));
  expectAgreement(c, random);
  const auto list = c.scratch.columnList(4);
  for (const int32_t column : list) {
    EXPECT_TRUE(std::binary_search(planted.begin(), planted.end(), column)) << column;
  }
  EXPECT_FALSE(list.empty());
}

TEST_P(Mass, OfEqualColumnsTheFirstAreKept) {
  AttentionCase c(kShape, kSegment, mass(0.5), random);
  equalKeys(c);
  ASSERT_TRUE(c.run(2));
  // All voters see the columns before the first one's window: these are the heaviest, and equal.
  const int64_t common = windowStart(votingRows(kSegment).front(), kSegment.windowTokens);
  double lightest = 0.0;
  double kept = 0.0;
  for (const int64_t row : votingRows(kSegment)) {
    const auto columns = static_cast<double>(row + 1);
    lightest += 1.0 / columns;
    kept += (columns - static_cast<double>(windowStart(row, 256) - 16)) / columns;
  }
  const double wanted = 0.5 * static_cast<double>(votingRows(kSegment).size());
  const auto length = static_cast<int64_t>(std::ceil((wanted - kept) / lightest));
  ASSERT_GT(length, 10);
  ASSERT_LT(length, common - 16);
  for (int32_t head = 0; head < kShape.heads; ++head) {
    const auto list = c.scratch.columnList(head);
    ASSERT_NEAR(static_cast<double>(list.size()), static_cast<double>(length), 1.0);
    for (size_t i = 0; i < list.size(); ++i) EXPECT_EQ(list[i], 16 + static_cast<int32_t>(i));
  }
}

TEST_P(Mass, HugeAndTinyLogits) {
  for (const float factor : {1e4f, 1e2f, 1e-20f, 0.0f}) {
    SCOPED_TRACE(factor);
    AttentionCase c(kShape, kSegment, mass(0.9), random);
    for (int64_t row = kSegment.begin; row < kSegment.end; ++row) {
      for (int32_t head = 0; head < kShape.heads; ++head) {
        for (int dim = 0; dim < 64; ++dim) c.query(row, head)[dim] *= factor;
      }
    }
    ASSERT_TRUE(c.run(2));
    // A score of size s is known to about s * 2^-22.
    const double error = std::max(1.0, 5.0 * factor) * 1e-6;
    Tolerance tolerance;
    tolerance.output = std::max(2e-5, 10 * error);
    tolerance.coverage = std::max(1e-4, 10 * error);
    tolerance.mass = std::max(1e-4, 2 * error);
    expectAgreement(c, random, {}, tolerance);
  }
}

TEST_P(Mass, LongListsFallBackToDense) {
  SampleAttentionParams params = mass(0.9);
  params.maxListShare = 0.3;
  AttentionCase c(kShape, kSegment, params, random);
  equalKeys(c);
  ASSERT_TRUE(c.run(2));
  for (const HeadAttention& head : c.heads) {
    EXPECT_TRUE(head.denseFallback);
    EXPECT_EQ(head.keptPairs, head.causalPairs);
    EXPECT_EQ(head.coverage, std::vector<float>(8, 1.0f));
  }
}

TEST_P(Mass, SameBitsForAnyNumberOfThreads) {
  for (const Segment& segment : {kSegment, Segment{0, 3000, false, 20, 240}}) {
    AttentionCase c(kShape, segment, mass(0.9), random);
    sharpen(c);
    ASSERT_TRUE(c.run(1));
    const std::vector<float> once = c.outputs();
    std::vector<std::vector<int32_t>> lists;
    for (int32_t head = 0; head < kShape.heads; ++head) {
      const auto list = c.scratch.columnList(head);
      lists.emplace_back(list.begin(), list.end());
    }
    for (const int32_t threads : {1, 2, 7}) {
      c.poisonOutput();
      ASSERT_TRUE(c.run(threads));
      EXPECT_EQ(c.outputs(), once) << threads;
      for (int32_t head = 0; head < kShape.heads; ++head) {
        EXPECT_TRUE(
            std::ranges::equal(c.scratch.columnList(head), lists[static_cast<size_t>(head)]));
      }
    }
  }
}

TEST_P(Mass, NaNNeitherCrashesNorStays) {
  AttentionScratch scratch;
  for (const float value :
       {std::nanf(""), -std::nanf(""), std::numeric_limits<float>::infinity()}) {
    AttentionCase poison({6, 2, 128}, {1000, 2400, false, 8, 256}, mass(0.9), random);
    for (int64_t row = 1000; row < 2400; ++row) {
      for (int32_t head = 0; head < 6; ++head) std::fill_n(poison.query(row, head), 128, value);
    }
    poison.task.scratch = &scratch;
    ASSERT_TRUE(poison.run(2));
  }
  AttentionCase c(kShape, kSegment, mass(0.9), random);
  ASSERT_TRUE(c.run(2));
  const std::vector<float> fresh = c.outputs();
  c.task.scratch = &scratch;
  c.poisonOutput();
  ASSERT_TRUE(c.run(2));
  EXPECT_EQ(c.outputs(), fresh);
}

TEST_P(Mass, ScratchStaysBelowTheEstimate) {
  for (const int32_t segmentRows : {0, 2048}) {
    for (const int32_t stride : {1, 20, 64}) {
      SampleAttentionParams params = mass(0.9);
      params.segmentRows = segmentRows;
      params.sampleStride = stride;
      params.denseBelowTokens = 0;
      const int64_t tokens = pick(1100, 3000);
      const std::vector<Segment> segments = planSegments(tokens, {&tokens, 1}, tokens, params);
      AttentionCase c(kShape, segments.back(), params, random);
      ASSERT_TRUE(c.run(3));
      EXPECT_LE(c.scratch.bytes(), attentionScratchBytes({6, 2, 64, tokens}, params, 3));
    }
  }
}

TEST_P(Mass, CancelEndsSoon) {
  // One segment, so that all of stage 1 is one call.
  AttentionCase c({8, 2, 128}, {0, 9000, false, 4, 720}, mass(0.95), random);
  ThreadPool pool(2);
  EXPECT_LT(c.secondsToCancel(pool, {1, 60, 150}), 0.1);
}

}  // namespace
}  // namespace longsight::test
