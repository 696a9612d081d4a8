// Policy `mass`, stage 1 on wgmma: log sums by row, then masses by column. Both passes hold 256
// rows in registers (voters, then keys), 128 a consumer warpgroup, while a producer warpgroup
// streams the other side through shared memory; both need one exponential a score and no maximum.
//
// The first pass sums exp(score - base) with the row's score of its own column as the base. A row
// with a score 88 above that overflows to +inf, is recognised by it, and repaired by the general
// path.
//
// The consumers take turns: while one issues products, the other has its exponentials. Without
// turns the tensor cores share their time between both, which then finish and idle together.
#include "sample/voters.cuh"
#include "sample/wgmma_rows.cuh"

namespace longsight::cuda {
namespace {

constexpr int kRows = 128;  // of a tile, and of a consumer
constexpr int kProducerThreads = 128;
constexpr int kConsumerThreads = 256;
constexpr int kThreads = kProducerThreads + kConsumerThreads;

template <class T, int kDim>
struct SharedMemoryPlan {
  static constexpr int kStages = 512 / kDim;
  alignas(1024) T held[2][kRows * kDim];  // by consumer
  alignas(1024) T streamed[kStages][kRows * kDim];
  // First pass: the base of each held row. Second: by stage, the log sums of the voters (+inf where
  // there is none) and the number of 128-blocks that are remote to them.
  float bases[2][kRows];
  float logSums[kStages][kRows];
  int remoteBlocks[kStages][kRows];
  // full: each producer thread arrives when its copies have landed and once more after its stores.
  // empty: 8 arrivals, one of each consumer warp that has read the tile.
  uint64_t full[kStages];
  uint64_t empty[kStages];
};

// Named barriers; 0 is __syncthreads. Consumer c waits for its turn at kTurn + c.
enum NamedBarrier { kTurn = 1, kHeldLoaded = 3 };

template <class T, int kDim>
__device__ __forceinline__ void startBarriers(SharedMemoryPlan<T, kDim>& shared) {
  if (threadIdx.x == 0) {
    for (int stage = 0; stage < shared.kStages; ++stage) {
      barrierInit(sharedAddress(&shared.full[stage]), 2 * kProducerThreads);
      barrierInit(sharedAddress(&shared.empty[stage]), kConsumerThreads / 32);
    }
    barrierInitFence();
  }
  __syncthreads();
}

// Position in the ring of stages; the same walk on both sides.
template <int kStages>
struct Ring {
  int stage = 0;
  uint32_t parity = 0;
  __device__ __forceinline__ void advance() {
    if (++stage == kStages) {
      stage = 0;
      parity ^= 1;
    }
  }
};

// 128 threads copy rows [0, count) of a tile of 128; the others become zeros.
template <class T, int kDim>
__device__ __forceinline__ void copyRows(T* target, EvenRows<T> rows, int count) {
  constexpr int kPieces = kDim / 8;
  constexpr int kRowsAtOnce = 128 / kPieces;  // a multiple of 8: the swizzle stays the same
  const int firstRow = threadIdx.x % 128 / kPieces;
  const int piece = threadIdx.x % kPieces;
  const uint32_t place = sharedAddress(target) + tileOffset<kDim, kRows>(firstRow, piece);
  const T* source = rows.first + piece * 8;
#pragma unroll 4
  for (int pass = 0; pass < kRows / kRowsAtOnce; ++pass) {
    const int row = firstRow + pass * kRowsAtOnce;
    const bool valid = row < count;
    copyAsync16(place + pass * kRowsAtOnce * 128, source + (valid ? row * rows.step : 0), valid);
  }
}

template <class T, int kDim>
__device__ __forceinline__ void loadHeld(RowFragments<kDim * 2> (&a)[2], const T* held) {
  loadRowFragments<kDim * 2, kRows>(a[0], sharedAddress(held), 0);
  loadRowFragments<kDim * 2, kRows>(a[1], sharedAddress(held), kProductRows);
}

// Issues both halves' products in this consumer's turn and hands each to use(half, scores) when it
// is there.
template <class T, int kDim, class Use>
__device__ __forceinline__ void multiplyTile(int consumer, float (&scores)[2][64],
                                             const RowFragments<kDim * 2> (&a)[2], const T* tile,
                                             Use use) {
  namedBarrierSync(kTurn + consumer, kConsumerThreads);
  issueRowScores<T, kDim * 2>(scores[0], a[0], sharedAddress(tile));
  issueRowScores<T, kDim * 2>(scores[1], a[1], sharedAddress(tile));
  namedBarrierArrive(kTurn + (consumer ^ 1), kConsumerThreads);
  wgmmaWait<1>();
  pinRegisters(scores[0]);
  use(0, scores[0]);
  wgmmaWait<0>();
  pinRegisters(scores[1]);
  use(1, scores[1]);
}

// ---- first pass: log sums of the voters
// Block (pair of voter tiles, KV head, segment). Tiles are counted [tile][head of the group], so
// that a pair sees nearly the same columns.
template <class T, int kDim>
__global__ __launch_bounds__(kThreads, 1) void logSums(const __grid_constant__ ChunkLayout layout,
                                                       const Workspace workspace, const T* queries,
                                                       const T* keys, int64_t capacityRows,
                                                       float scaleLog2) {
  extern __shared__ __align__(1024) unsigned char sharedBytes[];
  auto& shared = *reinterpret_cast<SharedMemoryPlan<T, kDim>*>(sharedBytes);
  const SegmentLayout& segment = layout.segments[gridDim.z - 1 - blockIdx.z];
  if (segment.stride == 0) return;
  const int tilesPerHead = (segment.voters + kRows - 1) / kRows;
  const int tiles = tilesPerHead * layout.group;
  if (int(blockIdx.x) * 2 >= tiles) return;
  const int kvHead = blockIdx.y;
  // The first tile of the pair has the later rows.
  const int lastPosition = voterPosition(segment, int(blockIdx.x) * 2 / layout.group * kRows);
  const int keyTiles = lastPosition / kRows + 1;
  const T* headKeys = keys + int64_t(kvHead) * capacityRows * kDim;
  startBarriers(shared);

  Ring<SharedMemoryPlan<T, kDim>::kStages> ring;
  if (threadIdx.x < kProducerThreads) {
    releaseRegisters<40>();
    for (int tile = 0; tile < keyTiles; ++tile) {
      barrierWait(sharedAddress(&shared.empty[ring.stage]), ring.parity ^ 1);
      copyRows<T, kDim>(shared.streamed[ring.stage],
                        EvenRows<T>{headKeys + int64_t(tile) * kRows * kDim, kDim},
                        lastPosition + 1 - tile * kRows);
      barrierArriveOnCopies(sharedAddress(&shared.full[ring.stage]));
      barrierArrive(sharedAddress(&shared.full[ring.stage]));
      ring.advance();
    }
    copyAsyncWait<0>();
    return;
  }
  claimRegisters<232>();
  const int consumer = threadIdx.x / 128 - 1;
  const int thread = threadIdx.x % 128;
  const int lane = threadIdx.x % 32;
  const int tile = blockIdx.x * 2 + consumer;
  const int head = kvHead * layout.group + tile % layout.group;
  const int firstVoter = tile / layout.group * kRows;
  const int count = tile < tiles ? min(kRows, segment.voters - firstVoter) : 0;
  if (consumer == 1) namedBarrierArrive(kTurn, kConsumerThreads);

  const EvenRows<T> rows = count > 0
                               ? voterQueries(layout, segment, queries, head, kDim, firstVoter)
                               : EvenRows<T>{queries, 0};
  copyRows<T, kDim>(shared.held[consumer], rows, count);
  copyAsyncCommit();
  float base = 0.0f;
  if (thread < count) {
    const T* query = rows.first + thread * rows.step;
    const T* key = headKeys + int64_t(voterPosition(segment, firstVoter + thread)) * kDim;
    for (int dim = 0; dim < kDim; ++dim) base += float(query[dim]) * float(key[dim]);
  }
  shared.bases[consumer][thread] = base * scaleLog2;
  copyAsyncWait<0>();
  namedBarrierSync(kHeldLoaded + consumer, 128);
  RowFragments<kDim * 2> a[2];
  loadHeld<T, kDim>(a, shared.held[consumer]);

  const int myRow = thread / 32 * 16 + lane / 4;  // and 8, 64, 72 after it
  float bases[2][2];
  float sums[2][2] = {};
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    bases[half][0] = shared.bases[consumer][half * kProductRows + myRow];
    bases[half][1] = shared.bases[consumer][half * kProductRows + myRow + 8];
  }
  // Tiles from here on hold columns that some row of this consumer must not see.
  const int firstMasked =
      count > 0 ? (voterPosition(segment, firstVoter + count - 1) + 1) / kRows : 0;

