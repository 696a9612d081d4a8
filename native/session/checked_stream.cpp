#include "session/checked_stream.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "error.h"
#include "session/checksum.h"
#include "session/new_file.h"

namespace longsight {
namespace {

constexpr uint64_t kSumBytes = sizeof(uint64_t);
// What a cancel may have to wait for on a slow disk.
constexpr uint64_t kSettleBlocks = 32;

void checkCancel(const StreamOptions& options) {
  if (options.cancel && options.cancel->isSet()) throw cancelledError();
}

}  // namespace

uint64_t storedBytes(uint64_t streamBytes) {
  return streamBytes + (streamBytes / kBlockBytes + (streamBytes % kBlockBytes != 0)) * kSumBytes;
}

void readFully(int descriptor, void* target, uint64_t bytes, const std::string& path) {
  auto* at = static_cast<char*>(target);
  while (bytes > 0) {
    const ssize_t got = ::read(descriptor, at, bytes);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0)
      throw Error(ErrorCode::unreadableFile,
                  "Reading \"" + path + "\" failed: " + std::strerror(errno) + ".",
                  "Check the disk and the permissions of the file.");
    if (got == 0) throwDamaged(path, "it ends too early");
    at += got;
    bytes -= static_cast<uint64_t>(got);
  }
}

void writeFully(int descriptor, const void* source, uint64_t bytes, const std::string& path) {
  const auto* at = static_cast<const char*>(source);
  while (bytes > 0) {
    const ssize_t put = ::write(descriptor, at, bytes);
    if (put < 0 && errno == EINTR) continue;
    if (put < 0) throwWriteFailed(path);
    at += put;
    bytes -= static_cast<uint64_t>(put);
  }
}

void throwDamaged(const std::string& path, const std::string& what) {
  throw Error(ErrorCode::damagedSessionFile,
              "The saved session \"" + path + "\" is damaged: " + what + ".",
              "Delete the file; the next question computes anew what was in it.");
}

CheckedWriter::CheckedWriter(int descriptor, StreamOptions options)
    : descriptor_(descriptor), options_(std::move(options)), block_(kBlockBytes + kSumBytes) {}

void CheckedWriter::write(const void* source, uint64_t bytes) {
  const auto* at = static_cast<const std::byte*>(source);
  while (bytes > 0) {
    const uint64_t part = std::min(bytes, kBlockBytes - filled_);
    std::memcpy(block_.data() + filled_, at, part);
    filled_ += part;
    at += part;
    bytes -= part;
    if (filled_ == kBlockBytes) flush();
  }
}

void CheckedWriter::finish() {
  if (filled_ > 0) flush();
}

void CheckedWriter::flush() {
  checkCancel(options_);
  const uint64_t sum = checksum64(std::span(block_).first(filled_), options_.seed + blocks_);
  std::memcpy(block_.data() + filled_, &sum, kSumBytes);
  writeFully(descriptor_, block_.data(), filled_ + kSumBytes, options_.path);
  ++blocks_;
  if (options_.onProgress) options_.onProgress((blocks_ - 1) * kBlockBytes + filled_);
  filled_ = 0;
  if (blocks_ % kSettleBlocks == 0) settle();
}

void CheckedWriter::settle() {
  const off_t end = lseek(descriptor_, 0, SEEK_CUR);
  constexpr off_t kPart = kSettleBlocks * (kBlockBytes + kSumBytes);
  if (end < kPart) return;
  auto sync = [&](off_t begin, unsigned flags) {
    if (sync_file_range(descriptor_, begin, kPart, flags) == 0) return;
    // Where there is no such call, fsync does all the work in the end.
    if (errno != ESPIPE && errno != ENOSYS && errno != EINVAL) throwWriteFailed(options_.path);
  };
  sync(end - kPart, SYNC_FILE_RANGE_WRITE);
  if (end >= 2 * kPart)
    sync(end - 2 * kPart,
         SYNC_FILE_RANGE_WAIT_BEFORE | SYNC_FILE_RANGE_WRITE | SYNC_FILE_RANGE_WAIT_AFTER);
}

CheckedReader::CheckedReader(int descriptor, uint64_t streamBytes, StreamOptions options)
    : descriptor_(descriptor),
      options_(std::move(options)),
      block_(std::min(streamBytes, kBlockBytes) + kSumBytes),
      left_(streamBytes) {}

void CheckedReader::read(void* target, uint64_t bytes) {
  auto* at = static_cast<std::byte*>(target);
  while (bytes > 0) {
    if (position_ == filled_) fill();
    const uint64_t part = std::min(bytes, filled_ - position_);
    std::memcpy(at, block_.data() + position_, part);
    position_ += part;
    at += part;
    bytes -= part;
  }
}

void CheckedReader::fill() {
  checkCancel(options_);
  if (left_ == 0) throwDamaged(options_.path, "it holds less than it says");
  filled_ = std::min(left_, kBlockBytes);
  readFully(descriptor_, block_.data(), filled_ + kSumBytes, options_.path);
  uint64_t sum;
  std::memcpy(&sum, block_.data() + filled_, kSumBytes);
  if (sum != checksum64(std::span(block_).first(filled_), options_.seed + blocks_))
    throwDamaged(options_.path, "the checksum of block " + std::to_string(blocks_) + " is wrong");
  ++blocks_;
  left_ -= filled_;
  position_ = 0;
  done_ += filled_;
  if (options_.onProgress) options_.onProgress(done_);
}

}  // namespace longsight
