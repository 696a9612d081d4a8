// Which instruction set the CPU kernels use: the best that runs here, or the one that is forced.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string_view>

namespace longsight {

// In ascending order of preference. Every set includes what the one before it needs.
enum class InstructionSet : int32_t {
  portable,    // plain C++ for the compiler's base target
  avx2,        // AVX2, FMA, F16C
  avx512,      // AVX-512 F, BW, DQ, VL
  avx512vnni,  // the above and AVX512_VNNI (vpdpbusd)
  avx512bf16,  // the above and AVX512_BF16 (vdpbf16ps)
  amx,         // the above, AMX_TILE and AMX_BF16
};

inline constexpr InstructionSet kInstructionSets[] = {
    InstructionSet::portable,   InstructionSet::avx2,       InstructionSet::avx512,
    InstructionSet::avx512vnni, InstructionSet::avx512bf16, InstructionSet::amx};

// "portable", "avx2", "avx512", "avx512vnni", "avx512bf16", "amx".
const char* instructionSetName(InstructionSet set);
std::optional<InstructionSet> parseInstructionSet(std::string_view name);

// Whether processor and operating system run the set and this build contains it.
bool instructionSetRuns(InstructionSet set);

// The set named by the environment variable LONGSIGHT_CPU, else the best that runs here.
// Throws std::runtime_error when the variable names no set, or one that does not run here.
InstructionSet chooseInstructionSet();

// Whether LONGSIGHT_CPU names a set: then nothing is measured.
bool isInstructionSetForced();

// The set whose work takes the least time: the rate of bf16 products beside that of f32 differs
// between processors. A set has to be clearly faster than one that comes after it, so that the
// choice is the same each time. `seconds` measures one set; it is asked for those that run here
// alone and gives nothing for a set without kernels of its own.
InstructionSet fastestInstructionSet(
    const std::function<std::optional<double>(InstructionSet)>& seconds);

}  // namespace longsight
