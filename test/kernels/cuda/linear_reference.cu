#include <cuda_bf16.h>
#include <cuda_fp8.h>

#include <algorithm>

#include "device_memory.h"
#include "linear_reference.h"

namespace longsight::cuda::test {
namespace {

constexpr int kTile = 16;

__device__ uint64_t mix(uint64_t value) {
  value ^= value >> 33;
  value *= 0xff51afd7ed558ccdULL;
  value ^= value >> 33;
  value *= 0xc4ceb9fe1a85ec53ULL;
  return value ^ value >> 33;
}

__device__ float drawn(int64_t index, LinearData data, uint64_t seed) {
  const uint64_t bits = mix(static_cast<uint64_t>(index) + (seed << 40) + seed);
  if (data == LinearData::integers) return static_cast<float>(static_cast<int>(bits % 7) - 3);
  return static_cast<float>(bits >> 40) * 0x1p-22f - 2.0f;
}

template <class T>
__global__ void fill(T* target, int64_t count, LinearData data, uint64_t seed) {
  const int64_t step = int64_t{gridDim.x} * blockDim.x;
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < count; i += step) {
    target[i] = static_cast<T>(drawn(i, data, seed));
  }
}

__global__ void scale(float* target, int64_t count, LinearData data, uint64_t seed) {
  const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (i >= count) return;
  const float value = drawn(i, data, seed);
  target[i] = data == LinearData::integers ? exp2f(value) : 1.0f + value * 0.25f;
}

// Element `index` of the input or weight.
__device__ double element(const LinearTask& task, const void* values, int64_t index) {
  if (task.numbers == LinearNumbers::e4m3) {
    return double(float(static_cast<const __nv_fp8_e4m3*>(values)[index]));
  }
  return double(float(static_cast<const __nv_bfloat16*>(values)[index]));
}

struct Sum {
  double value = 0;
  double magnitude = 0;
};

// One block a tile of kTile rows by kTile results; a result is an output, or a feature of SwiGLU.
__global__ void compare(LinearTask task, const float* before, LinearData data, Difference* found,
                        int64_t firstRow) {
  __shared__ double inputs[kTile][kTile + 1];
  __shared__ double weights[2][kTile][kTile + 1];
  const bool scaled = task.numbers == LinearNumbers::e4m3;
  const bool swiglu = task.epilogue == LinearEpilogue::swigluBf16;
  const int results = swiglu ? task.outputs / 2 : task.outputs;
  const int x = static_cast<int>(threadIdx.x), y = static_cast<int>(threadIdx.y);
  const int64_t row = firstRow + int64_t{blockIdx.y} * kTile + y;
  const int result = static_cast<int>(blockIdx.x) * kTile + x;
  const int loaded = static_cast<int>(blockIdx.x) * kTile + y;
  Sum sums[2];
  for (int inner = 0; inner < task.inner; inner += kTile) {
    const bool valid = inner + x < task.inner;
    inputs[y][x] =
        valid && row < task.rows ? element(task, task.input, row * task.inner + inner + x) : 0.0;
    for (int part = 0; part < (swiglu ? 2 : 1); ++part) {
      const int64_t source = swiglu ? 2 * loaded + part : loaded;
      weights[part][y][x] = valid && loaded < results
                                ? element(task, task.weight, source * task.inner + inner + x)
                                : 0.0;
    }
    __syncthreads();
    for (int part = 0; part < (swiglu ? 2 : 1); ++part) {
      for (int k = 0; k < kTile; ++k) {
        const double product = inputs[y][k] * weights[part][x][k];
        sums[part].value += product;
        sums[part].magnitude += fabs(product);
      }
    }
    __syncthreads();
  }
  if (row >= task.rows || result >= results) return;
  // Of fp32 sums in any order; products are exact. A Hopper adds those of e4m3 with 14 bits, so
  // that each step of a sum loses up to 2^-13 of what it has come to.
  const double unit = scaled ? fmax(0x1p-11, 0x1p-16 * sqrt(double(task.inner))) : 0x1p-19;
  double allowed[2];
  for (int part = 0; part < (swiglu ? 2 : 1); ++part) {
    if (scaled) {
      const double scale =
          double(task.inputScales[row]) * task.weightScales[swiglu ? 2 * result + part : result];
      sums[part].value *= scale;
      sums[part].magnitude *= scale;
    }
    if (task.bias != nullptr) {
      const double bias = task.bias[swiglu ? 2 * result + part : result];
      sums[part].value += bias;
      sums[part].magnitude += fabs(bias);
    }
    allowed[part] = data == LinearData::integers ? 0.0 : sums[part].magnitude * unit;
  }
  const int64_t place = row * results + result;
  double expected = sums[0].value, got = 0, tolerance = allowed[0];
  if (task.epilogue == LinearEpilogue::storeF32 || task.epilogue == LinearEpilogue::addToF32) {
    got = static_cast<const float*>(task.output)[place];
    if (task.epilogue == LinearEpilogue::addToF32) expected += before[place];
    if (data == LinearData::real) tolerance += fabs(expected) * 0x1p-23;
  } else {
    got = float(static_cast<const __nv_bfloat16*>(task.output)[place]);
    if (swiglu) {
      const double silu = sums[0].value / (1.0 + exp(-sums[0].value));
      expected = silu * sums[1].value;
      tolerance = 1.1 * allowed[0] * (fabs(sums[1].value) + allowed[1]) + fabs(silu) * allowed[1] +
                  fabs(expected) * 0x1p-18;
    }
    // Half a unit of the last place, and some for a sum that falls on the other side.
    tolerance += fabs(expected) * 0x1.02p-8 + 1e-30;
  }
  const double error = fabs(got - expected);
  const double share = error == 0 ? 0.0 : error / tolerance;
  if (!(error <= tolerance)) {
    if (atomicAdd(reinterpret_cast<unsigned long long*>(&found->wrong), 1ULL) == 0) {
      found->row = row;
      found->output = result;
      found->got = got;
      found->expected = expected;
    }
  } else {
    atomicMax(reinterpret_cast<unsigned long long*>(&found->worstShare),
              static_cast<unsigned long long>(__double_as_longlong(share)));
  }
}

// One block a row.
__global__ void compareE4m3(const __nv_bfloat16* source, int32_t inner, const __nv_fp8_e4m3* target,
                            const float* scales, Difference* found) {
  __shared__ unsigned largestBits;
  if (threadIdx.x == 0) largestBits = 0;
  __syncthreads();
  const int64_t row = blockIdx.x;
  for (int i = threadIdx.x; i < inner; i += blockDim.x) {
    atomicMax(&largestBits, __float_as_uint(fabsf(float(source[row * inner + i]))));
  }
  __syncthreads();
  const double largest = __uint_as_float(largestBits);
  const double scale = scales[row];
  const double expectedScale = largest == 0 ? 1.0 : largest / 448;
  const bool scaleWrong = !(fabs(scale - expectedScale) <= expectedScale * 0x1p-22);
  for (int i = threadIdx.x; i < inner; i += blockDim.x) {
    const double expected = float(source[row * inner + i]);
    const double got = double(float(target[row * inner + i])) * scale;
    // Half a unit of 3 bits, or of the smallest numbers, 2^-9; a little for the quotient in fp32.
    const double tolerance = fmax(fabs(expected) * 0x1.01p-4, scale * 0x1.01p-10);
    if (scaleWrong || !(fabs(got - expected) <= tolerance)) {
      if (atomicAdd(reinterpret_cast<unsigned long long*>(&found->wrong), 1ULL) == 0) {
        found->row = row;
        found->output = i;
        found->got = scaleWrong ? scale : got;
        found->expected = scaleWrong ? expectedScale : expected;
      }
    }
  }
}

__global__ void countBytes(const unsigned char* a, const unsigned char* b, int64_t bytes,
                           unsigned long long* different) {
  const int64_t step = int64_t{gridDim.x} * blockDim.x;
  unsigned long long own = 0;
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < bytes; i += step) {
    own += a[i] != b[i];
  }
  if (own != 0) atomicAdd(different, own);
}

}  // namespace

