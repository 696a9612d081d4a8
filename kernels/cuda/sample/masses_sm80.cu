// Policy `mass`, stage 1 on mma.sync: log sums by row, then masses by column. The second pass is
// key-stationary: eight warps hold 32 keys each in registers while the voters of every head of the
// group stream through shared memory, so a column's sum is made by one warp in one order.
#include "head_dispatch.cuh"
#include "sample/voters.cuh"

namespace longsight::cuda {
namespace {

constexpr int kThreads = 256;

// What registers and shared memory hold.
template <int kDim>
struct MassTraits {
  static constexpr int kRowBlocks = kDim > 128 ? 1 : 2;          // of 16 keys, of a warp
  static constexpr int kKeys = kThreads / 32 * 16 * kRowBlocks;  // of a block: whole 128-blocks
  static constexpr int kBlocks = kKeys / int(kTileRows);
  static constexpr int kVoters = kDim > 128 ? 32 : 64;  // of a tile
};

template <class T, int kDim>
struct SharedMemoryPlan {
  static constexpr int kVoters = MassTraits<kDim>::kVoters;
  alignas(1024) T keys[MassTraits<kDim>::kKeys * kTileDim<kDim>];
  alignas(1024) T voters[2][kVoters * kTileDim<kDim>];
  float logSums[2][kVoters];     // +inf where there is no voter
  int remoteBlocks[2][kVoters];  // blocks below this are remote to the voter
};

template <class T, int kDim>
__global__ __launch_bounds__(kThreads) void columnMasses(const __grid_constant__ ChunkLayout layout,
                                                         const Workspace workspace,
                                                         const T* queries, const T* keys,
                                                         int64_t capacityRows, float scaleLog2) {
  extern __shared__ __align__(1024) unsigned char sharedBytes[];
  auto& shared = *reinterpret_cast<SharedMemoryPlan<T, kDim>*>(sharedBytes);
  using Traits = MassTraits<kDim>;
  constexpr int kPieces = kDim / 8;
  constexpr int kKeys = Traits::kKeys;
  constexpr int kVoters = Traits::kVoters;
  constexpr int kRowBlocks = Traits::kRowBlocks;
  const SegmentLayout& segment = layout.segments[gridDim.z - 1 - blockIdx.z];
  const int firstBlock = blockIdx.x * Traits::kBlocks;
  if (firstBlock >= segment.remoteBlocks) return;
  const int kvHead = blockIdx.y;
  const int lane = threadIdx.x % 32;
  const int warpKey = threadIdx.x / 32 * (16 * kRowBlocks);
  const T* headKeys = keys + int64_t(kvHead) * capacityRows * kDim;

  // Later voters see more: those of the first tiles that hold one to which the keys are remote.
  int tiles = 0;
  while (tiles * kVoters < segment.voters &&
         voterRemoteBlocks(segment, tiles * kVoters) > firstBlock) {
    ++tiles;
  }
  const auto copyVoters = [&](int step) {
    const int head = kvHead * layout.group + step / tiles;
    const int firstVoter = step % tiles * kVoters;
    const EvenRows<T> rows = voterQueries(layout, segment, queries, head, kDim, firstVoter);
    const uint32_t target = sharedAddress(shared.voters[step % 2]);
    for (int i = threadIdx.x; i < kVoters * kPieces; i += kThreads) {
      const int row = i / kPieces;
      const bool valid = firstVoter + row < segment.voters;
      copyAsync16(target + tileOffset<kDim, kVoters>(row, i % kPieces),
                  valid ? rows.first + row * rows.step + i % kPieces * 8 : queries, valid);
    }
    copyAsyncCommit();
    if (threadIdx.x < kVoters) {
      const int voter = firstVoter + threadIdx.x;
      const bool valid = voter < segment.voters;
      shared.logSums[step % 2][threadIdx.x] =
          valid ? workspace.voterValues[voterValuesBegin(segment, head) + voter] : INFINITY;
      shared.remoteBlocks[step % 2][threadIdx.x] = valid ? voterRemoteBlocks(segment, voter) : 0;
    }
  };
  for (int i = threadIdx.x; i < kKeys * kPieces; i += kThreads) {
    const int row = i / kPieces;
    const int key = firstBlock * int(kTileRows) + row;
    // Keys beyond the remote blocks are not stored; beyond the segment they are not even read.
    const bool valid = key < segment.end;
    copyAsync16(sharedAddress(shared.keys) + tileOffset<kDim, kKeys>(row, i % kPieces),
                headKeys + (valid ? int64_t(key) * kDim + i % kPieces * 8 : 0), valid);
  }
  copyVoters(0);
  copyAsyncWait<0>();
  __syncthreads();
  uint32_t a[kRowBlocks][kDim / 16][4];
#pragma unroll
  for (int m = 0; m < kRowBlocks; ++m) {
#pragma unroll
    for (int k = 0; k < kDim / 16; ++k) {
      loadMatrix4(a[m][k],
                  sharedAddress(shared.keys) +
                      tileOffset<kDim, kKeys>(warpKey + m * 16 + lane % 16, k * 2 + lane / 16));
    }
  }
  const int myBlock = firstBlock + warpKey / int(kTileRows);
  // [m][row, row + 8]
  float sums[kRowBlocks][2] = {};
  for (int step = 0; step < tiles * layout.group; ++step) {
    if (step + 1 < tiles * layout.group) copyVoters(step + 1);
    const uint32_t voterTile = sharedAddress(shared.voters[step % 2]);
#pragma unroll 2
    for (int n = 0; n < kVoters / 16; ++n) {
      float scores[kRowBlocks][2][4] = {};
#pragma unroll
      for (int k = 0; k < kDim / 16; ++k) {
        uint32_t b[4];
        loadMatrix4(b, voterTile + tileOffset<kDim, kVoters>(n * 16 + lane % 8 + lane / 16 * 8,
                                                             k * 2 + lane / 8 % 2));
#pragma unroll
        for (int m = 0; m < kRowBlocks; ++m) {
          mma16x8x16<T>(scores[m][0], a[m][k], b[0], b[1]);
          mma16x8x16<T>(scores[m][1], a[m][k], b[2], b[3]);
        }
      }
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const int voter = n * 16 + j * 8 + lane % 4 * 2;
        float2 logSum = *reinterpret_cast<const float2*>(shared.logSums[step % 2] + voter);
        if (myBlock >= shared.remoteBlocks[step % 2][voter]) logSum.x = INFINITY;
        if (myBlock >= shared.remoteBlocks[step % 2][voter + 1]) logSum.y = INFINITY;
#pragma unroll
        for (int m = 0; m < kRowBlocks; ++m) {
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            sums[m][i] += exp2Fast(fmaf(scores[m][j][2 * i], scaleLog2, -logSum.x)) +
                          exp2Fast(fmaf(scores[m][j][2 * i + 1], scaleLog2, -logSum.y));
          }
        }
      }
    }
    if ((step + 1) % tiles == 0) {
      float* masses = workspace.masses +
                      massesBegin(segment, kvHead * layout.group + step / tiles) +
                      firstBlock * kTileRows + warpKey;
#pragma unroll
      for (int m = 0; m < kRowBlocks; ++m) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          float total = sums[m][i];
          total += __shfl_xor_sync(~0u, total, 1);
          total += __shfl_xor_sync(~0u, total, 2);
          sums[m][i] = 0.0f;
          if (lane % 4 == 0 && myBlock < segment.remoteBlocks) {
            masses[m * 16 + i * 8 + lane / 4] = total;
          }
        }
      }
    }
    copyAsyncWait<0>();
    __syncthreads();
  }
}

