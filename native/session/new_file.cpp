#include "session/new_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <random>

#include "error.h"

namespace longsight {
namespace {

// Whoever cleans up after a crash recognizes these by the ending.
std::string besideOf(const std::string& path) {
  std::random_device random;
  char number[17];
  std::snprintf(number, sizeof(number), "%08x%08x", random(), random());
  return path + "." + number + ".partial";
}

}  // namespace

void throwWriteFailed(const std::string& path) {
  const int reason = errno;
  const bool full = reason == ENOSPC || reason == EDQUOT || reason == EFBIG;
  throw Error(ErrorCode::writeFailed,
              "\"" + path + "\" cannot be written: " + std::strerror(reason) + ".",
              full ? "Free some space, or choose a folder on another disk."
                   : "Choose a folder in which this user may write.");
}

NewFile::NewFile(const std::string& path)
    : path_(path),
      temporary_(besideOf(path)),
      descriptor_(open(temporary_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600)) {
  if (descriptor_ < 0) throwWriteFailed(path_);
}

NewFile::~NewFile() {
  if (descriptor_ < 0) return;
  close(descriptor_);
  unlink(temporary_.c_str());
}

void NewFile::commit() {
  if (fsync(descriptor_) != 0 || rename(temporary_.c_str(), path_.c_str()) != 0)
    throwWriteFailed(path_);
  close(descriptor_);
  descriptor_ = -1;
  const size_t slash = path_.rfind('/');
  const std::string folder = slash == std::string::npos ? "." : path_.substr(0, slash + 1);
  // Some file systems cannot sync a folder; the file is complete either way.
  const int opened = open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (opened >= 0) {
    fsync(opened);
    close(opened);
  }
}

}  // namespace longsight
