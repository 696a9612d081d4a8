#include "session/attention_stats.h"

#include <gtest/gtest.h>

namespace longsight::test {
namespace {

TEST(AttentionStats, DensePromptsHaveDensityOneAndNothingSparse) {
  AttentionCounter counter(3, 2);
  counter.addDense(0, 100, 99);
  const AttentionStats stats = counter.result();
  EXPECT_EQ(stats.density, 1);
  EXPECT_FALSE(stats.sparseDensity || stats.coverageMean || stats.coverageP5);
  ASSERT_EQ(stats.layers.size(), 3u);
  EXPECT_FALSE(stats.layers[0].density || stats.layers[2].heads[1]);
}

TEST(AttentionStats, CountsPairsByLayerAndHead) {
  AttentionCounter counter(2, 2);
  counter.addDense(0, 4, 4);  // 10 pairs in layer 0, two heads: 20.
  SegmentAttention segment(2, std::vector<HeadAttention>(2));
  segment[0][0] = {.keptPairs = 10,
                   .causalPairs = 40,
                   .listLength = 0,
                   .denseFallback = false,
                   .coverage = {0.9f}};
  segment[0][1] = {.keptPairs = 40,
                   .causalPairs = 40,
                   .listLength = 0,
                   .denseFallback = true,
                   .coverage = {1.0f}};
  segment[1].clear();
  counter.addSparse(segment);
  const AttentionStats stats = counter.result();
  EXPECT_DOUBLE_EQ(stats.density, 70.0 / 100.0);
  EXPECT_DOUBLE_EQ(*stats.sparseDensity, 50.0 / 80.0);
  EXPECT_DOUBLE_EQ(*stats.layers[0].density, 50.0 / 80.0);
  EXPECT_DOUBLE_EQ(*stats.layers[0].heads[0], 0.25);
  EXPECT_DOUBLE_EQ(*stats.layers[0].heads[1], 1.0);
  EXPECT_FALSE(stats.layers[1].density);
  EXPECT_NEAR(*stats.coverageMean, 0.95, 1e-6);
  EXPECT_NEAR(*stats.coverageP5, 0.9, 1e-6);
}

TEST(AttentionStats, CoverageP5IsTheNearestRank) {
  AttentionCounter counter(1, 1);
  HeadAttention head;
  for (int i = 100; i >= 1; --i) head.coverage.push_back(static_cast<float>(i) / 100);
  counter.addSparse({{head}});
  EXPECT_NEAR(*counter.result().coverageP5, 0.05, 1e-6);
}

}  // namespace
}  // namespace longsight::test
