// Stage 3 on sm_90a: one producer warpgroup that copies keys and values, two consumer warpgroups of
// 64 rows each that compute. The loop follows FlashAttention-3 (arXiv 2407.08608): the product of
// scores for tile n runs while tile n - 1 is multiplied with its values, and the two consumers take
// turns so that one's exponentials overlap the other's products.
//
// A tile is 128 columns. First come the tiles of the run, from the diagonal backwards, copied by
// TMA; then those of the list, whose rows the producer gathers one by one with cp.async. Consumers
// see no difference: both kinds complete the same barriers.
#include <cuda.h>

#include "attend/tile_work.cuh"
#include "device/mbarrier.cuh"
#include "device/tma.cuh"
#include "device/wgmma_sm90.cuh"

namespace longsight::cuda {
namespace {

constexpr int kColumns = 128;
constexpr int kProducerThreads = 128;
constexpr int kConsumerThreads = 256;
constexpr int kThreads = kProducerThreads + kConsumerThreads;
constexpr int kBlockBytes = 128 * 128;  // 128 rows of 64 elements

template <int kDim>
struct AttendTraits {
  static constexpr int kStages = kDim == 128 ? 2 : 4;
  static constexpr int kTileBytes = kDim / 64 * kBlockBytes;
};

template <int kDim>
struct SharedMemoryPlan {
  using Traits = AttendTraits<kDim>;
  alignas(1024) unsigned char queries[Traits::kTileBytes];
  alignas(1024) unsigned char keys[Traits::kStages][Traits::kTileBytes];
  alignas(1024) unsigned char values[Traits::kStages][Traits::kTileBytes];
  // *Full: 128 arrivals of the producer, when its copies have landed.
  // *Empty: 8 arrivals, one of each consumer warp that has read the tile.
  uint64_t keysFull[Traits::kStages];
  uint64_t valuesFull[Traits::kStages];
  uint64_t keysEmpty[Traits::kStages];
  uint64_t valuesEmpty[Traits::kStages];
};

// Named barriers; 0 is __syncthreads. Consumer c waits for its turn at kTurn + c.
enum NamedBarrier { kTurn = 1, kQueriesLoaded = 3 };

struct TileCounts {
  int run;
  int total;
};
__device__ __forceinline__ TileCounts countTiles(const TileWork& work) {
  const int run = (work.tileRow - work.runBegin) / kColumns + 1;
  return {run, run + (work.listed + kColumns - 1) / kColumns};
}

// ---- producer
// ------------------------------------------------------------------------------------
template <class T, int kDim>
__device__ __forceinline__ void produce(SharedMemoryPlan<kDim>& shared, const TileWork& work,
                                        const CUtensorMap& keyMap, const CUtensorMap& valueMap,
                                        const T* keys, const T* values, int64_t capacityRows) {
  using Traits = AttendTraits<kDim>;
  constexpr int kRowsAtOnce = kProducerThreads / 8;
  constexpr int kPasses = kColumns / kRowsAtOnce;
  const int thread = threadIdx.x;
  const int rowInPass = thread / 8;
  const int piece = thread % 8;
  const TileCounts counts = countTiles(work);
  const int64_t headOffset = int64_t(work.kvHead) * capacityRows * kDim + piece * 8;
  keys += headOffset;
  values += headOffset;

  // Entries of the next list tile, asked for one tile ahead; -1 beyond the list's end.
  int next[kPasses];
  const auto loadEntries = [&](int listTile) {
#pragma unroll
    for (int pass = 0; pass < kPasses; ++pass) {
      const int entry = listTile * kColumns + pass * kRowsAtOnce + rowInPass;
      next[pass] = entry < work.listed ? __ldg(work.list + entry) : -1;
    }
  };
  loadEntries(0);

  int stage = 0;
  uint32_t emptyParity = 1;
  for (int tile = 0; tile < counts.total; ++tile) {
    const uint32_t keysFull = sharedAddress(&shared.keysFull[stage]);
    const uint32_t valuesFull = sharedAddress(&shared.valuesFull[stage]);
    const uint32_t keyTile = sharedAddress(shared.keys[stage]);
    const uint32_t valueTile = sharedAddress(shared.values[stage]);
    if (tile < counts.run) {
      const int column = work.tileRow - tile * kColumns;
      const auto copyTile = [&](const CUtensorMap& map, uint32_t target, uint32_t full) {
        if (thread == 0) {
          barrierArriveExpect(full, Traits::kTileBytes);
#pragma unroll
          for (int block = 0; block < kDim / 64; ++block) {
            copyBox(target + block * kBlockBytes, &map, full, block * 64, column, work.kvHead);
          }
        } else {
          barrierArrive(full);
        }
      };
      barrierWait(sharedAddress(&shared.keysEmpty[stage]), emptyParity);
      copyTile(keyMap, keyTile, keysFull);
      barrierWait(sharedAddress(&shared.valuesEmpty[stage]), emptyParity);
      copyTile(valueMap, valueTile, valuesFull);
    } else {
      int entries[kPasses];
#pragma unroll
      for (int pass = 0; pass < kPasses; ++pass) entries[pass] = next[pass];
      loadEntries(tile - counts.run + 1);
      const auto gatherTile = [&](const T* source, uint32_t target, uint32_t full) {
#pragma unroll
        for (int pass = 0; pass < kPasses; ++pass) {
          const bool valid = entries[pass] >= 0;
          const T* row = source + (valid ? int64_t(entries[pass]) * kDim : 0);
          const uint32_t place =
              target + swizzledOffset<128>(pass * kRowsAtOnce + rowInPass, piece);
#pragma unroll
          for (int block = 0; block < kDim / 64; ++block) {
            copyAsync16(place + block * kBlockBytes, row + block * 64, valid);
          }
        }
        barrierArriveOnCopies(full);
      };
      barrierWait(sharedAddress(&shared.keysEmpty[stage]), emptyParity);
      gatherTile(keys, keyTile, keysFull);
      barrierWait(sharedAddress(&shared.valuesEmpty[stage]), emptyParity);
      gatherTile(values, valueTile, valuesFull);
    }
    if (++stage == Traits::kStages) {
      stage = 0;
      emptyParity ^= 1;
    }
  }
}

// ---- consumers
// -----------------------------------------------------------------------------------
template <class T, int kDim>
__device__ __forceinline__ void issueScores(float (&scores)[64], uint32_t queryTile,
                                            uint32_t keyTile) {
  wgmmaFence();
#pragma unroll
  for (int k = 0; k < kDim / 16; ++k) {
    const uint32_t offset = k / 4 * kBlockBytes + k % 4 * 32;
    wgmmaShared(T{}, scores, wideRowsDescriptor(queryTile + offset),
                wideRowsDescriptor(keyTile + offset), k > 0);
  }
  wgmmaCommit();
}

template <class T, int kDim>
__device__ __forceinline__ void issueOutput(float (&output)[kDim / 2],
                                            const uint32_t (&weights)[32], uint32_t valueTile) {
  wgmmaFence();
#pragma unroll
  for (int k = 0; k < kColumns / 16; ++k) {
    wgmmaTransposed(T{}, output, weights + 4 * k,
                    transposedDescriptor(valueTile + k * 16 * 128, kBlockBytes), true);
  }
  wgmmaCommit();
}

// Columns that a row must not see become -inf: on the diagonal by position, in the last tile of the
// list beyond its end.
__device__ __forceinline__ void maskScores(float (&scores)[64], int lastColumn0, int lastColumn1) {
  const int column = threadIdx.x % 4 * 2;
#pragma unroll
  for (int i = 0; i < 64; ++i) {
    const int n = i / 4 * 8 + column + i % 2;
    if (n > (i % 4 < 2 ? lastColumn0 : lastColumn1)) scores[i] = -INFINITY;
  }
}

// Turns scores into weights in place. `rescale` is by what older sums and outputs must be
// multiplied. `sum` stays a partial sum of this thread.
__device__ __forceinline__ void onlineSoftmax(float (&scores)[64], float (&maximum)[2],
                                              float (&sum)[2], float (&rescale)[2],
                                              float scaleLog2) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float best = maximum[half];
#pragma unroll
    for (int j = 0; j < 16; ++j) {
      best = fmaxf(best, fmaxf(scores[4 * j + 2 * half], scores[4 * j + 2 * half + 1]));
    }
    best = fmaxf(best, __shfl_xor_sync(~0u, best, 1));
    best = fmaxf(best, __shfl_xor_sync(~0u, best, 2));
    rescale[half] = exp2Fast((maximum[half] - best) * scaleLog2);
    maximum[half] = best;
    const float base = best * scaleLog2;
    float added = 0.0f;
#pragma unroll
    for (int j = 0; j < 16; ++j) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        float& score = scores[4 * j + 2 * half + i];
        score = exp2Fast(fmaf(score, scaleLog2, -base));
        added += score;
      }
    }
    sum[half] = fmaf(sum[half], rescale[half], added);
  }
}

