#include "session/text_stream.h"

#include <algorithm>

#include "model/utf8.h"

namespace longsight {

TextStream::TextStream(std::vector<std::string> stops) : stops_(std::move(stops)) {
  std::erase_if(stops_, [](const std::string& stop) { return stop.empty(); });
}

std::string TextStream::push(std::string_view bytes) {
  if (stopped_) return "";
  pending_ += bytes;
  size_t earliest = std::string::npos;
  for (const std::string& stop : stops_) earliest = std::min(earliest, pending_.find(stop));
  if (earliest != std::string::npos) {
    stopped_ = true;
    pending_.resize(earliest);
    return release(true);
  }
  return release(false);
}

std::string TextStream::finish() { return stopped_ ? "" : release(true); }

std::string TextStream::release(bool final) {
  // Bytes from here on may be the beginning of a stop string.
  size_t safe = pending_.size();
  if (!final)
    for (const std::string& stop : stops_)
      for (size_t length = std::min(stop.size() - 1, pending_.size()); length > 0; --length)
        if (pending_.compare(pending_.size() - length, length, stop, 0, length) == 0) {
          safe = std::min(safe, pending_.size() - length);
          break;
        }
  std::string shown;
  size_t at = 0;
  while (at < safe) {
    if (const size_t length = validCharacter(pending_, at)) {
      if (at + length > safe) break;
      shown.append(pending_, at, length);
      at += length;
    } else if (!final && isCutCharacter(pending_, at)) {
      break;
    } else {
      // One replacement for a broken character, however many of its bytes are there.
      ++at;
      while (at < safe && (pending_[at] & 0xC0) == 0x80 && validCharacter(pending_, at) == 0) ++at;
      shown += "\xEF\xBF\xBD";
    }
  }
  pending_.erase(0, at);
  return shown;
}

}  // namespace longsight
