// Keys (after RoPE) and values of all layers, bf16, laid out [layer][kvHead][row][headDim].
#pragma once

#include <cstdint>

#include "cpu/attention.h"
#include "ggml-backend.h"

namespace longsight {

class KvCache {
 public:
  // Address space for `capacityRows` rows; the system gives memory as rows are written.
  // Throws Error notEnoughMemory.
  KvCache(int32_t layers, int32_t kvHeads, int32_t headDim, int64_t capacityRows);
  ~KvCache();
  KvCache(const KvCache&) = delete;
  KvCache& operator=(const KvCache&) = delete;

  KvLayer layer(int32_t index) const;
  int64_t capacityRows() const { return capacityRows_; }
  // Reserved; what is resident grows with the rows written.
  uint64_t bytes() const { return bytes_; }
  // The whole cache as a ggml buffer, for views into it.
  ggml_backend_buffer_t buffer() const { return buffer_; }

  static uint64_t bytesFor(int32_t layers, int32_t kvHeads, int32_t headDim, int64_t capacityRows);

 private:
  int32_t kvHeads_;
  int32_t headDim_;
  int64_t capacityRows_;
  uint64_t bytes_;
  uint64_t halfBytes_;
  void* memory_ = nullptr;
  ggml_backend_buffer_t buffer_ = nullptr;
};

}  // namespace longsight
