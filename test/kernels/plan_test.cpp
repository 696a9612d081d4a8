// The plan against the formulas of docs/sample-attention.md, on written and on random prompts.
#include "attention/plan.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <set>

#include "attention/geometry.h"
#include "attention/score_dims.h"
#include "attention_case.h"

namespace longsight {

void PrintTo(const Segment& s, std::ostream* out) {
  *out << '[' << s.begin << ", " << s.end << ") " << (s.dense ? "dense" : "sparse") << " stride "
       << s.stride << " window " << s.windowTokens;
}

namespace test {
namespace {

Segment dense(int64_t begin, int64_t end) { return {begin, end, true, 0, 0}; }
Segment sparse(int64_t begin, int64_t end, int32_t stride, int64_t window = 256) {
  return {begin, end, false, stride, window};
}

TEST(Plan, DefaultsOnOneLongPart) {
  const SampleAttentionParams params;
  const std::vector<int64_t> borders = {9000, 9500};
  const std::vector<Segment> expected = {dense(0, 2048),        dense(2048, 4096),
                                         sparse(4096, 6144, 8), sparse(6144, 8192, 8),
                                         sparse(8192, 9000, 3), dense(9000, 9500)};
  EXPECT_EQ(planSegments(9500, borders, 9000, params), expected);
}

TEST(Plan, BordersCutAndShortLaterPartsAreDense) {
  SampleAttentionParams params;
  params.denseBelowTokens = 0;
  const std::vector<int64_t> borders = {500, 1523, 2547, 2548};
  const std::vector<Segment> expected = {
      sparse(0, 500, 1),      // the first part may be short
      dense(500, 1523),       // 1,023 rows
      sparse(1523, 2048, 2),  // 1,024 rows, cut at a multiple of 2,048
      sparse(2048, 2547, 1),  //
      dense(2547, 2548),      // one row
      sparse(2548, 4000, 5),  // to denseFrom
      dense(4000, 6048),     dense(6048, 6100)};
  EXPECT_EQ(planSegments(6100, borders, 4000, params), expected);
}

TEST(Plan, OneSegment) {
  SampleAttentionParams params;
  params.segmentRows = 0;
  params.denseBelowTokens = 0;
  params.windowFraction = 0.08;
  params.sampleStride = 20;
  const std::vector<int64_t> borders = {5000, 5100};
  const std::vector<Segment> expected = {sparse(0, 10000, 20, 800), dense(10000, 12048),
                                         dense(12048, 12100)};
  EXPECT_EQ(planSegments(12100, borders, 10000, params), expected);
}

TEST(Plan, DenseFromAnywhere) {
  SampleAttentionParams params;
  params.denseBelowTokens = 0;
  EXPECT_EQ(planSegments(3000, {}, 0, params),
            (std::vector<Segment>{dense(0, 2048), dense(2048, 3000)}));
  EXPECT_EQ(planSegments(3000, {}, 3000, params),
            (std::vector<Segment>{sparse(0, 2048, 8), sparse(2048, 3000, 3)}));
  EXPECT_EQ(planSegments(3000, {}, 9999, params), planSegments(3000, {}, 3000, params));
  EXPECT_EQ(planSegments(3000, {}, 1, params),
            (std::vector<Segment>{sparse(0, 1, 1), dense(1, 2049), dense(2049, 3000)}));
  EXPECT_TRUE(planSegments(0, {}, 0, params).empty());
  EXPECT_EQ(planSegments(1, {}, 0, params), (std::vector<Segment>{dense(0, 1)}));
}

TEST(Plan, DensePolicyHasNoVoters) {
  SampleAttentionParams params;
  params.policy = Policy::dense;
  params.denseBelowTokens = 0;
  for (const Segment& segment : planSegments(9000, {}, 8000, params)) {
    EXPECT_TRUE(segment.dense);
    EXPECT_EQ(segment.stride, 0);
    EXPECT_TRUE(votingRows(segment).empty());
    EXPECT_TRUE(auditRows(segment, params).empty());
  }
}

class RandomPlan {
 public:
  explicit RandomPlan(std::mt19937_64& random) {
    const auto pick = [&](int64_t low, int64_t high) {
      return std::uniform_int_distribution<int64_t>(low, high)(random);
    };
    tokens = pick(1, 20000);
    for (int64_t count = pick(0, 5); count > 0; --count) borders.push_back(pick(1, tokens));
    std::sort(borders.begin(), borders.end());
    denseFrom = pick(0, 3) == 0 ? tokens * pick(0, 1) : pick(0, tokens);
    params.segmentRows = pick(0, 5) == 0 ? 0 : static_cast<int32_t>(128 * pick(2, 64));
    params.sampleStride = static_cast<int32_t>(pick(1, 64));
    params.denseBelowTokens = static_cast<int32_t>(pick(0, 3) * 3000);
    params.windowTokens = static_cast<int32_t>(pick(128, 8192));
    params.windowFraction = static_cast<double>(pick(0, 50)) / 100;
    params.auditRows = static_cast<int32_t>(pick(0, 256));
    EXPECT_EQ(validate(params), "");
  }

