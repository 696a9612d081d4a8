#include "kernels/reference/reference.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "attention/geometry.h"

namespace longsight::reference {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

int32_t kvHeadOf(const AttentionTask& task, int32_t head) {
  return head / (task.heads / task.kv.kvHeads);
}

void cacheRow(const KvMatrix& matrix, int64_t row, float (&values)[kMaxHeadDim]) {
  const std::byte* stored = matrix.data + row * kvRowBytes(matrix.type, matrix.headDim);
  loadKvRow(matrix.type, stored, matrix.headDim, values);
}

double score(const AttentionTask& task, int32_t head, int64_t row, int64_t column,
             const DimRanges& dims) {
  const float* query =
      task.queries + ((row - task.segment.begin) * task.heads + head) * task.kv.headDim;
  float key[kMaxHeadDim];
  cacheRow(task.kv.keysOf(kvHeadOf(task, head)), column, key);
  double sum = 0.0;
  for (const DimRange& range : dims.ranges) {
    for (int32_t dim = range.begin; dim < range.end; ++dim) sum += double{query[dim]} * key[dim];
  }
  return sum * task.scale;
}

std::vector<double> scores(const AttentionTask& task, int32_t head, int64_t row) {
  const DimRanges dims = allDims(task.kv.headDim);
  std::vector<double> result;
  for (int64_t column = 0; column <= row; ++column) {
    result.push_back(score(task, head, row, column, dims));
  }
  return result;
}

// Marks the columns up to row that it attends to.
std::vector<bool> attended(const AttentionTask& task, const Kept& kept, int64_t row) {
  std::vector<bool> result(static_cast<size_t>(row) + 1, kept.dense);
  if (kept.dense) return result;
  for (const int32_t column : kept.list) {
    if (column <= row) result[static_cast<size_t>(column)] = true;
  }
  for (int64_t column = 0; column <= row; ++column) {
    if (!isRemote(row, column, task.segment.windowTokens, task.params->sinkTokens)) {
      result[static_cast<size_t>(column)] = true;
    }
  }
  return result;
}

}  // namespace

std::vector<double> peaks(const AttentionTask& task, int32_t head) {
  const DimRanges dims =
      scoreDimRanges(task.params->scoreDims, task.ropeStyle, task.kv.headDim, task.rotatedDims);
  std::vector<double> result(static_cast<size_t>(task.segment.end), -kInfinity);
  for (const int64_t row : votingRows(task.segment)) {
    const std::vector<double> exact = scores(task, head, row);
    const auto remote = [&](int64_t column) {
      return isRemote(row, column, task.segment.windowTokens, task.params->sinkTokens);
    };
    double most = -kInfinity;
    for (int64_t column = 0; column <= row; ++column) {
      if (!remote(column)) most = std::max(most, exact[static_cast<size_t>(column)]);
    }
    double sum = 0.0;
    for (int64_t column = 0; column <= row; ++column) {
      if (!remote(column)) sum += std::exp(exact[static_cast<size_t>(column)] - most);
    }
    const double anchor = most + std::log(sum);
    for (int64_t column = 0; column <= row; ++column) {
      if (!remote(column)) continue;
      double& peak = result[static_cast<size_t>(column)];
      peak = std::max(peak, score(task, head, row, column, dims) - anchor);
    }
  }
  return result;
}

std::vector<int32_t> columnList(const AttentionTask& task, std::span<const double> peaks) {
  std::vector<int32_t> result;
  const double cut = std::log(task.params->epsilon);
  for (size_t column = 0; column < peaks.size(); ++column) {
    const bool remote = isRemote(task.segment.end - 1, static_cast<int64_t>(column),
                                 task.segment.windowTokens, task.params->sinkTokens);
    if (remote && peaks[column] >= cut) result.push_back(static_cast<int32_t>(column));
  }
  return result;
}

Masses masses(const AttentionTask& task, int32_t head) {
  Masses result;
  result.columns.assign(static_cast<size_t>(task.segment.end), 0.0);
  for (const int64_t row : votingRows(task.segment)) {
    const std::vector<double> exact = scores(task, head, row);
    const double most = *std::max_element(exact.begin(), exact.end());
    double sum = 0.0;
    for (const double score : exact) sum += std::exp(score - most);
    for (int64_t column = 0; column <= row; ++column) {
      const double share = std::exp(exact[static_cast<size_t>(column)] - most) / sum;
      const bool remote = isRemote(row, column, task.segment.windowTokens, task.params->sinkTokens);
      (remote ? result.columns[static_cast<size_t>(column)] : result.free) += share;
    }
    ++result.voters;
  }
  return result;
}

