// From the products of a layer to queries, keys and values: bias, head norms, RoPE, and the write
// into the cache.
//
// A block takes kBlockRows rows. Its threads first make the cosines and sines of these rows, once
// for all heads; then a thread keeps those of 8 pairs in registers and goes from head to head.
#include <cuda_bf16.h>

#include <algorithm>

#include "device/dependent_launch.cuh"
#include "device/q8.cuh"
#include "head_dispatch.cuh"
#include "pointwise/pointwise.h"

namespace longsight::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kBlockRows = 4;
constexpr int kRowThreads = kThreads / kBlockRows;
// Rows up to which a row's heads are shared among blocks: then latency counts, not bandwidth.
constexpr int kFewRows = 512;

constexpr int powerOf2AtLeast(int value) {
  int power = 1;
  while (power < value) power *= 2;
  return power;
}

// 16 dimensions of a head, 8 pairs, belong to one of kUnits threads next to each other in a warp.
template <int kDim>
struct Traits {
  static constexpr int kUnits = kDim / 16;
  static constexpr int kLanes = powerOf2AtLeast(kUnits);
  static constexpr int kHeadsAtOnce = kRowThreads / kLanes;
};

// cosine and sine of the pairs of a row; (1, 0) for pairs that are not turned.
template <int kDim>
using RowAngles = float2[kDim / 2];

template <int kDim>
__device__ __forceinline__ void makeAngles(RowAngles<kDim> (&angles)[kBlockRows],
                                           const RopeTable& rope, int firstPosition) {
  constexpr int kPairs = kDim / 2;
  for (int i = threadIdx.x; i < kBlockRows * kPairs; i += kThreads) {
    const int pair = i % kPairs;
    float2 angle = make_float2(1.0f, 0.0f);
    if (2 * pair < rope.rotatedDims) {
      constexpr double kInverseTurn = 0.15915494309189533577;
      const double turns =
          double(firstPosition + i / kPairs) * rope.inverseFrequencies[pair] * kInverseTurn;
      float sine, cosine;
      sincospif(2.0f * static_cast<float>(turns - rint(turns)), &sine, &cosine);
      angle = make_float2(cosine * rope.magnitude, sine * rope.magnitude);
    }
    angles[i / kPairs][pair] = angle;
  }
}

// Where the 16 dimensions of a unit begin: 8 at `low`, 8 at `high`. With interleaved pairs they are
// one run; with halves each dimension of `low` pairs with that of `high`.
struct Unit {
  int low;
  int high;
  int firstPair;  // kDim / 2 and on: none of them is turned
};

__device__ __forceinline__ Unit findUnit(const RopeTable& rope, int unit) {
  if (rope.style == RopeStyle::interleaved) return {unit * 16, unit * 16 + 8, unit * 8};
  const int turned = rope.rotatedDims / 16;
  if (unit < turned) return {unit * 8, unit * 8 + rope.rotatedDims / 2, unit * 8};
  return {unit * 16, unit * 16 + 8, unit * 8};
}

__device__ __forceinline__ void loadEight(const Bf16* source, float* values) {
  const uint4 bits = *reinterpret_cast<const uint4*>(source);
  const uint32_t words[4] = {bits.x, bits.y, bits.z, bits.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    values[2 * i] = __uint_as_float(words[i] << 16);
    values[2 * i + 1] = __uint_as_float(words[i] & 0xFFFF0000u);
  }
}
__device__ __forceinline__ void loadEight(const float* source, float* values) {
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const float4 v = reinterpret_cast<const float4*>(source)[i];
    values[4 * i] = v.x;
    values[4 * i + 1] = v.y;
    values[4 * i + 2] = v.z;
    values[4 * i + 3] = v.w;
  }
}

// The unit's values, those at `low` first.
template <class T>
__device__ __forceinline__ void loadUnit(const T* source, const Unit& unit, float (&values)[16]) {
  loadEight(source + unit.low, values);
  loadEight(source + unit.high, values + 8);
}

__device__ __forceinline__ uint4 packEight(const float* values) {
  return make_uint4(packPair<Bf16>(values[0], values[1]), packPair<Bf16>(values[2], values[3]),
                    packPair<Bf16>(values[4], values[5]), packPair<Bf16>(values[6], values[7]));
}

