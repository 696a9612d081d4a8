#include "kernels/cpu/instruction_set.h"

#include <cstdlib>
#include <stdexcept>
#include <string>

#if defined(__x86_64__) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace longsight {
namespace {

constexpr const char* kVariable = "LONGSIGHT_CPU";

#if defined(__x86_64__)
// Linux hands out the tile registers on request, once a process for all its threads.
bool tilesAllowed() {
#if defined(__linux__)
  constexpr long kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM
  static const bool allowed = syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
  return allowed;
#else
  return false;
#endif
}
#endif

}  // namespace

const char* instructionSetName(InstructionSet set) {
  switch (set) {
    case InstructionSet::portable:
      return "portable";
    case InstructionSet::avx2:
      return "avx2";
    case InstructionSet::avx512:
      return "avx512";
    case InstructionSet::avx512vnni:
      return "avx512vnni";
    case InstructionSet::avx512bf16:
      return "avx512bf16";
    case InstructionSet::amx:
      return "amx";
  }
  return "unknown";
}

std::optional<InstructionSet> parseInstructionSet(std::string_view name) {
  for (InstructionSet set : kInstructionSets) {
    if (name == instructionSetName(set)) return set;
  }
  return std::nullopt;
}

bool instructionSetRuns(InstructionSet set) {
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                    __builtin_cpu_supports("f16c");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") &&
                      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512vl");
  const bool vnni = avx512 && __builtin_cpu_supports("avx512vnni");
  switch (set) {
    case InstructionSet::portable:
      return true;
    case InstructionSet::avx2:
      return avx2;
    case InstructionSet::avx512:
      return avx512;
    case InstructionSet::avx512vnni:
      return vnni;
    case InstructionSet::avx512bf16:
      return vnni && __builtin_cpu_supports("avx512bf16");
    case InstructionSet::amx:
      return vnni && __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("amx-tile") &&
             __builtin_cpu_supports("amx-bf16") && tilesAllowed();
  }
  return false;
#else
  return set == InstructionSet::portable;
#endif
}

bool isInstructionSetForced() {
  const char* forced = std::getenv(kVariable);
  return forced != nullptr && *forced != '\0';
}

InstructionSet fastestInstructionSet(
    const std::function<std::optional<double>(InstructionSet)>& seconds) {
  constexpr double kClearly = 0.85;
  InstructionSet best = InstructionSet::portable;
  double bestSeconds = 1.0;
  for (const InstructionSet set : kInstructionSets) {
    if (!instructionSetRuns(set)) continue;
    const std::optional<double> taken = seconds(set);
    if (taken && *taken * kClearly < bestSeconds) {
      best = set;
      bestSeconds = *taken;
    }
  }
  return best;
}

InstructionSet chooseInstructionSet() {
  InstructionSet best = InstructionSet::portable;
  std::string available;
  for (InstructionSet set : kInstructionSets) {
    if (!instructionSetRuns(set)) continue;
    best = set;
    available += (available.empty() ? "" : ", ") + std::string(instructionSetName(set));
  }
  if (!isInstructionSetForced()) return best;
  const char* forced = std::getenv(kVariable);
  const std::optional<InstructionSet> set = parseInstructionSet(forced);
  if (!set || !instructionSetRuns(*set)) {
    throw std::runtime_error("LONGSIGHT_CPU=" + std::string(forced) + ": " +
                             (set ? "this machine lacks that instruction set" : "no such set") +
                             ". Here run: " + available + ". Unset the variable for the best one.");
  }
  return *set;
}

}  // namespace longsight
