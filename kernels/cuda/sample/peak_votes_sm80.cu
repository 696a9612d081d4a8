// Stage 1, score pass on mma.sync: eight warps of 32 keys each; see peak_votes.cuh.
#include "sample/peak_votes.cuh"

namespace longsight::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kKeys = 256;  // keys of a step: two 128-blocks

template <class T, int kHeadDim, int kDims>
__global__ __launch_bounds__(kThreads) void peakVotes(const __grid_constant__ ChunkLayout layout,
                                                      const Workspace workspace,
                                                      const VoteSchedule schedule,
                                                      const ScoreDimsMap map, const T* queries,
                                                      const T* keys, int64_t capacityRows) {
  extern __shared__ __align__(1024) unsigned char sharedBytes[];
  constexpr int kPieces = kDims / 8;
  const SegmentLayout& segment = layout.segments[gridDim.z - 1 - blockIdx.z];
  const int range = blockIdx.x / schedule.passes;
  const int firstTile = blockIdx.x % schedule.passes * schedule.tilesResident;
  const int kvHead = blockIdx.y;
  const int blockBegin = range * schedule.keyBlocksPerRange;
  const int blockEnd = min(blockBegin + schedule.keyBlocksPerRange, segment.remoteBlocks);
  if (blockBegin >= blockEnd) return;
  const int lane = threadIdx.x % 32;
  const int warp = threadIdx.x / 32;
  const T* headKeys = keys + int64_t(kvHead) * capacityRows * kHeadDim;
  const uint32_t keyTile = sharedAddress(sharedBytes);

  const auto copyKeys = [&](int block) {
    for (int i = threadIdx.x; i < kKeys * kPieces; i += kThreads) {
      const int row = i / kPieces;
      const int key = block * int(kTileRows) + row;
      // Keys beyond the remote blocks are not stored; beyond the segment they are not even read.
      const bool valid = key < segment.end;
      copyAsync16(keyTile + tileOffset<kDims, kKeys>(row, i % kPieces),
                  headKeys + (valid ? int64_t(key) * kHeadDim + map.dimOf(i % kPieces * 8) : 0),
                  valid);
    }
    copyAsyncCommit();
  };
  copyKeys(blockBegin);
  const ResidentVoters voters =
      loadVoters<T, kHeadDim, kDims>(layout, segment, workspace, schedule, queries, map, kvHead,
                                     firstTile, sharedBytes + kKeys * kDims * 2);
  const HeadWalk firstHead = startWalk(layout, segment, workspace, schedule, kvHead, firstTile);
  const int allRemote =
      static_cast<int>(windowStart(segment.begin, segment.windowTokens) / kTileRows);

  for (int block = blockBegin; block < blockEnd; block += kKeys / int(kTileRows)) {
    uint32_t a[2][kDims / 16][4];
#pragma unroll
    for (int m = 0; m < 2; ++m) {
#pragma unroll
      for (int k = 0; k < kDims / 16; ++k) {
        loadMatrix4(a[m][k], keyTile + tileOffset<kDims, kKeys>(warp * 32 + m * 16 + lane % 16,
                                                                k * 2 + lane / 16));
      }
    }
    __syncthreads();
    if (block + kKeys / int(kTileRows) < blockEnd) copyKeys(block + kKeys / int(kTileRows));

    const int myBlock = block + warp / 4;
    const bool partial = myBlock >= allRemote;
    HeadWalk walk = firstHead;
    uint32_t misses[2][2] = {{kAllMissed, kAllMissed}, {kAllMissed, kAllMissed}};
    for (int tile = 0; tile < voters.tiles; ++tile) {
      const uint32_t voterTile = voters.queries + tile * kVoterTile * kDims * 2;
#pragma unroll 2
      for (int n = 0; n < kVoterTile / 16; ++n) {
        float scores[2][2][4] = {};
#pragma unroll
        for (int k = 0; k < kDims / 16; ++k) {
          uint32_t b[4];
          loadMatrix4(b, voterTile + tileOffset<kDims, kVoterTile>(
                                         n * 16 + lane % 8 + lane / 16 * 8, k * 2 + lane / 8 % 2));
#pragma unroll
          for (int m = 0; m < 2; ++m) {
            mma16x8x16<T>(scores[m][0], a[m][k], b[0], b[1]);
            mma16x8x16<T>(scores[m][1], a[m][k], b[2], b[3]);
          }
        }
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          const int voter = tile * kVoterTile + n * 16 + j * 8 + lane % 4 * 2;
          float2 limit = *reinterpret_cast<const float2*>(voters.thresholds + voter);
          if (partial) {
            if (myBlock >= voters.remoteBlocks[voter]) limit.x = INFINITY;
            if (myBlock >= voters.remoteBlocks[voter + 1]) limit.y = INFINITY;
          }
#pragma unroll
          for (int m = 0; m < 2; ++m) compareScores(scores[m][j], limit, misses[m]);
        }
      }
      if (!walk.endsHead() && tile + 1 < voters.tiles) continue;
#pragma unroll
      for (int m = 0; m < 2; ++m) {
        const uint32_t bits = gatherRowBits(misses[m][0]) | gatherRowBits(misses[m][1]) << 8;
        misses[m][0] = misses[m][1] = kAllMissed;
        if (lane == 0 && myBlock < blockEnd) {
          storeVotes(walk.mask, myBlock * 8 + warp % 4 * 2 + m, bits, schedule.headsWhole);
        }
      }
      walk.nextHead();
    }
    copyAsyncWait<0>();
    __syncthreads();
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

cudaError_t launchVotesMmaSync(const LaunchContext& context) {
  return context.chunk.shape.element == Element::bf16 ? launchElement<Bf16>(context)
                                                      : launchElement<F16>(context);
}

}  // namespace longsight::cuda
