// Linear layers with mma.sync, on every device. A block makes a tile of rows and outputs; copies of
// the next slices of the inner dimension (cp.async) run while one is multiplied.
//
// Products of few tiles are split over the inner dimension: the parts write their sums to the
// workspace, and a second kernel adds them up in order and does the rest.
#include <algorithm>

#include "device/mma_sm80.cuh"
#include "linear/linear_launch.h"
#include "linear/swiglu.cuh"

namespace longsight::cuda {
namespace {

// Elements of the inner dimension in a stage: rows of 64 bytes.
constexpr int kInner = 32;
// Tiles of rows that are taken together, for all outputs, before the next ones are.
constexpr int kBandTiles = 16;

template <int kTileRows, int kTileOutputs, int kWarpsOfRows, int kWarpsOfOutputs, int kStageCount>
struct Tile {
  static constexpr int kRows = kTileRows;
  static constexpr int kOutputs = kTileOutputs;
  static constexpr int kStages = kStageCount;
  static constexpr int kThreads = 32 * kWarpsOfRows * kWarpsOfOutputs;
  static constexpr int kOutputWarps = kWarpsOfOutputs;
  // Of a warp, in products of 16 rows by 8 outputs.
  static constexpr int kProductRows = kRows / kWarpsOfRows / 16;
  static constexpr int kProductOutputs = kOutputs / kWarpsOfOutputs / 8;
  static constexpr int kInputBytes = kRows * kInner * 2;
  static constexpr int kStageBytes = kInputBytes + kOutputs * kInner * 2;
  static constexpr int kSharedBytes = kStages * kStageBytes;
  static_assert(kSharedBytes <= kSharedBytesEverywhere);
};
using LargeTile = Tile<128, 256, 2, 4, 4>;
using SmallTile = Tile<64, 64, 2, 2, 6>;

// Where sums go. With SwiGLU outputs stand in the order in which the weight's rows are loaded: of
// 16, first 8 gates, then the 8 that belong to them.
struct Target {
  const float* bias;
  void* output;
  LinearEpilogue epilogue;
  int64_t rows;
  int32_t outputs;
};

// The weight's row that is loaded as row `loaded`.
__device__ int32_t weightRow(LinearEpilogue epilogue, int32_t loaded) {
  if (epilogue != LinearEpilogue::swigluBf16) return loaded;
  return loaded / 16 * 16 + loaded % 8 * 2 + loaded % 16 / 8;
}

__device__ float2 biased(const Target& target, float2 sums, int32_t first, int32_t second) {
  if (target.bias == nullptr) return sums;
  return {sums.x + target.bias[first], sums.y + target.bias[second]};
}

// Outputs `output` and the next of a row; not for SwiGLU.
__device__ void writePair(const Target& target, int64_t row, int32_t output, float2 sums) {
  sums = biased(target, sums, output, output + 1);
  const int64_t place = row * target.outputs + output;
  if (target.epilogue == LinearEpilogue::storeBf16) {
    *reinterpret_cast<uint32_t*>(static_cast<Bf16*>(target.output) + place) =
        packPair<Bf16>(sums.x, sums.y);
    return;
  }
  auto* values = reinterpret_cast<float2*>(static_cast<float*>(target.output) + place);
  if (target.epilogue == LinearEpilogue::addToF32) {
    const float2 before = *values;
    sums = {before.x + sums.x, before.y + sums.y};
  }
  *values = sums;
}

// The features whose gates were loaded as `loaded` and the next.
__device__ void writeSwiglu(const Target& target, int64_t row, int32_t loaded, float2 gates,
                            float2 ups) {
  const int32_t gate = weightRow(target.epilogue, loaded);
  gates = biased(target, gates, gate, gate + 2);
  ups = biased(target, ups, gate + 1, gate + 3);
  *reinterpret_cast<uint32_t*>(static_cast<Bf16*>(target.output) + row * (target.outputs / 2) +
                               gate / 2) =
      packPair<Bf16>(swiglu1(gates.x, ups.x), swiglu1(gates.y, ups.y));
}

struct Product {
  const Bf16* input;
  const Bf16* weight;
  Target target;
  // [split][rows][outputs], only with splits.
  float* partial;
  int32_t inner;
  int32_t splits;
  int32_t rowTiles;
  int32_t outputTiles;
};

template <class T>
__global__ __launch_bounds__(T::kThreads) void multiply(const __grid_constant__ Product product) {
  extern __shared__ __align__(1024) unsigned char sharedBytes[];
  const uint32_t shared = sharedAddress(sharedBytes);
  const Target& target = product.target;
  const int thread = static_cast<int>(threadIdx.x);
  const int lane = thread % 32;
  const int warpRow = thread / 32 / T::kOutputWarps * (T::kProductRows * 16);
  const int warpOutput = thread / 32 % T::kOutputWarps * (T::kProductOutputs * 8);

  const int64_t unit = blockIdx.x;
  const int64_t bandUnits = int64_t{kBandTiles} * product.outputTiles;
  const auto band = static_cast<int32_t>(unit / bandUnits);
  const auto inBand = static_cast<int32_t>(unit % bandUnits);
  const int32_t width = min(kBandTiles, product.rowTiles - band * kBandTiles);
  const int64_t row0 = int64_t{band * kBandTiles + inBand % width} * T::kRows;
  const int32_t output0 = inBand / width * T::kOutputs;
  const auto split = static_cast<int32_t>(blockIdx.y);
  const int32_t allSteps = (product.inner + kInner - 1) / kInner;
  const auto firstStep = static_cast<int32_t>(int64_t{allSteps} * split / product.splits);
  const auto steps =
      static_cast<int32_t>(int64_t{allSteps} * (split + 1) / product.splits) - firstStep;

  constexpr int kPieces = kInner / 8;
  const auto load = [&](int32_t step) {
    if (step < steps) {
      const uint32_t stage = shared + step % T::kStages * T::kStageBytes;
      const int32_t element0 = (firstStep + step) * kInner;
#pragma unroll
      for (int i = thread; i < (T::kRows + T::kOutputs) * kPieces; i += T::kThreads) {
        const int row = i / kPieces;
        const int32_t element = element0 + i % kPieces * 8;
        const uint32_t place = stage + swizzledOffset<64>(row, i % kPieces);
        if (row < T::kRows) {
          const bool valid = row0 + row < target.rows && element < product.inner;
          const int64_t offset = valid ? (row0 + row) * product.inner + element : 0;
          copyAsync16(place, product.input + offset, valid);
        } else {
          const int32_t source = weightRow(target.epilogue, output0 + row - T::kRows);
          const bool valid = source < target.outputs && element < product.inner;
          const int64_t offset = valid ? int64_t{source} * product.inner + element : 0;
          copyAsync16(place, product.weight + offset, valid);
        }
      }
    }
    copyAsyncCommit();
  };

  float sums[T::kProductRows][T::kProductOutputs][4] = {};
#pragma unroll
  for (int stage = 0; stage < T::kStages - 1; ++stage) load(stage);
  for (int32_t step = 0; step < steps; ++step) {
    copyAsyncWait<T::kStages - 2>();
    __syncthreads();
    load(step + T::kStages - 1);
    const uint32_t input = shared + step % T::kStages * T::kStageBytes;
    const uint32_t weight = input + T::kInputBytes;
#pragma unroll
    for (int k = 0; k < kInner / 16; ++k) {
      uint32_t a[T::kProductRows][4];
#pragma unroll
      for (int i = 0; i < T::kProductRows; ++i) {
        loadMatrix4(a[i],
                    input + swizzledOffset<64>(warpRow + i * 16 + lane % 16, k * 2 + lane / 16));
      }
#pragma unroll
      for (int j = 0; j < T::kProductOutputs; j += 2) {
        uint32_t b[4];
        loadMatrix4(b, weight + swizzledOffset<64>(warpOutput + j * 8 + lane / 16 * 8 + lane % 8,
                                                   k * 2 + lane / 8 % 2));
#pragma unroll
        for (int i = 0; i < T::kProductRows; ++i) {
          mma16x8x16<Bf16>(sums[i][j], a[i], b[0], b[1]);
          mma16x8x16<Bf16>(sums[i][j + 1], a[i], b[2], b[3]);
        }
      }
    }
  }

  const bool swiglu = target.epilogue == LinearEpilogue::swigluBf16;
#pragma unroll
  for (int i = 0; i < T::kProductRows; ++i) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int64_t row = row0 + warpRow + i * 16 + half * 8 + lane / 4;
      if (row >= target.rows) continue;
#pragma unroll
      for (int j = 0; j < T::kProductOutputs; ++j) {
        const int32_t output = output0 + warpOutput + j * 8 + lane % 4 * 2;
        if (output >= target.outputs) break;
        const float2 pair{sums[i][j][2 * half], sums[i][j][2 * half + 1]};
        if (product.splits > 1) {
          const int64_t place = (split * target.rows + row) * target.outputs + output;
          *reinterpret_cast<float2*>(product.partial + place) = pair;
        } else if (!swiglu) {
          writePair(target, row, output, pair);
        } else if (j % 2 == 0) {
          writeSwiglu(target, row, output, pair,
                      {sums[i][j + 1][2 * half], sums[i][j + 1][2 * half + 1]});
        }
      }
    }
  }
}