MassList massList(const AttentionTask& task, const Masses& masses) {
  std::vector<int32_t> order;
  for (int64_t column = 0; column < task.segment.end; ++column) {
    if (isRemote(task.segment.end - 1, column, task.segment.windowTokens,
                 task.params->sinkTokens)) {
      order.push_back(static_cast<int32_t>(column));
    }
  }
  const auto mass = [&](int32_t column) { return masses.columns[static_cast<size_t>(column)]; };
  std::stable_sort(order.begin(), order.end(),
                   [&](int32_t a, int32_t b) { return mass(a) > mass(b); });

  const double wanted = task.params->alpha * static_cast<double>(masses.voters);
  double kept = masses.free;
  size_t count = 0;
  while (count < order.size() && (task.params->alpha == 1.0 || kept < wanted)) {
    kept += mass(order[count++]);
  }
  MassList result;
  result.smallestKept = count > 0 ? mass(order[count - 1]) : kInfinity;
  result.largestLeft = count < order.size() ? mass(order[count]) : 0.0;
  result.surplus = kept - wanted;
  result.columns.assign(order.begin(), order.begin() + static_cast<int64_t>(count));
  std::sort(result.columns.begin(), result.columns.end());
  return result;
}

bool fallsBackToDense(const AttentionTask& task, int64_t listLength) {
  return static_cast<double>(listLength) >
         task.params->maxListShare * static_cast<double>(task.segment.end);
}

std::vector<double> rowWeights(const AttentionTask& task, int32_t head, int64_t row,
                               const Kept& kept) {
  const std::vector<double> exact = scores(task, head, row);
  const std::vector<bool> visible = attended(task, kept, row);
  double most = -kInfinity;
  for (size_t column = 0; column < exact.size(); ++column) {
    if (visible[column]) most = std::max(most, exact[column]);
  }
  double sum = 0.0;
  std::vector<double> weights(exact.size(), 0.0);
  for (size_t column = 0; column < exact.size(); ++column) {
    if (!visible[column]) continue;
    weights[column] = std::exp(exact[column] - most);
    sum += weights[column];
  }
  for (double& weight : weights) weight /= sum;
  return weights;
}

std::vector<double> attendRow(const AttentionTask& task, int32_t head, int64_t row,
                              const Kept& kept) {
  const std::vector<double> weights = rowWeights(task, head, row, kept);
  std::vector<double> result(static_cast<size_t>(task.kv.headDim), 0.0);
  for (size_t column = 0; column < weights.size(); ++column) {
    if (weights[column] == 0.0) continue;
    float value[kMaxHeadDim];
    cacheRow(task.kv.valuesOf(kvHeadOf(task, head)), static_cast<int64_t>(column), value);
    for (size_t dim = 0; dim < result.size(); ++dim) result[dim] += weights[column] * value[dim];
  }
  return result;
}

double logSum(const AttentionTask& task, int32_t head, int64_t row) {
  const std::vector<double> exact = scores(task, head, row);
  const double most = *std::max_element(exact.begin(), exact.end());
  double sum = 0.0;
  for (const double score : exact) sum += std::exp(score - most);
  return most + std::log(sum);
}

double coverage(const AttentionTask& task, int32_t head, int64_t row, const Kept& kept) {
  const std::vector<double> exact = scores(task, head, row);
  const std::vector<bool> visible = attended(task, kept, row);
  const double most = *std::max_element(exact.begin(), exact.end());
  double keptMass = 0.0;
  double allMass = 0.0;
  for (size_t column = 0; column < exact.size(); ++column) {
    const double mass = std::exp(exact[column] - most);
    allMass += mass;
    if (visible[column]) keptMass += mass;
  }
  return keptMass / allMass;
}

int64_t keptPairs(const AttentionTask& task, const Kept& kept) {
  int64_t pairs = 0;
  for (int64_t row = task.segment.begin; row < task.segment.end; ++row) {
    const std::vector<bool> visible = attended(task, kept, row);
    pairs += std::count(visible.begin(), visible.end(), true);
  }
  return pairs;
}

}  // namespace longsight::reference
