// Stage 1, second half: which keys does some voter score high enough? Shared by both paths.
//
// peak_j >= ln(epsilon) is the same as: some voter r scores q_r . k_j >= threshold_r, where
// threshold_r = (anchor_r + ln(epsilon)) / scale. The matrix product starts from the negated
// thresholds, so its sign is the answer, and a score costs half an AND of signs. Keys are the rows
// of the product and stay in registers; the voters of some heads, as many as fit, stay in shared
// memory while a block walks over its keys.
//
// A block is two groups of 128 threads with 128 keys each. Scores are of type S: the cache's
// elements, or int8_t with a scale for each voter and each 128 keys (see quantize.cu).
#pragma once

#include <type_traits>

#include "sample/quantized.cuh"
#include "sample/voters.cuh"

namespace longsight::cuda {

inline constexpr int kVoterTile = 128;  // voters of one head that one step multiplies
inline constexpr int kGroups = 2;       // each with a 128-block of keys at a time
inline constexpr int kGroupThreads = 128;
inline constexpr int kVoteThreads = kGroups * kGroupThreads;

template <class S>
using ScoreSum = std::conditional_t<std::is_same_v<S, int8_t>, int32_t, float>;

// How the voters of a (segment, KV head) are spread over blocks.
struct VoteSchedule {
  int tilesPerHead;   // kVoterTile tiles of one head's voters, of the segment with most voters
  int tilesResident;  // tiles that a block holds
  int passes;         // blocks that share the tiles of a group
  int keyRanges;
  int keyBlocksPerRange;  // 128-column blocks
  bool headsWhole;        // no head's voters are split over passes: masks need no atomics
};

// Shared memory of a block: keys, then the voters, for each a threshold, the first 128-block that
// is not remote, and what the products of either group start from.
template <class S, int kDims>
struct VoteMemory {
  static constexpr int kRowBytes = kDims * int(sizeof(S));
  static constexpr int kKeyBytes = kGroups * int(kTileRows) * kRowBytes;
  static constexpr int kVoterBytes = kVoterTile * kRowBytes;
  static constexpr int kTileBytes = kVoterBytes + kVoterTile * 4 * (2 + kGroups);
};

template <class Memory>
VoteSchedule scheduleVotes(const ChunkLayout& layout, const DeviceTraits& device) {
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
  const int fitting = (device.sharedBytesPerBlock - Memory::kKeyBytes - 1024) / Memory::kTileBytes;
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

// The work of one block.
struct VoteRange {
  int segment;
  int kvHead;
  int firstTile;  // of the group's voters
  int tiles;
  int blockBegin;  // 128-blocks of keys
  int blockEnd;
};

// False when the block has nothing to do. The last segments have most keys: they go first.
__device__ __forceinline__ bool findVoteRange(const ChunkLayout& layout,
                                              const VoteSchedule& schedule, VoteRange& range) {
  range.segment = gridDim.z - 1 - blockIdx.z;
  range.kvHead = blockIdx.y;
  range.firstTile = blockIdx.x % schedule.passes * schedule.tilesResident;
  range.tiles = min(schedule.tilesResident, schedule.tilesPerHead * layout.group - range.firstTile);
  range.blockBegin = blockIdx.x / schedule.passes * schedule.keyBlocksPerRange;
  range.blockEnd = min(range.blockBegin + schedule.keyBlocksPerRange,
                       layout.segments[range.segment].remoteBlocks);
  return range.blockBegin < range.blockEnd;
}

// A block's shared memory and the operands it copies there.
template <class S, int kDims>
struct VoteBlock {
  using Memory = VoteMemory<S, kDims>;
  using Sum = ScoreSum<S>;
  static constexpr int kPieces = Memory::kRowBytes / 16;
  static constexpr bool kQuantized = std::is_same_v<S, int8_t>;

  const ChunkLayout& layout;
  const Workspace& workspace;
  const VoteSchedule& schedule;
  const VoteOperands& operands;
  const VoteRange range;
  unsigned char* shared;

  __device__ const SegmentLayout& segment() const { return layout.segments[range.segment]; }
  __device__ uint32_t keyTile(int group) const {
    return sharedAddress(shared) + group * int(kTileRows) * Memory::kRowBytes;
  }
  __device__ uint32_t voterTile(int tile) const {
    return sharedAddress(shared) + Memory::kKeyBytes + tile * Memory::kVoterBytes;
  }
  __device__ float* thresholds() const {
    return reinterpret_cast<float*>(shared + Memory::kKeyBytes +
                                    schedule.tilesResident * Memory::kVoterBytes);
  }
  __device__ int* remoteBlocks() const {
    return reinterpret_cast<int*>(thresholds() + schedule.tilesResident * kVoterTile);
  }
  // What products of a group start from: the threshold of each voter, negated.
  __device__ Sum* starts(int group) const {
    return reinterpret_cast<Sum*>(remoteBlocks() +
                                  (1 + group) * schedule.tilesResident * kVoterTile);
  }

  // The calling group copies its keys of the step that begins at block `step`.
  __device__ __forceinline__ void copyKeys(int step) const {
    const int group = threadIdx.x / kGroupThreads;
    const char* rows = operands.keys + range.kvHead * operands.keyHeadBytes;
    const int firstKey = (step + group) * int(kTileRows);
#pragma unroll 4
    for (int i = threadIdx.x % kGroupThreads; i < int(kTileRows) * kPieces; i += kGroupThreads) {
      const int row = i / kPieces;
      // Keys beyond the remote blocks are not stored; beyond the segment they are not even read.
      const bool valid = firstKey + row < segment().remoteBlocks * int(kTileRows);
      copyAsync16(
          keyTile(group) + tileByteOffset<Memory::kRowBytes, int(kTileRows)>(row, i % kPieces),
          valid ? rows + (firstKey + row) * operands.keyRowBytes +
                      operands.template pieceOffset<S>(i % kPieces)
                : rows,
          valid);
    }
    copyAsyncCommit();
  }

  // Copies the voters, all threads together; ends with a sync.
  __device__ __forceinline__ void loadVoters() const {
    const auto headOf = [&](int tile) {
      return range.kvHead * layout.group + (range.firstTile + tile) / schedule.tilesPerHead;
    };
    const auto voterOf = [&](int tile, int i) {
      return (range.firstTile + tile) % schedule.tilesPerHead * kVoterTile + i;
    };
    for (int i = threadIdx.x; i < range.tiles * kVoterTile * kPieces; i += kVoteThreads) {
      const int packed = i / kPieces;
      const int tile = packed / kVoterTile;
      const int voter = voterOf(tile, packed % kVoterTile);
      const bool valid = voter < segment().voters;
      const char* source = operands.voters;
      if (valid) {
        const int64_t row =
            kQuantized ? voterValuesBegin(segment(), headOf(tile)) + voter
                       : int64_t(voterPosition(segment(), voter) - layout.begin) * layout.heads +
                             headOf(tile);
        source += row * operands.voterRowBytes + operands.template pieceOffset<S>(i % kPieces);
      }
      const uint32_t target = voterTile(tile) + tileByteOffset<Memory::kRowBytes, kVoterTile>(
                                                    packed % kVoterTile, i % kPieces);
      const uint32_t scored = kQuantized ? 0xFF : operands.map.scored[i % kPieces];
      if (scored == 0xFF || scored == 0 || !valid) {
        copyAsync16(target, source, valid && scored != 0);
      } else {
        storeShared16(target, keepScored(*reinterpret_cast<const uint4*>(source), scored));
      }
    }
    copyAsyncCommit();
    for (int packed = threadIdx.x; packed < range.tiles * kVoterTile; packed += kVoteThreads) {
      const int tile = packed / kVoterTile;
      const int voter = voterOf(tile, packed % kVoterTile);
      const bool valid = voter < segment().voters;
      thresholds()[packed] =
          valid ? workspace.voterValues[voterValuesBegin(segment(), headOf(tile)) + voter]
                : INFINITY;
      remoteBlocks()[packed] = valid ? voterRemoteBlocks(segment(), voter) : 0;
    }
    copyAsyncWait<0>();
    __syncthreads();
  }

  // Sets what the calling group's products with the keys of `block` start from. A voter to which
  // the block is not remote can not hit.
  __device__ __forceinline__ void setStarts(int block) const {
    Sum* target = starts(threadIdx.x / kGroupThreads);
    [[maybe_unused]] float inverseScale = 1.0f;
    if constexpr (kQuantized) {
      inverseScale = 1.0f / operands.keyScales[range.kvHead * operands.keyScalesPerHead +
                                               min(block, segment().remoteBlocks - 1)];
    }
    for (int i = threadIdx.x % kGroupThreads; i < range.tiles * kVoterTile; i += kGroupThreads) {
      const float threshold = block < remoteBlocks()[i] ? thresholds()[i] : INFINITY;
      if constexpr (kQuantized) {
        // Sums stay below 128 * 127 * 127; 2^30 is out of their reach.
        const float limit = fminf(fmaxf(threshold * inverseScale, -0x1p30f), 0x1p30f);
        target[i] = -static_cast<int32_t>(ceilf(limit));
      } else {
        target[i] = -threshold;
      }
    }
  }
};

// Sign bit set: no score so far has reached its limit. Signs are ANDed rather than predicates ORed:
// a predicate that depends on the one before takes several times as long.
inline constexpr uint32_t kAllMissed = 0x80000000u;

__device__ __forceinline__ uint32_t bitsOf(float sum) { return __float_as_uint(sum); }
__device__ __forceinline__ uint32_t bitsOf(int32_t sum) { return static_cast<uint32_t>(sum); }

// A matrix fragment: two voters for key `row`, the same two for `row + 8`. A sum of 0 is a hit.
template <class Sum>
__device__ __forceinline__ void countMisses(const Sum* sums, uint32_t (&misses)[2]) {
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    if constexpr (std::is_same_v<Sum, int32_t>) {
      // One instruction, in a chain. The compiler makes a tree of more of them out of &, which has
      // less latency; int8 products are short enough for the number to matter more.
      asm("lop3.b32 %0, %0, %1, %2, 0x80;"
          : "+r"(misses[i])
          : "r"(bitsOf(sums[2 * i])), "r"(bitsOf(sums[2 * i + 1])));
    } else {
      misses[i] &= bitsOf(sums[2 * i]) & bitsOf(sums[2 * i + 1]);
    }
  }
}

// A fragment starts from the same two values in both rows.
template <class Sum>
__device__ __forceinline__ void startFragment(Sum* sums, const Sum* starts) {
  struct alignas(8) Pair {
    Sum x, y;
  };
  const Pair pair = *reinterpret_cast<const Pair*>(starts);
  sums[0] = sums[2] = pair.x;
  sums[1] = sums[3] = pair.y;
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

__device__ __forceinline__ HeadWalk startWalk(const ChunkLayout& layout, const Workspace& workspace,
                                              const VoteSchedule& schedule,
                                              const VoteRange& range) {
  const SegmentLayout& segment = layout.segments[range.segment];
  const int head = range.kvHead * layout.group + range.firstTile / schedule.tilesPerHead;
  const int64_t wordsPerHead = int64_t(segment.remoteBlocks) * 4;
  return {schedule.tilesPerHead - range.firstTile % schedule.tilesPerHead, schedule.tilesPerHead,
          workspace.votes + segment.maskBegin + head * wordsPerHead, wordsPerHead};
}

// Stores the votes of a warp's two tiles of 16 keys and resets its misses. The four threads that
// hold a key's sums each have its misses among theirs. misses[t][i] has keys 8 i to 8 i + 7 of tile
// t, whose bits make byte firstByte + t * tileBytes + i of the mask.
__device__ __forceinline__ void storeVotes(uint32_t* mask, int firstByte, int tileBytes,
                                           uint32_t (&misses)[2][2], bool valid, bool whole) {
  const int lane = threadIdx.x % 32;
  // Lane n < 4 takes the ballot of misses[n / 2][n % 2].
  uint32_t bits = 0;
#pragma unroll
  for (int n = 0; n < 4; ++n) {
    const uint32_t ballot = __ballot_sync(~0u, (misses[n / 2][n % 2] & kAllMissed) == 0);
    if (lane == n) bits = ballot;
    misses[n / 2][n % 2] = kAllMissed;
  }
  if (lane >= 4 || !valid) return;
  bits |= bits >> 1;
  bits |= bits >> 2;
  bits &= 0x11111111u;
  // Bits 0, 4, 8, ... move together.
  bits |= bits >> 3;
  bits &= 0x03030303u;
  bits |= bits >> 6;
  bits &= 0x000F000Fu;
  bits |= bits >> 12;
  bits &= 0xFF;
  const int byte = firstByte + lane % 2 + lane / 2 * tileBytes;
  if (whole) {
    reinterpret_cast<uint8_t*>(mask)[byte] = static_cast<uint8_t>(bits);
  } else if (bits != 0) {
    atomicOr(mask + byte / 4, bits << (byte % 4 * 8));
  }
}

using VoteKernel = void (*)(ChunkLayout, Workspace, VoteSchedule, VoteOperands);

template <class S, int kDims>
cudaError_t launchVotes(const LaunchContext& context, VoteKernel kernel) {
  using Memory = VoteMemory<S, kDims>;
  const ChunkLayout& layout = context.layout;
  const VoteSchedule schedule = scheduleVotes<Memory>(layout, context.device);
  if (schedule.keyRanges == 0) return cudaSuccess;
  const int bytes = Memory::kKeyBytes + schedule.tilesResident * Memory::kTileBytes;
  cudaError_t error = allowShared(kernel, bytes);
  if (error == cudaSuccess && !schedule.headsWhole) error = clearVotes(context);
  if (error != cudaSuccess) return error;
  kernel<<<dim3(schedule.keyRanges * schedule.passes, layout.kvHeads, layout.segmentCount),
           kVoteThreads, bytes, context.stream>>>(layout, context.workspace, schedule,
                                                  voteOperands<S>(context));
  return cudaGetLastError();
}

}  // namespace longsight::cuda
