// UTF-8 by bytes: which are a whole character and which are broken.
#pragma once

#include <cstddef>
#include <string_view>

namespace longsight {

// Length of the valid character at text[at]; 0 when the bytes there are not valid UTF-8 (stray,
// overlong, surrogate or beyond U+10FFFF) or cut off.
size_t validCharacter(std::string_view text, size_t at);

// Whether the bytes from `at` to the end could be the beginning of a longer valid character.
bool isCutCharacter(std::string_view text, size_t at);

}  // namespace longsight
