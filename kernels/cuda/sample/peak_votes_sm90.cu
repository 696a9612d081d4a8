// Stage 1, score pass on wgmma: two warpgroups of 128 keys each, in two halves. While the scores of
// one half are compared, the product of the other half is under way; see peak_votes.cuh.
#include "device/mbarrier.cuh"
#include "device/wgmma_sm90.cuh"
#include "sample/peak_votes.cuh"

namespace longsight::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kStepBlocks = kThreads / 128;  // 128-blocks of a step, one a warpgroup
constexpr int kKeys = kStepBlocks * int(kTileRows);

// scores = keys (64 x dims, in registers) * voters^T (128 x dims).
template <class T, int kDims>
__device__ __forceinline__ void issueVoterScores(float (&scores)[64],
                                                 const uint32_t (&a)[kDims / 16][4],
                                                 uint32_t voterTile) {
  wgmmaFence();
#pragma unroll
  for (int k = 0; k < kDims / 16; ++k) {
    if constexpr (kDims == 32) {
      wgmmaRegisters(T{}, scores, a[k], narrowRowsDescriptor(voterTile + k * 32), k > 0);
    } else {
      const uint32_t offset = k / 4 * (kVoterTile * 128) + k % 4 * 32;
      wgmmaRegisters(T{}, scores, a[k], wideRowsDescriptor(voterTile + offset), k > 0);
    }
  }
  wgmmaCommit();
}

template <class T, int kHeadDim, int kDims>
__global__ __launch_bounds__(kThreads, 1) void peakVotes(const __grid_constant__ ChunkLayout layout,
                                                         const Workspace workspace,
                                                         const VoteSchedule schedule,
                                                         const ScoreDimsMap map, const T* queries,
                                                         const T* keys, int64_t capacityRows) {
  extern __shared__ __align__(1024) unsigned char sharedBytes[];
  constexpr int kPieces = kDims / 8;
  // The last segments have most keys: they go first.
  const SegmentLayout& segment = layout.segments[gridDim.z - 1 - blockIdx.z];
  const int range = blockIdx.x / schedule.passes;
  const int firstTile = blockIdx.x % schedule.passes * schedule.tilesResident;
  const int kvHead = blockIdx.y;
  const int blockBegin = range * schedule.keyBlocksPerRange;
  const int blockEnd = min(blockBegin + schedule.keyBlocksPerRange, segment.remoteBlocks);
  if (blockBegin >= blockEnd) return;
  const int warpgroup = threadIdx.x / 128;
  const int thread = threadIdx.x % 128;
  const int lane = threadIdx.x % 32;
  const int warp = thread / 32;
  const T* headKeys = keys + int64_t(kvHead) * capacityRows * kHeadDim;
  const uint32_t keyTile = sharedAddress(sharedBytes) + warpgroup * int(kTileRows) * kDims * 2;

  const auto copyKeys = [&](int block) {
#pragma unroll 4
    for (int i = thread; i < int(kTileRows) * kPieces; i += 128) {
      const int row = i / kPieces;
      const int key = (block + warpgroup) * int(kTileRows) + row;
      // Keys beyond the remote blocks are not stored; beyond the segment they are not even read.
      const bool valid = key < segment.end;
      copyAsync16(keyTile + tileOffset<kDims, int(kTileRows)>(row, i % kPieces),
                  headKeys + (valid ? int64_t(key) * kHeadDim + map.dimOf(i % kPieces * 8) : 0),
                  valid);
    }
    copyAsyncCommit();
  };
  copyKeys(blockBegin);
  const ResidentVoters voters =
      loadVoters<T, kHeadDim, kDims>(layout, segment, workspace, schedule, queries, map, kvHead,
                                     firstTile, sharedBytes + kKeys * kDims * 2);
  fenceAsyncProxy();
  __syncthreads();
  const HeadWalk firstHead = startWalk(layout, segment, workspace, schedule, kvHead, firstTile);
  const bool headsWhole = schedule.headsWhole;
  const int allRemote =
      static_cast<int>(windowStart(segment.begin, segment.windowTokens) / kTileRows);

  for (int block = blockBegin; block < blockEnd; block += kStepBlocks) {
    uint32_t a[2][kDims / 16][4];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int k = 0; k < kDims / 16; ++k) {
        loadMatrix4(a[half][k],
                    keyTile + tileOffset<kDims, int(kTileRows)>(half * 64 + warp * 16 + lane % 16,
                                                                k * 2 + lane / 16));
      }
    }
    namedBarrierSync(1 + warpgroup, 128);
    if (block + kStepBlocks < blockEnd) copyKeys(block + kStepBlocks);

    const int myBlock = block + warpgroup;
    const bool partial = myBlock >= allRemote;
    // [half][row, row + 8]
    uint32_t misses[2][2] = {{kAllMissed, kAllMissed}, {kAllMissed, kAllMissed}};
    float scores[2][64];
    const auto compare = [&](int half, int tile) {
      const int firstVoter = tile * kVoterTile + lane % 4 * 2;
      if (partial) {
#pragma unroll
        for (int j = 0; j < 16; ++j) {
          const int voter = firstVoter + j * 8;
          float2 limit = *reinterpret_cast<const float2*>(voters.thresholds + voter);
          if (myBlock >= voters.remoteBlocks[voter]) limit.x = INFINITY;
          if (myBlock >= voters.remoteBlocks[voter + 1]) limit.y = INFINITY;
          compareScores(scores[half] + 4 * j, limit, misses[half]);
        }
      } else {
#pragma unroll
        for (int j = 0; j < 16; ++j) {
          compareScores(scores[half] + 4 * j,
                        *reinterpret_cast<const float2*>(voters.thresholds + firstVoter + j * 8),
                        misses[half]);
        }
      }
    };
    const auto voterTile = [&](int tile) { return voters.queries + tile * kVoterTile * kDims * 2; };

    HeadWalk walk = firstHead;
    const auto storeAtHeadEnd = [&](int tile) {
      if (!walk.endsHead() && tile + 1 < voters.tiles) return;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const uint32_t bits = gatherRowBits(misses[half][0]) | gatherRowBits(misses[half][1]) << 8;
        misses[half][0] = misses[half][1] = kAllMissed;
        if (lane == 0 && myBlock < blockEnd) {
          storeVotes(walk.mask, myBlock * 8 + half * 4 + warp, bits, headsWhole);
        }
      }
      walk.nextHead();
    };

    // No product is left under way at the loop's end: the compiler would serialise all of them. The
    // other warpgroup fills that gap.
    for (int tile = 0; tile < voters.tiles; ++tile) {
      issueVoterScores<T, kDims>(scores[0], a[0], voterTile(tile));
      issueVoterScores<T, kDims>(scores[1], a[1], voterTile(tile));
      wgmmaWait<1>();
      pinRegisters(scores[0]);
      compare(0, tile);
      wgmmaWait<0>();
      pinRegisters(scores[1]);
      compare(1, tile);
      storeAtHeadEnd(tile);
    }
    copyAsyncWait<0>();
    namedBarrierSync(1 + warpgroup, 128);
  }
}

