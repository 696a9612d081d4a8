// Linear layers on sm_90a. A block makes 128 outputs (the product's m, the weight's rows) of kRows
// rows of the input (its n): one producer warp that copies by TMA, two consumer warpgroups of 64
// outputs each that multiply. Two blocks of a cluster take neighbouring outputs of the same rows,
// and each copies half of the input for both.
//
// Many tiles: blocks stay and walk over them, and while consumers write one tile the producer
// already copies the next. Few tiles: a cluster splits the inner dimension as well; its blocks put
// their sums into shared memory, and each adds up a slice of the rows, in the order of the splits.
#include <algorithm>
#include <array>
#include <atomic>
#include <limits>
#include <utility>

#include "device/dependent_launch.cuh"
#include "device/tma.cuh"
#include "device/wgmma_wide_sm90.cuh"
#include "linear/write_sums_sm90.cuh"

namespace longsight::cuda {
namespace {

__device__ __forceinline__ void prefetchNear(const void* address) {
  asm volatile("prefetch.global.L1 [%0];" ::"l"(address));
}

// Position in a ring of stages; a fresh one is at the first stage's first use.
template <int kStages>
struct Ring {
  int stage = 0;
  uint32_t parity = 0;
  __device__ void next() {
    if (++stage == kStages) {
      stage = 0;
      parity ^= 1;
    }
  }
};

struct ClusterPlace {
  int32_t split;
  int32_t pairIndex;
  int32_t firstUnit;
  int32_t unitStep;

