// Epsilons by head: curves against the reference, the choice, and sessions that use it.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <iostream>
#include <numeric>

#include "attention/epsilon_curves.h"
#include "attention_case.h"
#include "cpu/epsilon_probe.h"
#include "error.h"
#include "kernels/reference/reference.h"
#include "session/session.h"
#include "temporary.h"

namespace longsight::test {
namespace {

double logOf(int step) { return HeadCurve::kFirstLog + HeadCurve::kLogStep * step; }

// A head whose density falls and error grows as random steps say.
void fill(HeadCurve& curve, std::mt19937_64& random) {
  std::uniform_real_distribution<double> share;
  curve.causalPairs = 1000;
  curve.rows = 10;
  double kept = 1000, error = 0, missed = 0;
  for (size_t step = 0; step < HeadCurve::kSteps; ++step) {
    kept *= 0.8 + 0.2 * share(random);
    error += share(random) * share(random);
    missed += 0.1 * share(random);
    curve.keptPairs[step] = kept;
    curve.error[step] = error;
    curve.missed[step] = missed;
  }
}

TEST(EpsilonCurves, ChoicesAreTheBestOfTheirDensityAndCoverage) {
  std::mt19937_64 random(seed() + 3);
  constexpr int32_t kHeads = 3;
  EpsilonCurves curves(1, kHeads);
  for (int32_t head = 0; head < kHeads; ++head) fill(curves.head(0, head), random);
  // All choices there are.
  struct Point {
    double density = 0, error = 0, missed = 0;
  };
  std::vector<Point> points;
  constexpr int kSteps = HeadCurve::kSteps;
  for (int i = 0; i < kSteps * kSteps * kSteps; ++i) {
    Point point;
    int rest = i;
    for (int32_t head = 0; head < kHeads; ++head, rest /= kSteps) {
      const HeadCurve& curve = curves.head(0, head);
      const auto step = static_cast<size_t>(rest % kSteps);
      point.density += curve.keptPairs[step] / 1000 / kHeads;
      point.error += curve.error[step] / 10;
      point.missed += curve.missed[step] / 10 / kHeads;
    }
    points.push_back(point);
  }
  for (const double epsilon : {0.0003, 0.003, 0.03, 0.3}) {
    const EpsilonChoice plain = curves.uniform(epsilon);
    const EpsilonChoice chosen = curves.atDensity(plain.density, 0.5);
    EXPECT_LE(chosen.density, plain.density);
    ASSERT_EQ(chosen.epsilons.size(), 3u);
    for (const Point& point : points) {
      // Nothing is denser than nothing better: on the hull, no choice has less of both.
      EXPECT_FALSE(point.density < chosen.density - 1e-12 && point.error < chosen.error - 1e-12);
    }
    const EpsilonChoice covered = curves.atCoverage(plain.coverage, 0.5);
    EXPECT_GE(covered.coverage, plain.coverage);
  }
}

TEST(EpsilonCurves, HeadsWithoutMeasurementsKeepTheEpsilon) {
  std::mt19937_64 random(seed() + 4);
  EpsilonCurves curves(2, 2);
  EXPECT_TRUE(curves.isEmpty());
  EXPECT_EQ(curves.uniform(0.003).density, 1);
  fill(curves.head(0, 1), random);
  EXPECT_FALSE(curves.isEmpty());
  const EpsilonChoice chosen = curves.atDensity(0.4, 0.125);
  EXPECT_EQ(chosen.epsilons[0], 0.125f);
  EXPECT_EQ(chosen.epsilons[2], 0.125f);
  EXPECT_NEAR(curves.uniform(std::exp(logOf(3))).density, curves.head(0, 1).keptPairs[3] / 1000,
              1e-9);
}

// A run with the epsilon of a step keeps and misses what the curve says.
TEST(EpsilonProbe, CurvesAreWhatRunsMeasure) {
  std::mt19937_64 random(seed() + 5);
  SampleAttentionParams params;
  params.maxListShare = 1;
  params.auditRows = 12;
  const Segment segment{700, 1500, false, 8, 150};
  AttentionCase c({4, 2, 32}, segment, params, random);
  constexpr int64_t kWidth = 24, kInput = 4 * 32;
  std::vector<float> projection(kWidth * kInput), residual(800 * kWidth);
  std::normal_distribution<float> normal;
  for (float& x : projection) x = normal(random);
  for (float& x : residual) x = normal(random);
  const WeightView matrix{projection.data(), GGML_TYPE_F32, kWidth, kInput};

  ThreadPool pool(2);
  ASSERT_TRUE(c.run(pool));
  EpsilonCurves curves(1, 4);
  probeEpsilons(c.task, matrix, residual.data(), 0, pool, curves);

  const std::vector<int64_t> audits = auditRows(segment, params);
  for (const int step : {2, 9, 14, 17, 20}) {
    const std::vector<float> epsilons(4, static_cast<float>(std::exp(logOf(step))));
    c.task.epsilons = epsilons;
    ASSERT_TRUE(c.run(pool));
    for (int32_t head = 0; head < 4; ++head) {
      SCOPED_TRACE(testing::Message() << "step " << step << " head " << head);
      const HeadCurve& curve = curves.head(0, head);
      const HeadAttention& made = c.heads[static_cast<size_t>(head)];
      const auto i = static_cast<size_t>(step);
      // A column on the very edge may fall to either side.
      EXPECT_NEAR(curve.keptPairs[i], static_cast<double>(made.keptPairs), 800);
      EXPECT_EQ(curve.causalPairs, static_cast<double>(made.causalPairs));
      ASSERT_EQ(curve.rows, static_cast<int64_t>(made.coverage.size()));
      double missed = 0;
      for (const float share : made.coverage) missed += 1 - double{share};
      EXPECT_NEAR(curve.missed[i], missed, 0.01 * static_cast<double>(audits.size()));

      const auto list = c.scratch.columnList(head);
      const reference::Kept kept{false, {list.begin(), list.end()}};
      double error = 0;
      for (const int64_t row : audits) {
        const std::vector<double> some = reference::attendRow(c.task, head, row, kept);
        const std::vector<double> all = reference::attendRow(c.task, head, row, {true, {}});
        const float* stream = residual.data() + (row - segment.begin) * kWidth;
        double changed = 0, square = 0;
        for (int64_t out = 0; out < kWidth; ++out) {
          double sum = 0;
          for (size_t dim = 0; dim < 32; ++dim)
            sum += projection[static_cast<size_t>(out * kInput + head * 32) + dim] *
                   (some[dim] - all[dim]);
          changed += sum * sum;
          square += double{stream[out]} * stream[out];
        }
        error += changed / square;
      }
      EXPECT_NEAR(curve.error[i], error, 0.03 * error + 1e-6);
    }
  }
}

std::unique_ptr<Session> newSession() {
  static const auto model = std::make_shared<Model>(realModelPath());
  const CancelFlag never;
  return std::make_unique<Session>(model, SessionOptions{.contextTokens = 4096, .threads = 2},
                                   never, nullptr);
}

std::vector<int32_t> realTokens(int64_t count) {
  static const Model model(realModelPath());
  std::vector<int32_t> tokens;
  model.tokenizer().tokenize(realText(static_cast<size_t>(count) * 6), false, tokens);
  tokens.resize(static_cast<size_t>(count));
  return tokens;
}

TEST(Calibration, IsUsedWhereItFitsAndOnlyThere) {
  auto session = newSession();
  Prompt prompt;
  prompt.tokens = realTokens(1500);
  prompt.borders = {1490, 1500};
  prompt.denseFrom = 1490;
  prompt.params.denseBelowTokens = 0;
  const GenerateResult plain = session->generate(prompt, {}, {});
  EXPECT_FALSE(plain.attention.calibrated);

  Calibration calibration;
  calibration.params.auditRows = 3;
  const ModelSpec spec = readGguf(realModelPath());
  calibration.headEpsilons.assign(static_cast<size_t>(spec.layers * spec.heads), 0.05f);
  session->use(calibration);
  EXPECT_EQ(session->plan(prompt).reusedTokens, 0) << "rows made with other epsilons were reused";
  const GenerateResult sparser = session->generate(prompt, {}, {});
  EXPECT_TRUE(sparser.attention.calibrated);
  EXPECT_EQ(sparser.prefill.reusedTokens, 0);
  EXPECT_LT(*sparser.attention.sparseDensity, *plain.attention.sparseDensity);
  EXPECT_EQ(session->plan(prompt).reusedTokens, 1499);

  Prompt other = prompt;
  other.params.epsilon = 0.05;
  const GenerateResult uniform = session->generate(other, {}, {});
  EXPECT_FALSE(uniform.attention.calibrated);
  EXPECT_EQ(uniform.attention.sparseDensity, sparser.attention.sparseDensity);
  other.params.policy = Policy::mass;
  EXPECT_FALSE(session->generate(other, {}, {}).attention.calibrated);

  calibration.headEpsilons.pop_back();
  EXPECT_THROW(session->use(calibration), Error);
  calibration.headEpsilons.push_back(1.0f);
  EXPECT_THROW(session->use(calibration), Error);
}

TEST(Calibration, HasLessErrorAtTheSameDensityAndReachesItsTargets) {
  auto session = newSession();
  const std::vector<std::vector<int32_t>> texts = {realTokens(2800)};
  SampleAttentionParams params;
  int64_t last = -1;
  SessionEvents events;
  events.onPrefill = [&](const PrefillProgress& progress) {
    EXPECT_GE(progress.done, last);
    EXPECT_LE(progress.done, progress.total);
    last = progress.done;
  };
  const CalibrationOutcome outcome = session->calibrate(texts, params, {}, events);
  EXPECT_GT(last, 0);
  std::cout << "density " << outcome.plain.density << " -> " << outcome.chosen.density << ", error "
            << outcome.plain.error << " -> " << outcome.chosen.error << "\n";
  EXPECT_LE(outcome.chosen.density, outcome.plain.density);
  EXPECT_GT(outcome.chosen.density, 0.98 * outcome.plain.density);
  EXPECT_LT(outcome.chosen.error, 0.7 * outcome.plain.error);

  const CalibrationOutcome covered =
      session->calibrate(texts, params, {.coverage = 0.97, .kl = {}}, {});
  EXPECT_GE(covered.chosen.coverage, 0.97);
  EXPECT_LT(covered.chosen.coverage, 0.975);

  params.policy = Policy::mass;
  EXPECT_THROW(session->calibrate(texts, params, {}, {}), Error);
  EXPECT_THROW(session->calibrate(std::vector<std::vector<int32_t>>{realTokens(100)}, {}, {}, {}),
               Error);
}

}  // namespace
}  // namespace longsight::test
