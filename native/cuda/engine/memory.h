// Owners of memory, streams and events.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <utility>

#include "cuda/engine/failure.h"

namespace longsight::cuda {

// Every part of a block of memory begins at a multiple of this.
inline constexpr uint64_t kPartAlignment = 256;
// What cudaMalloc takes at a time for anything large.
inline constexpr uint64_t kBlockBytes = uint64_t{2} << 20;

constexpr uint64_t roundUp(uint64_t value, uint64_t step) {
  return (value + step - 1) / step * step;
}

// Lays parts out one after the other.
class Layout {
 public:
  // Where the part begins.
  uint64_t place(uint64_t bytes) {
    const uint64_t at = bytes_;
    bytes_ += roundUp(bytes, kPartAlignment);
    return at;
  }
  uint64_t bytes() const { return bytes_; }

 private:
  uint64_t bytes_ = 0;
};

// A block of device memory, or of pinned host memory.
template <bool kPinned>
class Block {
 public:
  Block() = default;
  // Zero bytes are no block.
  explicit Block(uint64_t bytes) : bytes_(bytes) {
    if (bytes == 0) return;
    void* memory = nullptr;
    if constexpr (kPinned) {
      check(cudaMallocHost(&memory, bytes), "Taking pinned memory");
    } else {
      check(cudaMalloc(&memory, bytes), "Taking GPU memory");
    }
    memory_ = static_cast<char*>(memory);
  }
  Block(Block&& other) noexcept { swap(other); }
  Block& operator=(Block&& other) noexcept {
    Block empty(std::move(other));
    swap(empty);
    return *this;
  }
  ~Block() {
    if constexpr (kPinned) {
      cudaFreeHost(memory_);
    } else {
      cudaFree(memory_);
    }
  }

  char* data() const { return memory_; }
  uint64_t bytes() const { return bytes_; }

 private:
  void swap(Block& other) {
    std::swap(memory_, other.memory_);
    std::swap(bytes_, other.bytes_);
  }

  char* memory_ = nullptr;
  uint64_t bytes_ = 0;
};
using DeviceBlock = Block<false>;
using PinnedBlock = Block<true>;

class Stream {
 public:
  Stream() {
    check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "Creating a stream");
  }
  ~Stream() { cudaStreamDestroy(stream_); }
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;
  operator cudaStream_t() const { return stream_; }

 private:
  cudaStream_t stream_ = nullptr;
};

class Event {
 public:
  explicit Event(unsigned flags = cudaEventDefault) {
    check(cudaEventCreateWithFlags(&event_, flags), "Creating an event");
  }
  ~Event() {
    if (event_ != nullptr) cudaEventDestroy(event_);
  }
  Event(Event&& other) noexcept : event_(std::exchange(other.event_, nullptr)) {}
  Event& operator=(Event&& other) noexcept {
    std::swap(event_, other.event_);
    return *this;
  }
  operator cudaEvent_t() const { return event_; }

 private:
  cudaEvent_t event_ = nullptr;
};

}  // namespace longsight::cuda
