// Keys (after RoPE) and values of all layers, laid out [layer][kvHead][row].
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "cpu/attention.h"

namespace longsight {

class KvCache {
 public:
  // Address space for `capacityRows` rows; the system gives memory as rows are written.
  // Throws Error notEnoughMemory.
  KvCache(KvType type, int32_t layers, int32_t kvHeads, int32_t headDim, int64_t capacityRows);
  ~KvCache();
  KvCache(const KvCache&) = delete;
  KvCache& operator=(const KvCache&) = delete;

  KvLayer layer(int32_t index) const;
  // Planes: keys and then values, each by layer and KV head.
  std::vector<uint64_t> planeRowBytes() const;
  // Rows [first, first + rows) of a plane.
  std::span<std::byte> rows(size_t plane, int64_t first, int64_t rows) const;
  KvType type() const { return type_; }
  int64_t capacityRows() const { return capacityRows_; }
  // Reserved; what is resident grows with the rows written.
  uint64_t bytes() const { return bytes_; }

  static uint64_t bytesFor(KvType type, int32_t layers, int32_t kvHeads, int32_t headDim,
                           int64_t capacityRows);

 private:
  KvType type_;
  int32_t kvHeads_;
  int32_t headDim_;
  int64_t capacityRows_;
  uint64_t bytes_;
  uint64_t halfBytes_;
  void* memory_ = nullptr;
};

}  // namespace longsight
