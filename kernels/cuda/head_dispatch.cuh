// From the shape of a head to the template instance that computes it.
#pragma once

#include "device/mma_sm80.cuh"
#include "sample_attention.h"

namespace longsight::cuda {

// Calls body.operator()<Element type, head dimension>(). validateShape() knows the same dimensions.
template <class Body>
cudaError_t dispatchHead(const HeadShape& shape, Body body) {
  const auto withDim = [&]<class T>() {
    switch (shape.headDim) {
      case 64:
        return body.template operator()<T, 64>();
      case 80:
        return body.template operator()<T, 80>();
      case 96:
        return body.template operator()<T, 96>();
      case 128:
        return body.template operator()<T, 128>();
      case 256:
        return body.template operator()<T, 256>();
      default:
        return cudaErrorInvalidValue;
    }
  };
  return shape.element == Element::bf16 ? withDim.template operator()<Bf16>()
                                        : withDim.template operator()<F16>();
}

}  // namespace longsight::cuda