  float scores[2][64];
  for (int keyTile = 0; keyTile < keyTiles; ++keyTile) {
    barrierWait(sharedAddress(&shared.full[ring.stage]), ring.parity);
    fenceAsyncProxy();
    multiplyTile<T, kDim>(
        consumer, scores, a, shared.streamed[ring.stage], [&](int half, float(&values)[64]) {
          if (half == 1 && lane == 0) barrierArrive(sharedAddress(&shared.empty[ring.stage]));
          if (keyTile >= firstMasked) {
#pragma unroll
            for (int i = 0; i < 2; ++i) {
              const int voter = firstVoter + half * kProductRows + myRow + i * 8;
              const int last = (voter < segment.voters ? voterPosition(segment, voter) : -1) -
                               keyTile * kRows - lane % 4 * 2;
#pragma unroll
              for (int j = 0; j < 16; ++j) {
                if (j * 8 > last) values[4 * j + 2 * i] = -INFINITY;
                if (j * 8 + 1 > last) values[4 * j + 2 * i + 1] = -INFINITY;
              }
            }
          }
          float partial[2][2] = {};
#pragma unroll
          for (int i = 0; i < 64; ++i) {
            partial[i % 4 / 2][i % 2] +=
                exp2Fast(fmaf(values[i], scaleLog2, -bases[half][i % 4 / 2]));
          }
          sums[half][0] += partial[0][0] + partial[0][1];
          sums[half][1] += partial[1][0] + partial[1][1];
        });
    ring.advance();
  }
  // The turn that consumer 1 gave away last stays open; take it, so that none is left at exit.
  if (consumer == 0) namedBarrierSync(kTurn, kConsumerThreads);
#pragma unroll
  for (int half = 0; half < 2; ++half) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      float total = sums[half][i];
      total += __shfl_xor_sync(~0u, total, 1);
      total += __shfl_xor_sync(~0u, total, 2);
      const int row = half * kProductRows + myRow + i * 8;
      if (lane % 4 == 0 && row < count) {
        // NaN, from an infinite score and base, is an overflow too.
        const float logSum = total < INFINITY ? bases[half][i] + log2f(total) : INFINITY;
        workspace.voterValues[voterValuesBegin(segment, head) + firstVoter + row] = logSum;
      }
    }
  }
}

