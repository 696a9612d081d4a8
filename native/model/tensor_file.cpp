#include "model/tensor_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "error.h"

namespace longsight {
namespace {

constexpr uint64_t kBlockBytes = uint64_t{4} << 20;

}  // namespace

TensorFile::TensorFile(const std::string& path)
    : path_(path), descriptor_(open(path.c_str(), O_RDONLY | O_CLOEXEC)) {
  if (descriptor_ < 0)
    throw Error(ErrorCode::unreadableFile,
                "The model file \"" + path + "\" cannot be read: " + std::strerror(errno) + ".",
                "Check the permissions of the file.");
}

TensorFile::~TensorFile() { close(descriptor_); }

void TensorFile::read(void* target, uint64_t bytes, uint64_t offset) const {
  auto* next = static_cast<char*>(target);
  while (bytes > 0) {
    const ssize_t got = pread(descriptor_, next, bytes, static_cast<off_t>(offset));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0)
      throw Error(ErrorCode::unreadableFile,
                  "Reading \"" + path_ + "\" failed: " + std::strerror(errno) + ".",
                  "Check the disk and try again.");
    if (got == 0)
      throw Error(ErrorCode::truncatedGguf,
                  "\"" + path_ + "\" became shorter while it was read: nothing at byte " +
                      std::to_string(offset) + ".",
                  "Wait until the download has ended, then try again.");
    next += got;
    offset += static_cast<uint64_t>(got);
    bytes -= static_cast<uint64_t>(got);
  }
}

std::vector<TensorBlock> blocksOf(const ModelSpec& spec) {
  std::vector<TensorBlock> blocks;
  for (size_t index = 0; index < spec.tensors.size(); ++index) {
    const TensorSource& tensor = spec.tensors[index];
    const int64_t rows = tensor.shape[1];
    const uint64_t rowBytes = ggml_row_size(tensor.type, tensor.shape[0]);
    const auto atOnce = static_cast<int64_t>(std::max<uint64_t>(1, kBlockBytes / rowBytes));
    for (int64_t row = 0; row < rows; row += atOnce) {
      const int64_t count = std::min(atOnce, rows - row);
      blocks.push_back({index, row, count, static_cast<uint64_t>(row) * rowBytes,
                        static_cast<uint64_t>(count) * rowBytes});
    }
  }
  return blocks;
}

}  // namespace longsight
