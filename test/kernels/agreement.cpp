#include "agreement.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <iterator>
#include <limits>
#include <map>
#include <numeric>
#include <optional>

#include "attention/geometry.h"
#include "cpu/attention_scratch.h"
#include "kernels/reference/reference.h"

namespace longsight::test {
namespace {

// `count` of [begin, end): the ends and random ones between, or all.
std::vector<int64_t> sample(int64_t begin, int64_t end, int64_t count, std::mt19937_64& random) {
  std::vector<int64_t> result;
  if (end - begin <= count) {
    for (int64_t i = begin; i < end; ++i) result.push_back(i);
    return result;
  }
  result = {begin, end - 1};
  std::uniform_int_distribution<int64_t> pick(begin, end - 1);
  while (static_cast<int64_t>(result.size()) < count) result.push_back(pick(random));
  return result;
}

struct ListCounts {
  int64_t listed = 0;
  int64_t differing = 0;
};

bool roundsToBf16(const AttentionCase& c) { return c.task.scratch->state().kernels->roundsQueries; }

void loadRow(const KvMatrix& matrix, int64_t row, float* values) {
  loadKvRow(matrix.type, matrix.data + row * kvRowBytes(matrix.type, matrix.headDim),
            matrix.headDim, values);
}

// A task as kernels of bf16 products see it: queries are rounded, and rows of q8 once unpacked.
class RoundedTask {
 public:
  explicit RoundedTask(const AttentionTask& task) : withRoundedQueries(task), rounded(task) {
    const Segment& segment = task.segment;
    const KvLayer& kv = task.kv;
    const int64_t elements = (segment.end - segment.begin) * task.heads * kv.headDim;
    for (int64_t i = 0; i < elements; ++i) queries_.push_back(fromBf16(toBf16(task.queries[i])));
    withRoundedQueries.queries = rounded.queries = queries_.data();
    if (kv.type == KvType::bf16) return;

    cache_.resize(static_cast<size_t>(2 * kv.kvHeads * segment.end * kv.headDim));
    auto* keys = reinterpret_cast<std::byte*>(cache_.data());
    rounded.kv = {keys, keys + cache_.size(), segment.end, kv.kvHeads, kv.headDim, KvType::bf16};
    std::vector<float> key(static_cast<size_t>(kv.headDim)), value(key);
    for (int32_t head = 0; head < kv.kvHeads; ++head) {
      for (int64_t row = 0; row < segment.end; ++row) {
        loadRow(kv.keysOf(head), row, key.data());
        loadRow(kv.valuesOf(head), row, value.data());
        rounded.kv.store(head, row, key.data(), value.data());
      }
    }
  }
  RoundedTask(const RoundedTask&) = delete;
  RoundedTask& operator=(const RoundedTask&) = delete;

  AttentionTask withRoundedQueries;
  AttentionTask rounded;

