#include "model/utf8.h"

#include <cstdint>

namespace longsight {
namespace {

struct Lead {
  size_t length;
  // Range of the second byte, which excludes overlong forms, surrogates and values above U+10FFFF.
  uint8_t low, high;
};

Lead leadOf(uint8_t byte) {
  if (byte < 0x80) return {1, 0, 0};
  if (byte >= 0xC2 && byte <= 0xDF) return {2, 0x80, 0xBF};
  if (byte == 0xE0) return {3, 0xA0, 0xBF};
  if (byte == 0xED) return {3, 0x80, 0x9F};
  if (byte >= 0xE1 && byte <= 0xEF) return {3, 0x80, 0xBF};
  if (byte == 0xF0) return {4, 0x90, 0xBF};
  if (byte >= 0xF1 && byte <= 0xF3) return {4, 0x80, 0xBF};
  if (byte == 0xF4) return {4, 0x80, 0x8F};
  return {0, 0, 0};
}

// Valid bytes of the character at `at`, and how many it should have (0: not a lead byte).
struct Progress {
  size_t valid, length;
};

Progress progressAt(std::string_view text, size_t at) {
  if (at >= text.size()) return {0, 0};
  const Lead lead = leadOf(static_cast<uint8_t>(text[at]));
  if (lead.length == 0) return {0, 0};
  size_t valid = 1;
  while (valid < lead.length && at + valid < text.size()) {
    const auto byte = static_cast<uint8_t>(text[at + valid]);
    const uint8_t low = valid == 1 ? lead.low : 0x80;
    const uint8_t high = valid == 1 ? lead.high : 0xBF;
    if (byte < low || byte > high) break;
    ++valid;
  }
  return {valid, lead.length};
}

}  // namespace

size_t validCharacter(std::string_view text, size_t at) {
  const Progress progress = progressAt(text, at);
  return progress.length > 0 && progress.valid == progress.length ? progress.length : 0;
}

bool isCutCharacter(std::string_view text, size_t at) {
  const Progress progress = progressAt(text, at);
  return progress.length > progress.valid && at + progress.valid == text.size();
}

}  // namespace longsight
