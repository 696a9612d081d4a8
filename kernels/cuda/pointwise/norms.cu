// RMS norm, and the sum into the residual stream with the norms around it. One block a row, which
// it keeps in registers: everything is read once and written once.
#include <cuda_bf16.h>

#include "device/dependent_launch.cuh"
#include "device/mma_sm80.cuh"
#include "pointwise/pointwise.h"

namespace longsight::cuda {
namespace {

// A row is read as pieces of 4 values; thread t has the pieces t, t + threads, ...
constexpr int kPiece = 4;
constexpr int kLikedThreads = 256;
constexpr int kMostThreads = 512;

template <int kPieces>
struct Row {
  float4 pieces[kPieces];
};

// Calls body(p, index of the first value) for each piece p of the thread.
template <int kPieces, class Body>
__device__ __forceinline__ void forPieces(int width, Body body) {
#pragma unroll
  for (int p = 0; p < kPieces; ++p) {
    const int at = (p * blockDim.x + threadIdx.x) * kPiece;
    if (at < width) body(p, at);
  }
}

__device__ __forceinline__ float4 loadFour(const float* source) {
  return *reinterpret_cast<const float4*>(source);
}
__device__ __forceinline__ float4 loadFour(const Bf16* source) {
  const uint2 bits = *reinterpret_cast<const uint2*>(source);
  return make_float4(__uint_as_float(bits.x << 16), __uint_as_float(bits.x & 0xFFFF0000u),
                     __uint_as_float(bits.y << 16), __uint_as_float(bits.y & 0xFFFF0000u));
}

__device__ __forceinline__ void storeFour(float* target, float4 value) {
  *reinterpret_cast<float4*>(target) = value;
}
__device__ __forceinline__ void storeFour(Bf16* target, float4 value) {
  *reinterpret_cast<uint2*>(target) =
      make_uint2(packPair<Bf16>(value.x, value.y), packPair<Bf16>(value.z, value.w));
}

__device__ __forceinline__ float4 operator+(float4 a, float4 b) {
  return make_float4(a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w);
}
__device__ __forceinline__ float4 scaled(float4 a, float scale, float4 weight) {
  return make_float4(a.x * scale * weight.x, a.y * scale * weight.y, a.z * scale * weight.z,
                     a.w * scale * weight.w);
}

// 1 / sqrt(mean of squares + epsilon) over the block's row. Pieces beyond the width are zero.
// `warpSums` belongs to this call alone.
template <int kPieces>
__device__ __forceinline__ float inverseRms(const Row<kPieces>& row, int width, float epsilon,
                                            float (&warpSums)[kMostThreads / 32]) {
  float sum = 0.0f;
#pragma unroll
  for (const float4& v : row.pieces) sum += (v.x * v.x + v.y * v.y) + (v.z * v.z + v.w * v.w);
#pragma unroll
  for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(~0u, sum, step);
  if (threadIdx.x % 32 == 0) warpSums[threadIdx.x / 32] = sum;
  __syncthreads();
  sum = 0.0f;
  for (int warp = 0; warp < blockDim.x / 32; ++warp) sum += warpSums[warp];
  return __frsqrt_rn(sum / static_cast<float>(width) + epsilon);
}

template <int kPieces, class Out>
__device__ __forceinline__ void storeNormed(Out* target, const Row<kPieces>& row, float scale,
                                            const float* weight, int width) {
  forPieces<kPieces>(width, [&](int p, int at) {
    storeFour(target + at, scaled(row.pieces[p], scale, loadFour(weight + at)));
  });
}

template <int kPieces, class Out>
__global__ __launch_bounds__(kMostThreads) void rmsNorm(const RmsNormTask task) {
  __shared__ float sums[kMostThreads / 32];
  letNextStart();
  waitForPrevious();
  const int64_t begin = int64_t(blockIdx.x) * task.width;
  Row<kPieces> row{};
  forPieces<kPieces>(task.width,
                     [&](int p, int at) { row.pieces[p] = loadFour(task.input + begin + at); });
  const float scale = inverseRms(row, task.width, task.epsilon, sums);
  storeNormed(static_cast<Out*>(task.output) + begin, row, scale, task.weight, task.width);
}

template <int kPieces, class In, class Out>
__global__ __launch_bounds__(kMostThreads) void addBlock(const AddBlockTask task) {
  __shared__ float blockSums[kMostThreads / 32];
  __shared__ float nextSums[kMostThreads / 32];
  letNextStart();
  waitForPrevious();
  const int64_t begin = int64_t(blockIdx.x) * task.width;
  Row<kPieces> residual{};
  Row<kPieces> block{};
  forPieces<kPieces>(task.width, [&](int p, int at) {
    residual.pieces[p] = loadFour(task.residual + begin + at);
    block.pieces[p] = loadFour(static_cast<const In*>(task.block) + begin + at);
  });
  if (task.bias != nullptr) {
    forPieces<kPieces>(task.width, [&](int p, int at) {
      block.pieces[p] = block.pieces[p] + loadFour(task.bias + at);
    });
  }
  if (task.blockNorm != nullptr) {
    const float scale = inverseRms(block, task.width, task.epsilon, blockSums);
    forPieces<kPieces>(task.width, [&](int p, int at) {
      block.pieces[p] = scaled(block.pieces[p], scale, loadFour(task.blockNorm + at));
    });
  }
  forPieces<kPieces>(task.width, [&](int p, int at) {
    residual.pieces[p] = residual.pieces[p] + block.pieces[p];
    storeFour(task.residual + begin + at, residual.pieces[p]);
  });
  if (task.nextNorm == nullptr) return;
  const float scale = inverseRms(residual, task.width, task.epsilon, nextSums);
  storeNormed(static_cast<Out*>(task.normed) + begin, residual, scale, task.nextNorm, task.width);
}

std::string validateRows(int64_t rows, int32_t width) {
  if (width < 8 || width % 8 != 0 || width > kMaxNormWidth) {
    return "rows of " + std::to_string(width) + " values: multiples of 8 up to " +
           std::to_string(kMaxNormWidth) + " are possible";
  }
  if (rows < 0 || rows > (int64_t{1} << 30)) {
    return std::to_string(rows) + " rows are outside 0 to 2^30";
  }
  return {};
}

// Calls launch.operator()<pieces of a thread>(threads of a block).
template <class Launch>
cudaError_t dispatchWidth(int32_t width, Launch launch) {
  const int pieces = width / kPiece;
  const auto threads = [&](int ofThread) {
    return static_cast<unsigned>(((pieces + ofThread - 1) / ofThread + 31) / 32 * 32);
  };
  if (threads(2) <= kLikedThreads) return launch.template operator()<2>(threads(2));
  if (threads(4) <= kLikedThreads) return launch.template operator()<4>(threads(4));
  return launch.template operator()<8>(threads(8));
}

}  // namespace

std::string validate(const RmsNormTask& task) { return validateRows(task.rows, task.width); }

std::string validate(const AddBlockTask& task) { return validateRows(task.rows, task.width); }

cudaError_t launchRmsNorm(const RmsNormTask& task, cudaStream_t stream) {
  if (!validate(task).empty()) return cudaErrorInvalidValue;
  if (task.rows == 0) return cudaSuccess;
  const dim3 grid(static_cast<unsigned>(task.rows));
  return dispatchWidth(task.width, [&]<int kPieces>(unsigned threads) {
    return task.outputNumber == Number::bf16
               ? launchDependent(rmsNorm<kPieces, Bf16>, grid, threads, 0, stream, task)
               : launchDependent(rmsNorm<kPieces, float>, grid, threads, 0, stream, task);
  });
}

cudaError_t launchAddBlock(const AddBlockTask& task, cudaStream_t stream) {
  if (!validate(task).empty()) return cudaErrorInvalidValue;
  if (task.rows == 0) return cudaSuccess;
  const dim3 grid(static_cast<unsigned>(task.rows));
  return dispatchWidth(task.width, [&]<int kPieces>(unsigned threads) {
    const auto withNumbers = [&]<class In, class Out>() {
      return launchDependent(addBlock<kPieces, In, Out>, grid, threads, 0, stream, task);
    };
    if (task.blockNumber == Number::bf16) {
      return task.normedNumber == Number::bf16 ? withNumbers.template operator()<Bf16, Bf16>()
                                               : withNumbers.template operator()<Bf16, float>();
    }
    return task.normedNumber == Number::bf16 ? withNumbers.template operator()<float, Bf16>()
                                             : withNumbers.template operator()<float, float>();
  });
}

}  // namespace longsight::cuda
