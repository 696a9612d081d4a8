// Device buffers for tests: filled with NaN, with guard words before and after.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <vector>

namespace longsight::cuda::test {

inline void require(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "%s: %s\n", what, cudaGetErrorString(error));
  std::exit(1);
}

class DeviceBuffer {
 public:
  explicit DeviceBuffer(int64_t bytes) : bytes_(bytes) {
    require(cudaMalloc(reinterpret_cast<void**>(&base_), bytes + 2 * kGuardBytes), "cudaMalloc");
    poison();
  }
  ~DeviceBuffer() { cudaFree(base_); }
  DeviceBuffer(const DeviceBuffer&) = delete;
  DeviceBuffer& operator=(const DeviceBuffer&) = delete;

  void* data() const { return base_ + kGuardBytes; }
  int64_t bytes() const { return bytes_; }
  // All bytes 0xFF: NaN as bf16, f16 and fp32, -1 as an integer.
  void poison() { require(cudaMemset(base_, 0xFF, bytes_ + 2 * kGuardBytes), "poison"); }

  bool guardsIntact() const {
    std::vector<unsigned char> guards(2 * kGuardBytes);
    require(cudaMemcpy(guards.data(), base_, kGuardBytes, cudaMemcpyDeviceToHost), "guards");
    require(cudaMemcpy(guards.data() + kGuardBytes, base_ + kGuardBytes + bytes_, kGuardBytes,
                       cudaMemcpyDeviceToHost),
            "guards");
    for (const unsigned char byte : guards) {
      if (byte != 0xFF) return false;
    }
    return true;
  }

  template <class T>
  std::vector<T> read(int64_t byteOffset, int64_t count) const {
    std::vector<T> values(static_cast<size_t>(count));
    require(cudaMemcpy(values.data(), static_cast<char*>(data()) + byteOffset, count * sizeof(T),
                       cudaMemcpyDeviceToHost),
            "read");
    return values;
  }
  template <class T>
  void write(int64_t byteOffset, const std::vector<T>& values) const {
    require(cudaMemcpy(static_cast<char*>(data()) + byteOffset, values.data(),
                       values.size() * sizeof(T), cudaMemcpyHostToDevice),
            "write");
  }

 private:
  static constexpr int64_t kGuardBytes = 4096;
  char* base_ = nullptr;
  int64_t bytes_;
};

}  // namespace longsight::cuda::test