// ---- second pass: masses of the columns
struct MassSchedule {
  int stepsPerRange;  // steps of 256 keys that a block walks over
  int ranges;
};

// Block (range of keys, KV head, segment).
template <class T, int kDim>
__global__ __launch_bounds__(kThreads,
                             1) void columnMasses(const __grid_constant__ ChunkLayout layout,
                                                  const Workspace workspace,
                                                  const MassSchedule schedule, const T* queries,
                                                  const T* keys, int64_t capacityRows,
                                                  float scaleLog2) {
  extern __shared__ __align__(1024) unsigned char sharedBytes[];
  auto& shared = *reinterpret_cast<SharedMemoryPlan<T, kDim>*>(sharedBytes);
  constexpr int kStages = SharedMemoryPlan<T, kDim>::kStages;
  const SegmentLayout& segment = layout.segments[gridDim.z - 1 - blockIdx.z];
  const int firstBlock = blockIdx.x * schedule.stepsPerRange * 2;
  const int endBlock = min(firstBlock + schedule.stepsPerRange * 2, segment.remoteBlocks);
  if (firstBlock >= endBlock) return;
  const int kvHead = blockIdx.y;
  const T* headKeys = keys + int64_t(kvHead) * capacityRows * kDim;
  const int allTiles = (segment.voters + kRows - 1) / kRows;
  // Voters that fit stay for all keys of the range; otherwise they come again for every step, those
  // tiles with one to which the step's keys are remote.
  const bool resident = allTiles * layout.group <= kStages;
  const auto tilesOf = [&](int block) {
    int tiles = resident ? allTiles : 1;
    while (tiles < allTiles && voterRemoteBlocks(segment, tiles * kRows) > block) ++tiles;
    return tiles;
  };
  startBarriers(shared);

  Ring<kStages> ring;
  if (threadIdx.x < kProducerThreads) {
    releaseRegisters<40>();
    for (int block = firstBlock; block < endBlock; block += 2) {
      const int tiles = tilesOf(block);
      for (int i = 0; i < layout.group * tiles; ++i) {
        const int head = kvHead * layout.group + i / tiles;
        const int firstVoter = i % tiles * kRows;
        const int stage = ring.stage;
        const uint32_t full = sharedAddress(&shared.full[stage]);
        barrierWait(sharedAddress(&shared.empty[stage]), ring.parity ^ 1);
        copyRows<T, kDim>(shared.streamed[stage],
                          voterQueries(layout, segment, queries, head, kDim, firstVoter),
                          segment.voters - firstVoter);
        barrierArriveOnCopies(full);
        const int voter = firstVoter + threadIdx.x;
        const bool valid = voter < segment.voters;
        shared.logSums[stage][threadIdx.x] =
            valid ? workspace.voterValues[voterValuesBegin(segment, head) + voter] : INFINITY;
        shared.remoteBlocks[stage][threadIdx.x] = valid ? voterRemoteBlocks(segment, voter) : 0;
        barrierArrive(full);
        ring.advance();
      }
      if (resident) break;
    }
    copyAsyncWait<0>();
    return;
  }
  claimRegisters<232>();
  const int consumer = threadIdx.x / 128 - 1;
  const int thread = threadIdx.x % 128;
  const int lane = threadIdx.x % 32;
  if (consumer == 1) namedBarrierArrive(kTurn, kConsumerThreads);
  const auto copyKeys = [&](int block) {
    // Keys beyond the remote blocks are not stored; beyond the segment they are not even read.
    const int64_t first = int64_t(block + consumer) * kRows;
    copyRows<T, kDim>(shared.held[consumer],
                      EvenRows<T>{headKeys + min(first, int64_t(segment.end) - 1) * kDim, kDim},
                      segment.end - static_cast<int>(first));
    copyAsyncCommit();
  };
  copyKeys(firstBlock);
  // From here on keys are not remote to all voters.
  const int allRemote =
      static_cast<int>(windowStart(segment.begin, segment.windowTokens) / kTileRows);

  float scores[2][64];
  for (int block = firstBlock; block < endBlock; block += 2) {
    copyAsyncWait<0>();
    namedBarrierSync(kHeldLoaded + consumer, 128);
    RowFragments<kDim * 2> a[2];
    loadHeld<T, kDim>(a, shared.held[consumer]);
    namedBarrierSync(kHeldLoaded + consumer, 128);
    if (block + 2 < endBlock) copyKeys(block + 2);

    const int myBlock = block + consumer;
    const bool partial = myBlock >= allRemote;
    const int tiles = tilesOf(block);
    if (resident) ring = Ring<kStages>();
    float sums[2][2] = {};
    for (int head = 0; head < layout.group; ++head) {
      for (int tile = 0; tile < tiles; ++tile) {
        barrierWait(sharedAddress(&shared.full[ring.stage]), ring.parity);
        fenceAsyncProxy();
        multiplyTile<T, kDim>(
            consumer, scores, a, shared.streamed[ring.stage], [&](int half, float(&values)[64]) {
              float added[2][2] = {};
#pragma unroll
              for (int j = 0; j < 16; ++j) {
                const int voter = j * 8 + lane % 4 * 2;
                float2 logSum =
                    *reinterpret_cast<const float2*>(shared.logSums[ring.stage] + voter);
                if (partial) {
                  if (myBlock >= shared.remoteBlocks[ring.stage][voter]) logSum.x = INFINITY;
                  if (myBlock >= shared.remoteBlocks[ring.stage][voter + 1]) logSum.y = INFINITY;
                }
#pragma unroll
                for (int i = 0; i < 2; ++i) {
                  added[i][0] += exp2Fast(fmaf(values[4 * j + 2 * i], scaleLog2, -logSum.x));
                  added[i][1] += exp2Fast(fmaf(values[4 * j + 2 * i + 1], scaleLog2, -logSum.y));
                }
              }
              sums[half][0] += added[0][0] + added[0][1];
              sums[half][1] += added[1][0] + added[1][1];
            });
        __syncwarp();
        if (!resident && lane == 0) barrierArrive(sharedAddress(&shared.empty[ring.stage]));
        ring.advance();
      }
      float* masses = workspace.masses + massesBegin(segment, kvHead * layout.group + head) +
                      int64_t(myBlock) * kRows;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          float total = sums[half][i];
          total += __shfl_xor_sync(~0u, total, 1);
          total += __shfl_xor_sync(~0u, total, 2);
          sums[half][i] = 0.0f;
          if (lane % 4 == 0 && myBlock < segment.remoteBlocks) {
            masses[half * kProductRows + thread / 32 * 16 + i * 8 + lane / 4] = total;
          }
        }
      }
    }
  }
  if (consumer == 0) namedBarrierSync(kTurn, kConsumerThreads);
}

