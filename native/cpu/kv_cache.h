// Keys (after RoPE) and values of all layers, laid out [layer][kvHead][row].
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "cpu/attention.h"

namespace longsight {

// The keys or values of one layer and KV head: row r begins at rows + r * rowBytes.
struct KvPlane {
  std::byte* rows = nullptr;
  uint64_t rowBytes = 0;
};

class KvCache {
 public:
  // Address space for `capacityRows` rows; the system gives memory as rows are written.
  // Throws Error notEnoughMemory.
  KvCache(KvType type, int32_t layers, int32_t kvHeads, int32_t headDim, int64_t capacityRows);
  ~KvCache();
  KvCache(const KvCache&) = delete;
  KvCache& operator=(const KvCache&) = delete;

  KvLayer layer(int32_t index) const;
  // All that the cache holds: keys and then values, each by layer and KV head.
  std::vector<KvPlane> planes() const;
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
