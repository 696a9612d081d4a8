// Stage 3 on sm_90a: one producer warpgroup that copies keys and values, two consumer warpgroups of
// 64 rows each that compute. The loop follows FlashAttention-3 (arXiv 2407.08608): the product of
// scores for tile n runs while tile n - 1 is multiplied with its values, and the two consumers take
// turns so that one's exponentials overlap the other's products.
//
// A tile is 128 columns, 64 with 256 dimensions. First come the tiles of the run, from the diagonal
// backwards, copied by TMA; then those of the list, whose rows the producer gathers one by one with
// cp.async. Consumers see no difference: both kinds complete the same barriers.
#include <cuda.h>

#include "attend/tile_work.cuh"
#include "device/mbarrier.cuh"
#include "device/tma.cuh"
#include "device/wgmma_sm90.cuh"
#include "head_dispatch.cuh"

namespace longsight::cuda {
namespace {

constexpr int kProducerThreads = 128;
constexpr int kConsumerThreads = 256;
constexpr int kThreads = kProducerThreads + kConsumerThreads;
// Where the maximum of a row starts: finite, since the first rows of a tile may see nothing of its
// last columns and the difference of two infinities is no number.
constexpr float kLowestMaximum = -1e30f;

// Tiles lie in shared memory in blocks of 64 dimensions. Of the second block 80 and 96 dimensions
// use a part: the copy engine fills the rest with zeros, products do not read it.
template <int kDim>
struct AttendTraits {
  // With 256 dimensions the output takes half the registers, the queries a quarter of the memory.
  static constexpr int kColumns = kDim > 128 ? 64 : 128;
  static constexpr int kStages = kDim > 64 ? 2 : 4;
  static constexpr int kBlocks = kTileDim<kDim> / 64;
  static constexpr int kBlockBytes = kColumns * 128;
  static constexpr int kTileBytes = kBlocks * kBlockBytes;
  static constexpr int kQueryBlockBytes = 128 * 128;
  // A product with values makes at most 128 dimensions.
  static constexpr int kParts = kDim > 128 ? kDim / 128 : 1;
  static constexpr int kPartDim = kDim / kParts;
  // Registers of a thread: scores, and scores packed in pairs.
  static constexpr int kScores = kColumns / 2;
  static constexpr int kWeights = kColumns / 4;
  // Of a thread; one producer's and two consumers' are those of three warpgroups at entry, 504.
  static constexpr int kProducerRegisters = kDim > 128 ? 40 : kDim % 64 == 0 ? 56 : 72;
  static constexpr int kConsumerRegisters = (504 - kProducerRegisters) / 2;
};

template <int kDim>
struct SharedMemoryPlan {
  using Traits = AttendTraits<kDim>;
  alignas(1024) unsigned char queries[Traits::kBlocks * Traits::kQueryBlockBytes];
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
template <int kColumns>
__device__ __forceinline__ TileCounts countTiles(const TileWork& work) {
  const int run = (work.runEnd - work.runBegin) / kColumns;
  return {run, run + (work.listed + kColumns - 1) / kColumns};
}

// ---- producer
// ------------------------------------------------------------------------------------
template <class T, int kDim>
__device__ __forceinline__ void produce(SharedMemoryPlan<kDim>& shared, const TileWork& work,
                                        const CUtensorMap& keyMap, const CUtensorMap& valueMap,
                                        const T* keys, const T* values, int64_t capacityRows) {
  using Traits = AttendTraits<kDim>;
  constexpr int kColumns = Traits::kColumns;
  constexpr int kRowsAtOnce = kProducerThreads / 8;
  constexpr int kPasses = kColumns / kRowsAtOnce;
  const int thread = threadIdx.x;
  const int rowInPass = thread / 8;
  const int piece = thread % 8;
  const TileCounts counts = countTiles<Traits::kColumns>(work);
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
      const int column = work.runEnd - (tile + 1) * kColumns;
      const auto copyTile = [&](const CUtensorMap& map, uint32_t target, uint32_t full) {
        if (thread == 0) {
          barrierArriveExpect(full, Traits::kTileBytes);
#pragma unroll
          for (int block = 0; block < Traits::kBlocks; ++block) {
            copyBox(target + block * Traits::kBlockBytes, &map, full, block * 64, column,
                    work.kvHead);
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
          for (int block = 0; block < Traits::kBlocks; ++block) {
            if (kDim % 64 != 0 && block * 8 + piece >= kDim / 8) continue;
            copyAsync16(place + block * Traits::kBlockBytes, row + block * 64, valid);
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
__device__ __forceinline__ void issueScores(float (&scores)[AttendTraits<kDim>::kScores],
                                            uint32_t queryTile, uint32_t keyTile) {
  using Traits = AttendTraits<kDim>;
  const uint64_t queries = wideRowsDescriptor(queryTile);
  const uint64_t keys = wideRowsDescriptor(keyTile);
  wgmmaFence();
#pragma unroll
  for (int k = 0; k < kDim / 16; ++k) {
    // In units of 16 bytes, as descriptors have them.
    const int inBlock = k % 4 * 2;
    wgmmaShared(T{}, scores, queries + (k / 4 * Traits::kQueryBlockBytes / 16 + inBlock),
                keys + (k / 4 * Traits::kBlockBytes / 16 + inBlock), k > 0);
  }
  wgmmaCommit();
}

// Dimensions kPartDim * part and on of a row's output; see wgmma_sm90.cuh for who holds what.
template <int kDim>
using OutputParts = float[AttendTraits<kDim>::kParts][AttendTraits<kDim>::kPartDim / 2];

template <class T, int kDim>
__device__ __forceinline__ void issueOutput(OutputParts<kDim>& output,
                                            const uint32_t (&weights)[AttendTraits<kDim>::kWeights],
                                            uint32_t valueTile) {
  using Traits = AttendTraits<kDim>;
  const uint64_t values = transposedDescriptor(valueTile, Traits::kBlockBytes);
  wgmmaFence();
#pragma unroll
  for (int k = 0; k < Traits::kColumns / 16; ++k) {
#pragma unroll
    for (int part = 0; part < Traits::kParts; ++part) {
      const int place = part * (Traits::kPartDim / 64) * Traits::kBlockBytes + k * 16 * 128;
      wgmmaTransposed(T{}, output[part], weights + 4 * k, values + place / 16, true);
    }
  }
  wgmmaCommit();
}

template <int kParts, int kCount>
__device__ __forceinline__ void pinParts(float (&parts)[kParts][kCount]) {
#pragma unroll
  for (int part = 0; part < kParts; ++part) pinRegisters(parts[part]);
}

// Columns beyond the last that a row may see become -inf: on the diagonal by position, where the
// thread's second row sees kRowStep = 8 columns more than its first, in the last tile of the list
// beyond its end.
template <int kRowStep, int kScores>
__device__ __forceinline__ void maskScores(float (&scores)[kScores], int lastColumn) {
  const int last = lastColumn - threadIdx.x % 4 * 2;
#pragma unroll
  for (int i = 0; i < kScores; ++i) {
    if (i / 4 * 8 + i % 2 - i % 4 / 2 * kRowStep > last) scores[i] = -INFINITY;
  }
}

// Turns scores into weights in place. `rescale` is by what older sums and outputs must be
// multiplied. `sum` stays a partial sum of this thread.
template <int kScores>
__device__ __forceinline__ void onlineSoftmax(float (&scores)[kScores], float (&maximum)[2],
                                              float (&sum)[2], float (&rescale)[2],
                                              float scaleLog2) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float best = maximum[half];
#pragma unroll
    for (int j = 0; j < kScores / 4; ++j) {
      best = fmaxf(best, fmaxf(scores[4 * j + 2 * half], scores[4 * j + 2 * half + 1]));
    }
    best = fmaxf(best, __shfl_xor_sync(~0u, best, 1));
    best = fmaxf(best, __shfl_xor_sync(~0u, best, 2));
    rescale[half] = exp2Fast((maximum[half] - best) * scaleLog2);
    maximum[half] = best;
    const float base = best * scaleLog2;
    float added = 0.0f;
#pragma unroll
    for (int j = 0; j < kScores / 4; ++j) {
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

template <class T, int kScores>
__device__ __forceinline__ void packWeights(const float (&scores)[kScores],
                                            uint32_t (&weights)[kScores / 2]) {
#pragma unroll
  for (int i = 0; i < kScores / 2; ++i) weights[i] = packPair<T>(scores[2 * i], scores[2 * i + 1]);
}

template <class T, int kDim>
__device__ __forceinline__ void consume(SharedMemoryPlan<kDim>& shared, const TileWork& work,
                                        const ChunkLayout& layout, const Workspace& workspace,
                                        const Tensors& tensors) {
  using Traits = AttendTraits<kDim>;
  const int consumer = (threadIdx.x - kProducerThreads) / 128;
  const int thread = threadIdx.x % 128;
  const int lane = thread % 32;
  const bool signals = lane == 0;
  const float scaleLog2 = tensors.scale * kLog2E;

  for (int i = thread; i < 64 * (kDim / 8); i += 128) {
    const int row = consumer * 64 + i / (kDim / 8);
    const int piece = i % (kDim / 8);
    const int position = work.tileRow + row;
    const bool valid = position >= work.rowBegin && position < work.rowEnd;
    const int64_t source =
        valid ? (int64_t(position - layout.begin) * layout.heads + work.head) * kDim + piece * 8
              : 0;
    copyAsync16(sharedAddress(shared.queries) + tileOffset<kDim, 128>(row, piece),
                static_cast<const T*>(tensors.queries) + source, valid);
  }
  copyAsyncCommit();
  copyAsyncWait<0>();
  fenceAsyncProxy();
  namedBarrierSync(kQueriesLoaded + consumer, 128);
  if (consumer == 1) namedBarrierArrive(kTurn, kConsumerThreads);

  const TileCounts counts = countTiles<Traits::kColumns>(work);
  const uint32_t queryTile = sharedAddress(shared.queries) + consumer * 64 * 128;
  // Position of this thread's rows within the tile.
  const int row0 = consumer * 64 + thread / 32 * 16 + lane / 4;
  const int tailLast = (work.listed - 1) % Traits::kColumns;
  // Tiles of which the first row does not see all columns, and what row 0 sees last of tile 0.
  const int diagonalTiles = (work.runEnd - work.tileRow + Traits::kColumns - 1) / Traits::kColumns;
  const int firstLast = row0 + work.tileRow - work.runEnd + Traits::kColumns;

  OutputParts<kDim> accumulated = {};
  float maximum[2] = {kLowestMaximum, kLowestMaximum};
  float sum[2] = {0.0f, 0.0f};
  float rescale[2];
  float scores[Traits::kScores];
  uint32_t weights[Traits::kWeights];

  barrierWait(sharedAddress(&shared.keysFull[0]), 0);
  fenceAsyncProxy();
  namedBarrierSync(kTurn + consumer, kConsumerThreads);
  issueScores<T, kDim>(scores, queryTile, sharedAddress(shared.keys[0]));
  namedBarrierArrive(kTurn + (consumer ^ 1), kConsumerThreads);
  wgmmaWait<0>();
  pinRegisters(scores);
  if (signals) barrierArrive(sharedAddress(&shared.keysEmpty[0]));
  maskScores<8>(scores, firstLast);
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
    pinParts(accumulated);
    issueOutput<T, kDim>(accumulated, weights, sharedAddress(shared.values[previousStage]));
    namedBarrierArrive(kTurn + (consumer ^ 1), kConsumerThreads);
    wgmmaWait<1>();
    pinRegisters(scores);
    if (signals) barrierArrive(sharedAddress(&shared.keysEmpty[stage]));
    if (tile < diagonalTiles) maskScores<8>(scores, firstLast + tile * Traits::kColumns);
    if (tile == counts.total - 1 && tile >= counts.run) maskScores<0>(scores, tailLast);
    onlineSoftmax(scores, maximum, sum, rescale, scaleLog2);
    wgmmaWait<0>();
    pinParts(accumulated);
    if (signals) barrierArrive(sharedAddress(&shared.valuesEmpty[previousStage]));
#pragma unroll
    for (int part = 0; part < Traits::kParts; ++part) {
#pragma unroll
      for (int i = 0; i < Traits::kPartDim / 2; ++i) accumulated[part][i] *= rescale[i % 4 / 2];
    }
    packWeights<T>(scores, weights);
  }
  barrierWait(sharedAddress(&shared.valuesFull[stage]), parity);
  fenceAsyncProxy();
  pinParts(accumulated);
  issueOutput<T, kDim>(accumulated, weights, sharedAddress(shared.values[stage]));
  wgmmaWait<0>();
  pinParts(accumulated);
  // The turn that consumer 1 gave away last stays open; take it, so that none is left at exit.
  if (consumer == 0) namedBarrierSync(kTurn, kConsumerThreads);

#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float total = sum[half];
    total += __shfl_xor_sync(~0u, total, 1);
    total += __shfl_xor_sync(~0u, total, 2);
    const int position = work.tileRow + row0 + 8 * half;
    if (position < work.rowBegin || position >= work.rowEnd) continue;
    const int64_t row = position - layout.begin;
    const auto pairOf = [&](int j) {
      constexpr int kPartTiles = Traits::kPartDim / 8;
      return accumulated[j / kPartTiles] + 4 * (j % kPartTiles) + 2 * half;
    };
    if (layout.columnSplits > 1) {
      const int64_t slot = partialSlot(layout, work.split, row, work.head);
      float* target = workspace.partialOutputs + slot * kDim + lane % 4 * 2;
#pragma unroll
      for (int j = 0; j < kDim / 8; ++j) {
        const float* pair = pairOf(j);
        *reinterpret_cast<float2*>(target + j * 8) = make_float2(pair[0], pair[1]);
      }
      if (lane % 4 == 0) workspace.partialSums[slot] = make_float2(maximum[half], total);
      continue;
    }
    const float inverse = 1.0f / total;
    T* target =
        static_cast<T*>(tensors.output) + (row * layout.heads + work.head) * kDim + lane % 4 * 2;
#pragma unroll
    for (int j = 0; j < kDim / 8; ++j) {
      const float* pair = pairOf(j);
      *reinterpret_cast<uint32_t*>(target + j * 8) =
          packPair<T>(pair[0] * inverse, pair[1] * inverse);
    }
    if (tensors.logSumExp != nullptr && lane % 4 == 0) {
      tensors.logSumExp[int64_t(work.head) * (layout.end - layout.begin) + row] =
          (maximum[half] * scaleLog2 + log2f(total)) * kLn2;
    }
  }
}

template <class T, int kDim>
__global__ __launch_bounds__(kThreads, 1) void attend(const __grid_constant__ ChunkLayout layout,
                                                      const __grid_constant__ Workspace workspace,
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
    releaseRegisters<AttendTraits<kDim>::kProducerRegisters>();
    produce<T, kDim>(shared, work, keyMap, valueMap, static_cast<const T*>(tensors.keys),
                     static_cast<const T*>(tensors.values), tensors.capacityRows);
  } else {
    claimRegisters<AttendTraits<kDim>::kConsumerRegisters>();
    consume<T, kDim>(shared, work, layout, workspace, tensors);
  }
}

// ---- launch
// --------------------------------------------------------------------------------------
using EncodeTiled = CUresult (*)(CUtensorMap*, CUtensorMapDataType, cuuint32_t, void*,
                                 const cuuint64_t*, const cuuint64_t*, const cuuint32_t*,
                                 const cuuint32_t*, CUtensorMapInterleave, CUtensorMapSwizzle,
                                 CUtensorMapL2promotion, CUtensorMapFloatOOBfill);

// A map of [kvHead][row][element] that ends at `rows`, for boxes of boxRows rows of 64 elements.
cudaError_t makeMap(CUtensorMap& map, const void* base, const HeadShape& shape, int64_t rows,
                    int64_t capacityRows, cuuint32_t boxRows) {
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
  const cuuint32_t box[3] = {64, boxRows, 1};
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
  constexpr cuuint32_t kBoxRows = AttendTraits<kDim>::kColumns;
  cudaError_t error =
      makeMap(keyMap, tensors.keys, shape, context.layout.end, tensors.capacityRows, kBoxRows);
  if (error == cudaSuccess) {
    error = makeMap(valueMap, tensors.values, shape, context.layout.end, tensors.capacityRows,
                    kBoxRows);
  }
  constexpr int kBytes = sizeof(SharedMemoryPlan<kDim>);
  static_assert(kBytes <= 227 * 1024);
  if (error == cudaSuccess) error = allowShared(attend<T, kDim>, kBytes);
  if (error != cudaSuccess) return error;
  attend<T, kDim><<<attendBlocks(context.layout), kThreads, kBytes, context.stream>>>(
      context.layout, context.workspace, keyMap, valueMap, tensors);
  return cudaGetLastError();
}

}  // namespace

cudaError_t launchAttendWgmma(const LaunchContext& context) {
  return dispatchHead(context.chunk.shape,
                      [&]<class T, int kDim>() { return launch<T, kDim>(context); });
}

}  // namespace longsight::cuda
