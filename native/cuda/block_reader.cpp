#include "cuda/block_reader.h"

#include <algorithm>
#include <span>

#include "session/checksum.h"

namespace longsight {
namespace {

// One thread reads some 3 GB/s out of the page cache and makes the checksum; PCIe takes 25 GB/s.
constexpr unsigned kMostThreads = 8;
constexpr size_t kBuffersOfAThread = 2;

}  // namespace

BlockReader::BlockReader(const ModelSpec& spec, const std::vector<TensorBlock>& blocks)
    : spec_(spec), blocks_(blocks), file_(spec.path) {
  const unsigned threads = std::clamp(std::thread::hardware_concurrency(), 1u, kMostThreads);
  buffers_.resize(threads * kBuffersOfAThread);
  for (size_t i = 0; i < buffers_.size(); ++i) free_.push_back(i);
  for (unsigned i = 0; i < threads; ++i) threads_.emplace_back([this] { work(); });
}

BlockReader::~BlockReader() {
  {
    const std::lock_guard lock(guard_);
    stopped_ = true;
  }
  changed_.notify_all();
  for (std::thread& thread : threads_) thread.join();
}

void BlockReader::work() {
  std::unique_lock lock(guard_);
  while (true) {
    changed_.wait(lock, [&] { return stopped_ || nextBlock_ == blocks_.size() || !free_.empty(); });
    if (stopped_ || nextBlock_ == blocks_.size()) return;
    Item item;
    item.index = nextBlock_++;
    item.buffer = free_.back();
    free_.pop_back();
    lock.unlock();
    std::exception_ptr failure;
    try {
      const TensorBlock& block = blocks_[item.index];
      std::vector<std::byte>& buffer = buffers_[item.buffer];
      if (buffer.size() < block.bytes) buffer.resize(block.bytes);
      file_.read(buffer.data(), block.bytes, spec_.tensors[block.tensor].fileOffset + block.offset);
      item.data = buffer.data();
      item.checksum = checksum64(std::span(buffer).first(block.bytes), item.index);
    } catch (...) {
      failure = std::current_exception();
    }
    lock.lock();
    if (failure) {
      failure_ = failure;
      stopped_ = true;
    } else {
      ready_.push_back(item);
    }
    changed_.notify_all();
  }
}

std::optional<BlockReader::Item> BlockReader::next(std::chrono::milliseconds patience) {
  std::unique_lock lock(guard_);
  changed_.wait_for(lock, patience, [&] { return failure_ || !ready_.empty(); });
  if (failure_) std::rethrow_exception(failure_);
  if (ready_.empty()) return std::nullopt;
  const Item item = ready_.front();
  ready_.pop_front();
  return item;
}

void BlockReader::release(const Item& item) {
  {
    const std::lock_guard lock(guard_);
    free_.push_back(item.buffer);
  }
  changed_.notify_all();
}

}  // namespace longsight
