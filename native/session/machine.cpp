#include "session/machine.h"

#include <sched.h>

#include <algorithm>
#include <fstream>
#include <limits>
#include <set>
#include <sstream>
#include <string>
#include <thread>
#include <utility>

namespace longsight {
namespace {

constexpr uint64_t kUnlimited = std::numeric_limits<uint64_t>::max();

uint64_t memInfoBytes(const std::string& field) {
  std::ifstream file("/proc/meminfo");
  std::string line;
  while (std::getline(file, line)) {
    if (line.rfind(field + ":", 0) != 0) continue;
    uint64_t kib = 0;
    std::istringstream(line.substr(field.size() + 1)) >> kib;
    return kib * 1024;
  }
  return 0;
}

// A number in a control-group file; kUnlimited for "max" or when there is no such file.
uint64_t groupNumber(const std::string& path) {
  std::ifstream file(path);
  uint64_t value = 0;
  return file >> value ? value : kUnlimited;
}

// Page cache of the group that the kernel would give back.
uint64_t reclaimableBytes(const std::string& statPath) {
  std::ifstream file(statPath);
  std::string key;
  uint64_t value = 0, sum = 0;
  while (file >> key >> value)
    if (key == "inactive_file" || key == "total_inactive_file") sum = value;
  return sum;
}

uint64_t leftInGroup(const std::string& folder, const char* limitName, const char* usageName) {
  const uint64_t limit = groupNumber(folder + "/" + limitName);
  const uint64_t usage = groupNumber(folder + "/" + usageName);
  if (limit == kUnlimited || usage == kUnlimited) return kUnlimited;
  const uint64_t held = usage - std::min(usage, reclaimableBytes(folder + "/memory.stat"));
  return limit > held ? limit - held : 0;
}

// The tightest limit between this process's group and the root (version 2), or of the memory
// controller (version 1).
uint64_t controlGroupLeft() {
  std::ifstream file("/proc/self/cgroup");
  std::string line;
  uint64_t least = kUnlimited;
  while (std::getline(file, line)) {
    const size_t first = line.find(':');
    const size_t second = first == std::string::npos ? first : line.find(':', first + 1);
    if (second == std::string::npos) continue;
    const std::string controllers = line.substr(first + 1, second - first - 1);
    std::string path = line.substr(second + 1);
    const bool version2 = controllers.empty();
    if (!version2 && controllers.find("memory") == std::string::npos) continue;
    const std::string root = version2 ? "/sys/fs/cgroup" : "/sys/fs/cgroup/memory";
    while (true) {
      if (path == "/") path.clear();
      least = std::min(least, version2 ? leftInGroup(root + path, "memory.max", "memory.current")
                                       : leftInGroup(root + path, "memory.limit_in_bytes",
                                                     "memory.usage_in_bytes"));
      if (path.empty()) break;
      path = path.substr(0, path.find_last_of('/'));
    }
  }
  return least;
}

}  // namespace

uint64_t totalMemoryBytes() { return memInfoBytes("MemTotal"); }

uint64_t availableMemoryBytes() {
  return std::min(memInfoBytes("MemAvailable"), controlGroupLeft());
}

int32_t physicalCores() {
  cpu_set_t allowed;
  CPU_ZERO(&allowed);
  if (sched_getaffinity(0, sizeof(allowed), &allowed) != 0)
    return static_cast<int32_t>(std::max(1u, std::thread::hardware_concurrency()));
  std::set<std::pair<int, int>> cores;
  int logical = 0;
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (!CPU_ISSET(cpu, &allowed)) continue;
    ++logical;
    const std::string topology = "/sys/devices/system/cpu/cpu" + std::to_string(cpu) + "/topology/";
    std::ifstream package(topology + "physical_package_id"), core(topology + "core_id");
    int packageId = 0, coreId = 0;
    if (package >> packageId && core >> coreId) cores.emplace(packageId, coreId);
  }
  const int count = cores.empty() ? logical : static_cast<int>(cores.size());
  return std::max(1, count);
}

}  // namespace longsight
