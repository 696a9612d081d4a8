#include "session/cache_ledger.h"

#include <gtest/gtest.h>

#include <numeric>

namespace longsight::test {
namespace {

Segment dense(int64_t begin, int64_t end) { return {begin, end, true, 0, 0}; }
Segment sparse(int64_t begin, int64_t end) { return {begin, end, false, 8, 256}; }

std::vector<int32_t> tokensUpTo(int64_t count) {
  std::vector<int32_t> tokens(static_cast<size_t>(count));
  std::iota(tokens.begin(), tokens.end(), 0);
  return tokens;
}

// A cache with [0, 1024) dense, two sparse segments to 3072, dense rows to 3100.
struct Filled {
  CacheLedger ledger;
  std::vector<int32_t> tokens = tokensUpTo(3100);
  std::vector<Segment> segments = {dense(0, 1024), sparse(1024, 2048), sparse(2048, 3072),
                                   dense(3072, 3100)};
  SampleAttentionParams params;

  Filled() {
    for (const Segment& segment : segments)
      ledger.append(segment,
                    std::span(tokens).subspan(static_cast<size_t>(segment.begin),
                                              static_cast<size_t>(segment.end - segment.begin)),
                    params, segment.end, SegmentAttention(1, std::vector<HeadAttention>(1)));
  }
  int64_t reusable(int64_t limit = 1 << 20) const {
    return ledger.reusableRows(tokens, segments, params, limit);
  }
};

TEST(CacheLedger, ReusesTheSamePrompt) {
  const Filled filled;
  EXPECT_EQ(filled.reusable(), 3100);
  EXPECT_EQ(filled.reusable(3099), 3099);
  // A limit inside a sparse segment leaves it out whole.
  EXPECT_EQ(filled.reusable(3000), 2048);
}

TEST(CacheLedger, ADifferentTokenEndsReuseAtItsSegmentOrRow) {
  Filled filled;
  filled.tokens[3090] = -1;
  EXPECT_EQ(filled.reusable(), 3090);
  filled.tokens[2500] = -1;
  EXPECT_EQ(filled.reusable(), 2048);
  filled.tokens[100] = -1;
  EXPECT_EQ(filled.reusable(), 100);
}

TEST(CacheLedger, ParametersAndBordersCountForSparseSegmentsOnly) {
  Filled filled;
  filled.params.epsilon = 0.01;
  EXPECT_EQ(filled.reusable(), 1024);
  filled = Filled();
  filled.segments[2] = sparse(2048, 3000);
  filled.segments[3] = dense(3000, 3100);
  EXPECT_EQ(filled.reusable(), 2048);
  // Sparse rows are not taken for dense ones, nor the other way round.
  filled = Filled();
  filled.segments = {dense(0, 3100)};
  EXPECT_EQ(filled.reusable(), 1024);
  filled.segments = {sparse(0, 1024), dense(1024, 3100)};
  EXPECT_EQ(filled.reusable(), 0);
}

TEST(CacheLedger, DenseRowsAreReusedAcrossSegmentBorders) {
  Filled filled;
  filled.segments[0] = dense(0, 512);
  filled.segments.insert(filled.segments.begin() + 1, dense(512, 1024));
  EXPECT_EQ(filled.reusable(), 3100);
}

TEST(CacheLedger, TruncateForgetsSparseSegmentsWhole) {
  Filled filled;
  filled.ledger.truncate(3080);
  EXPECT_EQ(filled.ledger.rows(), 3080);
  EXPECT_EQ(filled.reusable(), 3080);
  filled.ledger.truncate(3000);
  EXPECT_EQ(filled.ledger.rows(), 2048);
  EXPECT_EQ(filled.reusable(), 2048);
  filled.ledger.truncate(0);
  EXPECT_EQ(filled.ledger.rows(), 0);
}

TEST(CacheLedger, ADenseRunThatIsCutFitsTogether) {
  Filled filled;
  filled.ledger.truncate(3080);
  const CacheLedger::Run& run = filled.ledger.runs().back();
  EXPECT_EQ(run.segment.end, 3080);
  EXPECT_EQ(run.lastLayerBegin, 3080);
}

TEST(CacheLedger, DecodedRowsJoinThePrompt) {
  Filled filled;
  for (int32_t row = 3100; row < 3110; ++row) {
    const int32_t token = row;
    filled.ledger.append(dense(row, row + 1), std::span(&token, 1), filled.params, row, {});
  }
  filled.tokens = tokensUpTo(3200);
  filled.segments.back() = dense(3072, 3200);
  EXPECT_EQ(filled.reusable(), 3110);
}

}  // namespace
}  // namespace longsight::test
