// Drawn column lists: their density, and that the CPU's are exactly those of the rule that the CUDA
// kernel shares (attention/drawn_lists.h).
#include "attention/drawn_lists.h"

#include <gtest/gtest.h>

#include <cmath>

#include "attention_case.h"

namespace longsight::test {
namespace {

Segment sparse(int64_t begin, int64_t end) { return {begin, end, false, 8, 256}; }

TEST(DrawnLists, LimitsKeepTheWantedDensityOverAChunk) {
  constexpr int32_t kHeads = 32, kSinks = 16;
  const std::vector<Segment> chunk{
      {0, 4096, true, 0, 0}, sparse(4096, 6144), sparse(6144, 8131), sparse(8131, 10000)};
  for (const double density : {0.13, 0.16, 0.30}) {
    const ListDraw draw{.density = density, .seed = seed(), .layer = 3};
    const std::vector<uint32_t> limits = drawnLimits(chunk, kHeads, kSinks, 0.6, draw);
    double kept = 0, causal = 0;
    for (size_t s = 0; s < chunk.size(); ++s) {
      for (int32_t head = 0; head < kHeads; ++head) {
        const double share = limits[s * kHeads + static_cast<size_t>(head)] / 4294967295.0;
        EXPECT_LE(share, 0.6);
        if (chunk[s].dense) {
          EXPECT_EQ(share, 0);
          continue;
        }
        for (int64_t row = chunk[s].begin; row < chunk[s].end; ++row) {
          const auto remote =
              static_cast<double>(std::max<int64_t>(0, windowStart(row, 256) - kSinks));
          causal += static_cast<double>(row + 1);
          kept += static_cast<double>(row + 1) - remote + share * remote;
        }
      }
    }
    EXPECT_NEAR(kept / causal, density, 1e-6);
    EXPECT_NEAR(limits[2 * kHeads] / 4294967295.0, 0.55, 1e-6) << "head 0 of the middle segment";
  }
}

TEST(DrawnLists, AttentionTakesThemInPlaceOfFoundOnes) {
  std::mt19937_64 random{seed()};
  for (const Policy policy : {Policy::peak, Policy::mass}) {
    SampleAttentionParams params;
    params.policy = policy;
    AttentionCase c({16, 8, 64}, sparse(6144, 8131), params, random);
    const ListDraw draw{.density = 0.16, .seed = seed(), .layer = 5};
    c.task.draw = draw;
    ASSERT_TRUE(c.run(1));
    const std::vector<float> first = c.outputs();
    double kept = 0, causal = 0;
    const std::vector<uint32_t> limits = drawnLimits({&c.task.segment, 1}, c.task.heads,
                                                     params.sinkTokens, params.maxListShare, draw);
    std::vector<std::vector<int32_t>> lists;
    for (int32_t head = 0; head < c.task.heads; ++head) {
      const HeadAttention& did = c.heads[static_cast<size_t>(head)];
      kept += static_cast<double>(did.keptPairs);
      causal += static_cast<double>(did.causalPairs);
      EXPECT_FALSE(did.denseFallback);
      const uint64_t own = listSeed(draw.seed, draw.layer, c.task.segment.begin, head);
      std::vector<int32_t> wanted;
      for (int32_t column = params.sinkTokens; column < windowStart(c.task.segment.end - 1, 256);
           ++column) {
        const uint32_t pair = drawnPair(own, static_cast<uint64_t>(column) & ~uint64_t{1},
                                        limits[static_cast<size_t>(head)]);
        if (pair >> (column & 1) & 1) wanted.push_back(column);
      }
      const std::span<const int32_t> list = c.scratch.columnList(head);
      lists.emplace_back(list.begin(), list.end());
      EXPECT_EQ(lists.back(), wanted) << "head " << head;
    }
    EXPECT_NEAR(kept / causal, 0.16, 0.16 * 0.03);

    c.poisonOutput();
    ASSERT_TRUE(c.run(3));
    EXPECT_EQ(c.outputs(), first) << "other bits on other threads";
    c.task.draw->layer = 6;
    ASSERT_TRUE(c.run(2));
    const std::span<const int32_t> other = c.scratch.columnList(1);
    EXPECT_NE(std::vector<int32_t>(other.begin(), other.end()), lists[1]) << "layers alike";
  }
}

}  // namespace
}  // namespace longsight::test