// One head as q8. `most` [q8Blocks(kDim)] is the head's own, in shared memory: the largest
// magnitudes, as bits, which order like integers. All lanes of the warp call it.
template <int kDim>
__device__ __forceinline__ void storeQ8(const float (&values)[16], const Unit& unit, bool valid,
                                        int lane, uint32_t* most, int8_t* integers,
                                        __half* scales) {
  if (lane < q8Blocks(kDim)) most[lane] = 0;
  __syncwarp();
  float rounded[16];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float largest = 0.0f;
#pragma unroll
    for (int i = half * 8; i < half * 8 + 8; ++i) {
      rounded[i] = __bfloat162float(__float2bfloat16_rn(values[i]));
      largest = fmaxf(largest, fabsf(rounded[i]));
    }
    const int dim = half == 0 ? unit.low : unit.high;
    if (valid) atomicMax(most + dim / kQ8Block, __float_as_uint(largest));
  }
  __syncwarp();
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    if (!valid) break;
    const int dim = half == 0 ? unit.low : unit.high;
    const __half scale = q8Scale(__uint_as_float(most[dim / kQ8Block]));
    uint32_t words[2] = {};
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const int8_t integer = q8Integer(rounded[half * 8 + i], __half2float(scale));
      words[i / 4] |= uint32_t(uint8_t(integer)) << (i % 4 * 8);
    }
    *reinterpret_cast<uint2*>(integers + dim) = make_uint2(words[0], words[1]);
    if (dim % kQ8Block == 0) scales[dim / kQ8Block] = scale;
  }
  __syncwarp();
}

// Block (kBlockRows rows, part of the heads). Heads are numbered queries, keys, values.
template <class T, int kDim, bool kQ8>
__global__ __launch_bounds__(kThreads) void ropeStore(const __grid_constant__ RopeStoreTask task,
                                                      int headsPerBlock) {
  using Traits = Traits<kDim>;
  __shared__ RowAngles<kDim> angles[kBlockRows];
  __shared__ uint32_t most[kQ8 ? kThreads / Traits::kLanes : 1][q8Blocks(kDim)];
  letNextStart();
  waitForPrevious();
  const int firstPosition = (task.firstRowOnDevice == nullptr ? static_cast<int>(task.firstRow)
                                                              : *task.firstRowOnDevice) +
                            blockIdx.x * kBlockRows;
  makeAngles<kDim>(angles, task.rope, firstPosition);
  __syncthreads();

  const int lane = threadIdx.x % Traits::kLanes;
  const int blockRow = threadIdx.x / kRowThreads;
  const int64_t row = int64_t(blockIdx.x) * kBlockRows + blockRow;
  const int64_t position = firstPosition + blockRow;
  const bool hasUnit = lane < Traits::kUnits && row < task.rows;
  const Unit unit = findUnit(task.rope, hasUnit ? lane : 0);
  float2 turn[8];
#pragma unroll
  for (int i = 0; i < 8; ++i) turn[i] = angles[blockRow][unit.firstPair + i];
  const bool interleaved = task.rope.style == RopeStyle::interleaved;

  const int queryHeads = task.projectedQueries != nullptr ? task.shape.heads : 0;
  const int keyHeads = task.projectedKeys != nullptr ? task.shape.kvHeads : 0;
  const int headsEnd = min(queryHeads + 2 * keyHeads, int(blockIdx.y + 1) * headsPerBlock);
  const int slot = threadIdx.x % kRowThreads / Traits::kLanes;
  // All lanes of a warp make the same number of passes, since they shuffle.
  for (int base = blockIdx.y * headsPerBlock; base < headsEnd; base += Traits::kHeadsAtOnce) {
    const int numbered = base + slot;
    const bool valid = hasUnit && numbered < headsEnd;
    const bool isQuery = numbered < queryHeads;
    const bool isKey = !isQuery && numbered < queryHeads + keyHeads;
    const int head = isQuery ? numbered : numbered - queryHeads - (isKey ? 0 : keyHeads);
    const void* source = isQuery ? task.projectedQueries
                         : isKey ? task.projectedKeys
                                 : task.projectedValues;
    const float* bias = isQuery ? task.queryBias : isKey ? task.keyBias : task.valueBias;
    const float* norm = isQuery ? task.queryNorm : isKey ? task.keyNorm : nullptr;
    float values[16] = {};
    if (valid) {
      loadUnit(static_cast<const T*>(source) + row * task.rowStride + head * kDim, unit, values);
    }
    if (bias != nullptr && valid) {
      float added[16];
      loadUnit(bias + head * kDim, unit, added);
#pragma unroll
      for (int i = 0; i < 16; ++i) values[i] += added[i];
    }
    if (task.queryNorm != nullptr || task.keyNorm != nullptr) {
      float sum = 0.0f;
#pragma unroll
      for (const float value : values) sum += value * value;
#pragma unroll
      for (int step = Traits::kLanes / 2; step > 0; step /= 2) {
        sum += __shfl_xor_sync(~0u, sum, step);
      }
      if (norm != nullptr) {
        const float scale = __frsqrt_rn(sum / kDim + task.epsilon);
        float weight[16];
        loadUnit(norm, unit, weight);
#pragma unroll
        for (int i = 0; i < 16; ++i) values[i] *= scale * weight[i];
      }
    }
    if (isQuery || isKey) {
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        const float x = interleaved ? values[2 * i] : values[i];
        const float y = interleaved ? values[2 * i + 1] : values[8 + i];
        const float turnedX = x * turn[i].x - y * turn[i].y;
        const float turnedY = x * turn[i].y + y * turn[i].x;
        (interleaved ? values[2 * i] : values[i]) = turnedX;
        (interleaved ? values[2 * i + 1] : values[8 + i]) = turnedY;
      }
    }
    const auto store = [&](Bf16* target) {
      *reinterpret_cast<uint4*>(target + unit.low) = packEight(values);
      *reinterpret_cast<uint4*>(target + unit.high) = packEight(values + 8);
    };
    if (isQuery && valid) {
      store(static_cast<Bf16*>(task.queries) + (row * task.shape.heads + head) * kDim);
    }
    // A position beyond the cache comes only from a wrong number on the device.
    const bool cached = valid && !isQuery && position >= 0 && position < task.capacityRows;
    const int64_t cacheRow = cached ? head * task.capacityRows + position : 0;
    void* side = isKey ? task.keys : task.values;
    if constexpr (kQ8) {
      void* scales = isKey ? task.keyScales : task.valueScales;
      storeQ8<kDim>(values, unit, cached, lane, most[threadIdx.x / Traits::kLanes],
                    static_cast<int8_t*>(side) + cacheRow * kDim,
                    static_cast<__half*>(scales) + cacheRow * q8Blocks(kDim));
    } else if (cached) {
      store(static_cast<Bf16*>(side) + cacheRow * kDim);
    }
  }
}

