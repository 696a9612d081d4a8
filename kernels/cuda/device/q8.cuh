// Keys and values stored as q8: integers of 8 bits times an fp16 scale for each block of 32.
#pragma once

#include "device/mma_sm80.cuh"

namespace longsight::cuda {

// The scale of a block whose largest magnitude is `most`: the least fp16 number that takes it to
// 127 or below; the largest there is where there is none.
__device__ __forceinline__ __half q8Scale(float most) {
  return __float2half_ru(fminf(most / 127.0f, 65504.0f));
}

// The integer of a value; `scale` as a float. Beyond fp16 values saturate.
__device__ __forceinline__ int8_t q8Integer(float value, float scale) {
  const float integer = scale > 0.0f ? rintf(value / scale) : 0.0f;
  return static_cast<int8_t>(fminf(fmaxf(integer, -127.0f), 127.0f));
}

// Four consecutive values of one block.
__device__ __forceinline__ void dequantize4(uint32_t integers, float scale, float (&values)[4]) {
  // A byte b in the lowest bits of 2^23 reads as 2^23 + b: cheaper than converting an integer.
  const uint32_t shifted = integers ^ 0x80808080u;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const uint32_t bits = __byte_perm(shifted, 0x4B000000u, 0x7540 + i);
    values[i] = (__uint_as_float(bits) - 8388736.0f) * scale;
  }
}

// The same, rounded to T: two pairs.
template <class T>
__device__ __forceinline__ void dequantize4(uint32_t integers, float scale, uint32_t (&pairs)[2]) {
  float values[4];
  dequantize4(integers, scale, values);
  pairs[0] = packPair<T>(values[0], values[1]);
  pairs[1] = packPair<T>(values[2], values[3]);
}

}  // namespace longsight::cuda
