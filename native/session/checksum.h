// XXH64 of Yann Collet (https://github.com/Cyan4973/xxHash, doc/xxhash_spec.md): a checksum against
// accidents, at the speed of memory, with the same value on every machine. Not a cryptographic one.
#pragma once

#include <cstdint>
#include <span>

namespace longsight {

uint64_t checksum64(std::span<const std::byte> bytes, uint64_t seed);

}  // namespace longsight
