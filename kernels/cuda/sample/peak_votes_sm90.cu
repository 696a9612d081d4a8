// Stage 1, score pass on wgmma: two warpgroups of 128 keys each, in two products of 64; see
// peak_votes.cuh. They take turns: while the products of one are under way, the other looks at its
// signs and loads what its next products start from.
#include "sample/peak_votes.cuh"
#include "sample/wgmma_rows.cuh"

namespace longsight::cuda {
namespace {

// Named barriers; 0 is __syncthreads. Warpgroup g waits for its turn at kTurn + g.
enum NamedBarrier { kTurn = 1, kKeysLoaded = 3 };

template <class S, int kDims>
__global__ __launch_bounds__(kVoteThreads,
                             1) void peakVotes(const __grid_constant__ ChunkLayout layout,
                                               const Workspace workspace,
                                               const VoteSchedule schedule,
                                               const __grid_constant__ VoteOperands operands) {
  extern __shared__ __align__(1024) unsigned char sharedBytes[];
  using Block = VoteBlock<S, kDims>;
  using Sum = ScoreSum<S>;
  constexpr int kRowBytes = Block::Memory::kRowBytes;
  constexpr int kProducts = int(kTileRows) / kProductRows;
  VoteRange range;
  if (!findVoteRange(layout, schedule, range)) return;
  const Block block{layout, workspace, schedule, operands, range, sharedBytes};
  const int group = threadIdx.x / kGroupThreads;
  const int warp = threadIdx.x % kGroupThreads / 32;
  const int lane = threadIdx.x % 32;

  block.copyKeys(range.blockBegin);
  block.loadVoters();
  fenceAsyncProxy();
  __syncthreads();
  if (group == 1) namedBarrierArrive(kTurn, kVoteThreads);
  const HeadWalk firstHead = startWalk(layout, workspace, schedule, range);
  const bool headsWhole = schedule.headsWhole;
  const int allRemote = static_cast<int>(
      windowStart(block.segment().begin, block.segment().windowTokens) / kTileRows);
  const Sum* starts = block.starts(group) + lane % 4 * 2;

  // [product][row, row + 8]
  uint32_t misses[kProducts][2] = {{kAllMissed, kAllMissed}, {kAllMissed, kAllMissed}};
  Sum sums[kProducts][64];
  for (int step = range.blockBegin; step < range.blockEnd; step += kGroups) {
    const int myBlock = step + group;
    RowFragments<kRowBytes> a[kProducts];
#pragma unroll
    for (int m = 0; m < kProducts; ++m) {
      loadRowFragments<kRowBytes, int(kTileRows)>(a[m], block.keyTile(group), m * kProductRows);
    }
    if (Block::kQuantized || step == range.blockBegin || myBlock >= allRemote) {
      block.setStarts(myBlock);
    }
    namedBarrierSync(kKeysLoaded + group, kGroupThreads);
    if (step + kGroups < range.blockEnd) block.copyKeys(step + kGroups);

    HeadWalk walk = firstHead;
    for (int tile = 0; tile < range.tiles; ++tile) {
#pragma unroll
      for (int j = 0; j < 16; ++j) {
        startFragment(sums[0] + 4 * j, starts + tile * kVoterTile + j * 8);
#pragma unroll
        for (int m = 1; m < kProducts; ++m) {
#pragma unroll
          for (int i = 0; i < 4; ++i) sums[m][4 * j + i] = sums[0][4 * j + i];
        }
      }
      namedBarrierSync(kTurn + group, kVoteThreads);
#pragma unroll
      for (int m = 0; m < kProducts; ++m) pinRegisters(sums[m]);
#pragma unroll
      for (int m = 0; m < kProducts; ++m) {
        issueRowScores<S, kRowBytes>(sums[m], a[m], block.voterTile(tile), true);
      }
      namedBarrierArrive(kTurn + (group ^ 1), kVoteThreads);
#pragma unroll
      for (int m = 0; m < kProducts; ++m) {
        if (m + 1 < kProducts) {
          wgmmaWait<kProducts - 1>();
        } else {
          wgmmaWait<0>();
        }
        pinRegisters(sums[m]);
#pragma unroll
        for (int j = 0; j < 16; ++j) countMisses(sums[m] + 4 * j, misses[m]);
      }
      if (!walk.endsHead() && tile + 1 < range.tiles) continue;
      storeVotes(walk.mask, myBlock * 16 + warp * 2, kProductRows / 8, misses,
                 myBlock < range.blockEnd, headsWhole);
      walk.nextHead();
    }
    copyAsyncWait<0>();
    namedBarrierSync(kKeysLoaded + group, kGroupThreads);
  }
  // The turn that warpgroup 1 gave last away stays open; take it, so that none is left at exit.
  if (group == 0) namedBarrierSync(kTurn, kVoteThreads);
}

template <class S>
cudaError_t launch(const LaunchContext& context) {
  const int dims = scoreDimsMap(context.chunk.options.scoreDims).paddedDims();
  return dims == 32   ? launchVotes<S, 32>(context, peakVotes<S, 32>)
         : dims == 64 ? launchVotes<S, 64>(context, peakVotes<S, 64>)
                      : launchVotes<S, 128>(context, peakVotes<S, 128>);
}

}  // namespace

cudaError_t launchVotesWgmma(const LaunchContext& context) {
  if (context.chunk.options.scoreNumbers == ScoreNumbers::int8) return launch<int8_t>(context);
  return context.chunk.shape.element == Element::bf16 ? launch<Bf16>(context)
                                                      : launch<F16>(context);
}

}  // namespace longsight::cuda