template <class T, int kDim>
cudaError_t launch(const LaunchContext& context) {
  const ChunkLayout& layout = context.layout;
  int mostBlocks = 0;
  for (int i = 0; i < layout.segmentCount; ++i) {
    mostBlocks = max(mostBlocks, layout.segments[i].remoteBlocks);
  }
  if (mostBlocks == 0) return cudaSuccess;
  cudaError_t error = launchVoterLogSums(context, false);
  constexpr int kBytes = sizeof(SharedMemoryPlan<T, kDim>);
  static_assert(kBytes <= kSharedBytesEverywhere);
  if (error == cudaSuccess) error = allowShared(columnMasses<T, kDim>, kBytes);
  if (error != cudaSuccess) return error;
  columnMasses<T, kDim>
      <<<dim3((mostBlocks + MassTraits<kDim>::kBlocks - 1) / MassTraits<kDim>::kBlocks,
              layout.kvHeads, layout.segmentCount),
         kThreads, kBytes, context.stream>>>(
          layout, context.workspace, static_cast<const T*>(context.tensors.queries),
          static_cast<const T*>(context.tensors.keys), context.tensors.capacityRows,
          context.tensors.scale * kLog2E);
  return cudaGetLastError();
}

}  // namespace

cudaError_t launchMassesMmaSync(const LaunchContext& context) {
  return dispatchHead(context.chunk.shape,
                      [&]<class T, int kDim>() { return launch<T, kDim>(context); });
}

}  // namespace longsight::cuda