  __device__ explicit ClusterPlace(const LinearWork& work) {
    const auto rank = static_cast<int32_t>(clusterRank());
    split = rank / kPair;
    pairIndex = rank % kPair;
    firstUnit = static_cast<int32_t>(blockIdx.x) / (work.splits * kPair);
    unitStep = static_cast<int32_t>(gridDim.x) / (work.splits * kPair);
  }
};

template <class Number, int kRows>
__device__ void produce(SharedMemoryPlan<kRows>& shared, const LinearWork& work,
                        const ClusterPlace& place, const CUtensorMap& weightMap,
                        const CUtensorMap& inputMap) {
  using T = Tile<kRows>;
  const int32_t begin = work.steps * place.split / work.splits;
  const int32_t end = work.steps * (place.split + 1) / work.splits;
  const auto pairBlocks = static_cast<uint16_t>(3 << (place.split * kPair));
  const int32_t half = place.pairIndex * (kRows / kPair);
  Ring<T::kStages> ring;
  for (int32_t unit = place.firstUnit; unit < work.outputPairs * work.rowTiles;
       unit += place.unitStep) {
    const TilePart tile = findTile(work, unit, place.pairIndex);
    for (int32_t step = begin; step < end; ++step, ring.next()) {
      barrierWait(sharedAddress(&shared.empty[ring.stage]), ring.parity ^ 1);
      const uint32_t full = sharedAddress(&shared.full[ring.stage]);
      barrierArriveExpect(full, T::kWeightBytes + T::kInputBytes);
      const uint32_t weight = sharedAddress(shared.weight[ring.stage]);
      if (work.epilogue == LinearEpilogue::swigluBf16) {
        copyBox(weight, &weightMap, full, step * kInner<Number>, 0, 0, tile.output0 / 16);
      } else {
        copyBox(weight, &weightMap, full, step * kInner<Number>, tile.output0);
      }
      copyBoxToBlocks(sharedAddress(shared.input[ring.stage]) + half * kInnerBytes, &inputMap, full,
                      pairBlocks, step * kInner<Number>, tile.rowTile * kRows + half);
    }
  }
}

// Puts the sums where other blocks of the cluster read them: [group of 4][consumer thread].
template <int kRows>
__device__ void sharePartialSums(SharedMemoryPlan<kRows>& shared, int thread,
                                 const float (&sums)[Tile<kRows>::kSums]) {
  // The stages are free when both warpgroups have read the last of them.
  namedBarrierSync(1 + kGroups, kConsumers);
#pragma unroll
  for (int i = 0; i < Tile<kRows>::kSums; i += 4) {
    shared.partialSums()[i / 4 * kConsumers + thread] = {sums[i], sums[i + 1], sums[i + 2],
                                                         sums[i + 3]};
  }
  clusterSync();
}

// Rows of a split tile that one block finishes; the last block's are fewer where they do not
// divide.
template <int kRows>
__host__ __device__ constexpr int32_t sliceRows(int32_t splits) {
  return (kRows / kBoxRows + splits - 1) / splits * kBoxRows;
}

// Adds up this block's slice of the rows over the splits. Beyond the slice's rows sums mean
// nothing.
template <int kRows, int kSplits>
__device__ void gatherSlice(SharedMemoryPlan<kRows>& shared, const ClusterPlace& place, int thread,
                            float (&sums)[kRows / 4]) {
  constexpr int kCount = sliceRows<kRows>(kSplits) / 2;
  static_assert(kCount <= kRows / 4 && kSplits * kCount * kConsumers * 4 <= Tile<kRows>::kAllBytes);
  const uint32_t own =
      sharedAddress(shared.partialSums() + place.split * (kCount / 4) * kConsumers + thread);
#pragma unroll
  for (float& sum : sums) sum = 0.0f;
#pragma unroll
  for (int split = 0; split < kSplits; ++split) {
    const uint32_t partial = addressInBlock(own, split * kPair + place.pairIndex);
    float4 values[kCount / 4];
#pragma unroll
    for (int i = 0; i < kCount / 4; ++i) {
      values[i] = loadFromCluster(partial + i * kConsumers * sizeof(float4));
    }
#pragma unroll
    for (int i = 0; i < kCount; ++i) sums[i] += reinterpret_cast<const float*>(values)[i];
  }
}

template <class Number, int kRows>
__device__ void consume(SharedMemoryPlan<kRows>& shared, const LinearWork& work,
                        const ClusterPlace& place, const CUtensorMap& outputMap) {
  using T = Tile<kRows>;
  const int thread = static_cast<int>(threadIdx.x) - kProducerThreads;
  const int group = thread / kGroupThreads;
  const int lane = thread % 32;
  const int32_t steps =
      work.steps * (place.split + 1) / work.splits - work.steps * place.split / work.splits;
  Writer writer{sharedAddress(shared.chunks[group]), group, thread % kGroupThreads};
  // Lanes 0 and 1 tell the pair's two producers that a stage is read.
  const uint32_t emptyOfPair = addressInBlock(
      sharedAddress(shared.empty), static_cast<uint32_t>(place.split * kPair + lane % kPair));
  const auto release = [&](int stage) {
    if (lane < kPair) barrierArriveInCluster(emptyOfPair + stage * 8);
  };
  float sums[T::kSums];
  Ring<T::kStages> ring;
  for (int32_t unit = place.firstUnit; unit < work.outputPairs * work.rowTiles;
       unit += place.unitStep) {
    const TilePart tile = findTile(work, unit, place.pairIndex);
    pinRegisters(sums);
    if constexpr (std::is_same_v<Number, E4m3>) {
      // So that the scales are near when the tile is written.
      const int32_t row = tile.rowTile * kRows + lane * 32;
      if (lane < kRows / 32 && row < work.rows) prefetchNear(work.inputScales + row);
    }
    int previous = 0;
    for (int32_t step = 0; step < steps; ++step, ring.next()) {
      barrierWait(sharedAddress(&shared.full[ring.stage]), ring.parity);
      const uint64_t weight =
          wideRowsDescriptor(sharedAddress(shared.weight[ring.stage]) + group * (64 * kInnerBytes));
      const uint64_t input = wideRowsDescriptor(sharedAddress(shared.input[ring.stage]));
      wgmmaFence();
#pragma unroll
      for (int k = 0; k < kInnerBytes / kProductBytes; ++k) {
        wgmmaShared(Number{}, sums, weight + 2 * k, input + 2 * k, step > 0 || k > 0);
      }
      wgmmaCommit();
      wgmmaWait<1>();
      if (step > 0) release(previous);
      previous = ring.stage;
    }
    wgmmaWait<0>();
    pinRegisters(sums);
    release(previous);
    const int32_t output0 = tile.output0 + group * 64;
    if (work.splits == 1) {
      writeSums<Number>(writer, work, outputMap, sums, output0, tile.rowTile * kRows, kRows);
      continue;
    }
    sharePartialSums(shared, thread, sums);
    float sliceSums[kRows / 4];
    if (work.splits == 2) {
      gatherSlice<kRows, 2>(shared, place, thread, sliceSums);
    } else if (work.splits == 3) {
      gatherSlice<kRows, 3>(shared, place, thread, sliceSums);
    } else {
      gatherSlice<kRows, 4>(shared, place, thread, sliceSums);
    }
    const int32_t slice = sliceRows<kRows>(work.splits);
    const int32_t first = place.split * slice;
    writeSums<Number>(writer, work, outputMap, sliceSums, output0, tile.rowTile * kRows + first,
                      min(slice, kRows - first));
    break;
  }
  if (writer.thread == 0) storeWait();
}

template <class Number, int kRows>
__global__ __launch_bounds__(kThreads,
                             1) void multiply(const __grid_constant__ LinearWork work,
                                              const __grid_constant__ CUtensorMap weightMap,
                                              const __grid_constant__ CUtensorMap inputMap,
                                              const __grid_constant__ CUtensorMap outputMap) {
  extern __shared__ __align__(1024) unsigned char sharedBytes[];
  auto& shared = *reinterpret_cast<SharedMemoryPlan<kRows>*>(sharedBytes);
  const ClusterPlace place(work);
  if (threadIdx.x == 0) {
    prefetchMap(&weightMap);
    prefetchMap(&inputMap);
    prefetchMap(&outputMap);
    for (int stage = 0; stage < Tile<kRows>::kStages; ++stage) {
      barrierInit(sharedAddress(&shared.full[stage]), 1);
      barrierInit(sharedAddress(&shared.empty[stage]), kPair * kConsumers / 32);
    }
    barrierInitFence();
  }
  clusterSync();
  waitForPrevious();
  letNextStart();
  // Split tiles: one more meeting of all threads, when the partial sums lie in shared memory. A
  // split cluster has exactly one tile.
  if (threadIdx.x < kProducerThreads) {
    releaseRegisters<kProducerRegisters>();
    if (threadIdx.x == 0) produce<Number>(shared, work, place, weightMap, inputMap);
    __syncwarp();
    if (work.splits > 1) clusterSync();
    clusterSync();
  } else {
    claimRegisters<kConsumerRegisters>();
    consume<Number>(shared, work, place, outputMap);
    __syncwarp();
    // No block leaves while another may still signal it or read its sums.
    clusterSync();
  }
}

// ---- launch
// --------------------------------------------------------------------------------------
using EncodeTiled = CUresult (*)(CUtensorMap*, CUtensorMapDataType, cuuint32_t, void*,
                                 const cuuint64_t*, const cuuint64_t*, const cuuint32_t*,
                                 const cuuint32_t*, CUtensorMapInterleave, CUtensorMapSwizzle,
                                 CUtensorMapL2promotion, CUtensorMapFloatOOBfill);

// A map of up to four dimensions, the first contiguous; strides in bytes, of the others.
template <size_t kDims>
cudaError_t makeMap(CUtensorMap& map, CUtensorMapDataType type, const void* base,
                    const std::array<cuuint64_t, kDims>& extents,
                    const std::array<cuuint64_t, kDims - 1>& strides,
                    const std::array<cuuint32_t, kDims>& box, CUtensorMapSwizzle swizzle) {
  static void* const entry = [] {
    void* found = nullptr;
    cudaDriverEntryPointQueryResult result{};
    const cudaError_t error = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &found,
                                                               12000, cudaEnableDefault, &result);
    return error == cudaSuccess && result == cudaDriverEntryPointSuccess ? found : nullptr;
  }();
  if (entry == nullptr) return cudaErrorNotSupported;
  std::array<cuuint32_t, kDims> steps;
  steps.fill(1);
  const CUresult result = reinterpret_cast<EncodeTiled>(entry)(
      &map, type, kDims, const_cast<void*>(base), extents.data(), strides.data(), box.data(),
      steps.data(), CU_TENSOR_MAP_INTERLEAVE_NONE, swizzle, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
      CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return result == CUDA_SUCCESS ? cudaSuccess : cudaErrorInvalidValue;
}

template <class Number>
constexpr CUtensorMapDataType kMapType =
    std::is_same_v<Number, E4m3> ? CU_TENSOR_MAP_DATA_TYPE_UINT8 : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;

template <class Number>
cudaError_t makeWeightMap(CUtensorMap& map, const LinearTask& task) {
  const auto inner = static_cast<cuuint64_t>(task.inner);
  const auto outputs = static_cast<cuuint64_t>(task.outputs);
  const cuuint64_t rowBytes = inner * kInnerBytes / kInner<Number>;
  if (task.epilogue != LinearEpilogue::swigluBf16) {
    return makeMap<2>(map, kMapType<Number>, task.weight, {inner, outputs}, {rowBytes},
                      {kInner<Number>, kOutputs}, CU_TENSOR_MAP_SWIZZLE_128B);
  }
  // Of 16 rows first the even ones, then the odd: gate and up of a feature meet in one thread.
  return makeMap<4>(map, kMapType<Number>, task.weight, {inner, 8, 2, outputs / 16},
                    {2 * rowBytes, rowBytes, 16 * rowBytes}, {kInner<Number>, 8, 2, kOutputs / 16},
                    CU_TENSOR_MAP_SWIZZLE_128B);
}

cudaError_t makeOutputMap(CUtensorMap& map, const LinearTask& task) {
  const auto rows = static_cast<cuuint64_t>(task.rows);
  const auto outputs = static_cast<cuuint64_t>(task.outputs);
  switch (task.epilogue) {
    case LinearEpilogue::storeBf16:
      return makeMap<2>(map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, task.output, {outputs, rows},
                        {outputs * 2}, {64, kBoxRows}, CU_TENSOR_MAP_SWIZZLE_128B);
    case LinearEpilogue::swigluBf16:
      return makeMap<2>(map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, task.output, {outputs / 2, rows},
                        {outputs}, {32, kBoxRows}, CU_TENSOR_MAP_SWIZZLE_64B);
    default:
      return makeMap<2>(map, CU_TENSOR_MAP_DATA_TYPE_FLOAT32, task.output, {outputs, rows},
                        {outputs * 4}, {32, kBoxRows}, CU_TENSOR_MAP_SWIZZLE_128B);
  }
}

template <int kRows>
struct LaunchShape {
  static constexpr int kBytes = sizeof(SharedMemoryPlan<kRows>);
  static_assert(kBytes <= 227 * 1024);
  cudaLaunchAttribute attributes[2] = {};
  cudaLaunchConfig_t config{};

