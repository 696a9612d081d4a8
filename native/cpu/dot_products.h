// Matrix products for a few rows of activations, as decoding has them, shared out over the thread
// pool: those of kernels/cpu/linear/few_rows.h, or where these do not run or take the type ggml's
// dot products. The blocked products of kernels/cpu/linear only pay with more rows.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "cpu/cancel_flag.h"
#include "cpu/thread_pool.h"
#include "kernels/cpu/linear/few_rows.h"
#include "kernels/cpu/linear/linear.h"

namespace longsight {

class DotProducts {
 public:
  static constexpr int64_t kMaxRows = 8;

  // For weights of up to maxColumns columns.
  explicit DotProducts(int64_t maxColumns);

  // As longsight::multiply, for rows <= kMaxRows. With ggml, activations are rounded to the type
  // that it pairs with the weights (8 bits for most quantized ones).
  bool multiply(const float* activations, int64_t rows, int64_t aStride,
                std::span<const LinearOutput> outputs, ThreadPool& pool, const CancelFlag& cancel);

  static uint64_t bytesFor(int64_t maxColumns);

 private:
  struct Line {
    alignas(64) std::byte bytes[64];
  };
  std::vector<Line> rounded_;
  const FewRowKernels* own_;
};

}  // namespace longsight
