// The weights in a GGUF file, read piece by piece.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "model/gguf_file.h"

namespace longsight {

class TensorFile {
 public:
  // Throws Error unreadableFile.
  explicit TensorFile(const std::string& path);
  ~TensorFile();
  TensorFile(const TensorFile&) = delete;
  TensorFile& operator=(const TensorFile&) = delete;

  // Any thread. Throws Error unreadableFile, truncatedGguf when the file became shorter.
  void read(void* target, uint64_t bytes, uint64_t offset) const;

 private:
  std::string path_;
  int descriptor_;
};

// Whole rows of a tensor.
struct TensorBlock {
  // Index in ModelSpec::tensors.
  size_t tensor = 0;
  int64_t firstRow = 0;
  int64_t rows = 0;
  // From the begin of the tensor.
  uint64_t offset = 0;
  uint64_t bytes = 0;
};

// All tensors in file order, cut into blocks of about 4 MiB: little enough to notice a cancel
// within 250 ms on a slow disk.
std::vector<TensorBlock> blocksOf(const ModelSpec& spec);

}  // namespace longsight
