// Stage 1, second half: which keys does some voter score high enough? Shared by both paths.
//
// peak_j >= ln(epsilon) is the same as: some voter r scores q_r . k_j >= threshold_r, where
// threshold_r = (anchor_r + ln(epsilon)) / scale. So a score costs a subtraction and half an AND of
// signs. Keys are the rows of the product and stay in registers; the voters of some heads, as many
// as fit, stay in shared memory while a block walks over its keys.
#pragma once

#include "chunk_layout.h"
#include "device/mma_sm80.cuh"

namespace longsight::cuda {

inline constexpr int kVoterTile = 128;  // voters of one head that one step multiplies

// How the voters of a (segment, KV head) are spread over blocks.
struct VoteSchedule {
  int tilesPerHead;   // kVoterTile tiles of one head's voters, of the segment with most voters
  int tilesResident;  // tiles that a block holds
  int passes;         // blocks that share the tiles of a group
  int keyRanges;
  int keyBlocksPerRange;  // 128-column blocks
  bool headsWhole;        // no head's voters are split over passes: masks need no atomics
};

struct ScoreDimsMap {
  int firstBegin;
  int firstCount;
  int secondBegin;
  __device__ __forceinline__ int dimOf(int scoreDim) const {
    return scoreDim < firstCount ? firstBegin + scoreDim : secondBegin + scoreDim - firstCount;
  }
};

inline ScoreDimsMap scoreDimsMap(const DimRanges& dims) {
  const int firstCount = dims.ranges[0].end - dims.ranges[0].begin;
  return {dims.ranges[0].begin, firstCount, dims.ranges[1].begin};
}

// Shared memory of a block: voters, their thresholds, the first 128-block that is not remote.
__host__ __device__ constexpr int voterTileBytes(int dims) {
  return kVoterTile * (dims * 2 + 4 + 4);
}

inline VoteSchedule scheduleVotes(const ChunkLayout& layout, int dims, int keyBytes,
                                  const DeviceTraits& device) {
  VoteSchedule schedule{};
  int mostBlocks = 0;
  for (int i = 0; i < layout.segmentCount; ++i) {
    const SegmentLayout& segment = layout.segments[i];
    const int tiles = (segment.voters + kVoterTile - 1) / kVoterTile;
    schedule.tilesPerHead = tiles > schedule.tilesPerHead ? tiles : schedule.tilesPerHead;
    mostBlocks = segment.remoteBlocks > mostBlocks ? segment.remoteBlocks : mostBlocks;
  }
  const int total = schedule.tilesPerHead * layout.group;
  if (total == 0) return schedule;
  const int fitting = (device.sharedBytesPerBlock - keyBytes - 1024) / voterTileBytes(dims);
  schedule.tilesResident = fitting < total ? fitting : total;
  // Whole heads where at least one fits.
  if (schedule.tilesResident >= schedule.tilesPerHead) {
    schedule.tilesResident -= schedule.tilesResident % schedule.tilesPerHead;
    schedule.headsWhole = true;
  }
  schedule.passes = (total + schedule.tilesResident - 1) / schedule.tilesResident;
  // Long ranges load the voters less often, short ones leave no processor idle at the end: take the
  // longest range that still gives every processor several blocks.
  constexpr int kBlocksPerProcessor = 8;
  schedule.keyBlocksPerRange = 64;
  for (; schedule.keyBlocksPerRange > 8; schedule.keyBlocksPerRange /= 2) {
    int ranges = 0;
    for (int i = 0; i < layout.segmentCount; ++i) {
      ranges += (layout.segments[i].remoteBlocks + schedule.keyBlocksPerRange - 1) /
                schedule.keyBlocksPerRange;
    }
    if (ranges * layout.kvHeads * schedule.passes >= kBlocksPerProcessor * device.processors) break;
  }
  schedule.keyRanges = (mostBlocks + schedule.keyBlocksPerRange - 1) / schedule.keyBlocksPerRange;
  return schedule;
}

// Masks that several blocks OR into start at zero.
inline cudaError_t clearVotes(const LaunchContext& context) {
  int64_t words = 0;
  for (int i = 0; i < context.layout.segmentCount; ++i) {
    words += int64_t(context.layout.heads) * context.layout.segments[i].remoteBlocks * 4;
  }
  return cudaMemsetAsync(context.workspace.votes, 0, words * 4, context.stream);
}

// The voters of a block and where they lie.
struct ResidentVoters {
  uint32_t queries;         // shared address; [tile][kVoterTile][dims], swizzled
  const float* thresholds;  // [tile][kVoterTile]; +inf where there is no voter
  const int* remoteBlocks;  // [tile][kVoterTile]; blocks below this are remote to the voter
  int tiles;
};

// Copies the voters of tiles [firstTile, firstTile + tiles) of the group; ends with a sync.
template <class T, int kHeadDim, int kDims>
__device__ ResidentVoters loadVoters(const ChunkLayout& layout, const SegmentLayout& segment,
                                     const Workspace& workspace, const VoteSchedule& schedule,
                                     const T* queries, ScoreDimsMap map, int kvHead, int firstTile,
                                     unsigned char* sharedBytes) {
  constexpr int kPieces = kDims / 8;
  const int tiles = min(schedule.tilesResident, schedule.tilesPerHead * layout.group - firstTile);
  const uint32_t target = sharedAddress(sharedBytes);
  auto* thresholds =
      reinterpret_cast<float*>(sharedBytes + schedule.tilesResident * kVoterTile * kDims * 2);
  int* remoteBlocks = reinterpret_cast<int*>(thresholds + schedule.tilesResident * kVoterTile);
  const auto headOf = [&](int tile) {
    return kvHead * layout.group + (firstTile + tile) / schedule.tilesPerHead;
  };
  const auto voterOf = [&](int tile, int i) {
    return (firstTile + tile) % schedule.tilesPerHead * kVoterTile + i;
  };
  for (int i = threadIdx.x; i < tiles * kVoterTile * kPieces; i += blockDim.x) {
    const int packed = i / kPieces;
    const int tile = packed / kVoterTile;
    const int voter = voterOf(tile, packed % kVoterTile);
    const bool valid = voter < segment.voters;
    const int row = segment.end - 1 - voter * segment.stride - layout.begin;
    const T* source = queries;
    if (valid) {
      source +=
          (int64_t(row) * layout.heads + headOf(tile)) * kHeadDim + map.dimOf(i % kPieces * 8);
    }
    copyAsync16(target + tile * kVoterTile * kDims * 2 +
                    tileOffset<kDims, kVoterTile>(packed % kVoterTile, i % kPieces),
                source, valid);
  }
  copyAsyncCommit();
  for (int packed = threadIdx.x; packed < tiles * kVoterTile; packed += blockDim.x) {
    const int tile = packed / kVoterTile;
    const int voter = voterOf(tile, packed % kVoterTile);
    const bool valid = voter < segment.voters;
    thresholds[packed] =
        valid
            ? workspace
                  .voterValues[segment.voterBegin + int64_t(headOf(tile)) * segment.voters + voter]
            : INFINITY;
    const int row = segment.end - 1 - voter * segment.stride;
    remoteBlocks[packed] =
        valid ? static_cast<int>(windowStart(row, segment.windowTokens) / kTileRows) : 0;
  }
  copyAsyncWait<0>();
  __syncthreads();
  return {target, thresholds, remoteBlocks, tiles};
}

// Sign bit set: no score so far has reached its limit. Signs of differences are ANDed rather than
// predicates ORed: a predicate that depends on the one before takes several times as long, and the
// comparison has to hide behind the product of the next scores.
inline constexpr uint32_t kAllMissed = 0x80000000u;

// Four scores of a matrix fragment (two voters for key `row`, the same two for `row + 8`) against
// the limits of the voters; x - x is +0, so equality is a hit.
__device__ __forceinline__ void compareScores(const float* scores, float2 limit,
                                              uint32_t (&misses)[2]) {
  misses[0] &= __float_as_uint(scores[0] - limit.x) & __float_as_uint(scores[1] - limit.y);
  misses[1] &= __float_as_uint(scores[2] - limit.x) & __float_as_uint(scores[3] - limit.y);
}

// The four threads that hold a key's scores each have its misses among theirs; bit r of the result
// says whether the key of row r of 8 was hit by any.
__device__ __forceinline__ uint32_t gatherRowBits(uint32_t misses) {
  uint32_t bits = __ballot_sync(~0u, (misses & kAllMissed) == 0);
  bits |= bits >> 1;
  bits |= bits >> 2;
  bits &= 0x11111111u;
  // Bits 0, 4, 8, ... move together.
  bits |= bits >> 3;
  bits &= 0x03030303u;
  bits |= bits >> 6;
  bits &= 0x000F000Fu;
  bits |= bits >> 12;
  return bits & 0xFF;
}

// Walks over the heads of a block's voter tiles by counting, since a division at every tile would
// cost as much as its comparisons.
struct HeadWalk {
  int tilesLeft;  // of this head, this tile included
  int tilesPerHead;
  uint32_t* mask;  // of this head
  int64_t wordsPerHead;

