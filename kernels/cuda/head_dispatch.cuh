// From the shape of a head to the template instance that computes it.
#pragma once

#include "device/mma_sm80.cuh"
#include "sample_attention.h"

namespace longsight::cuda {

// Calls body.operator()<head dimension>(). validateShape() knows the same dimensions.
template <class Body>
cudaError_t dispatchHeadDim(int32_t headDim, Body body) {
  switch (headDim) {
    case 64:
      return body.template operator()<64>();
    case 80:
      return body.template operator()<80>();
    case 96:
      return body.template operator()<96>();
    case 128:
      return body.template operator()<128>();
    case 256:
      return body.template operator()<256>();
    default:
      return cudaErrorInvalidValue;
  }
}

// Calls body.operator()<Element type, head dimension>().
template <class Body>
cudaError_t dispatchHead(const HeadShape& shape, Body body) {
  return dispatchHeadDim(shape.headDim, [&]<int kDim>() {
    return shape.element == Element::bf16 ? body.template operator()<Bf16, kDim>()
                                          : body.template operator()<F16, kDim>();
  });
}

}  // namespace longsight::cuda
