// A stand-in for longsight-cuda.so that needs no GPU: it keeps what it is given and computes a
// function of the tokens that every wrong row would change. For what lies above the boundary.
#pragma once

#include <cstdint>
#include <vector>

namespace longsight::test {

struct FakeTensor {
  int32_t role = 0, layer = 0, part = 0, type = 0;
  int64_t rows = 0, columns = 0;
  std::vector<uint8_t> bytes;
  // By row: how often it was written.
  std::vector<int> writes;
};

// What is alive in the library, and what it saw last.
struct FakeState {
  int64_t models = 0;
  int64_t sessions = 0;
  // Of caches and weights.
  int64_t bytes = 0;
  std::vector<FakeTensor> tensors;
  std::vector<double> frequencies;
  // Segments of all forward passes, in rows and number.
  int64_t forwardRows = 0;
  int64_t forwardCalls = 0;
  int64_t steps = 0;
  std::vector<float> headEpsilons;
  double forcedDensity = -1;
};

// The hash of a row from that of the row before it: what the cache of the library holds.
constexpr uint64_t fakeRow(uint64_t before, int32_t token, int64_t position) {
  uint64_t hash = before ^ (static_cast<uint64_t>(token) + 1) * 0x9E3779B97F4A7C15u;
  hash = (hash ^ static_cast<uint64_t>(position) * 0xC2B2AE3D27D4EB4Fu) * 0x165667B19E3779F9u;
  return hash ^ hash >> 29;
}

// The most likely token after a row: mostly one of a short cycle, so that guesses are often right.
constexpr int32_t fakeNext(uint64_t hash, int64_t position, int32_t vocabulary) {
  return hash % 6 == 0 ? static_cast<int32_t>(hash / 6 % static_cast<uint64_t>(vocabulary))
                       : static_cast<int32_t>(40 + position % 13);
}

// The exported functions, by dlsym: the state, and a behaviour by name, "" = all is well:
// noDriver, oldDriver, noDevice, oldDevice, lost, unsupported, crash.
using FakeStateFunction = FakeState* (*)();
using FakeBehaveFunction = void (*)(const char* behaviour, int64_t totalBytes);

}  // namespace longsight::test
