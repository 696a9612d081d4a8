// Bytes of tokens in, whole characters out, nothing of a stop string ever shown.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace longsight {

class TextStream {
 public:
  explicit TextStream(std::vector<std::string> stops);

  // Takes bytes; returns what can be shown now. Bytes that are not UTF-8 become U+FFFD.
  std::string push(std::string_view bytes);
  // What was held back and is no stop string after all. Nothing once stopped.
  std::string finish();
  // A stop string has come; what follows it is dropped.
  bool stopped() const { return stopped_; }

 private:
  std::string release(bool final);

  std::vector<std::string> stops_;
  std::string pending_;
  bool stopped_ = false;
};

}  // namespace longsight