// One thread for two outputs of a row, with SwiGLU for two features.
__global__ __launch_bounds__(256) void addSplits(const __grid_constant__ Product product) {
  const Target& target = product.target;
  const bool swiglu = target.epilogue == LinearEpilogue::swigluBf16;
  const int32_t perRow = target.outputs / (swiglu ? 4 : 2);
  const int64_t index = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (index >= target.rows * perRow) return;
  const int64_t row = index / perRow;
  const auto pair = static_cast<int32_t>(index % perRow);
  const int32_t output = swiglu ? pair / 4 * 16 + pair % 4 * 2 : pair * 2;
  const auto sum = [&](int32_t place) {
    float2 total{0.0f, 0.0f};
    for (int32_t split = 0; split < product.splits; ++split) {
      const float2 part = *reinterpret_cast<const float2*>(
          product.partial + (split * target.rows + row) * target.outputs + place);
      total = {total.x + part.x, total.y + part.y};
    }
    return total;
  };
  if (swiglu) {
    writeSwiglu(target, row, output, sum(output), sum(output + 8));
  } else {
    writePair(target, row, output, sum(output));
  }
}

int64_t tiles(const LinearTask& task, int64_t tileRows, int64_t tileOutputs) {
  return divideUp(task.rows, tileRows) * divideUp(task.outputs, tileOutputs);
}

