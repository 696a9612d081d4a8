// A file that takes the place of another in one step, or not at all.
#pragma once

#include <string>

namespace longsight {

// Writes go to a file beside `path` that only this user can read. Until commit() `path` is as it
// was, whatever happens; without commit() the new file is removed.
class NewFile {
 public:
  // Throws Error writeFailed.
  explicit NewFile(const std::string& path);
  ~NewFile();
  NewFile(const NewFile&) = delete;
  NewFile& operator=(const NewFile&) = delete;

  int descriptor() const { return descriptor_; }
  // Once this returns, `path` is the new file, also after a power failure. Throws Error
  // writeFailed.
  void commit();

 private:
  std::string path_;
  std::string temporary_;
  int descriptor_;
};

// For what the system refused: `errno` in words.
[[noreturn]] void throwWriteFailed(const std::string& path);

}  // namespace longsight
