// Matrix products for a few rows of activations, as decoding has them: ggml's dot products of
// quantized weight rows, shared out over the thread pool. Reading the weights once is all the time
// it takes; the blocked products of kernels/cpu/linear only pay with more rows.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "cpu/cancel_flag.h"
#include "cpu/thread_pool.h"
#include "kernels/cpu/linear/linear.h"

namespace longsight {

class DotProducts {
 public:
  static constexpr int64_t kMaxRows = 8;

  // For weights of up to maxColumns columns.
  explicit DotProducts(int64_t maxColumns);

  // As longsight::multiply, for rows <= kMaxRows. Activations are rounded to the type that ggml
  // pairs with the weights (8 bits for most quantized ones).
  bool multiply(const float* activations, int64_t rows, int64_t aStride,
                std::span<const LinearOutput> outputs, ThreadPool& pool, const CancelFlag& cancel);

  uint64_t bytes() const { return rounded_.size(); }
  static uint64_t bytesFor(int64_t maxColumns);

 private:
  std::vector<uint8_t> rounded_;
};

}  // namespace longsight