// Few large tiles leave processors of a large device idle.
bool takesLargeTile(const LinearTask& task) {
  return tiles(task, LargeTile::kRows, LargeTile::kOutputs) >= 128;
}

// So many that a large device is busy, but at least 8 stages each.
int32_t splitCount(const LinearTask& task) {
  if (takesLargeTile(task)) return 1;
  const int64_t wanted = 512 / tiles(task, SmallTile::kRows, SmallTile::kOutputs);
  const int64_t most = divideUp(task.inner, kInner) / 8;
  return static_cast<int32_t>(std::clamp<int64_t>(std::min(wanted, most), 1, 8));
}

template <class T>
cudaError_t launch(const LinearTask& task, int32_t splits, void* workspace, cudaStream_t stream) {
  Product product{};
  product.input = static_cast<const Bf16*>(task.input);
  product.weight = static_cast<const Bf16*>(task.weight);
  product.target = {task.bias, task.output, task.epilogue, task.rows, task.outputs};
  product.partial = static_cast<float*>(workspace);
  product.inner = task.inner;
  product.splits = splits;
  product.rowTiles = static_cast<int32_t>(divideUp(task.rows, T::kRows));
  product.outputTiles = static_cast<int32_t>(divideUp(task.outputs, T::kOutputs));
  const int64_t blocks = int64_t{product.rowTiles} * product.outputTiles;
  if (blocks > INT32_MAX) return cudaErrorInvalidValue;
  if (const cudaError_t error = allowShared(multiply<T>, T::kSharedBytes); error != cudaSuccess) {
    return error;
  }
  const dim3 grid(static_cast<unsigned>(blocks), static_cast<unsigned>(splits));
  multiply<T><<<grid, T::kThreads, T::kSharedBytes, stream>>>(product);
  if (splits > 1) {
    const bool swiglu = task.epilogue == LinearEpilogue::swigluBf16;
    const int64_t threads = task.rows * (task.outputs / (swiglu ? 4 : 2));
    addSplits<<<static_cast<unsigned>(divideUp(threads, 256)), 256, 0, stream>>>(product);
  }
  return cudaGetLastError();
}

}  // namespace

int64_t mmaSyncWorkspaceBytes(const LinearTask& task) {
  const int32_t splits = splitCount(task);
  return splits > 1 ? splits * task.rows * task.outputs * 4 : 0;
}

cudaError_t launchLinearMmaSync(const LinearTask& task, void* workspace, cudaStream_t stream) {
  return takesLargeTile(task) ? launch<LargeTile>(task, 1, workspace, stream)
                              : launch<SmallTile>(task, splitCount(task), workspace, stream);
}

}  // namespace longsight::cuda
