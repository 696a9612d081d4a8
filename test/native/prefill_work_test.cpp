// A prefill cut into chunks, and what its prediction learns from chunks of mixed segments.
#include "session/prefill_work.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>

#include "session/prefill_prediction.h"

namespace longsight::test {
namespace {

TEST(PrefillWork, CoversTheRestOfThePromptWithinItsLimits) {
  std::mt19937_64 random(7);
  for (int i = 0; i < 500; ++i) {
    SampleAttentionParams params;
    params.segmentRows = random() % 8 == 0 ? 0 : 128 << random() % 5;
    params.denseBelowTokens = static_cast<int32_t>(random() % 1000);
    const auto tokens = static_cast<int64_t>(1 + random() % 20000);
    const auto denseFrom = static_cast<int64_t>(random() % static_cast<uint64_t>(tokens + 1));
    const std::vector<int64_t> borders{denseFrom / 2, tokens};
    const std::vector<Segment> segments = planSegments(tokens, borders, denseFrom, params);
    const Backend::Chunking chunking{static_cast<int64_t>(1 + random() % 9000), 1 + random() % 6,
                                     static_cast<int64_t>(1 + random() % 3000)};
    // Somewhere in the last dense segment, or at a border.
    const Segment& place = segments[random() % segments.size()];
    const int64_t reused = place.dense ? (place.begin + place.end) / 2 : place.begin;

    const PrefillWork work = planWork(segments, reused, chunking);
    int64_t row = reused;
    for (const std::vector<Segment>& chunk : work.chunks) {
      ASSERT_FALSE(chunk.empty());
      ASSERT_LE(chunk.size(), chunking.segments);
      if (chunk.size() > 1) {
        ASSERT_LE(chunk.back().end - chunk.front().begin, chunking.rows);
      }
      for (const Segment& piece : chunk) {
        ASSERT_EQ(piece.begin, row);
        ASSERT_GT(piece.end, row);
        row = piece.end;
        if (piece.dense) {
          ASSERT_EQ(piece.begin / chunking.denseRows, (piece.end - 1) / chunking.denseRows);
        } else {
          ASSERT_NE(std::find(segments.begin(), segments.end(), piece), segments.end());
        }
      }
    }
    ASSERT_EQ(row, tokens);
  }
}

TEST(PrefillWork, FillsChunksAsFarAsTheyGo) {
  const std::vector<Segment> segments{
      {0, 100, true, 0, 0}, {100, 300, false, 8, 256}, {300, 500, false, 8, 256}, {500, 900}};
  const PrefillWork work = planWork(segments, 0, {500, 64, 1000});
  ASSERT_EQ(work.chunks.size(), 2u);
  EXPECT_EQ(work.chunks[0].size(), 3u);
  EXPECT_EQ(work.chunks[1].front(), segments[3]);
  EXPECT_EQ(planWork(segments, 0, {500, 1, 1000}).chunks.size(), 4u);
  EXPECT_TRUE(planWork(segments, 900, {500, 1, 1000}).chunks.empty());
}

TEST(PrefillPrediction, LearnsFromMixedChunks) {
  PrefillPrediction prediction(3, 4);
  prediction.start({.linearMsPerRow = 0.1, .attentionMsPerPair = 1e-5});
  const SampleAttentionParams params;
  const std::vector<Segment> chunk{{4096, 6144, false, 8, 256}, {6144, 7000}};
  // Sparse rows take twice as long as believed: the more it is seen, the nearer the prediction.
  const double denseMs = prediction.chunkMs(std::span(chunk).last(1), params);
  const double linearMs = (2048 + 856) * 0.1 * 2;
  const double attentionMs =
      2 * (prediction.chunkMs(std::span(chunk).first(1), params) - 2048 * 0.1 * 2) +
      (denseMs - 856 * 0.1 * 2);
  ForwardTimes seen;
  seen.linearMs = linearMs - 20;
  seen.restMs = 20;
  seen.attentionMs = attentionMs;
  for (int i = 0; i < 20; ++i) prediction.observe(chunk, params, seen);
  EXPECT_NEAR(prediction.chunkMs(chunk, params), linearMs + attentionMs, 1);
  EXPECT_NEAR(prediction.chunkMs(std::span(chunk).last(1), params), denseMs, 1e-6);
}

}  // namespace
}  // namespace longsight::test