template <class T>
__device__ __forceinline__ void packWeights(const float (&scores)[64], uint32_t (&weights)[32]) {
#pragma unroll
  for (int i = 0; i < 32; ++i) weights[i] = packPair<T>(scores[2 * i], scores[2 * i + 1]);
}

struct OutputPlace {
  int64_t firstRow;  // of the output and logSumExp buffers, an absolute position
  int64_t rows;
  int heads;
};

template <class T, int kDim>
__device__ __forceinline__ void consume(SharedMemoryPlan<kDim>& shared, const TileWork& work,
                                        const T* queries, T* output, float* logSumExp,
                                        OutputPlace place, float scale) {
  using Traits = AttendTraits<kDim>;
  const int consumer = (threadIdx.x - kProducerThreads) / 128;
  const int thread = threadIdx.x % 128;
  const int lane = thread % 32;
  const bool signals = lane == 0;
  const float scaleLog2 = scale * kLog2E;

  for (int i = thread; i < 64 * (kDim / 8); i += 128) {
    const int row = consumer * 64 + i / (kDim / 8);
    const int piece = i % (kDim / 8);
    const int position = work.tileRow + row;
    const bool valid = position >= work.rowBegin && position < work.rowEnd;
    const int64_t source =
        valid ? ((position - place.firstRow) * place.heads + work.head) * kDim + piece * 8 : 0;
    copyAsync16(sharedAddress(shared.queries) + tileOffset<kDim, 128>(row, piece), queries + source,
                valid);
  }
  copyAsyncCommit();
  copyAsyncWait<0>();
  fenceAsyncProxy();
  namedBarrierSync(kQueriesLoaded + consumer, 128);
  if (consumer == 1) namedBarrierArrive(kTurn, kConsumerThreads);

  const TileCounts counts = countTiles(work);
  const uint32_t queryTile = sharedAddress(shared.queries) + consumer * 64 * 128;
  // Position of this thread's rows within the tile.
  const int row0 = consumer * 64 + thread / 32 * 16 + lane / 4;
  const int tailLast = (work.listed - 1) % kColumns;

  float accumulated[kDim / 2];
#pragma unroll
  for (int i = 0; i < kDim / 2; ++i) accumulated[i] = 0.0f;
  float maximum[2] = {-INFINITY, -INFINITY};
  float sum[2] = {0.0f, 0.0f};
  float rescale[2];
  float scores[64];
  uint32_t weights[32];

  barrierWait(sharedAddress(&shared.keysFull[0]), 0);
  fenceAsyncProxy();
  namedBarrierSync(kTurn + consumer, kConsumerThreads);
  issueScores<T, kDim>(scores, queryTile, sharedAddress(shared.keys[0]));
  namedBarrierArrive(kTurn + (consumer ^ 1), kConsumerThreads);
  wgmmaWait<0>();
  pinRegisters(scores);
  if (signals) barrierArrive(sharedAddress(&shared.keysEmpty[0]));
  maskScores(scores, row0, row0 + 8);
  onlineSoftmax(scores, maximum, sum, rescale, scaleLog2);
  packWeights<T>(scores, weights);

  int stage = 0;
  uint32_t parity = 0;
  for (int tile = 1; tile < counts.total; ++tile) {
    const int previousStage = stage;
    const uint32_t previousParity = parity;
    if (++stage == Traits::kStages) {
      stage = 0;
      parity ^= 1;
    }
    barrierWait(sharedAddress(&shared.keysFull[stage]), parity);
    fenceAsyncProxy();
    namedBarrierSync(kTurn + consumer, kConsumerThreads);
    pinRegisters(scores);
    issueScores<T, kDim>(scores, queryTile, sharedAddress(shared.keys[stage]));
    barrierWait(sharedAddress(&shared.valuesFull[previousStage]), previousParity);
    fenceAsyncProxy();
    pinRegisters(accumulated);
    issueOutput<T, kDim>(accumulated, weights, sharedAddress(shared.values[previousStage]));
    namedBarrierArrive(kTurn + (consumer ^ 1), kConsumerThreads);
    wgmmaWait<1>();
    pinRegisters(scores);
    if (signals) barrierArrive(sharedAddress(&shared.keysEmpty[stage]));
    if (tile == counts.total - 1 && tile >= counts.run) maskScores(scores, tailLast, tailLast);
    onlineSoftmax(scores, maximum, sum, rescale, scaleLog2);
    wgmmaWait<0>();
    pinRegisters(accumulated);
    if (signals) barrierArrive(sharedAddress(&shared.valuesEmpty[previousStage]));
#pragma unroll
    for (int i = 0; i < kDim / 2; ++i) accumulated[i] *= rescale[i % 4 / 2];
    packWeights<T>(scores, weights);
  }
  barrierWait(sharedAddress(&shared.valuesFull[stage]), parity);
  fenceAsyncProxy();
  pinRegisters(accumulated);
  issueOutput<T, kDim>(accumulated, weights, sharedAddress(shared.values[stage]));
  wgmmaWait<0>();
  pinRegisters(accumulated);
  // The turn that consumer 1 gave away last stays open; take it, so that none is left at exit.
  if (consumer == 0) namedBarrierSync(kTurn, kConsumerThreads);

#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float total = sum[half];
    total += __shfl_xor_sync(~0u, total, 1);
    total += __shfl_xor_sync(~0u, total, 2);
    const int position = work.tileRow + row0 + 8 * half;
    if (position < work.rowBegin || position >= work.rowEnd) continue;
    const float inverse = 1.0f / total;
    const int64_t row = position - place.firstRow;
    T* target = output + (row * place.heads + work.head) * kDim + lane % 4 * 2;
#pragma unroll
    for (int j = 0; j < kDim / 8; ++j) {
      *reinterpret_cast<uint32_t*>(target + j * 8) = packPair<T>(
          accumulated[4 * j + 2 * half] * inverse, accumulated[4 * j + 2 * half + 1] * inverse);
    }
    if (logSumExp != nullptr && lane % 4 == 0) {
      logSumExp[work.head * place.rows + row] = (maximum[half] * scaleLog2 + log2f(total)) * kLn2;
    }
  }
}

