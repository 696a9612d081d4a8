// CPU attention on inputs that break naive code: needles, ties, extreme logits, poison, cancel.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <limits>

#include "agreement.h"
#include "attention/geometry.h"
#include "kernels/cpu/attention/kernels.h"

namespace longsight::test {
namespace {

class AttentionEdges : public testing::TestWithParam<std::string> {
 protected:
  std::mt19937_64 random{seed() + 7};
  ForcedSet forced{GetParam()};
  static constexpr Shape kShape{6, 2, 64};
  static constexpr Segment kSegment{1000, 2300, false, 8, 256};
};

std::string setName(const testing::TestParamInfo<std::string>& info) { return info.param; }
INSTANTIATE_TEST_SUITE_P(Sets, AttentionEdges, testing::ValuesIn(kernelSets()), setName);

template <typename Change>
void changeQueries(AttentionCase& c, const Change& change) {
  for (int64_t row = c.task.segment.begin; row < c.task.segment.end; ++row) {
    for (int32_t head = 0; head < c.task.heads; ++head) change(c.query(row, head));
  }
}

template <typename Change>
void changeKeys(AttentionCase& c, const Change& change) {
  for (int32_t head = 0; head < c.task.kv.kvHeads; ++head) {
    for (int64_t row = 0; row < c.task.segment.end; ++row) change(c.key(head, row), row);
  }
}

TEST_P(AttentionEdges, PlantedNeedleIsListedAndFound) {
  SampleAttentionParams params;
  params.epsilon = 0.05;
  AttentionCase c(kShape, kSegment, params, random);
  const auto needle = static_cast<int64_t>(16 + random() % 500);
  // Every query asks for it in the slow half, in head 4 alone.
  for (int64_t row = kSegment.begin; row < kSegment.end; ++row) c.query(row, 4)[50] = 40.0f;
  changeKeys(c, [&](uint16_t* key, int64_t row) { key[50] = toBf16(row == needle ? 8.0f : 0.0f); });
  ASSERT_TRUE(c.run(2));
  expectAgreement(c, random);
  const auto list = c.scratch.columnList(4);
  EXPECT_TRUE(std::binary_search(list.begin(), list.end(), static_cast<int32_t>(needle)));
  for (int64_t row = kSegment.begin; row < kSegment.end; ++row) {
    if (!isRemote(row, needle, 256, params.sinkTokens)) continue;
    for (int dim = 0; dim < 64; ++dim) {
      ASSERT_NEAR(c.output(row, 4)[dim], fromBf16(c.value(1, needle)[dim]), 1e-3f);
    }
  }
  for (const float share : c.heads[4].coverage) EXPECT_GT(share, 0.999f);
}

TEST_P(AttentionEdges, Ties) {
  SampleAttentionParams params;
  params.epsilon = 0.02;
  AttentionCase c(kShape, kSegment, params, random);
  // Few distinct values: many peaks are equal.
  changeQueries(c, [&](float* query) {
    for (int dim = 0; dim < 64; ++dim)
      query[dim] = dim % 8 == 0 ? 8.0f * static_cast<float>(random() % 3) - 8.0f : 0.0f;
  });
  changeKeys(c, [&](uint16_t* key, int64_t) {
    for (int dim = 0; dim < 64; ++dim) key[dim] = toBf16(static_cast<float>(random() % 3) - 1.0f);
  });
  ASSERT_TRUE(c.run(2));
  expectAgreement(c, random);
  EXPECT_GT(c.listedHeads(), 0);
}

TEST_P(AttentionEdges, EqualKeysGiveTheMeanOfWhatIsSeen) {
  SampleAttentionParams params;
  params.epsilon = 0.9;  // no single column weighs that much: nothing is listed
  AttentionCase c(kShape, kSegment, params, random);
  changeKeys(c, [&](uint16_t* key, int64_t) {
    for (int dim = 0; dim < 64; ++dim) key[dim] = toBf16(0.5f);
  });
  ASSERT_TRUE(c.run(2));
  expectAgreement(c, random);
  const std::vector<int64_t> audits = auditRows(kSegment, params);
  for (const HeadAttention& head : c.heads) {
    EXPECT_EQ(head.listLength, 0);
    for (size_t i = 0; i < audits.size(); ++i) {
      const int64_t window = windowStart(audits[i], kSegment.windowTokens);
      const double kept = window == 0 ? 1.0
                                      : static_cast<double>(16 + audits[i] + 1 - window) /
                                            static_cast<double>(audits[i] + 1);
      EXPECT_NEAR(head.coverage[i], kept, 1e-5);
    }
  }
}

TEST_P(AttentionEdges, HugeAndTinyLogits) {
  for (const float factor : {1e4f, 1e2f, 1e-20f, 0.0f}) {
    SCOPED_TRACE(factor);
    SampleAttentionParams params;
    params.epsilon = 0.02;
    AttentionCase c(kShape, kSegment, params, random);
    changeQueries(c, [&](float* query) {
      for (int dim = 0; dim < 64; ++dim) query[dim] *= factor;
    });
    ASSERT_TRUE(c.run(2));
    // A score of size s is known to about s * 2^-22.
    const double error = std::max(1.0, 5.0 * factor) * 1e-6;
    expectAgreement(
        c, random, {},
        {std::max(1e-3, error), std::max(2e-5, 10 * error), std::max(1e-4, 10 * error)});
  }
}

TEST_P(AttentionEdges, ScoresOfBothSignsOverflowNothing) {
  AttentionCase c(kShape, kSegment, {}, random);
  // Even rows see scores near +30,000, odd rows near -30,000 for all keys.
  changeKeys(c, [&](uint16_t* key, int64_t) { key[63] = toBf16(600.0f); });
  for (int64_t row = kSegment.begin; row < kSegment.end; ++row) {
    for (int32_t head = 0; head < kShape.heads; ++head) {
      c.query(row, head)[63] = row % 2 == 0 ? 400.0f : -400.0f;
    }
  }
  ASSERT_TRUE(c.run(2));
  expectAgreement(c, random, {}, {0.05, 0.1, 0.05});
}

TEST_P(AttentionEdges, NothingListedAndEverythingListed) {
  for (const double epsilon : {0.999, 1e-30}) {
    SampleAttentionParams params;
    params.epsilon = epsilon;
    params.maxListShare = 1.0;
    AttentionCase c(kShape, kSegment, params, random);
    ASSERT_TRUE(c.run(2));
    expectAgreement(c, random, {6, 6});
    for (const HeadAttention& head : c.heads) {
      EXPECT_EQ(head.listLength, epsilon > 0.5 ? 0 : windowStart(2299, 256) - params.sinkTokens);
    }
  }
}

TEST_P(AttentionEdges, SinksThatReachTheWindowLeaveNothingRemote) {
  SampleAttentionParams params;
  params.sinkTokens = 128;
  AttentionCase c(kShape, {0, 300, false, 8, 150}, params, random);
  ASSERT_TRUE(c.run(2));
  expectAgreement(c, random);
  for (const HeadAttention& head : c.heads) {
    EXPECT_EQ(head.listLength, 0);
    EXPECT_EQ(head.keptPairs, head.causalPairs);
  }
}

TEST_P(AttentionEdges, ScratchKeepsNothingFromARunOnNaN) {
  AttentionScratch scratch;
  AttentionCase poison({6, 2, 128}, {1000, 2400, false, 8, 256}, {}, random);
  changeQueries(poison, [](float* query) { std::fill_n(query, 128, std::nanf("")); });
  poison.task.scratch = &scratch;
  ASSERT_TRUE(poison.run(2));
  const Segment segments[] = {kSegment, {1000, 1400, true, 0, 0}, {5000, 5003, true, 0, 0}};
  for (const Segment& segment : segments) {
    AttentionCase c(kShape, segment, {}, random);
    ASSERT_TRUE(c.run(2));
    const std::vector<float> fresh = c.outputs();
    c.task.scratch = &scratch;
    c.poisonOutput();
    ASSERT_TRUE(c.run(2));
    EXPECT_EQ(c.outputs(), fresh);
    c.task.scratch = nullptr;
    c.poisonOutput();
    ASSERT_TRUE(c.run(2));
    EXPECT_EQ(c.outputs(), fresh);
  }
}

TEST_P(AttentionEdges, ScratchStaysBelowTheEstimate) {
  for (const int64_t tokens : {1, 2048, 4000}) {
    for (const int64_t rows : {int64_t{1}, std::min<int64_t>(tokens, 1500)}) {
      for (const bool isDense : {true, false}) {
        const Segment segment{tokens - rows, tokens, isDense, isDense ? 0 : 8, isDense ? 0 : 256};
        AttentionCase c(kShape, segment, {}, random);
        ASSERT_TRUE(c.run(3));
        EXPECT_GT(c.scratch.bytes(), 0u);
        EXPECT_LE(c.scratch.bytes(), attentionScratchBytes({6, 2, 64, tokens}, c.params, 3));
      }
    }
  }
}

TEST_P(AttentionEdges, CancelBeforeAndDuring) {
  AttentionCase c({32, 8, 128}, {4096, 6144, false, 8, 256}, {}, random);
  c.cancel.set();
  EXPECT_FALSE(c.run(2));

  ThreadPool pool(2);
  for (const bool isDense : {false, true}) {
    c.task.segment.dense = isDense;
    EXPECT_LT(c.secondsToCancel(pool, {1, 20, 60}), 0.1);
  }
}

TEST_P(AttentionEdges, CancelledRunsLeaveNoTrace) {
  AttentionCase c(kShape, kSegment, {}, random);
  ASSERT_TRUE(c.run(2));
  const std::vector<float> whole = c.outputs();
  c.cancel.set();
  EXPECT_FALSE(c.run(2));
  c.cancel.clear();
  c.poisonOutput();
  ASSERT_TRUE(c.run(2));
  EXPECT_EQ(c.outputs(), whole);
}

TEST_P(AttentionEdges, WrongInputIsRefused) {
  AttentionCase c(kShape, kSegment, {}, random);
  const auto expectRefused = [&](auto change) {
    AttentionTask task = c.task;
    SampleAttentionParams params = c.params;
    task.params = &params;
    change(task, params);
    ThreadPool pool(1);
    EXPECT_THROW(runAttention(task, pool, c.cancel, c.heads), std::invalid_argument);
  };
  expectRefused([](AttentionTask& task, auto&) { task.heads = 5; });
  expectRefused([](AttentionTask& task, auto&) { task.heads = 0; });
  expectRefused([](AttentionTask& task, auto&) { task.kv.kvHeads = 0; });
  expectRefused([](AttentionTask& task, auto&) { task.kv.headDim = 66; });
  expectRefused([](AttentionTask& task, auto&) { task.segment.end = task.kv.capacityRows + 1; });
  expectRefused([](AttentionTask& task, auto&) { task.segment.begin = -1; });
  expectRefused([](AttentionTask& task, auto&) { task.scale = 0.0f; });
}

TEST(InstructionSets, MeasuredKernelsRunHereAndStayTheSame) {
  unsetenv("LONGSIGHT_CPU");
  const AttentionKernels& chosen = chooseAttentionKernels();
  EXPECT_TRUE(instructionSetRuns(chosen.set));
  EXPECT_EQ(&chosen, &chooseAttentionKernels());
  for (const std::string& name : kernelSets()) {
    const ForcedSet forced(name);
    EXPECT_EQ(instructionSetName(chooseAttentionKernels().set), name);
  }
}

TEST(InstructionSets, UnknownNameIsRefused) {
  const ForcedSet forced("sse9");
  EXPECT_THROW(AttentionScratch(), std::runtime_error);
}

}  // namespace
}  // namespace longsight::test