template <class T, int kHeadDim, int kDims>
cudaError_t launch(const LaunchContext& context) {
  const ChunkLayout& layout = context.layout;
  constexpr int kKeyBytes = kKeys * kDims * 2;
  const VoteSchedule schedule = scheduleVotes(layout, kDims, kKeyBytes, context.device);
  if (schedule.keyRanges == 0) return cudaSuccess;
  const int bytes = kKeyBytes + schedule.tilesResident * voterTileBytes(kDims);
  cudaError_t error = allowShared(peakVotes<T, kHeadDim, kDims>, bytes);
  if (error == cudaSuccess && !schedule.headsWhole) error = clearVotes(context);
  if (error != cudaSuccess) return error;
  peakVotes<T, kHeadDim, kDims>
      <<<dim3(schedule.keyRanges * schedule.passes, layout.kvHeads, layout.segmentCount), kThreads,
         bytes, context.stream>>>(
          layout, context.workspace, schedule, scoreDimsMap(context.chunk.options.scoreDims),
          static_cast<const T*>(context.tensors.queries),
          static_cast<const T*>(context.tensors.keys), context.tensors.capacityRows);
  return cudaGetLastError();
}

template <class T>
cudaError_t launchElement(const LaunchContext& context) {
  const int dims = context.chunk.options.scoreDims.count();
  if (context.chunk.shape.headDim == 64) {
    return dims == 32 ? launch<T, 64, 32>(context) : launch<T, 64, 64>(context);
  }
  return dims == 64 ? launch<T, 128, 64>(context) : launch<T, 128, 128>(context);
}

}  // namespace

cudaError_t launchVotesWgmma(const LaunchContext& context) {
  return context.chunk.shape.element == Element::bf16 ? launchElement<Bf16>(context)
                                                      : launchElement<F16>(context);
}

}  // namespace longsight::cuda
