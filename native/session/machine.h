// What this computer has: memory that can still be used, cores.
#pragma once

#include <cstdint>

namespace longsight {

uint64_t totalMemoryBytes();
// The kernel's estimate of what can be given without swapping, or what the control group leaves,
// whichever is less.
uint64_t availableMemoryBytes();
// Of the processors this process may run on; at least 1.
int32_t physicalCores();

}  // namespace longsight