  // Whether the tile just done was the head's last; moves to the next head then.
  __device__ __forceinline__ bool endsHead() { return --tilesLeft == 0; }
  __device__ __forceinline__ void nextHead() {
    tilesLeft = tilesPerHead;
    mask += wordsPerHead;
  }
};

__device__ __forceinline__ HeadWalk startWalk(const ChunkLayout& layout,
                                              const SegmentLayout& segment,
                                              const Workspace& workspace,
                                              const VoteSchedule& schedule, int kvHead,
                                              int firstTile) {
  const int head = kvHead * layout.group + firstTile / schedule.tilesPerHead;
  const int64_t wordsPerHead = int64_t(segment.remoteBlocks) * 4;
  return {schedule.tilesPerHead - firstTile % schedule.tilesPerHead, schedule.tilesPerHead,
          workspace.votes + segment.maskBegin + head * wordsPerHead, wordsPerHead};
}

// Stores 16 bits of the mask of keys [16 i, 16 i + 16).
__device__ __forceinline__ void storeVotes(uint32_t* mask, int i, uint32_t bits, bool whole) {
  if (whole) {
    reinterpret_cast<uint16_t*>(mask)[i] = static_cast<uint16_t>(bits);
  } else if (bits != 0) {
    atomicOr(mask + i / 2, bits << (i % 2 * 16));
  }
}

}  // namespace longsight::cuda
