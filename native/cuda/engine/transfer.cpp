#include "cuda/engine/transfer.h"

#include <algorithm>
#include <cstring>

namespace longsight::cuda {

char* Transfer::half(int index) {
  if (pinned_.data() == nullptr) pinned_ = PinnedBlock(2 * kHalfBytes);
  return pinned_.data() + static_cast<uint64_t>(index) * kHalfBytes;
}

void Transfer::toHost(void* host, const char* device, const Rows& rows) {
  if (rows.rowBytes == 0 || rows.count == 0) return;
  // Rows that do not fit in a half go one by one, in pieces.
  if (rows.rowBytes > kHalfBytes) {
    for (uint64_t row = 0; row < rows.count; ++row)
      toHost(static_cast<char*>(host) + row * rows.hostPitch, device + row * rows.devicePitch,
             rows.rowBytes);
    return;
  }
  const uint64_t most = kHalfBytes / rows.rowBytes;
  struct Piece {
    uint64_t first = 0;
    uint64_t count = 0;
  };
  Piece pieces[2];
  const auto enqueue = [&](int which, uint64_t first) {
    pieces[which] = {first, std::min(most, rows.count - first)};
    const char* from = device + first * rows.devicePitch;
    check(rows.devicePitch == rows.rowBytes
              ? cudaMemcpyAsync(half(which), from, pieces[which].count * rows.rowBytes,
                                cudaMemcpyDeviceToHost, stream_)
              : cudaMemcpy2DAsync(half(which), rows.rowBytes, from, rows.devicePitch, rows.rowBytes,
                                  pieces[which].count, cudaMemcpyDeviceToHost, stream_),
          "Copying from the GPU");
    check(cudaEventRecord(done_[which], stream_), "Copying from the GPU");
  };
  enqueue(0, 0);
  int which = 0;
  for (uint64_t first = 0; first < rows.count; first += most, which ^= 1) {
    if (first + most < rows.count) enqueue(which ^ 1, first + most);
    check(cudaEventSynchronize(done_[which]), "Copying from the GPU");
    const Piece& piece = pieces[which];
    char* to = static_cast<char*>(host) + piece.first * rows.hostPitch;
    if (rows.hostPitch == rows.rowBytes) {
      std::memcpy(to, half(which), piece.count * rows.rowBytes);
      continue;
    }
    for (uint64_t row = 0; row < piece.count; ++row)
      std::memcpy(to + row * rows.hostPitch, half(which) + row * rows.rowBytes, rows.rowBytes);
  }
}

void Transfer::toHost(void* host, const char* device, uint64_t bytes) {
  // As rows of a page, and what is left over.
  constexpr uint64_t kPage = 4096;
  toHost(host, device, {bytes / kPage, kPage, kPage, kPage});
  const uint64_t whole = bytes / kPage * kPage;
  if (whole == bytes) return;
  toHost(static_cast<char*>(host) + whole, device + whole,
         {1, bytes - whole, bytes - whole, bytes - whole});
}

void Transfer::toDevice(char* device, const void* host, uint64_t bytes) {
  int which = 0;
  for (uint64_t at = 0; at < bytes; at += kHalfBytes, which ^= 1) {
    const uint64_t piece = std::min(kHalfBytes, bytes - at);
    check(cudaEventSynchronize(done_[which]), "Copying to the GPU");
    std::memcpy(half(which), static_cast<const char*>(host) + at, piece);
    check(cudaMemcpyAsync(device + at, half(which), piece, cudaMemcpyHostToDevice, stream_),
          "Copying to the GPU");
    check(cudaEventRecord(done_[which], stream_), "Copying to the GPU");
  }
  check(cudaStreamSynchronize(stream_), "Copying to the GPU");
}

}  // namespace longsight::cuda
