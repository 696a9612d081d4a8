// The rows of a KV cache, as bytes that only their backend understands.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace longsight {

// A cache is made of planes, each with the same number of rows. Two caches whose planes have the
// same row bytes and that the same code fills can read each other's rows.
class CacheRows {
 public:
  virtual ~CacheRows() = default;

  // Bytes of a row in each plane.
  virtual std::vector<uint64_t> planeRowBytes() const = 0;
  // Copies rows [first, first + rows) of a plane, next to each other. Throw Error where the memory
  // of a device cannot be reached any more.
  virtual void readRows(size_t plane, int64_t first, int64_t rows, std::byte* target) const = 0;
  virtual void writeRows(size_t plane, int64_t first, int64_t rows, const std::byte* source) = 0;
  // After rows [0, rows) of every plane were written.
  virtual void filled(int64_t rows) = 0;
};

}  // namespace longsight
