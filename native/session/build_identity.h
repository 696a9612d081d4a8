// What computed the rows of a KV cache, besides the model: this code and the ggml beside it.
#pragma once

#include <cstdint>

namespace longsight {

// The same for the same binaries on the same kind of processor: a checksum of the build ids that
// the linker gave to the binary with this function in it and to the ggml libraries that are loaded,
// one of which was chosen for this processor. Throws Error internal when a binary has no build id.
uint64_t buildIdentity();

// Of the one binary that this address is in. Throws as buildIdentity() does.
uint64_t binaryIdentity(uintptr_t address);

}  // namespace longsight
