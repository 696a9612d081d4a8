// A stream of bytes on disk, cut into blocks that each end with a checksum of their own, so that
// many gigabytes are written and verified in one pass.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "cpu/cancel_flag.h"

namespace longsight {

// Bytes of the stream in a block; the last block has what is left.
inline constexpr uint64_t kBlockBytes = uint64_t{1} << 20;

// On disk: the stream and 8 bytes a block.
uint64_t storedBytes(uint64_t streamBytes);

// Bytes of the stream that are done.
using StreamProgress = std::function<void(uint64_t)>;

// What both ends agree on.
struct StreamOptions {
  // For messages.
  std::string path;
  // Of the checksums, together with the number of the block: a block in another place or of another
  // file is not taken for the right one.
  uint64_t seed = 0;
  const CancelFlag* cancel = nullptr;
  StreamProgress onProgress;
};

// Both throw Error cancelled between blocks.
class CheckedWriter {
 public:
  // Writes at the descriptor's position.
  CheckedWriter(int descriptor, StreamOptions options);
  // Throws Error writeFailed.
  void write(const void* source, uint64_t bytes);
  // The last block.
  void finish();

 private:
  void flush();
  // Hands what is written to the disk bit by bit, so that neither a cancel nor the end waits long.
  void settle();

  int descriptor_;
  StreamOptions options_;
  // A block and its checksum.
  std::vector<std::byte> block_;
  uint64_t filled_ = 0;
  uint64_t blocks_ = 0;
};

class CheckedReader {
 public:
  // Reads `streamBytes` at the descriptor's position.
  CheckedReader(int descriptor, uint64_t streamBytes, StreamOptions options);
  // Throws Error damagedSessionFile where a checksum is wrong or the stream ends, unreadableFile.
  void read(void* target, uint64_t bytes);

 private:
  void fill();

  int descriptor_;
  StreamOptions options_;
  std::vector<std::byte> block_;
  uint64_t left_;
  uint64_t position_ = 0;
  uint64_t filled_ = 0;
  uint64_t blocks_ = 0;
  uint64_t done_ = 0;
};

// Reads exactly `bytes`. Throws Error unreadableFile, or damagedSessionFile at the end of the file.
void readFully(int descriptor, void* target, uint64_t bytes, const std::string& path);
// Throws Error writeFailed.
void writeFully(int descriptor, const void* source, uint64_t bytes, const std::string& path);

// Of our kind, but not as it was written.
[[noreturn]] void throwDamaged(const std::string& path, const std::string& what);

}  // namespace longsight