template <class T, int kDim>
__global__ __launch_bounds__(kThreads, 1) void attend(const __grid_constant__ ChunkLayout layout,
                                                      const Workspace workspace,
                                                      const __grid_constant__ CUtensorMap keyMap,
                                                      const __grid_constant__ CUtensorMap valueMap,
                                                      const __grid_constant__ Tensors tensors) {
  extern __shared__ __align__(1024) unsigned char sharedBytes[];
  auto& shared = *reinterpret_cast<SharedMemoryPlan<kDim>*>(sharedBytes);
  TileWork work;
  if (!findTileWork(layout, workspace, work)) return;
  if (threadIdx.x == 0) {
    prefetchMap(&keyMap);
    prefetchMap(&valueMap);
    for (int stage = 0; stage < AttendTraits<kDim>::kStages; ++stage) {
      barrierInit(sharedAddress(&shared.keysFull[stage]), kProducerThreads);
      barrierInit(sharedAddress(&shared.valuesFull[stage]), kProducerThreads);
      barrierInit(sharedAddress(&shared.keysEmpty[stage]), kConsumerThreads / 32);
      barrierInit(sharedAddress(&shared.valuesEmpty[stage]), kConsumerThreads / 32);
    }
    barrierInitFence();
  }
  __syncthreads();
  if (threadIdx.x < kProducerThreads) {
    releaseRegisters<56>();
    produce<T, kDim>(shared, work, keyMap, valueMap, static_cast<const T*>(tensors.keys),
                     static_cast<const T*>(tensors.values), tensors.capacityRows);
  } else {
    claimRegisters<224>();
    consume<T, kDim>(shared, work, static_cast<const T*>(tensors.queries),
                     static_cast<T*>(tensors.output), tensors.logSumExp,
                     OutputPlace{layout.begin, layout.end - layout.begin, layout.heads},
                     tensors.scale);
  }
}

