// What the checks of test_cuda_pointwise share: inputs, comparison with double precision,
// repetition.
#pragma once

#include <cmath>
#include <functional>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "device_memory.h"
#include "kernels/cuda/pointwise/pointwise.h"
#include "numbers.h"
#include "pointwise_cases.h"

namespace longsight::cuda::test {

inline std::vector<float> normals(std::mt19937_64& random, int64_t count, float size = 1.0f) {
  std::normal_distribution<float> normal;
  std::vector<float> values(static_cast<size_t>(count));
  for (float& value : values) value = size * normal(random);
  return values;
}

// Rounds the values to what the device will read.
inline void upload(DeviceBuffer& target, std::vector<float>& values, Number number) {
  if (number == Number::f32) return target.write(0, values);
  std::vector<uint16_t> bits;
  for (float& value : values) {
    bits.push_back(toBf16(value));
    value = fromBf16(bits.back());
  }
  target.write(0, bits);
}

inline std::vector<double> download(const DeviceBuffer& source, int64_t count, Number number) {
  if (number == Number::f32) {
    const auto values = source.read<float>(0, count);
    return {values.begin(), values.end()};
  }
  std::vector<double> values;
  for (const uint16_t bits : source.read<uint16_t>(0, count)) values.push_back(fromBf16(bits));
  return values;
}

inline int64_t bytesOf(Number number) { return number == Number::f32 ? 4 : 2; }

// Errors against double precision. What f32 arithmetic may do to a value is given as `slack`; a
// rounding to bf16 adds half a unit of its last place.
struct Comparison {
  std::string name;
  int failures = 0;
  double worst = 0;  // error / what is allowed

  void value(const char* what, int64_t at, double got, double expected, double slack,
             Number number) {
    const double allowed =
        slack + (number == Number::bf16 ? std::abs(expected) * 0x1p-8 : 0.0) + 1e-30;
    const double error = std::abs(got - expected) / allowed;
    worst = std::max(worst, error);
    if (!(error <= 1.0)) {
      fail(std::string(what) + " " + std::to_string(at) + " is " + std::to_string(got) +
           ", expected " + std::to_string(expected));
    }
  }
  void require(bool holds, const char* what) {
    if (!holds) fail(what);
  }
  void fail(const std::string& what) {
    if (++failures <= 5) std::printf("  FAIL %s: %s\n", name.c_str(), what.c_str());
  }
};

inline double inverseRms(const double* row, int32_t width, double epsilon) {
  double sum = 0;
  for (int32_t i = 0; i < width; ++i) sum += row[i] * row[i];
  return 1 / std::sqrt(sum / width + epsilon);
}

// Runs twice on poisoned outputs and compares all bytes.
inline void runTwice(Comparison& result, const std::vector<DeviceBuffer*>& outputs,
                     const std::function<void()>& run) {
  std::vector<std::vector<uint8_t>> first;
  for (int time = 0; time < 2; ++time) {
    for (DeviceBuffer* output : outputs) output->poison();
    run();
    test::require(cudaDeviceSynchronize(), result.name.c_str());
    for (size_t i = 0; i < outputs.size(); ++i) {
      auto bytes = outputs[i]->read<uint8_t>(0, outputs[i]->bytes());
      result.require(outputs[i]->guardsIntact(), "guard words changed");
      if (time == 0) {
        first.push_back(std::move(bytes));
      } else {
        result.require(bytes == first[i], "a second run gives other bits");
      }
    }
  }
}

// Queries, keys and values against the reference, q8 against launchQuantizeRows.
void checkRope(Comparison& result, const RopeCase& c, uint64_t seed);

// One graph, captured once, for several positions, behind a copy of the position.
void checkRopeGraph(Comparison& result, const RopeCase& c, uint64_t seed);

}  // namespace longsight::cuda::test
