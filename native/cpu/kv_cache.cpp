#include "cpu/kv_cache.h"

#include <sys/mman.h>

#include <string>

#include "error.h"

namespace longsight {

uint64_t KvCache::bytesFor(int32_t layers, int32_t kvHeads, int32_t headDim, int64_t capacityRows) {
  return uint64_t{2} * sizeof(uint16_t) * static_cast<uint64_t>(layers) *
         static_cast<uint64_t>(kvHeads) * static_cast<uint64_t>(headDim) *
         static_cast<uint64_t>(capacityRows);
}

KvCache::KvCache(int32_t layers, int32_t kvHeads, int32_t headDim, int64_t capacityRows)
    : kvHeads_(kvHeads),
      headDim_(headDim),
      capacityRows_(capacityRows),
      bytes_(bytesFor(layers, kvHeads, headDim, capacityRows)),
      halfBytes_(bytes_ / 2) {
  memory_ = mmap(nullptr, bytes_, PROT_READ | PROT_WRITE,
                 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory_ == MAP_FAILED)
    throw Error(ErrorCode::notEnoughMemory,
                "The key and value cache for " + std::to_string(capacityRows) + " tokens needs " +
                    std::to_string(bytes_) + " bytes, which the system did not give.",
                "Use a smaller context size.");
  // Fewer page faults and TLB misses while attention walks through it; a hint only.
  madvise(memory_, bytes_, MADV_HUGEPAGE);
  buffer_ = ggml_backend_cpu_buffer_from_ptr(memory_, bytes_);
}

KvCache::~KvCache() {
  ggml_backend_buffer_free(buffer_);
  munmap(memory_, bytes_);
}

KvLayer KvCache::layer(int32_t index) const {
  const uint64_t elements = static_cast<uint64_t>(kvHeads_) * static_cast<uint64_t>(capacityRows_) *
                            static_cast<uint64_t>(headDim_);
  auto* keys = static_cast<uint16_t*>(memory_);
  auto* values = keys + halfBytes_ / sizeof(uint16_t);
  KvLayer layer;
  layer.keys = keys + elements * static_cast<uint64_t>(index);
  layer.values = values + elements * static_cast<uint64_t>(index);
  layer.capacityRows = capacityRows_;
  layer.kvHeads = kvHeads_;
  layer.headDim = headDim_;
  return layer;
}

}  // namespace longsight
