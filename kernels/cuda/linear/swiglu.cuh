// SwiGLU of one feature.
#pragma once

namespace longsight::cuda {

// silu(gate) * up; a gate of -88 and below gives 0.
__device__ __forceinline__ float swiglu1(float gate, float up) {
  return __fdividef(gate, 1.0f + __expf(-gate)) * up;
}

}  // namespace longsight::cuda
