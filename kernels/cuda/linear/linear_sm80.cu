// Linear layers with mma.sync, on every device. A block makes a tile of rows and outputs; copies of
// the next slices of the inner dimension (cp.async) run while one is multiplied.
//
// Products of few tiles are split over the inner dimension: the parts write their sums to the
// workspace, and a second kernel adds them up in order and does the rest.
#include <algorithm>
#include <type_traits>

#include "device/mma_sm80.cuh"
#include "linear/linear_launch.h"
#include "linear/swiglu.cuh"

namespace longsight::cuda {
namespace {

// Of a stage's rows of the inner dimension; of one product.
constexpr int kInnerBytes = 64;
constexpr int kProductBytes = 32;
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
  static constexpr int kInputBytes = kRows * kInnerBytes;
  static constexpr int kStageBytes = kInputBytes + kOutputs * kInnerBytes;
  static constexpr int kSharedBytes = kStages * kStageBytes;
  static_assert(kSharedBytes <= kSharedBytesEverywhere);
};
using LargeTile = Tile<128, 256, 2, 4, 4>;
using SmallTile = Tile<64, 64, 2, 2, 6>;

// Where sums go. With SwiGLU outputs stand in the order in which the weight's rows are loaded: of
// 16, first 8 gates, then the 8 that belong to them.
struct Target {
  const float* bias;
  // Of e4m3, otherwise null.
  const float* inputScales;
  const float* weightScales;
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

// Scaled and with the bias, of two of the weight's rows.
__device__ float2 finished(const Target& target, int64_t row, float2 sums, int32_t first,
                           int32_t second) {
  if (target.inputScales != nullptr) {
    const float scale = target.inputScales[row];
    sums = {sums.x * (target.weightScales[first] * scale),
            sums.y * (target.weightScales[second] * scale)};
  }
  if (target.bias == nullptr) return sums;
  return {sums.x + target.bias[first], sums.y + target.bias[second]};
}

// Outputs `output` and the next of a row; not for SwiGLU.
__device__ void writePair(const Target& target, int64_t row, int32_t output, float2 sums) {
  sums = finished(target, row, sums, output, output + 1);
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
  gates = finished(target, row, gates, gate, gate + 2);
  ups = finished(target, row, ups, gate + 1, gate + 3);
  *reinterpret_cast<uint32_t*>(static_cast<Bf16*>(target.output) + row * (target.outputs / 2) +
                               gate / 2) =
      packPair<Bf16>(swiglu1(gates.x, ups.x), swiglu1(gates.y, ups.y));
}

struct Product {
  const unsigned char* input;
  const unsigned char* weight;
  Target target;
  // [split][rows][outputs], only with splits.
  float* partial;
  int64_t rowBytes;  // of input and weight
  int32_t splits;
  int32_t rowTiles;
  int32_t outputTiles;
};

// Stands for the element type; there are no single values of it in kernels.
struct E4m3 {};

// As many bytes of the inner dimension in either type, so fragments are read alike.
__device__ __forceinline__ void product(Bf16, float (&d)[4], const uint32_t (&a)[4], uint32_t b0,
                                        uint32_t b1) {
  mma16x8x16<Bf16>(d, a, b0, b1);
}
__device__ __forceinline__ void product(E4m3, float (&d)[4], const uint32_t (&a)[4], uint32_t b0,
                                        uint32_t b1) {
#if __CUDA_ARCH__ >= 890
  asm volatile(
      "mma.sync.aligned.m16n8k32.row.col.f32.e4m3.e4m3.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, "
      "{%8,%9}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#endif
}

// A Hopper makes f16 of e4m3 before mma.sync, for which a large tile leaves no registers.
template <class T, class Number>
__host__ __device__ constexpr bool tileFits(int32_t computeCapability) {
  return computeCapability != 90 || !std::is_same_v<T, LargeTile> || !std::is_same_v<Number, E4m3>;
}

template <class T, class Number>
__global__ __launch_bounds__(T::kThreads) void multiply(const __grid_constant__ Product task) {
#if __CUDA_ARCH__ == 900
  if constexpr (!tileFits<T, Number>(90)) return;
#endif
  extern __shared__ __align__(1024) unsigned char sharedBytes[];
  const uint32_t shared = sharedAddress(sharedBytes);
  const Target& target = task.target;
  const int thread = static_cast<int>(threadIdx.x);
  const int lane = thread % 32;
  const int warpRow = thread / 32 / T::kOutputWarps * (T::kProductRows * 16);
  const int warpOutput = thread / 32 % T::kOutputWarps * (T::kProductOutputs * 8);

  const int64_t unit = blockIdx.x;
  const int64_t bandUnits = int64_t{kBandTiles} * task.outputTiles;
  const auto band = static_cast<int32_t>(unit / bandUnits);
  const auto inBand = static_cast<int32_t>(unit % bandUnits);
  const int32_t width = min(kBandTiles, task.rowTiles - band * kBandTiles);
  const int64_t row0 = int64_t{band * kBandTiles + inBand % width} * T::kRows;
  const int32_t output0 = inBand / width * T::kOutputs;
  const auto split = static_cast<int32_t>(blockIdx.y);
  const int32_t allSteps = static_cast<int32_t>((task.rowBytes + kInnerBytes - 1) / kInnerBytes);
  const auto firstStep = static_cast<int32_t>(int64_t{allSteps} * split / task.splits);
  const auto steps =
      static_cast<int32_t>(int64_t{allSteps} * (split + 1) / task.splits) - firstStep;

  // A thread copies one piece of 16 bytes of every kCopyRows-th row, of the input and the weight.
  constexpr int kPieces = kInnerBytes / 16;
  constexpr int kCopyRows = T::kThreads / kPieces;
  static_assert(kCopyRows % 16 == 0);  // so that weightRow() leaves the distances alone
  const int copyRow = thread / kPieces;
  const int piece = thread % kPieces;
  const uint32_t copyPlace = shared + swizzledOffset<64>(copyRow, piece);
  const int32_t sourceOutput = weightRow(target.epilogue, output0 + copyRow);
  const int64_t copyStride = kCopyRows * task.rowBytes;
  int64_t byte = int64_t{firstStep} * kInnerBytes + piece * 16;
  const unsigned char* inputSource = task.input + (row0 + copyRow) * task.rowBytes + byte;
  const unsigned char* weightSource = task.weight + sourceOutput * task.rowBytes + byte;
  const auto load = [&](int32_t step) {
    if (step < steps) {
      const uint32_t place = copyPlace + step % T::kStages * T::kStageBytes;
      const bool inside = byte < task.rowBytes;
#pragma unroll
      for (int i = 0; i < T::kRows / kCopyRows; ++i) {
        const bool valid = inside && row0 + copyRow + i * kCopyRows < target.rows;
        copyAsync16(place + i * kCopyRows * 64, valid ? inputSource + i * copyStride : task.input,
                    valid);
      }
#pragma unroll
      for (int i = 0; i < T::kOutputs / kCopyRows; ++i) {
        const bool valid = inside && sourceOutput + i * kCopyRows < target.outputs;
        copyAsync16(place + T::kInputBytes + i * kCopyRows * 64,
                    valid ? weightSource + i * copyStride : task.weight, valid);
      }
      byte += kInnerBytes;
      inputSource += kInnerBytes;
      weightSource += kInnerBytes;
    }
    copyAsyncCommit();
  };

  // Fragments are read one product ahead, so that multiplying does not wait for shared memory.
  float sums[T::kProductRows][T::kProductOutputs][4] = {};
  const uint32_t inputPlace = shared + (warpRow + lane % 16) * 64;
  const uint32_t weightPlace =
      shared + T::kInputBytes + (warpOutput + lane / 16 * 8 + lane % 8) * 64;
  const auto readInput = [&](uint32_t(&a)[T::kProductRows][4], uint32_t stage, int k) {
    const int column = ((k * 2 + lane / 16) ^ (lane / 2 % 4)) * 16;
#pragma unroll
    for (int i = 0; i < T::kProductRows; ++i)
      loadMatrix4(a[i], inputPlace + stage + column + i * 1024);
  };
  const auto readWeight = [&](uint32_t(&b)[4], uint32_t stage, int k, int j) {
    const int column = ((k * 2 + lane / 8 % 2) ^ (lane / 2 % 4)) * 16;
    loadMatrix4(b, weightPlace + stage + column + j * 512);
  };
  uint32_t a[2][T::kProductRows][4];
  uint32_t b[2][4];
#pragma unroll
  for (int stage = 0; stage < T::kStages - 1; ++stage) load(stage);
  for (int32_t step = 0; step < steps; ++step) {
    copyAsyncWait<T::kStages - 2>();
    __syncthreads();
    const uint32_t stage = step % T::kStages * T::kStageBytes;
    readInput(a[0], stage, 0);
    readWeight(b[0], stage, 0, 0);
    load(step + T::kStages - 1);
    constexpr int kSteps = kInnerBytes / kProductBytes;
    constexpr int kPairs = T::kProductOutputs / 2;
#pragma unroll
    for (int n = 0; n < kSteps * kPairs; ++n) {
      const int k = n / kPairs, j = n % kPairs;
      if (n + 1 < kSteps * kPairs)
        readWeight(b[(n + 1) % 2], stage, (n + 1) / kPairs, (n + 1) % kPairs * 2);
      if (j == 0 && k + 1 < kSteps) readInput(a[(k + 1) % 2], stage, k + 1);
#pragma unroll
      for (int i = 0; i < T::kProductRows; ++i) {
        product(Number{}, sums[i][2 * j], a[k % 2][i], b[n % 2][0], b[n % 2][1]);
        product(Number{}, sums[i][2 * j + 1], a[k % 2][i], b[n % 2][2], b[n % 2][3]);
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
        if (task.splits > 1) {
          const int64_t place = (split * target.rows + row) * target.outputs + output;
          *reinterpret_cast<float2*>(task.partial + place) = pair;
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

int64_t rowBytes(const LinearTask& task) {
  return task.numbers == LinearNumbers::e4m3 ? task.inner : int64_t{task.inner} * 2;
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
  const int64_t most = divideUp(rowBytes(task), kInnerBytes) / 8;
  return static_cast<int32_t>(std::clamp<int64_t>(std::min(wanted, most), 1, 8));
}

template <class T, class Number>
cudaError_t launch(const LinearTask& task, int32_t splits, void* workspace, cudaStream_t stream) {
  Product product{};
  product.input = static_cast<const unsigned char*>(task.input);
  product.weight = static_cast<const unsigned char*>(task.weight);
  product.target = {task.bias,     task.inputScales, task.weightScales, task.output,
                    task.epilogue, task.rows,        task.outputs};
  product.partial = static_cast<float*>(workspace);
  product.rowBytes = rowBytes(task);
  product.splits = splits;
  product.rowTiles = static_cast<int32_t>(divideUp(task.rows, T::kRows));
  product.outputTiles = static_cast<int32_t>(divideUp(task.outputs, T::kOutputs));
  const int64_t blocks = int64_t{product.rowTiles} * product.outputTiles;
  if (blocks > INT32_MAX) return cudaErrorInvalidValue;
  if constexpr (std::is_same_v<Number, E4m3>) {
    // Newer devices may run code that was made for sm_80, which has no such products.
    cudaFuncAttributes code{};
    if (const cudaError_t error = cudaFuncGetAttributes(&code, multiply<T, Number>);
        error != cudaSuccess) {
      return error;
    }
    if (code.ptxVersion < 89) return cudaErrorNotSupported;
  }
  if (const cudaError_t error = allowShared(multiply<T, Number>, T::kSharedBytes);
      error != cudaSuccess) {
    return error;
  }
  const dim3 grid(static_cast<unsigned>(blocks), static_cast<unsigned>(splits));
  multiply<T, Number><<<grid, T::kThreads, T::kSharedBytes, stream>>>(product);
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

cudaError_t launchLinearMmaSync(const LinearTask& task, const DeviceTraits& device, void* workspace,
                                cudaStream_t stream) {
  const auto withTile = [&]<class Number>() {
    return takesLargeTile(task) && tileFits<LargeTile, Number>(device.computeCapability)
               ? launch<LargeTile, Number>(task, 1, workspace, stream)
               : launch<SmallTile, Number>(task, splitCount(task), workspace, stream);
  };
  return task.numbers == LinearNumbers::e4m3 ? withTile.template operator()<E4m3>()
                                             : withTile.template operator()<Bf16>();
}

}  // namespace longsight::cuda
