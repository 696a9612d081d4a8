// Policy `mass`, stage 2: masses to masks.
//
// A voter's shares sum to 1, so what its window and sinks hold is 1 minus its remote mass: keeping
// f + sum >= alpha * voters is the same as leaving at most (1 - alpha) * voters of the remote mass.
// What is left are the smallest columns. The cut is found by radix: masses are not negative, so
// their bits order as they do, and every pass divides the interval of bits that holds the cut by
// 16, with the mass below 15 pivots summed in one order. Once few columns lie in the interval they
// are gathered and the passes go over them alone.
#include <cstdint>

#include "chunk_layout.h"
#include "filter/block_sums.cuh"
#include "sample/voters.cuh"

namespace longsight::cuda {
namespace {

constexpr int kThreads = 512;
constexpr int kPivots = 15;
constexpr int kGathered = 4096;
constexpr int kPassesBeforeGather = 3;
constexpr uint32_t kOctave = 1u << 23;  // of float bits

// Columns c with mass(c) bits in [low, high) hold the cut: all below `low` are left, and leaving
// all below `high` would be too much.
struct CutInterval {
  uint32_t low;
  uint32_t high;
};

// One pass over `count` masses; `below` is the mass of columns that are left and not among them.
// Pivot i of 1 to 15 is first + i * step, at most interval.high.
__device__ __forceinline__ void narrow(CutInterval& interval, const float* masses, int count,
                                       double below, double budget, uint32_t first, uint32_t step) {
  float sums[kPivots] = {};
  uint32_t pivots[kPivots];
#pragma unroll
  for (int k = 0; k < kPivots; ++k) pivots[k] = min(first + (k + 1) * step, interval.high);
#pragma unroll 4
  for (int i = threadIdx.x; i < count; i += kThreads) {
    const float mass = masses[i];
    const uint32_t bits = __float_as_uint(mass);
#pragma unroll
    for (int k = 0; k < kPivots; ++k) {
      if (bits < pivots[k]) sums[k] += mass;
    }
  }
  const double* totals = blockSums<double, kThreads>(sums);
  // Totals ascend with the pivots, since every sum is made in the same order.
#pragma unroll
  for (int k = 0; k < kPivots; ++k) {
    const uint32_t pivot = min(first + (k + 1) * step, interval.high);
    if (below + totals[k] <= budget) {
      interval.low = max(interval.low, pivot);
    } else {
      interval.high = min(interval.high, pivot);
      break;
    }
  }
}

// Copies masses within the interval, in order, as far as they fit; returns how many there are.
__device__ int gather(float* target, const float* masses, int count, CutInterval interval,
                      double& below) {
  int entries = 0;
  float belowSum = 0.0f;
  for (int base = 0; base < count; base += kThreads) {
    const int i = base + threadIdx.x;
    const float mass = i < count ? masses[i] : 0.0f;
    const uint32_t bits = __float_as_uint(mass);
    const bool inside = i < count && bits >= interval.low && bits < interval.high;
    if (bits < interval.low) belowSum += mass;
    int total;
    const int place = entries + exclusiveSum<kThreads>(inside ? 1 : 0, total);
    if (inside && place < kGathered) target[place] = mass;
    entries += total;
  }
  const float sums[1] = {belowSum};
  below = *blockSums<double, kThreads>(sums);
  return entries;
}

// Block (head, segment).
__global__ __launch_bounds__(kThreads,
                             2) void massThreshold(const __grid_constant__ ChunkLayout layout,
                                                   const Workspace workspace, double alpha) {
  __shared__ float gathered[kGathered];
  const int head = blockIdx.x;
  const SegmentLayout& segment = layout.segments[gridDim.y - 1 - blockIdx.y];
  const int columns = segment.remoteBlocks * int(kTileRows);
  if (segment.stride == 0 || columns == 0) return;
  // Sinks have no part in it; where everything remote is a sink, nothing is left to choose.
  const int first = min(layout.sinkTokens, columns);
  const float* masses = workspace.masses + massesBegin(segment, head);
  const float* remote = masses + first;
  const int count = columns - first;

  // Keep columns with bits >= cut, of those with bits == cut only the first `ties`.
  uint32_t cut = 0;
  int ties = columns;
  bool allTies = true;
  if (alpha < 1.0) {
    const double budget = (1.0 - alpha) * double(segment.voters);
    // No mass exceeds the number of voters by more than rounding.
    CutInterval interval{0, __float_as_uint(2.0f * float(segment.voters))};
    const float* source = remote;
    int candidates = count;
    double below = 0.0;
    // The first pass reaches down 30 octaves. When even `high` may be left, the interval closes
    // there, and no column is kept.
    uint32_t pivotBase = interval.high - 2 * (kPivots * kOctave);
    uint32_t step = 2 * kOctave;
    for (int pass = 0; interval.high - interval.low > 1; ++pass) {
      if (pass >= kPassesBeforeGather && source == remote) {
        const int inside = gather(gathered, remote, count, interval, below);
        if (inside <= kGathered) {
          source = gathered;
          candidates = inside;
          __syncthreads();
        } else {
          below = 0.0;
        }
      }
      narrow(interval, source, candidates, below, budget, pivotBase, step);
      pivotBase = interval.low;
      step = (interval.high - interval.low + kPivots) / (kPivots + 1);
    }
    cut = interval.low;
    // Columns of exactly the cut: leave as many as the budget allows, the last ones.
    float leftAndEqual[2] = {};
    for (int i = threadIdx.x; i < candidates; i += kThreads) {
      const uint32_t bits = __float_as_uint(source[i]);
      if (bits < cut) leftAndEqual[0] += source[i];
      if (bits == cut) leftAndEqual[1] += 1.0f;
    }
    const double* sums = blockSums<double, kThreads>(leftAndEqual);
    const double rest = budget - below - sums[0];
    const double equal = sums[1];
    const double leave = fmin(equal, fmax(0.0, floor(rest / double(__uint_as_float(cut)))));
    ties = static_cast<int>(equal - leave);
    allTies = leave == 0.0;
  }

  uint32_t* mask = workspace.votes + segment.maskBegin + int64_t(head) * segment.remoteBlocks * 4;
  int tiesBefore = 0;
  // Uniform bounds: every thread takes part in the sums.
  for (int base = 0; base < columns; base += kThreads) {
    const int column = base + threadIdx.x;
    const bool inside = column >= first && column < columns;
    const uint32_t bits = inside ? __float_as_uint(masses[column]) : 0;
    bool kept = inside && bits >= cut;
    if (!allTies) {
      const bool tie = kept && bits == cut;
      int total;
      const int rank = tiesBefore + exclusiveSum<kThreads>(tie ? 1 : 0, total);
      tiesBefore += total;
      if (tie && rank >= ties) kept = false;
    }
    const uint32_t word = __ballot_sync(~0u, kept);
    if (threadIdx.x % 32 == 0 && column < columns) mask[column / 32] = word;
  }
}

}  // namespace

cudaError_t launchMassThreshold(const LaunchContext& context) {
  const ChunkLayout& layout = context.layout;
  massThreshold<<<dim3(layout.heads, layout.segmentCount), kThreads, 0, context.stream>>>(
      layout, context.workspace, context.chunk.options.alpha);
  return cudaGetLastError();
}

}  // namespace longsight::cuda
