// CPU attention against the double-precision reference, and against itself.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "agreement.h"
#include "attention/geometry.h"

namespace longsight::test {
namespace {

class Attention : public testing::TestWithParam<std::string> {
 protected:
  std::mt19937_64 random{seed()};
  ForcedSet forced{GetParam()};

  int64_t pick(int64_t low, int64_t high) {
    return std::uniform_int_distribution<int64_t>(low, high)(random);
  }
  static Segment dense(int64_t begin, int64_t end) { return {begin, end, true, 0, 0}; }
  static Segment sparse(int64_t begin, int64_t end, int32_t stride = 8, int64_t window = 256) {
    return {begin, end, false, stride, window};
  }
};

std::string setName(const testing::TestParamInfo<std::string>& info) { return info.param; }
INSTANTIATE_TEST_SUITE_P(Sets, Attention, testing::ValuesIn(kernelSets()), setName);

constexpr KvType kQ8 = KvType::q8;
constexpr Shape kShapes[] = {{9, 3, 64},      {14, 2, 64},      {16, 4, 128},    {1, 1, 64},
                             {1, 1, 128},     {6, 3, 80},       {6, 2, 96},      {3, 1, 256},
                             {9, 3, 64, kQ8}, {4, 2, 128, kQ8}, {6, 3, 80, kQ8}, {2, 1, 256, kQ8}};
constexpr Shape kBigShapes[] = {{9, 3, 64}, {32, 8, 128}, {2, 1, 80}, {2, 1, 256}, {2, 1, 80, kQ8}};

TEST_P(Attention, DenseOfUglySizes) {
  for (const Shape& shape : kShapes) {
    for (const int64_t rows : {1, 127, 129, 1000}) {
      SCOPED_TRACE(testing::Message() << shape.heads << '/' << shape.kvHeads << " d "
                                      << shape.headDim << " rows " << rows);
      AttentionCase c(shape, dense(0, rows), {}, random);
      ASSERT_TRUE(c.run(2));
      expectAgreement(c, random, {6, 4});
    }
  }
}

TEST_P(Attention, SparseOfUglySizes) {
  for (const Shape& shape : kShapes) {
    for (const int64_t rows : {1, 127, 129, 1000}) {
      SCOPED_TRACE(testing::Message() << shape.heads << '/' << shape.kvHeads << " d "
                                      << shape.headDim << " rows " << rows);
      SampleAttentionParams params;
      params.epsilon = 0.02;
      AttentionCase c(shape, sparse(0, rows, 8, 128), params, random);
      ASSERT_TRUE(c.run(2));
      expectAgreement(c, random, {6, 3});
    }
  }
}

TEST_P(Attention, ManyRowsSparseAndDense) {
  constexpr int64_t kRows = 4097;
  for (const Shape& shape : kBigShapes) {
    SCOPED_TRACE(testing::Message()
                 << shape.heads << '/' << shape.kvHeads << " d " << shape.headDim);
    SampleAttentionParams params;
    params.epsilon = 0.015;
    AttentionCase some(shape, sparse(2050, kRows), params, random);
    ASSERT_TRUE(some.run(2));
    EXPECT_GT(some.listedHeads(), 0);
    expectAgreement(some, random, {4, 2});
    AttentionCase all(shape, dense(kRows - 130, kRows), params, random);
    ASSERT_TRUE(all.run(2));
    expectAgreement(all, random, {6, 4});
  }
}

TEST_P(Attention, FewRowsAndManyColumns) {
  for (const int64_t rows : {1, 2, 3, 7, 16, 40}) {
    for (const Shape& shape : kShapes) {
      SCOPED_TRACE(testing::Message() << shape.heads << '/' << shape.kvHeads << " rows " << rows);
      const int64_t end = pick(1900, 9000) / shape.kvHeads + 1000;
      AttentionCase c(shape, dense(end - rows, end), {}, random);
      ASSERT_TRUE(c.run(2));
      expectAgreement(c, random, {3, 3});
    }
  }
}

TEST_P(Attention, RandomTasks) {
  int64_t listedHeads = 0;
  for (int round = 0; round < 25; ++round) {
    SampleAttentionParams params;
    params.scoreDims = pick(0, 1) == 0 ? ScoreDims::all : ScoreDims::slowHalf;
    params.sinkTokens = static_cast<int32_t>(pick(0, 2) == 0 ? pick(0, 1) * 128 : pick(0, 128));
    params.epsilon = pick(0, 9) == 0 ? 0.0 : std::exp(-static_cast<double>(pick(1, 700)) / 100);
    params.maxListShare = static_cast<double>(pick(1, 10)) / 10;
    params.auditRows = static_cast<int32_t>(pick(0, 3) == 0 ? pick(100, 256) : pick(0, 9));
    const auto kvHeads = static_cast<int32_t>(pick(1, 3));
    const Shape shape{kvHeads * static_cast<int32_t>(pick(1, 5)), kvHeads,
                      static_cast<int32_t>(4 * pick(1, 64)), pick(0, 1) == 0 ? KvType::bf16 : kQ8};
    const int64_t begin = pick(0, 1000);
    const Segment segment =
        sparse(begin, begin + pick(1, 900), static_cast<int32_t>(pick(1, 20)), pick(128, 300));
    SCOPED_TRACE(testing::Message()
                 << shape.heads << '/' << shape.kvHeads << " d " << shape.headDim
                 << (shape.kvType == kQ8 ? " q8" : " bf16") << " rows " << segment.begin << " to "
                 << segment.end << " stride " << segment.stride << " window "
                 << segment.windowTokens << " sinks " << params.sinkTokens << " epsilon "
                 << params.epsilon);
    AttentionCase c(shape, segment, params, random);
    c.task.ropeStyle = pick(0, 1) == 0 ? RopeStyle::neox : RopeStyle::interleaved;
    ASSERT_TRUE(c.run(static_cast<int32_t>(pick(1, 3))));
    expectAgreement(c, random, {4, 3});
    listedHeads += c.listedHeads();
  }
  EXPECT_GT(listedHeads, 0);
}

TEST_P(Attention, EpsilonZeroEqualsDense) {
  SampleAttentionParams params;
  params.epsilon = 0.0;
  params.maxListShare = 1.0;
  for (const Shape& shape : {Shape{9, 3, 64}, Shape{4, 2, 128}}) {
    AttentionCase c(shape, sparse(900, 2500), params, random);
    ASSERT_TRUE(c.run(2));
    const std::vector<float> kept = c.outputs();
    for (const HeadAttention& head : c.heads) {
      EXPECT_FALSE(head.denseFallback);
      EXPECT_EQ(head.listLength, windowStart(2499, 256) - params.sinkTokens);
      EXPECT_EQ(head.keptPairs, head.causalPairs);
      for (const float share : head.coverage) EXPECT_NEAR(share, 1.0f, 1e-6f);
    }
    c.task.segment = dense(900, 2500);
    c.poisonOutput();
    ASSERT_TRUE(c.run(2));
    const std::vector<float> all = c.outputs();
    for (size_t i = 0; i < all.size(); ++i) ASSERT_NEAR(kept[i], all[i], reorderTolerance(c, 900));
  }
}

TEST_P(Attention, LongListsFallBackToDense) {
  SampleAttentionParams params;
  params.epsilon = 0.0;
  params.maxListShare = 0.3;
  AttentionCase c({6, 2, 64}, sparse(900, 2500), params, random);
  ASSERT_TRUE(c.run(2));
  const std::vector<float> fallback = c.outputs();
  for (const HeadAttention& head : c.heads) {
    EXPECT_TRUE(head.denseFallback);
    EXPECT_EQ(head.keptPairs, head.causalPairs);
    EXPECT_EQ(head.coverage, std::vector<float>(8, 1.0f));
  }
  c.task.segment = dense(900, 2500);
  ASSERT_TRUE(c.run(2));
  const std::vector<float> all = c.outputs();
  for (size_t i = 0; i < all.size(); ++i)
    ASSERT_NEAR(fallback[i], all[i], reorderTolerance(c, 900));
}

TEST_P(Attention, SeveralDenseSegmentsEqualOne) {
  constexpr int64_t kRows = 1500;
  AttentionCase c({6, 2, 64}, dense(0, kRows), {}, random);
  ASSERT_TRUE(c.run(2));
  const std::vector<float> whole = c.outputs();
  const float* queries = c.task.queries;
  float* output = c.task.output;
  c.poisonOutput();
  for (int64_t begin = 0; begin < kRows;) {
    const int64_t end = std::min(kRows, begin + pick(1, 400));
    const int64_t offset = begin * c.task.heads * c.task.kv.headDim;
    c.task.segment = dense(begin, end);
    c.task.queries = queries + offset;
    c.task.output = output + offset;
    c.task.outputBegin = begin;
    ASSERT_TRUE(c.run(2));
    begin = end;
  }
  c.task.output = output;
  const std::vector<float> pieces = c.outputs();
  for (size_t i = 0; i < whole.size(); ++i) {
    const auto row = static_cast<int64_t>(i) / (6 * 64);
    ASSERT_NEAR(pieces[i], whole[i], reorderTolerance(c, row + 1)) << "row " << row;
  }
}

TEST_P(Attention, OutputBeginChangesNothingElse) {
  SampleAttentionParams params;
  params.epsilon = 0.015;
  AttentionCase c({6, 2, 64}, sparse(1000, 2300), params, random);
  ASSERT_TRUE(c.run(2));
  EXPECT_GT(c.listedHeads(), 0);
  const std::vector<float> whole = c.outputs();
  const std::vector<HeadAttention> heads = c.heads;
  for (const int64_t outputBegin :
       {int64_t{1000}, int64_t{1001}, int64_t{2299}, int64_t{2300}, pick(1001, 2300)}) {
    c.task.outputBegin = outputBegin;
    c.poisonOutput();
    ASSERT_TRUE(c.run(2));
    const std::vector<float> some = c.outputs();
    const auto cut = static_cast<size_t>((outputBegin - 1000) * 6 * 64);
    for (size_t i = 0; i < cut; ++i) ASSERT_EQ(some[i], 0.0f);
    EXPECT_TRUE(std::equal(some.begin() + static_cast<int64_t>(cut), some.end(),
                           whole.begin() + static_cast<int64_t>(cut)));
    for (size_t head = 0; head < heads.size(); ++head) {
      EXPECT_EQ(c.heads[head].keptPairs, heads[head].keptPairs);
      EXPECT_EQ(c.heads[head].coverage, heads[head].coverage);
    }
  }
}

TEST_P(Attention, SameBitsForAnyNumberOfThreads) {
  SampleAttentionParams params;
  params.epsilon = 0.015;
  for (const Segment& segment : {sparse(1000, 2300), dense(1000, 1600), dense(5000, 5001)}) {
    AttentionCase c({6, 2, 64}, segment, params, random);
    ASSERT_TRUE(c.run(1));
    const std::vector<float> once = c.outputs();
    const std::vector<HeadAttention> heads = c.heads;
    for (const int32_t threads : {1, 2, 7}) {
      c.poisonOutput();
      ASSERT_TRUE(c.run(threads));
      EXPECT_EQ(c.outputs(), once) << threads;
      for (size_t head = 0; head < heads.size(); ++head) {
        EXPECT_EQ(c.heads[head].listLength, heads[head].listLength);
        EXPECT_EQ(c.heads[head].coverage, heads[head].coverage);
      }
    }
  }
}

}  // namespace
}  // namespace longsight::test