// ---- launch
// --------------------------------------------------------------------------------------
using EncodeTiled = CUresult (*)(CUtensorMap*, CUtensorMapDataType, cuuint32_t, void*,
                                 const cuuint64_t*, const cuuint64_t*, const cuuint32_t*,
                                 const cuuint32_t*, CUtensorMapInterleave, CUtensorMapSwizzle,
                                 CUtensorMapL2promotion, CUtensorMapFloatOOBfill);

// A map of [kvHead][row][element] that ends at `rows`, for boxes of 128 rows of 64 elements.
cudaError_t makeMap(CUtensorMap& map, const void* base, const HeadShape& shape, int64_t rows,
                    int64_t capacityRows) {
  static void* entry = nullptr;
  if (entry == nullptr) {
    cudaDriverEntryPointQueryResult found{};
    const cudaError_t error = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &entry,
                                                               12000, cudaEnableDefault, &found);
    if (error != cudaSuccess) return error;
    if (found != cudaDriverEntryPointSuccess) return cudaErrorNotSupported;
  }
  const auto dim = static_cast<cuuint64_t>(shape.headDim);
  const cuuint64_t extents[3] = {dim, static_cast<cuuint64_t>(rows),
                                 static_cast<cuuint64_t>(shape.kvHeads)};
  const cuuint64_t strides[2] = {dim * 2, static_cast<cuuint64_t>(capacityRows) * dim * 2};
  const cuuint32_t box[3] = {64, 128, 1};
  const cuuint32_t steps[3] = {1, 1, 1};
  const CUresult result = reinterpret_cast<EncodeTiled>(entry)(
      &map,
      shape.element == Element::bf16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16
                                     : CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
      3, const_cast<void*>(base), extents, strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
      CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
      CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return result == CUDA_SUCCESS ? cudaSuccess : cudaErrorInvalidValue;
}