template <class T, int kDim, bool kQ8>
cudaError_t launch(const RopeStoreTask& task, cudaStream_t stream) {
  const int heads = (task.projectedQueries != nullptr ? task.shape.heads : 0) +
                    (task.projectedKeys != nullptr ? 2 * task.shape.kvHeads : 0);
  const int perBlock = task.rows <= kFewRows ? Traits<kDim>::kHeadsAtOnce : heads;
  const dim3 grid(static_cast<unsigned>((task.rows + kBlockRows - 1) / kBlockRows),
                  static_cast<unsigned>((heads + perBlock - 1) / perBlock));
  return launchDependent(ropeStore<T, kDim, kQ8>, grid, kThreads, 0, stream, task, perBlock);
}

}  // namespace

std::string validate(const RopeStoreTask& task) {
  const HeadShape& shape = task.shape;
  const auto text = [](int64_t value) { return std::to_string(value); };
  if (shape.element != Element::bf16) return "queries and keys in f16: RoPE makes bf16";
  if (std::string fault = validateShape(shape); !fault.empty()) return fault;
  const int32_t rotated = task.rope.rotatedDims;
  const int32_t grain = task.rope.style == RopeStyle::interleaved ? 2 : 16;
  if (rotated < 0 || rotated > shape.headDim || rotated % grain != 0) {
    return text(rotated) + " rotated dimensions of " + text(shape.headDim) + ": multiples of " +
           text(grain) + " are possible";
  }
  const bool cached = task.projectedKeys != nullptr;
  if (cached != (task.projectedValues != nullptr)) return "keys without values, or the reverse";
  if (!cached && task.projectedQueries == nullptr) return "neither queries nor keys and values";
  if (task.rowStride < 0 || task.rowStride % 8 != 0) {
    return "rows " + text(task.rowStride) + " numbers apart: multiples of 8 are possible";
  }
  if (task.rows < 0 || task.firstRow < 0 || task.firstRow + task.rows > (int64_t{1} << 30) ||
      (cached && task.firstRow + task.rows > task.capacityRows)) {
    return "rows [" + text(task.firstRow) + ", " + text(task.firstRow + task.rows) +
           ") are outside a cache of " + text(task.capacityRows);
  }
  return {};
}

cudaError_t launchRopeStore(const RopeStoreTask& task, cudaStream_t stream) {
  if (!validate(task).empty()) return cudaErrorInvalidValue;
  if (task.rows == 0) return cudaSuccess;
  const auto withNumber = [&]<class T>() {
    return dispatchHeadDim(task.shape.headDim, [&]<int kDim>() {
      return task.shape.storage == KvStorage::q8 ? launch<T, kDim, true>(task, stream)
                                                 : launch<T, kDim, false>(task, stream);
    });
  };
  return task.number == Number::bf16 ? withNumber.template operator()<Bf16>()
                                     : withNumber.template operator()<float>();
}

}  // namespace longsight::cuda
