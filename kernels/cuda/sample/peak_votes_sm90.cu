// Stage 1, score pass on wgmma: four warpgroups of 64 keys each, which do not wait for one another,
// so that the comparisons of some overlap the products of others; see peak_votes.cuh.
#include "device/mbarrier.cuh"
#include "device/wgmma_sm90.cuh"
#include "sample/peak_votes.cuh"

namespace longsight::cuda {
namespace {

constexpr int kThreads = 512;
constexpr int kKeysPerGroup = 64;
constexpr int kKeys = kThreads / 128 * kKeysPerGroup;  // two 128-blocks
constexpr int kStepBlocks = kKeys / int(kTileRows);
constexpr int kKeyBlocksPerRange = 32;

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
__global__ __launch_bounds__(kThreads, 1) void peakVotes(
    const __grid_constant__ ChunkLayout layout, const Workspace workspace,
    const VoteSchedule schedule, const ScoreDimsMap map, const T* queries, const T* keys,
    int64_t capacityRows) {
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
  const uint32_t keyTile =
      sharedAddress(sharedBytes) + warpgroup * kKeysPerGroup * kDims * 2;

  const auto copyKeys = [&](int block) {
#pragma unroll
    for (int i = thread; i < kKeysPerGroup * kPieces; i += 128) {
      const int row = i / kPieces;
      const int key = block * int(kTileRows) + warpgroup * kKeysPerGroup + row;
      const bool valid = key < segment.end;
      copyAsync16(keyTile + tileOffset<kDims, kKeysPerGroup>(row, i % kPieces),
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
  const int allRemote =
      static_cast<int>(windowStart(segment.begin, segment.windowTokens) / kTileRows);

  for (int block = blockBegin; block < blockEnd; block += kStepBlocks) {
    uint32_t a[kDims / 16][4];
#pragma unroll
    for (int k = 0; k < kDims / 16; ++k) {
      loadMatrix4(a[k], keyTile + tileOffset<kDims, kKeysPerGroup>(warp * 16 + lane % 16,
                                                                  k * 2 + lane / 16));
    }
    namedBarrierSync(1 + warpgroup, 128);
    if (block + kStepBlocks < blockEnd) copyKeys(block + kStepBlocks);

    const int myBlock = block + warpgroup / 2;
    const bool partial = myBlock >= allRemote;
    bool hits[2] = {};
    bool moreHits[2] = {};
    for (int tile = 0; tile < voters.tiles; ++tile) {
      float scores[64];
      issueVoterScores<T, kDims>(scores, a, voters.queries + tile * kVoterTile * kDims * 2);
      wgmmaWait<0>();
      pinRegisters(scores);
      const int firstVoter = tile * kVoterTile + lane % 4 * 2;
      const auto compare = [&](auto limitOf) {
#pragma unroll
        for (int j = 0; j < 16; ++j) {
          const float2 limit = limitOf(firstVoter + j * 8);
          hits[0] |= scores[4 * j] >= limit.x;
          moreHits[0] |= scores[4 * j + 1] >= limit.y;
          hits[1] |= scores[4 * j + 2] >= limit.x;
          moreHits[1] |= scores[4 * j + 3] >= limit.y;
        }
      };
      if (partial) {
        compare([&](int voter) {
          float2 limit = *reinterpret_cast<const float2*>(voters.thresholds + voter);
          if (myBlock >= voters.remoteBlocks[voter]) limit.x = INFINITY;
          if (myBlock >= voters.remoteBlocks[voter + 1]) limit.y = INFINITY;
          return limit;
        });
      } else {
        compare([&](int voter) {
          return *reinterpret_cast<const float2*>(voters.thresholds + voter);
        });
      }
      const bool headEnds = (firstTile + tile + 1) % schedule.tilesPerHead == 0;
      if (!headEnds && tile + 1 < voters.tiles) continue;
      const int head = kvHead * layout.group + (firstTile + tile) / schedule.tilesPerHead;
      uint32_t* mask =
          workspace.votes + segment.maskBegin + int64_t(head) * segment.remoteBlocks * 4;
      const uint32_t bits =
          gatherRowBits(hits[0] || moreHits[0]) | gatherRowBits(hits[1] || moreHits[1]) << 8;
      hits[0] = hits[1] = moreHits[0] = moreHits[1] = false;
      if (lane == 0 && myBlock < blockEnd) {
        storeVotes(mask, myBlock * 8 + warpgroup % 2 * 4 + warp, bits, schedule.headsWhole);
      }
    }
    copyAsyncWait<0>();
    namedBarrierSync(1 + warpgroup, 128);
  }
}

template <class T, int kHeadDim, int kDims>
cudaError_t launch(const LaunchContext& context) {
  const ChunkLayout& layout = context.layout;
  constexpr int kKeyBytes = kKeys * kDims * 2;
  const VoteSchedule schedule = scheduleVotes(layout, kDims, context.device.sharedBytesPerBlock,
                                              kKeyBytes, kKeyBlocksPerRange);
  if (schedule.keyRanges == 0) return cudaSuccess;
  const int bytes = kKeyBytes + schedule.tilesResident * voterTileBytes(kDims);
  cudaError_t error = allowShared(peakVotes<T, kHeadDim, kDims>, bytes);
  if (error == cudaSuccess && !schedule.headsWhole) error = clearVotes(context);
  if (error != cudaSuccess) return error;
  peakVotes<T, kHeadDim, kDims>
      <<<dim3(schedule.keyRanges * schedule.passes, layout.kvHeads, layout.segmentCount), kThreads,
         bytes, context.stream>>>(layout, context.workspace, schedule,
                                  scoreDimsMap(context.chunk.options.scoreDims),
                                  static_cast<const T*>(context.tensors.queries),
                                  static_cast<const T*>(context.tensors.keys),
                                  context.tensors.capacityRows);
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