void fillBf16(void* target, int64_t count, LinearData data, uint64_t seed) {
  fill<<<2048, 256>>>(static_cast<__nv_bfloat16*>(target), count, data, seed);
  require(cudaGetLastError(), "fill");
}
void fillF32(void* target, int64_t count, LinearData data, uint64_t seed) {
  fill<<<2048, 256>>>(static_cast<float*>(target), count, data, seed);
  require(cudaGetLastError(), "fill");
}

void fillE4m3(void* target, int64_t count, LinearData data, uint64_t seed) {
  fill<<<2048, 256>>>(static_cast<__nv_fp8_e4m3*>(target), count, data, seed);
  require(cudaGetLastError(), "fill");
}
void fillScales(void* target, int64_t count, LinearData data, uint64_t seed) {
  scale<<<static_cast<unsigned>((count + 255) / 256), 256>>>(static_cast<float*>(target), count,
                                                             data, seed);
  require(cudaGetLastError(), "fill");
}

Difference compareE4m3Rows(const void* source, int64_t rows, int32_t inner, const void* target,
                           const float* scales) {
  DeviceBuffer found(sizeof(Difference));
  found.write(0, std::vector<Difference>(1));
  compareE4m3<<<static_cast<unsigned>(rows), 256>>>(
      static_cast<const __nv_bfloat16*>(source), inner, static_cast<const __nv_fp8_e4m3*>(target),
      scales, static_cast<Difference*>(found.data()));
  require(cudaGetLastError(), "compare");
  return found.read<Difference>(0, 1)[0];
}

Difference compareWithDouble(const LinearTask& task, const float* before, LinearData data) {
  DeviceBuffer found(sizeof(Difference));
  found.write(0, std::vector<Difference>(1));
  const int results = task.epilogue == LinearEpilogue::swigluBf16 ? task.outputs / 2 : task.outputs;
  constexpr int64_t kLaunchRows = 65535 * kTile;
  for (int64_t row = 0; row < task.rows; row += kLaunchRows) {
    const int64_t rows = std::min(kLaunchRows, task.rows - row);
    const dim3 grid(static_cast<unsigned>((results + kTile - 1) / kTile),
                    static_cast<unsigned>((rows + kTile - 1) / kTile));
    compare<<<grid, dim3(kTile, kTile)>>>(task, before, data,
                                          static_cast<Difference*>(found.data()), row);
    require(cudaGetLastError(), "compare");
  }
  return found.read<Difference>(0, 1)[0];
}

int64_t countDifferent(const void* a, const void* b, int64_t bytes) {
  DeviceBuffer count(8);
  count.write(0, std::vector<int64_t>(1));
  countBytes<<<2048, 256>>>(static_cast<const unsigned char*>(a),
                            static_cast<const unsigned char*>(b), bytes,
                            static_cast<unsigned long long*>(count.data()));
  require(cudaGetLastError(), "count");
  return count.read<int64_t>(0, 1)[0];
}

}  // namespace longsight::cuda::test
