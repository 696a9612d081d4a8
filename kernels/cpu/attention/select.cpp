#include <algorithm>
#include <chrono>
#include <limits>
#include <optional>
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
  const KeyRows matrixRows{{reinterpret_cast<const std::byte*>(matrix.data()), KvType::bf16, kDims},
                           nullptr,
                           0,
                           kTileKeys};
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
  if (isInstructionSetForced()) return attentionKernels(chooseInstructionSet());
  static const AttentionKernels& fastest =
      *kernelsOf(fastestInstructionSet([](InstructionSet set) -> std::optional<double> {
        const AttentionKernels* kernels = kernelsOf(set);
        if (kernels == nullptr) return std::nullopt;
        return tileSeconds(*kernels);
      }));
  return fastest;
}

}  // namespace longsight