template <class T, int kDim>
cudaError_t launch(const LaunchContext& context) {
  CUtensorMap keyMap, valueMap;
  const Tensors& tensors = context.tensors;
  const HeadShape& shape = context.chunk.shape;
  cudaError_t error =
      makeMap(keyMap, tensors.keys, shape, context.layout.end, tensors.capacityRows);
  if (error == cudaSuccess) {
    error = makeMap(valueMap, tensors.values, shape, context.layout.end, tensors.capacityRows);
  }
  constexpr int kBytes = sizeof(SharedMemoryPlan<kDim>);
  if (error == cudaSuccess) error = allowShared(attend<T, kDim>, kBytes);
  if (error != cudaSuccess) return error;
  attend<T, kDim><<<attendBlocks(context.layout), kThreads, kBytes, context.stream>>>(
      context.layout, context.workspace, keyMap, valueMap, tensors);
  return cudaGetLastError();
}

}  // namespace

cudaError_t launchAttendWgmma(const LaunchContext& context) {
  const HeadShape& shape = context.chunk.shape;
  if (shape.element == Element::bf16) {
    return shape.headDim == 64 ? launch<Bf16, 64>(context) : launch<Bf16, 128>(context);
  }
  return shape.headDim == 64 ? launch<F16, 64>(context) : launch<F16, 128>(context);
}

}  // namespace longsight::cuda
