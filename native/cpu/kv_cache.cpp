#include "cpu/kv_cache.h"

#include <sys/mman.h>

#include <string>

#include "error.h"

namespace longsight {

uint64_t KvCache::bytesFor(KvType type, int32_t layers, int32_t kvHeads, int32_t headDim,
                           int64_t capacityRows) {
  return uint64_t{2} * static_cast<uint64_t>(kvRowBytes(type, headDim)) *
         static_cast<uint64_t>(layers) * static_cast<uint64_t>(kvHeads) *
         static_cast<uint64_t>(capacityRows);
}

KvCache::KvCache(KvType type, int32_t layers, int32_t kvHeads, int32_t headDim,
                 int64_t capacityRows)
    : type_(type),
      kvHeads_(kvHeads),
      headDim_(headDim),
      capacityRows_(capacityRows),
      bytes_(bytesFor(type, layers, kvHeads, headDim, capacityRows)),
      halfBytes_(bytes_ / 2) {
  memory_ = mmap(nullptr, bytes_, PROT_READ | PROT_WRITE,
                 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory_ == MAP_FAILED)
    throw Error(ErrorCode::notEnoughMemory,
                "The key and value cache for " + std::to_string(capacityRows) + " tokens needs " +
                    std::to_string(bytes_) + " bytes, which the system did not give.",
                type == KvType::q8 ? "Use a smaller context size."
                                   : "Use a smaller context size or the KV cache type q8.");
  // Fewer page faults and TLB misses while attention walks through it; a hint only.
  madvise(memory_, bytes_, MADV_HUGEPAGE);
}

KvCache::~KvCache() { munmap(memory_, bytes_); }

std::vector<uint64_t> KvCache::planeRowBytes() const {
  const auto rowBytes = static_cast<uint64_t>(kvRowBytes(type_, headDim_));
  const uint64_t planeBytes = rowBytes * static_cast<uint64_t>(capacityRows_);
  return std::vector<uint64_t>(bytes_ / planeBytes, rowBytes);
}

std::span<std::byte> KvCache::rows(size_t plane, int64_t first, int64_t rows) const {
  const auto rowBytes = static_cast<size_t>(kvRowBytes(type_, headDim_));
  const size_t begin = plane * static_cast<size_t>(capacityRows_) + static_cast<size_t>(first);
  return {static_cast<std::byte*>(memory_) + begin * rowBytes,
          static_cast<size_t>(rows) * rowBytes};
}

KvLayer KvCache::layer(int32_t index) const {
  const int64_t offset = int64_t{index} * kvHeads_ * capacityRows_ * kvRowBytes(type_, headDim_);
  auto* keys = static_cast<std::byte*>(memory_);
  KvLayer layer;
  layer.type = type_;
  layer.keys = keys + offset;
  layer.values = keys + halfBytes_ + offset;
  layer.capacityRows = capacityRows_;
  layer.kvHeads = kvHeads_;
  layer.headDim = headDim_;
  return layer;
}

}  // namespace longsight