 private:
  std::vector<float> queries_;
  std::vector<uint16_t> cache_;
};

double largestDifference(const float* actual, const std::vector<double>& expected) {
  double worst = 0;
  for (size_t dim = 0; dim < expected.size(); ++dim) {
    worst = std::max(worst, std::abs(actual[dim] - expected[dim]));
  }
  return worst;
}

// How far rounding a row's weights to bf16 moves its output, by the largest of all dims. Each
// weight errs by up to 2^-8 of itself, like chance, but equal weights by as much in the same
// direction.
double weightRounding(const AttentionTask& task, int32_t head, int64_t row,
                      const reference::Kept& kept, const std::vector<double>& output) {
  const std::vector<double> weights = reference::rowWeights(task, head, row, kept);
  const auto dims = static_cast<size_t>(task.kv.headDim);
  const KvMatrix matrix = task.kv.valuesOf(head / (task.heads / task.kv.kvHeads));
  std::vector<float> values(weights.size() * dims);
  for (size_t column = 0; column < weights.size(); ++column) {
    loadRow(matrix, static_cast<int64_t>(column), values.data() + column * dims);
  }
  std::map<float, size_t> groups;
  std::vector<size_t> groupOf;
  for (const double weight : weights) {
    groupOf.push_back(groups.try_emplace(static_cast<float>(weight), groups.size()).first->second);
  }
  double worst = 0.0;
  std::vector<double> together(groups.size());
  for (size_t dim = 0; dim < dims; ++dim) {
    double alone = 0.0;
    std::fill(together.begin(), together.end(), 0.0);
    for (size_t column = 0; column < weights.size(); ++column) {
      const double share = weights[column] * (values[column * dims + dim] - output[dim]);
      alone += share * share;
      together[groupOf[column]] += share;
    }
    double equal = 0.0;
    for (const double share : together) equal += share * share;
    worst = std::max(worst, std::sqrt(alone) + std::sqrt(equal));
  }
  return 3.0 * worst / 256.0;
}

// What stages 1 and 2 of the reference say of a head.
struct Expected {
  std::vector<double> votes;
  std::vector<int32_t> list;
  // Whether a column with this vote may be in one list and not in the other.
  std::function<bool(double)> isNear;
  double cut = 0.0;
};

Expected expectedPeaks(const AttentionTask& task, int32_t head, const Tolerance& tolerance) {
  Expected expected;
  expected.votes = reference::peaks(task, head);
  expected.list = reference::columnList(task, expected.votes);
  const double cut = std::log(task.params->epsilon);
  expected.cut = cut;
  expected.isNear = [cut, &tolerance](double vote) {
    return std::abs(vote - cut) <= tolerance.list;
  };
  return expected;
}

// Also: the list used reaches alpha, and without its lightest column it does not.
Expected expectedMasses(const AttentionTask& task, int32_t head, std::span<const int32_t> used,
                        bool isDense, const Tolerance& tolerance) {
  Expected expected;
  const reference::Masses masses = reference::masses(task, head);
  const reference::MassList list = reference::massList(task, masses);
  const double wanted = task.params->alpha * static_cast<double>(masses.voters);
  const double slack = tolerance.mass / 10 * static_cast<double>(masses.voters);
  if (!isDense) {
    double kept = masses.free;
    double lightest = std::numeric_limits<double>::infinity();
    for (const int32_t column : used) {
      kept += masses.columns[static_cast<size_t>(column)];
      lightest = std::min(lightest, masses.columns[static_cast<size_t>(column)]);
    }
    EXPECT_GE(kept, wanted - slack);
    if (!used.empty() && task.params->alpha < 1.0) {
      EXPECT_LT(kept - lightest, wanted + slack);
    }
  }
  expected.votes = masses.columns;
  expected.list = list.columns;
  expected.cut = list.smallestKept;
  // Where the sum just reaches alpha, rounding may ask for one column more.
  const double next = list.surplus <= slack ? list.largestLeft : list.smallestKept;
  expected.isNear = [kept = list.smallestKept, next, &tolerance](double vote) {
    return std::abs(vote - kept) <= tolerance.mass * kept ||
           std::abs(vote - next) <= tolerance.mass * next;
  };
  return expected;
}

void expectSameList(const AttentionCase& c, const AttentionTask& task, int32_t head,
                    const Tolerance& tolerance, ListCounts& counts) {
  const HeadAttention& result = c.heads[static_cast<size_t>(head)];
  const auto list = c.scratch.columnList(head);
  const Expected expected = c.params.policy == Policy::mass
                                ? expectedMasses(task, head, list, result.denseFallback, tolerance)
                                : expectedPeaks(task, head, tolerance);
  const auto length = static_cast<int64_t>(expected.list.size());
  const int64_t near = std::count_if(expected.votes.begin(), expected.votes.end(), expected.isNear);
  counts.listed += length;

  EXPECT_LE(std::abs(result.listLength - length), near);
  if (near == 0) {
    EXPECT_EQ(result.denseFallback, reference::fallsBackToDense(c.task, length));
  }
  EXPECT_EQ(result.denseFallback, reference::fallsBackToDense(c.task, result.listLength));
  if (result.denseFallback) {
    EXPECT_TRUE(list.empty());
    return;
  }
  ASSERT_EQ(result.listLength, static_cast<int64_t>(list.size()));
  ASSERT_TRUE(std::is_sorted(list.begin(), list.end(), std::less_equal<>()));
  std::vector<int32_t> difference;
  std::set_symmetric_difference(list.begin(), list.end(), expected.list.begin(),
                                expected.list.end(), std::back_inserter(difference));
  for (const int32_t column : difference) {
    const double vote = expected.votes[static_cast<size_t>(column)];
    EXPECT_TRUE(expected.isNear(vote))
        << "column " << column << " with vote " << vote << " at cut " << expected.cut;
  }
  counts.differing += static_cast<int64_t>(difference.size());
}

}  // namespace

std::vector<std::string> kernelSets() {
  std::vector<std::string> names;
  for (const InstructionSet set : kInstructionSets) {
    if (instructionSetRuns(set) && attentionKernels(set).set == set) {
      names.emplace_back(instructionSetName(set));
    }
  }
  return names;
}

double reorderTolerance(const AttentionCase& c, int64_t columns) {
  return roundsToBf16(c) ? 0.04 / std::sqrt(static_cast<double>(columns)) : 1e-5;
}

ForcedSet::ForcedSet(const std::string& name) { setenv("LONGSIGHT_CPU", name.c_str(), 1); }
ForcedSet::~ForcedSet() { unsetenv("LONGSIGHT_CPU"); }

void expectAgreement(const AttentionCase& c, std::mt19937_64& random, const Effort& effort,
                     const Tolerance& tolerance) {
  const Segment& segment = c.task.segment;
  ASSERT_EQ(c.heads.size(), static_cast<size_t>(c.task.heads));
  for (const float x : c.outputs()) ASSERT_TRUE(std::isfinite(x));

  std::optional<RoundedTask> roundedTask;
  if (roundsToBf16(c)) roundedTask.emplace(c.task);
  const AttentionTask& task = roundedTask ? roundedTask->rounded : c.task;

  ListCounts counts;
  for (const int64_t chosen : sample(0, c.task.heads, effort.heads, random)) {
    const auto head = static_cast<int32_t>(chosen);
    SCOPED_TRACE("head " + std::to_string(head));
    const HeadAttention& result = c.heads[static_cast<size_t>(head)];
    if (!segment.dense) expectSameList(c, task, head, tolerance, counts);

    // From here on by the list that was used.
    const auto list = c.scratch.columnList(head);
    const reference::Kept kept{segment.dense || result.denseFallback, {list.begin(), list.end()}};
    EXPECT_EQ(result.keptPairs, reference::keptPairs(c.task, kept));
    EXPECT_EQ(result.causalPairs, causalPairCount(segment.begin, segment.end));
    const std::vector<int64_t> audits = auditRows(segment, c.params);
    ASSERT_EQ(result.coverage.size(), audits.size());
    for (size_t i = 0; i < audits.size(); ++i) {
      const double expected = reference::coverage(task, head, audits[i], kept);
      EXPECT_NEAR(result.coverage[i], expected, tolerance.coverage) << "audit row " << audits[i];
    }
    for (const int64_t row : sample(c.task.outputBegin, segment.end, effort.rows, random)) {
      const std::vector<double> expected = reference::attendRow(task, head, row, kept);
      const float* actual = c.output(row, head);
      double worst = largestDifference(actual, expected);
      if (roundedTask && task.kv.type != c.task.kv.type) {
        // A few rows are computed in f32 from q8 as it is stored.
        const AttentionTask& unrounded = roundedTask->withRoundedQueries;
        worst = std::min(
            worst, largestDifference(actual, reference::attendRow(unrounded, head, row, kept)));
      }
      double allowed = tolerance.output;
      if (roundsToBf16(c)) allowed += weightRounding(task, head, row, kept, expected);
      EXPECT_LE(worst, allowed) << "row " << row;
    }
  }
  if (counts.differing > 0) {
    const bool isMass = c.params.policy == Policy::mass;
    std::printf("  %lld of %lld listed columns differ, all within %g of the cut\n",
                static_cast<long long>(counts.differing), static_cast<long long>(counts.listed),
                isMass ? tolerance.mass : tolerance.list);
  }
}

}  // namespace longsight::test
