// Stage 1, score pass on wgmma: kGroups warpgroups with 256 / kGroups keys each; see
// peak_votes.cuh. They take turns: while the products of one are under way, the others look at
// their signs and load what their next products start from. Without turns the tensor cores share
// their time between all, which then finish and idle together.
#include "sample/peak_votes.cuh"
#include "sample/wgmma_rows.cuh"

namespace longsight::cuda {
namespace {

constexpr int kGroups = 4;

// Named barriers; 0 is __syncthreads. Warpgroup g waits for its turn at kTurn + g, which it gives
// to the next one.
enum NamedBarrier { kTurn = 1, kKeysLoaded = kTurn + kGroups };

template <class S, int kDims>
__global__ __launch_bounds__(kGroups* kGroupThreads,
                             1) void peakVotes(const __grid_constant__ ChunkLayout layout,
                                               const Workspace workspace,
                                               const VoteSchedule schedule,
                                               const __grid_constant__ VoteOperands operands) {
  extern __shared__ __align__(1024) unsigned char sharedBytes[];
  using Block = VoteBlock<S, kDims, kGroups>;
  using Sum = ScoreSum<S>;
  constexpr int kRowBytes = Block::Memory::kRowBytes;
  constexpr int kGroupKeys = Block::Memory::kGroupKeys;
  constexpr int kProducts = kGroupKeys / kProductRows;
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
  if (group == kGroups - 1) namedBarrierArrive(kTurn, 2 * kGroupThreads);
  const HeadWalk firstHead = startWalk(layout, workspace, schedule, range);
  const bool headsWhole = schedule.headsWhole;
  const int allRemote = static_cast<int>(
      windowStart(block.segment().begin, block.segment().windowTokens) / kTileRows);
  const Sum* starts = block.starts(group) + lane % 4 * 2;
  const int firstByte = Block::keyInBlock(group) / 8 + warp * 2;

  // [product][row, row + 8]
  uint32_t misses[kProducts][2];
#pragma unroll
  for (int m = 0; m < kProducts; ++m) misses[m][0] = misses[m][1] = kAllMissed;
  Sum sums[kProducts][64];
  for (int step = range.blockBegin; step < range.blockEnd; step += kStepBlocks) {
    const int myBlock = Block::blockOf(step, group);
    RowFragments<kRowBytes> a[kProducts];
#pragma unroll
    for (int m = 0; m < kProducts; ++m) {
      loadRowFragments<kRowBytes, kGroupKeys>(a[m], block.keyTile(group), m * kProductRows);
    }
    if (Block::kQuantized || step == range.blockBegin || myBlock >= allRemote) {
      block.setStarts(myBlock);
    }
    namedBarrierSync(kKeysLoaded + group, kGroupThreads);
    if (step + kStepBlocks < range.blockEnd) block.copyKeys(step + kStepBlocks);

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
      namedBarrierSync(kTurn + group, 2 * kGroupThreads);
#pragma unroll
      for (int m = 0; m < kProducts; ++m) pinRegisters(sums[m]);
#pragma unroll
      for (int m = 0; m < kProducts; ++m) {
        issueRowScores<S, kRowBytes>(sums[m], a[m], block.voterTile(tile), true);
      }
      namedBarrierArrive(kTurn + (group + 1) % kGroups, 2 * kGroupThreads);
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
      storeVotes(walk.mask, myBlock * 16 + firstByte, kProductRows / 8, misses,
                 myBlock < range.blockEnd, headsWhole);
      walk.nextHead();
    }
    copyAsyncWait<0>();
    namedBarrierSync(kKeysLoaded + group, kGroupThreads);
  }
  // The turn that the last warpgroup gave away stays open; take it, so that none is left at exit.
  if (group == 0) namedBarrierSync(kTurn, 2 * kGroupThreads);
}

template <class S, int kDims>
cudaError_t launch(const LaunchContext& context) {
  return launchVotes<S, VoteMemory<S, kDims, kGroups>>(context, peakVotes<S, kDims>);
}

template <class S>
cudaError_t launchDims(const LaunchContext& context) {
  const int dims = context.chunk.options.scoreDims.count();
  return dims == 32   ? launch<S, 32>(context)
         : dims == 64 ? launch<S, 64>(context)
                      : launch<S, 128>(context);
}

}  // namespace

cudaError_t launchVotesWgmma(const LaunchContext& context) {
  if (context.chunk.options.scoreNumbers == ScoreNumbers::int8) return launchDims<int8_t>(context);
  return context.chunk.shape.element == Element::bf16 ? launchDims<Bf16>(context)
                                                      : launchDims<F16>(context);
}

}  // namespace longsight::cuda