MassSchedule scheduleMasses(const LaunchContext& context) {
  const ChunkLayout& layout = context.layout;
  constexpr int kBlocksPerProcessor = 8;
  MassSchedule schedule{32, 0};
  // Short ranges leave no processor idle at the end: the longest that gives each several blocks.
  for (; schedule.stepsPerRange > 1; schedule.stepsPerRange /= 2) {
    int64_t ranges = 0;
    for (int i = 0; i < layout.segmentCount; ++i) {
      const int steps = (layout.segments[i].remoteBlocks + 1) / 2;
      ranges += (steps + schedule.stepsPerRange - 1) / schedule.stepsPerRange;
    }
    if (ranges * layout.kvHeads >= int64_t{kBlocksPerProcessor} * context.device.processors) break;
  }
  for (int i = 0; i < layout.segmentCount; ++i) {
    const int steps = (layout.segments[i].remoteBlocks + 1) / 2;
    schedule.ranges =
        max(schedule.ranges, (steps + schedule.stepsPerRange - 1) / schedule.stepsPerRange);
  }
  return schedule;
}

template <class T, int kDim>
cudaError_t launch(const LaunchContext& context) {
  const ChunkLayout& layout = context.layout;
  const MassSchedule schedule = scheduleMasses(context);
  if (schedule.ranges == 0) return cudaSuccess;
  int mostTiles = 0;
  for (int i = 0; i < layout.segmentCount; ++i) {
    mostTiles = max(mostTiles, (layout.segments[i].voters + kRows - 1) / kRows);
  }
  constexpr int kBytes = sizeof(SharedMemoryPlan<T, kDim>);
  cudaError_t error = allowShared(logSums<T, kDim>, kBytes);
  if (error == cudaSuccess) error = allowShared(columnMasses<T, kDim>, kBytes);
  if (error != cudaSuccess) return error;
  const auto* queries = static_cast<const T*>(context.tensors.queries);
  const auto* keys = static_cast<const T*>(context.tensors.keys);
  const float scaleLog2 = context.tensors.scale * kLog2E;
  logSums<T, kDim><<<dim3((mostTiles * layout.group + 1) / 2, layout.kvHeads, layout.segmentCount),
                     kThreads, kBytes, context.stream>>>(layout, context.workspace, queries, keys,
                                                         context.tensors.capacityRows, scaleLog2);
  error = cudaGetLastError();
  if (error == cudaSuccess) error = launchVoterLogSums(context, true);
  if (error != cudaSuccess) return error;
  columnMasses<T, kDim><<<dim3(schedule.ranges, layout.kvHeads, layout.segmentCount), kThreads,
                          kBytes, context.stream>>>(layout, context.workspace, schedule, queries,
                                                    keys, context.tensors.capacityRows, scaleLog2);
  return cudaGetLastError();
}

}  // namespace

cudaError_t launchMassesWgmma(const LaunchContext& context) {
  const HeadShape& shape = context.chunk.shape;
  if (shape.element == Element::bf16) {
    return shape.headDim == 64 ? launch<Bf16, 64>(context) : launch<Bf16, 128>(context);
  }
  return shape.headDim == 64 ? launch<F16, 64>(context) : launch<F16, 128>(context);
}

}  // namespace longsight::cuda