  int64_t tokens;
  std::vector<int64_t> borders;
  int64_t denseFrom;
  SampleAttentionParams params;
};

TEST(Plan, RandomPromptsFollowTheFormulas) {
  std::mt19937_64 random(seed());
  for (int round = 0; round < 2000; ++round) {
    const RandomPlan p(random);
    const std::vector<Segment> segments = planSegments(p.tokens, p.borders, p.denseFrom, p.params);
    const int64_t s = p.params.segmentRows;
    const std::set<int64_t> borders(p.borders.begin(), p.borders.end());
    int64_t position = 0;
    for (const Segment& segment : segments) {
      ASSERT_EQ(segment.begin, position);
      ASSERT_GT(segment.end, segment.begin);
      position = segment.end;
      const int64_t length = segment.end - segment.begin;
      ASSERT_LE(length, s > 0 ? s : std::max<int64_t>(p.denseFrom, 2048));
      if (segment.begin >= p.denseFrom) {
        ASSERT_TRUE(segment.dense);
        continue;
      }
      ASSERT_LE(segment.end, p.denseFrom);
      if (s > 0) {
        ASSERT_TRUE(segment.end % s == 0 || segment.end == p.denseFrom ||
                    borders.contains(segment.end));
        ASSERT_EQ(segment.begin / s, (segment.end - 1) / s);
        const auto cut = borders.upper_bound(segment.begin);
        if (cut != borders.end()) {
          ASSERT_LE(segment.end, *cut);
        }
      }

      int64_t partBegin = 0;
      int64_t partEnd = p.denseFrom;
      if (s > 0) {
        const auto next = borders.upper_bound(segment.begin);
        if (next != borders.begin()) partBegin = *std::prev(next);
        if (next != borders.end()) partEnd = std::min(partEnd, *next);
      }
      const bool shortPart = partBegin > 0 && partEnd - partBegin < 1024;
      ASSERT_EQ(segment.dense, shortPart || segment.end <= p.params.denseBelowTokens);
      if (segment.dense) continue;
      ASSERT_EQ(segment.stride, s == 0 ? p.params.sampleStride
                                       : std::max<int64_t>(1, p.params.sampleStride * length / s));
      ASSERT_EQ(
          segment.windowTokens,
          std::max<int64_t>(p.params.windowTokens,
                            static_cast<int64_t>(std::floor(p.params.windowFraction *
                                                            static_cast<double>(segment.end)))));
    }
    ASSERT_EQ(position, p.tokens);
  }
}

TEST(Plan, RandomVotersAndAudits) {
  std::mt19937_64 random(seed() + 1);
  for (int round = 0; round < 500; ++round) {
    const RandomPlan p(random);
    for (const Segment& segment : planSegments(p.tokens, p.borders, p.denseFrom, p.params)) {
      if (segment.dense) continue;
      std::vector<int64_t> voters;
      for (int64_t row = segment.begin; row < segment.end; ++row) {
        if ((segment.end - 1 - row) % segment.stride == 0) voters.push_back(row);
      }
      ASSERT_EQ(votingRows(segment), voters);

      std::set<int64_t> audits;
      const int64_t length = segment.end - segment.begin;
      for (int64_t i = 0; i < p.params.auditRows && segment.stride > 1; ++i) {
        int64_t row = segment.begin + (2 * i + 1) * length / (2 * p.params.auditRows);
        while (row >= segment.begin && std::binary_search(voters.begin(), voters.end(), row)) --row;
        if (row >= segment.begin) audits.insert(row);
      }
      ASSERT_EQ(auditRows(segment, p.params), std::vector<int64_t>(audits.begin(), audits.end()));
    }
  }
}

TEST(Plan, SeveralCallsEqualOne) {
  std::mt19937_64 random(seed() + 2);
  for (int round = 0; round < 500; ++round) {
    RandomPlan p(random);
    // With one segment for everything the plan depends on where it ends.
    if (p.params.segmentRows == 0) continue;
    const std::vector<Segment> all = planSegments(p.tokens, p.borders, p.denseFrom, p.params);
    for (const int64_t border : p.borders) {
      if (border > p.denseFrom) continue;
      const std::vector<Segment> part = planSegments(border, p.borders, p.denseFrom, p.params);
      ASSERT_LE(part.size(), all.size());
      ASSERT_TRUE(std::equal(part.begin(), part.end(), all.begin()));
      ASSERT_EQ(part.back().end, border);
    }
  }
}

TEST(Geometry, WindowsAreAlignedAndNeverNarrowerThanAsked) {
  for (const int64_t window : {128, 129, 200, 256, 1000}) {
    for (int64_t row = 0; row < 3000; ++row) {
      const int64_t start = windowStart(row, window);
      const int64_t tile = row - row % 128;
      ASSERT_EQ(start % 128, 0);
      ASSERT_EQ(start, std::max<int64_t>(0, tile - window + 1) / 128 * 128);
      ASSERT_TRUE(start == 0 || row - start + 1 >= window);
      ASSERT_EQ(isRemote(row, 16, window, 16), start > 16);
      ASSERT_FALSE(isRemote(row, 15, window, 16));
      ASSERT_FALSE(isRemote(row, start, window, 16));
    }
  }
}

TEST(Geometry, ScoreDims) {
  const DimRanges interleaved = scoreDimRanges(ScoreDims::slowHalf, RopeStyle::interleaved, 64);
  EXPECT_EQ(interleaved.count(), 32);
  EXPECT_EQ(interleaved.ranges[0].begin, 32);
  const DimRanges neox = scoreDimRanges(ScoreDims::slowHalf, RopeStyle::neox, 128);
  EXPECT_EQ(neox.count(), 64);
  EXPECT_EQ(neox.ranges[0].begin, 32);
  EXPECT_EQ(neox.ranges[0].end, 64);
  EXPECT_EQ(neox.ranges[1].begin, 96);
  EXPECT_EQ(neox.ranges[1].end, 128);
  EXPECT_EQ(scoreDimRanges(ScoreDims::all, RopeStyle::neox, 80).count(), 80);
}

// The chosen half against a sort of all dimensions by frequency, for every partial rotation.
TEST(ScoreDims, SlowHalfHasTheSlowestDimensions) {
  for (const int32_t headDim : {64, 80, 96, 128, 256})
    for (int32_t rotated = 2; rotated <= headDim; rotated += 2)
      for (const RopeStyle style : {RopeStyle::interleaved, RopeStyle::neox}) {
        // Larger is faster; 0 does not turn.
        std::vector<int32_t> speed(static_cast<size_t>(headDim), 0);
        for (int32_t pair = 0; pair < rotated / 2; ++pair) {
          const bool neighbours = style == RopeStyle::interleaved;
          const int32_t first = neighbours ? 2 * pair : pair;
          const int32_t second = neighbours ? first + 1 : first + rotated / 2;
          speed[static_cast<size_t>(first)] = speed[static_cast<size_t>(second)] =
              rotated / 2 - pair;
        }
        std::vector<bool> chosen(static_cast<size_t>(headDim), false);
        const DimRanges dims = scoreDimRanges(ScoreDims::slowHalf, style, headDim, rotated);
        ASSERT_EQ(dims.count(), headDim / 2);
        for (const DimRange& range : dims.ranges)
          for (int32_t dim = range.begin; dim < range.end; ++dim)
            chosen[static_cast<size_t>(dim)] = true;
        int32_t fastestChosen = 0, slowestLeft = headDim;
        for (size_t dim = 0; dim < chosen.size(); ++dim)
          if (chosen[dim])
            fastestChosen = std::max(fastestChosen, speed[dim]);
          else
            slowestLeft = std::min(slowestLeft, speed[dim]);
        ASSERT_LE(fastestChosen, slowestLeft) << headDim << " " << rotated;
      }
}

TEST(Params, RangesAreEnforcedAndNamed) {
  EXPECT_EQ(validate({}), "");
  const auto message = [](auto change) {
    SampleAttentionParams params;
    change(params);
    return validate(params);
  };
  using P = SampleAttentionParams;
  const double nan = std::nan("");
  EXPECT_NE(message([](P& p) { p.alpha = 0; }).find("alpha is 0"), std::string::npos);
  EXPECT_EQ(message([](P& p) { p.alpha = 1; }), "");
  EXPECT_NE(message([&](P& p) { p.alpha = nan; }), "");
  EXPECT_EQ(message([](P& p) { p.epsilon = 0; }), "");
  EXPECT_NE(message([](P& p) { p.epsilon = 1; }).find("epsilon is 1"), std::string::npos);
  EXPECT_NE(message([&](P& p) { p.epsilon = nan; }), "");
  EXPECT_NE(message([](P& p) { p.sampleStride = 0; }), "");
  EXPECT_NE(message([](P& p) { p.sampleStride = 65; }), "");
  EXPECT_EQ(message([](P& p) { p.segmentRows = 0; }), "");
  EXPECT_NE(message([](P& p) { p.segmentRows = 128; }), "");
  EXPECT_NE(message([](P& p) { p.segmentRows = 300; }).find("300"), std::string::npos);
  EXPECT_NE(message([](P& p) { p.segmentRows = 8320; }), "");
  EXPECT_NE(message([](P& p) { p.windowTokens = 127; }), "");
  EXPECT_NE(message([](P& p) { p.windowTokens = 8193; }), "");
  EXPECT_NE(message([](P& p) { p.windowFraction = 0.51; }), "");
  EXPECT_NE(message([&](P& p) { p.windowFraction = nan; }), "");
  EXPECT_NE(message([](P& p) { p.sinkTokens = 129; }), "");
  EXPECT_NE(message([](P& p) { p.sinkTokens = -1; }), "");
  EXPECT_NE(message([](P& p) { p.denseBelowTokens = -1; }), "");
  EXPECT_NE(message([](P& p) { p.maxListShare = 1.01; }), "");
  EXPECT_NE(message([&](P& p) { p.maxListShare = nan; }), "");
  EXPECT_NE(message([](P& p) { p.auditRows = 257; }), "");
}

}  // namespace
}  // namespace test
}  // namespace longsight
