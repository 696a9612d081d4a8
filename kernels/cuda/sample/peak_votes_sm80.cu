// Stage 1, score pass on mma.sync: eight warps of 32 keys each; see peak_votes.cuh.
#include "sample/peak_votes.cuh"

namespace longsight::cuda {
namespace {

// Barriers of the two groups of four warps; 0 is __syncthreads.
__device__ __forceinline__ void syncGroup(int group) {
  asm volatile("bar.sync %0, %1;" ::"r"(1 + group), "n"(kGroupThreads) : "memory");
}

template <class S>
__device__ __forceinline__ void multiply(ScoreSum<S> (&sums)[4], const uint32_t (&a)[4],
                                         uint32_t b0, uint32_t b1) {
  if constexpr (std::is_same_v<S, int8_t>) {
    mma16x8x32(sums, a, b0, b1);
  } else {
    mma16x8x16<S>(sums, a, b0, b1);
  }
}

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
  VoteRange range;
  if (!findVoteRange(layout, schedule, range)) return;
  const Block block{layout, workspace, schedule, operands, range, sharedBytes};
  const int group = threadIdx.x / kGroupThreads;
  const int warp = threadIdx.x % kGroupThreads / 32;
  const int lane = threadIdx.x % 32;

  block.copyKeys(range.blockBegin);
  block.loadVoters();
  const HeadWalk firstHead = startWalk(layout, workspace, schedule, range);
  const int allRemote = static_cast<int>(
      windowStart(block.segment().begin, block.segment().windowTokens) / kTileRows);
  const Sum* starts = block.starts(group) + lane % 4 * 2;

  for (int step = range.blockBegin; step < range.blockEnd; step += kGroups) {
    const int myBlock = step + group;
    uint32_t a[2][kRowBytes / 32][4];
#pragma unroll
    for (int m = 0; m < 2; ++m) {
#pragma unroll
      for (int k = 0; k < kRowBytes / 32; ++k) {
        loadMatrix4(a[m][k],
                    block.keyTile(group) + tileByteOffset<kRowBytes, int(kTileRows)>(
                                               warp * 32 + m * 16 + lane % 16, k * 2 + lane / 16));
      }
    }
    if (Block::kQuantized || step == range.blockBegin || myBlock >= allRemote) {
      block.setStarts(myBlock);
    }
    syncGroup(group);
    if (step + kGroups < range.blockEnd) block.copyKeys(step + kGroups);

    HeadWalk walk = firstHead;
    uint32_t misses[2][2] = {{kAllMissed, kAllMissed}, {kAllMissed, kAllMissed}};
    for (int tile = 0; tile < range.tiles; ++tile) {
      const uint32_t voterTile = block.voterTile(tile);
#pragma unroll 2
      for (int n = 0; n < kVoterTile / 16; ++n) {
        Sum sums[2][2][4];
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          startFragment(sums[0][j], starts + tile * kVoterTile + n * 16 + j * 8);
#pragma unroll
          for (int i = 0; i < 4; ++i) sums[1][j][i] = sums[0][j][i];
        }
#pragma unroll
        for (int k = 0; k < kRowBytes / 32; ++k) {
          uint32_t b[4];
          loadMatrix4(b, voterTile + tileByteOffset<kRowBytes, kVoterTile>(
                                         n * 16 + lane % 8 + lane / 16 * 8, k * 2 + lane / 8 % 2));
#pragma unroll
          for (int m = 0; m < 2; ++m) {
            multiply<S>(sums[m][0], a[m][k], b[0], b[1]);
            multiply<S>(sums[m][1], a[m][k], b[2], b[3]);
          }
        }
#pragma unroll
        for (int m = 0; m < 2; ++m) {
          countMisses(sums[m][0], misses[m]);
          countMisses(sums[m][1], misses[m]);
        }
      }
      if (!walk.endsHead() && tile + 1 < range.tiles) continue;
      storeVotes(walk.mask, myBlock * 16 + warp * 4, 2, misses, myBlock < range.blockEnd,
                 schedule.headsWhole);
      walk.nextHead();
    }
    copyAsyncWait<0>();
    syncGroup(group);
  }
}

template <class S>
cudaError_t launch(const LaunchContext& context) {
  const int dims = scoreDimsMap(context.chunk.options.scoreDims).paddedDims();
  return dims == 32   ? launchVotes<S, 32>(context, peakVotes<S, 32>)
         : dims == 64 ? launchVotes<S, 64>(context, peakVotes<S, 64>)
                      : launchVotes<S, 128>(context, peakVotes<S, 128>);
}

}  // namespace

cudaError_t launchVotesMmaSync(const LaunchContext& context) {
  if (context.chunk.options.scoreNumbers == ScoreNumbers::int8) return launch<int8_t>(context);
  return context.chunk.shape.element == Element::bf16 ? launch<Bf16>(context)
                                                      : launch<F16>(context);
}

}  // namespace longsight::cuda
