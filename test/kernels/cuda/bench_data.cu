#include <cuda_bf16.h>

#include <cmath>

#include "bench_data.h"
#include "exact_data.h"

namespace longsight::cuda::test {
namespace {

__device__ __forceinline__ uint64_t mix(uint64_t x) {
  x += 0x9E3779B97F4A7C15ull;
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ull;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBull;
  return x ^ (x >> 31);
}

// Standard normal, with a shared direction added to a row in `every` (0: to none) and more of it to
// the first four rows of each `headRows`.
__global__ void fillNormal(__nv_bfloat16* target, int64_t count, int dim, int64_t headRows,
                           uint64_t seed, float shift, int every, float sinkShift) {
  for (int64_t i = blockIdx.x * int64_t(blockDim.x) + threadIdx.x; i < count;
       i += int64_t(gridDim.x) * blockDim.x) {
    const uint64_t bits = mix(seed ^ mix(i));
    const float u = (float(uint32_t(bits)) + 0.5f) * 0x1p-32f;
    const float v = float(uint32_t(bits >> 32)) * 0x1p-32f;
    float value = sqrtf(-2.0f * logf(u)) * cospif(2.0f * v);
    const float direction = i % dim % 3 == 0 ? 1.0f : -0.5f;
    if (i / dim % headRows < 4) {
      value += sinkShift * direction;
    } else if (every > 0 && mix(seed + 7 + i / dim) % every == 0) {
      value += shift * direction;
    }
    target[i] = __float2bfloat16(value);
  }
}

// Sets each bit of a mask with the probability share.
__global__ void fillMask(uint32_t* mask, int64_t words, uint64_t seed, float share) {
  const auto limit = static_cast<uint32_t>(fminf(share, 1.0f) * 4294967040.0f);
  for (int64_t i = blockIdx.x * int64_t(blockDim.x) + threadIdx.x; i < words;
       i += int64_t(gridDim.x) * blockDim.x) {
    uint32_t word = 0;
    for (int bit = 0; bit < 32; bit += 2) {
      const uint64_t random = mix(seed ^ mix(i * 32 + bit));
      word |= (uint32_t(random) < limit ? 1u : 0u) << bit;
      word |= (uint32_t(random >> 32) < limit ? 1u : 0u) << (bit + 1);
    }
    mask[i] = word;
  }
}

__global__ void fillExactValues(uint16_t* target, int64_t count, uint64_t seed, int64_t first) {
  for (int64_t i = blockIdx.x * int64_t(blockDim.x) + threadIdx.x; i < count;
       i += int64_t(gridDim.x) * blockDim.x) {
    target[i] = exactValue(seed, first + i);
  }
}

__global__ void readAll(const uint4* source, int64_t count, uint32_t* sink) {
  uint32_t folded = 0;
  for (int64_t i = blockIdx.x * int64_t(blockDim.x) + threadIdx.x; i < count;
       i += int64_t(gridDim.x) * blockDim.x) {
    const uint4 v = __ldcs(source + i);
    folded ^= v.x ^ v.y ^ v.z ^ v.w;
  }
  if (folded == 0x12345678) *sink = folded;
}

}  // namespace

void fillQueries(void* target, int64_t count, int dim, uint64_t seed) {
  fillNormal<<<1056, 256>>>(static_cast<__nv_bfloat16*>(target), count, dim, count, seed, 0.5f, 1,
                            0.5f);
}
void fillKeys(void* target, int64_t count, int dim, int64_t headRows, uint64_t seed) {
  fillNormal<<<1056, 256>>>(static_cast<__nv_bfloat16*>(target), count, dim, headRows, seed, 2.0f,
                            12, 3.5f * sqrtf(128.0f / dim));
}
void fillValues(void* target, int64_t count, int dim, uint64_t seed) {
  fillNormal<<<1056, 256>>>(static_cast<__nv_bfloat16*>(target), count, dim, count, seed, 0.0f, 0,
                            0.0f);
}
void fillRandomMask(uint32_t* mask, int64_t words, uint64_t seed, float share) {
  fillMask<<<64, 256>>>(mask, words, seed, share);
}
void fillExact(void* target, int64_t count, uint64_t seed, int64_t first) {
  fillExactValues<<<1056, 256>>>(static_cast<uint16_t*>(target), count, seed, first);
}
void readThrough(const void* source, int64_t bytes, void* sink) {
  readAll<<<132 * 8, 512>>>(static_cast<const uint4*>(source), bytes / 16,
                            static_cast<uint32_t*>(sink));
}

}  // namespace longsight::cuda::test
