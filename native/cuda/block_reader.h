// The tensors of a file, read ahead on a few threads, so that disk, checksum and the copy to a
// device do not wait for each other.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <exception>
#include <mutex>
#include <optional>
#include <thread>
#include <vector>

#include "model/tensor_file.h"

namespace longsight {

class BlockReader {
 public:
  // `blocks` must be those of `spec` and live as long as this. Throws Error unreadableFile.
  BlockReader(const ModelSpec& spec, const std::vector<TensorBlock>& blocks);
  // Waits for reads that are under way.
  ~BlockReader();
  BlockReader(const BlockReader&) = delete;
  BlockReader& operator=(const BlockReader&) = delete;

  struct Item {
    // Of the block.
    size_t index = 0;
    const std::byte* data = nullptr;
    // checksum64 with the index as seed.
    uint64_t checksum = 0;
    // For release().
    size_t buffer = 0;
  };
  // One that is ready, in no order, each once; nothing when none came in time. Throws what
  // TensorFile::read throws.
  std::optional<Item> next(std::chrono::milliseconds patience);
  // The item's data is no longer needed.
  void release(const Item& item);

 private:
  void work();

  const ModelSpec& spec_;
  const std::vector<TensorBlock>& blocks_;
  TensorFile file_;
  std::vector<std::vector<std::byte>> buffers_;

  std::mutex guard_;
  std::condition_variable changed_;
  // Below, guarded.
  std::vector<size_t> free_;
  std::deque<Item> ready_;
  size_t nextBlock_ = 0;
  bool stopped_ = false;
  std::exception_ptr failure_;

  std::vector<std::thread> threads_;
};

}  // namespace longsight
