#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <limits>
#include <vector>

#include "kernels/cpu/attention/kernels.h"

namespace longsight {
namespace {

// Seconds per row of a tile that all rows see, everything in the caches.
double tileSeconds(const AttentionKernels& kernels) {
  constexpr int32_t kDims = 64, kRows = 96, kBursts = 5;
  const int32_t blocks = kRows / kernels.blockRows;
  const auto rows = static_cast<size_t>(blocks * kernels.blockRows);
  const std::vector<float> zeros(kDims);
  const std::vector<uint16_t> matrix(kTileKeys * kDims);
  const std::vector<const float*> queryRows(rows, zeros.data());
  std::vector<float> queries(rows * kDims), keys(kTileKeys * kDims), values(kTileKeys * kDims);
  std::vector<float> maximum(rows, -std::numeric_limits<float>::infinity()), sum(rows);
  std::vector<float> output(rows * kDims);
  std::vector<float> scores(static_cast<size_t>(kernels.blockRows) * kTileKeys);
  const KeyRows matrixRows{matrix.data(), kDims, nullptr, 0, kTileKeys};
  kernels.packQueries(queryRows.data(), blocks, allDims(kDims), 1.0f, queries.data());
  kernels.packKeys(matrixRows, allDims(kDims), keys.data());
  kernels.packValues(matrixRows, values.data());
  AttendTile tile{};
  tile.queries = queries.data();
  tile.blocks = blocks;
  tile.dims = kDims;
  tile.scale = 1.0f;
  tile.keys = keys.data();
  tile.values = values.data();
  tile.keyCount = kTileKeys;
  tile.state = {maximum.data(), sum.data(), output.data(), kDims};
  tile.scores = scores.data();
  double best = 1.0;
  for (int burst = 0; burst < kBursts; ++burst) {
    const auto start = std::chrono::steady_clock::now();
    kernels.attend(tile);
    const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - start;
    best = std::min(best, taken.count());
  }
  return best / static_cast<double>(rows);
}

const AttentionKernels* kernelsOf(InstructionSet set) {
#if defined(__x86_64__)
  if (set == InstructionSet::avx512bf16) return avx512bf16AttentionKernels();
  if (set == InstructionSet::avx2) return avx2AttentionKernels();
#endif
  return set == InstructionSet::portable ? portableAttentionKernels() : nullptr;
}

}  // namespace

const AttentionKernels& attentionKernels(InstructionSet set) {
  const AttentionKernels* best = portableAttentionKernels();
  for (const InstructionSet candidate : kInstructionSets) {
    if (candidate > set) break;
    if (const AttentionKernels* kernels = kernelsOf(candidate)) best = kernels;
  }
  return *best;
}

const AttentionKernels& chooseAttentionKernels() {
  const char* forced = std::getenv("LONGSIGHT_CPU");
  if (forced != nullptr && *forced != '\0') return attentionKernels(chooseInstructionSet());
  static const AttentionKernels& fastest = []() -> const AttentionKernels& {
    // A set has to be clearly faster than one that comes after it: then the choice is the same each
    // time.
    constexpr double kClearly = 0.85;
    const AttentionKernels* best = portableAttentionKernels();
    double bestSeconds = 1.0;
    for (const InstructionSet set : kInstructionSets) {
      const AttentionKernels* kernels = instructionSetRuns(set) ? kernelsOf(set) : nullptr;
      if (kernels == nullptr) continue;
      const double seconds = tileSeconds(*kernels);
      if (seconds * kClearly < bestSeconds) {
        best = kernels;
        bestSeconds = seconds;
      }
    }
    return *best;
  }();
  return fastest;
}

}  // namespace longsight