  LaunchShape(int32_t splits, int64_t clusters, cudaStream_t stream) {
    const auto blocks = static_cast<unsigned>(kPair * splits);
    attributes[0].id = cudaLaunchAttributeClusterDimension;
    attributes[0].val.clusterDim = {blocks, 1, 1};
    attributes[1].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[1].val.programmaticStreamSerializationAllowed = 1;
    config.gridDim = dim3(static_cast<unsigned>(clusters) * blocks);
    config.blockDim = dim3(kThreads);
    config.dynamicSmemBytes = kBytes;
    config.stream = stream;
    config.attrs = attributes;
    config.numAttrs = 2;
  }
  LaunchShape(const LaunchShape&) = delete;
  LaunchShape& operator=(const LaunchShape&) = delete;
};

// Clusters that the device runs at a time: fewer than its processors hold, since a cluster does not
// reach beyond a group of processors, and those differ in size. All tiles take a processor a block.
int32_t clusterSlots(const DeviceTraits& device, int32_t splits) {
  static std::array<std::atomic<int64_t>, kMostSplits + 1> known{};
  const int64_t packed = known[splits].load(std::memory_order_relaxed);
  if (packed >> 32 == device.processors) return static_cast<int32_t>(packed);
  int slots = 0;
  LaunchShape<256> shape(splits, device.processors, nullptr);
  if (allowShared(multiply<Bf16, 256>, shape.kBytes) != cudaSuccess ||
      cudaOccupancyMaxActiveClusters(&slots, multiply<Bf16, 256>, &shape.config) != cudaSuccess) {
    cudaGetLastError();
    slots = device.processors / (kPair * splits);
  }
  slots = std::max(slots, 1);
  known[splits].store(int64_t{device.processors} << 32 | slots, std::memory_order_relaxed);
  return slots;
}

template <class Number, int kRows>
cudaError_t launch(const LinearTask& task, const DeviceTraits& device, const LinearTiling& tiling,
                   cudaStream_t stream) {
  const int32_t splits = tiling.splits;
  LinearWork work{};
  work.bias = task.bias;
  work.inputScales = task.inputScales;
  work.weightScales = task.weightScales;
  work.epilogue = task.epilogue;
  work.rows = static_cast<int32_t>(task.rows);
  work.outputs = task.outputs;
  work.steps = static_cast<int32_t>(divideUp(task.inner, kInner<Number>));
  work.splits = splits;
  work.outputPairs = static_cast<int32_t>(divideUp(task.outputs, kPair * kOutputs));
  work.rowTiles = static_cast<int32_t>(divideUp(task.rows, kRows));
  work.bandTiles = std::min(work.rowTiles, tiling.bandTiles);
  const int64_t units = int64_t{work.outputPairs} * work.rowTiles;
  if (units * kPair * splits > INT32_MAX) return cudaErrorInvalidValue;

  CUtensorMap weightMap, inputMap, outputMap;
  const auto inner = static_cast<cuuint64_t>(task.inner);
  cudaError_t error = makeWeightMap<Number>(weightMap, task);
  if (error == cudaSuccess) {
    error = makeMap<2>(inputMap, kMapType<Number>, task.input,
                       {inner, static_cast<cuuint64_t>(task.rows)},
                       {inner * kInnerBytes / kInner<Number>}, {kInner<Number>, kRows / kPair},
                       CU_TENSOR_MAP_SWIZZLE_128B);
  }
  if (error == cudaSuccess) error = makeOutputMap(outputMap, task);
  if (error == cudaSuccess)
    error = allowShared(multiply<Number, kRows>, LaunchShape<kRows>::kBytes);
  if (error != cudaSuccess) return error;
  const int64_t clusters =
      splits > 1 ? units : std::min<int64_t>(units, clusterSlots(device, splits));
  LaunchShape<kRows> shape(splits, clusters, stream);
  return cudaLaunchKernelEx(&shape.config, multiply<Number, kRows>, work, weightMap, inputMap,
                            outputMap);
}

}  // namespace

// A stage takes its products or its copies from L2 (stageUs), or the weight's way from memory where
// few tiles of rows share it; a tile some more. Times are an H100's.
LinearTiling chooseTiling(const LinearTask& task, const DeviceTraits& device) {
  constexpr double kMemoryBytesPerUs = 2.9e6;
  constexpr double kTileUs = 3.0;
  constexpr double kSplitUs = 3.0;
  constexpr double kWeightBytes = kOutputs * kInnerBytes;
  const int32_t inner = task.numbers == LinearNumbers::e4m3 ? kInner<E4m3> : kInner<Bf16>;
  constexpr int32_t kBandRows = 2048;
  const auto steps = static_cast<int32_t>(divideUp(task.inner, inner));
  const int64_t outputPairs = divideUp(task.outputs, kPair * kOutputs);
  LinearTiling best{};
  double bestUs = std::numeric_limits<double>::infinity();
  // Copies of rows beyond the last cost as much, so of equals the smaller tile is taken.
  for (const auto& [tileRows, stageUs] :
       {std::pair{64, 0.24}, std::pair{128, 0.37}, std::pair{192, 0.47}, std::pair{256, 0.56}}) {
    const int32_t bandTiles = kBandRows / tileRows;
    const int64_t rowTiles = divideUp(task.rows, tileRows);
    const int64_t units = outputPairs * rowTiles;
    for (int32_t splits = 1; splits <= std::min(kMostSplits, steps); ++splits) {
      const int64_t slots = clusterSlots(device, splits);
      const auto active = static_cast<double>(std::min(units, slots) * kPair * splits);
      const double memoryUs = kWeightBytes * active / kMemoryBytesPerUs /
                              static_cast<double>(std::min<int64_t>(rowTiles, bandTiles));
      const double tileUs =
          static_cast<double>(divideUp(steps, splits)) * std::max(stageUs, memoryUs) + kTileUs;
      const double us =
          static_cast<double>(divideUp(units, slots)) * tileUs + (splits > 1 ? kSplitUs : 0.0);
      if (us < bestUs) {
        bestUs = us;
        best = {tileRows, splits, bandTiles};
      }
    }
  }
  return best;
}

cudaError_t launchLinearWgmma(const LinearTask& task, const DeviceTraits& device,
                              const LinearTiling& tiling, cudaStream_t stream) {
  const auto withRows = [&]<class Number>() {
    switch (tiling.tileRows) {
      case 64:
        return launch<Number, 64>(task, device, tiling, stream);
      case 128:
        return launch<Number, 128>(task, device, tiling, stream);
      case 192:
        return launch<Number, 192>(task, device, tiling, stream);
      case 256:
        return launch<Number, 256>(task, device, tiling, stream);
      default:
        return cudaErrorInvalidValue;
    }
  };
  return task.numbers == LinearNumbers::e4m3 ? withRows.template operator()<E4m3>()
                                             : withRows.template operator()<Bf16>();
}

}  // namespace longsight::cuda
