// Rows of the q8 cache: made from elements, and back to elements for the stages of a prefill.
//
// Prefill reads every key and value many times: turning all of them into elements once a layer
// costs 34 bytes read and 64 written for 32 values, under 1 % of a layer's time at 131,072 rows,
// and every kernel stays as it is. Decode reads the cache once and does so directly.
#include <algorithm>

#include "chunk_layout.h"
#include "device/q8.cuh"
#include "head_dispatch.cuh"

namespace longsight::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kValuesAThread = 16;  // 16 bytes of integers, within one block of 32

struct CacheSide {
  const int8_t* integers;
  const __half* scales;
  void* elements;
};

// blockIdx.y: KV head; blockIdx.z: keys or values.
template <class T, int kDim>
__global__ __launch_bounds__(kThreads) void dequantize(const CacheSide keys, const CacheSide values,
                                                       int rows, int64_t capacityRows,
                                                       int64_t targetRows) {
  constexpr int kPieces = kDim / kValuesAThread;
  const CacheSide side{blockIdx.z == 0 ? keys.integers : values.integers,
                       blockIdx.z == 0 ? keys.scales : values.scales,
                       blockIdx.z == 0 ? keys.elements : values.elements};
  const int64_t piece = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  const int64_t row = piece / kPieces;
  const int dim = static_cast<int>(piece % kPieces) * kValuesAThread;
  if (row >= rows) return;
  const int64_t source = blockIdx.y * capacityRows + row;
  const uint4 integers =
      __ldcs(reinterpret_cast<const uint4*>(side.integers + source * kDim + dim));
  const float scale = __half2float(side.scales[source * q8Blocks(kDim) + dim / kQ8Block]);
  const uint32_t words[4] = {integers.x, integers.y, integers.z, integers.w};
  uint32_t pairs[4][2];
#pragma unroll
  for (int i = 0; i < 4; ++i) dequantize4<T>(words[i], scale, pairs[i]);
  auto* target = reinterpret_cast<uint4*>(static_cast<T*>(side.elements) +
                                          (blockIdx.y * targetRows + row) * kDim + dim);
  target[0] = make_uint4(pairs[0][0], pairs[0][1], pairs[1][0], pairs[1][1]);
  target[1] = make_uint4(pairs[2][0], pairs[2][1], pairs[3][0], pairs[3][1]);
}

template <class T, int kDim>
cudaError_t launch(const LaunchContext& context, const Tensors& stored) {
  const auto side = [](const void* integers, const void* scales, void* elements) {
    return CacheSide{static_cast<const int8_t*>(integers), static_cast<const __half*>(scales),
                     elements};
  };
  const int rows = context.layout.end;
  const int64_t pieces = int64_t{rows} * (kDim / kValuesAThread);
  dequantize<T, kDim>
      <<<dim3(static_cast<unsigned>((pieces + kThreads - 1) / kThreads), context.layout.kvHeads, 2),
         kThreads, 0, context.stream>>>(
          side(stored.keys, stored.keyScales, context.workspace.keys),
          side(stored.values, stored.valueScales, context.workspace.values), rows,
          stored.capacityRows, context.layout.end);
  return cudaGetLastError();
}

// One warp a block of 32 values.
template <class T>
__global__ __launch_bounds__(kThreads) void quantize(const QuantizeTask task, int blocksPerRow) {
  const int64_t warp = (int64_t(blockIdx.x) * kThreads + threadIdx.x) / 32;
  const int lane = threadIdx.x % 32;
  const int block = static_cast<int>(warp % blocksPerRow);
  const int64_t rowAndHead = warp / blocksPerRow;
  const HeadShape& shape = task.shape;
  if (rowAndHead >= task.rows * shape.kvHeads) return;
  const int dim = block * kQ8Block + lane;
  const bool valid = dim < shape.headDim;
  const T* source = static_cast<const T*>(task.source) + rowAndHead * shape.headDim;
  const float value = valid ? static_cast<float>(source[dim]) : 0.0f;
  float most = fabsf(value);
#pragma unroll
  for (int step = 16; step > 0; step /= 2) most = fmaxf(most, __shfl_xor_sync(~0u, most, step));
  const __half scale = q8Scale(most);
  const int64_t target =
      rowAndHead % shape.kvHeads * task.capacityRows + task.firstRow + rowAndHead / shape.kvHeads;
  if (valid) {
    static_cast<int8_t*>(task.values)[target * shape.headDim + dim] =
        q8Integer(value, __half2float(scale));
  }
  if (lane == 0) static_cast<__half*>(task.scales)[target * blocksPerRow + block] = scale;
}

}  // namespace

cudaError_t launchCacheToElements(const LaunchContext& context, const Tensors& stored) {
  return dispatchHead(context.chunk.shape,
                      [&]<class T, int kDim>() { return launch<T, kDim>(context, stored); });
}

cudaError_t launchQuantizeRows(const QuantizeTask& task, cudaStream_t stream) {
  if (!validate(task).empty()) return cudaErrorInvalidValue;
  if (task.rows == 0) return cudaSuccess;
  const int blocksPerRow = q8Blocks(task.shape.headDim);
  const int64_t threads = task.rows * task.shape.kvHeads * blocksPerRow * 32;
  const auto blocks = static_cast<unsigned>((threads + kThreads - 1) / kThreads);
  if (task.shape.element == Element::bf16) {
    quantize<Bf16><<<blocks, kThreads, 0, stream>>>(task, blocksPerRow);
  } else {
    quantize<F16><<<blocks, kThreads, 0, stream>>>(task, blocksPerRow);
  }
  return cudaGetLastError();
}

}  // namespace longsight::cuda
