// Checks the kernels between the matrix products against double precision.
//   test_cuda_pointwise [--small] [--seed N]
// --small: only what compute-sanitizer can run in reasonable time. Exit code 77: no device.
#include <cstring>

#include "pointwise_comparison.h"

namespace longsight::cuda::test {
namespace {

void checkRmsNorm(Comparison& result, const NormCase& c, std::mt19937_64& random) {
  const int64_t count = c.rows * c.width;
  std::vector<float> input = normals(random, count, c.size);
  const std::vector<float> weight = normals(random, c.width);
  const DeviceBuffer deviceInput(count * 4), deviceWeight(c.width * 4);
  DeviceBuffer output(count * bytesOf(c.normed));
  deviceInput.write(0, input);
  deviceWeight.write(0, weight);
  RmsNormTask task;
  task.input = static_cast<const float*>(deviceInput.data());
  task.weight = static_cast<const float*>(deviceWeight.data());
  task.output = output.data();
  task.outputNumber = c.normed;
  task.rows = c.rows;
  task.width = c.width;
  task.epsilon = c.epsilon;
  runTwice(result, {&output},
           [&] { test::require(launchRmsNorm(task, nullptr), "launchRmsNorm"); });
  const auto check = [&](const DeviceBuffer& got) {
    const std::vector<double> values = download(got, count, c.normed);
    for (int64_t row = 0; row < c.rows; ++row) {
      const std::vector<double> x(input.begin() + row * c.width,
                                  input.begin() + (row + 1) * c.width);
      const double scale = inverseRms(x.data(), c.width, c.epsilon);
      for (int32_t i = 0; i < c.width; ++i) {
        const double expected = x[static_cast<size_t>(i)] * scale * weight[static_cast<size_t>(i)];
        const int64_t at = row * c.width + i;
        result.value("norm", at, values[static_cast<size_t>(at)], expected,
                     2e-6 * std::abs(expected), c.normed);
      }
    }
  };
  check(output);
  if (c.normed == Number::f32) {
    task.output = deviceInput.data();
    test::require(launchRmsNorm(task, nullptr), "launchRmsNorm in place");
    check(deviceInput);
  }
}

void checkAddBlock(Comparison& result, const NormCase& c, std::mt19937_64& random) {
  const int64_t count = c.rows * c.width;
  const std::vector<float> residual = normals(random, count, c.size);
  std::vector<float> block = normals(random, count);
  const std::vector<float> bias = normals(random, c.width);
  const std::vector<float> blockNorm = normals(random, c.width);
  const std::vector<float> nextNorm = normals(random, c.width);
  DeviceBuffer deviceResidual(count * 4), deviceBlock(count * bytesOf(c.block));
  DeviceBuffer normed(count * bytesOf(c.normed));
  const DeviceBuffer vectors(c.width * 12);
  upload(deviceBlock, block, c.block);
  vectors.write(0, bias);
  vectors.write(c.width * 4, blockNorm);
  vectors.write(c.width * 8, nextNorm);
  const auto* values = static_cast<const float*>(vectors.data());
  AddBlockTask task;
  task.residual = static_cast<float*>(deviceResidual.data());
  task.block = deviceBlock.data();
  task.blockNumber = c.block;
  task.bias = c.bias ? values : nullptr;
  task.blockNorm = c.blockNorm ? values + c.width : nullptr;
  task.nextNorm = c.nextNorm ? values + 2 * c.width : nullptr;
  task.normed = normed.data();
  task.normedNumber = c.normed;
  task.rows = c.rows;
  task.width = c.width;
  task.epsilon = c.epsilon;
  runTwice(result, {&deviceResidual, &normed}, [&] {
    deviceResidual.write(0, residual);
    test::require(launchAddBlock(task, nullptr), "launchAddBlock");
  });
  const std::vector<double> gotResidual = download(deviceResidual, count, Number::f32);
  const std::vector<double> gotNormed = download(normed, count, c.normed);
  if (!c.nextNorm) {
    for (const uint16_t bits : normed.read<uint16_t>(0, normed.bytes() / 2)) {
      result.require(bits == 0xFFFF, "normed rows were written though nothing asked for them");
    }
  }
  for (int64_t row = 0; row < c.rows; ++row) {
    std::vector<double> x, y;
    for (int32_t i = 0; i < c.width; ++i) {
      const auto at = static_cast<size_t>(row * c.width + i);
      x.push_back(residual[at]);
      y.push_back(block[at] + (c.bias ? double{bias[static_cast<size_t>(i)]} : 0.0));
    }
    const double scale = c.blockNorm ? inverseRms(y.data(), c.width, c.epsilon) : 1.0;
    std::vector<double> sums;
    for (size_t i = 0; i < x.size(); ++i) {
      y[i] *= scale * (c.blockNorm ? double{blockNorm[i]} : 1.0);
      sums.push_back(x[i] + y[i]);
    }
    const double next = inverseRms(sums.data(), c.width, c.epsilon);
    for (size_t i = 0; i < x.size(); ++i) {
      const int64_t at = row * c.width + static_cast<int64_t>(i);
      const double size = std::abs(x[i]) + std::abs(y[i]) + std::abs(bias[i]);
      result.value("residual", at, gotResidual[static_cast<size_t>(at)], sums[i], 1e-6 * size,
                   Number::f32);
      if (!c.nextNorm) continue;
      const double weight = next * nextNorm[i];
      result.value("normed", at, gotNormed[static_cast<size_t>(at)], sums[i] * weight,
                   3e-6 * size * std::abs(weight), c.normed);
    }
  }
}

// What validate() must refuse.
void checkFaults(Comparison& result) {
  const auto refused = [&](const std::string& fault, const char* what) {
    result.require(!fault.empty(), what);
  };
  RmsNormTask norm;
  norm.rows = 1;
  norm.width = 12;
  refused(validate(norm), "a width of 12");
  norm.width = kMaxNormWidth + 8;
  refused(validate(norm), "too wide a row");
  result.require(launchRmsNorm(norm, nullptr) == cudaErrorInvalidValue, "launch of too wide a row");
  RopeStoreTask rope;
  rope.shape = {4, 2, 128};
  rope.rows = 4;
  rope.capacityRows = 3;
  rope.rope.rotatedDims = 128;
  refused(validate(rope), "no source at all");
  const float source = 0;
  rope.projectedKeys = &source;
  refused(validate(rope), "keys without values");
  rope.projectedValues = &source;
  refused(validate(rope), "rows beyond the cache");
  rope.capacityRows = 4;
  result.require(validate(rope).empty(), "a task without fault");
  rope.rope.rotatedDims = 130;
  refused(validate(rope), "more rotated dimensions than there are");
  rope.rope = {RopeStyle::neox, 24};
  refused(validate(rope), "halves that are no multiple of 8");
  rope.rope.rotatedDims = 32;
  rope.shape.element = Element::f16;
  refused(validate(rope), "f16");
}

int run(bool small, uint64_t seed) {
  int failures = 0;
  const auto report = [&](const Comparison& result) {
    failures += result.failures;
    std::printf("%-76s %6d failed, error %.2f of allowed\n", result.name.c_str(), result.failures,
                result.worst);
    std::fflush(stdout);
  };
  std::mt19937_64 random(seed);
  for (const NormCase& c : normCases(small)) {
    Comparison norm{"norm, " + c.name()};
    checkRmsNorm(norm, c, random);
    report(norm);
    Comparison sum{"sum, " + c.name()};
    checkAddBlock(sum, c, random);
    report(sum);
  }
  for (const RopeCase& c : ropeCases(small)) {
    Comparison result{c.name()};
    checkRope(result, c, random());
    report(result);
  }
  for (const KvStorage storage : {KvStorage::element, KvStorage::q8}) {
    RopeCase c;
    c.shape = {6, 2, 128, Element::bf16, storage};
    c.rotatedDims = 128;
    c.rows = 5;
    c.onDevice = true;
    c.capacityRows = 1000;
    Comparison result{"graph, " + c.name()};
    checkRopeGraph(result, c, random());
    report(result);
  }
  Comparison faults{"faults"};
  checkFaults(faults);
  report(faults);
  std::printf("%s: %d failures, seed %llu\n", failures == 0 ? "PASSED" : "FAILED", failures,
              static_cast<unsigned long long>(seed));
  return failures == 0 ? 0 : 1;
}

}  // namespace
}  // namespace longsight::cuda::test

int main(int argc, char** argv) {
  bool small = false;
  uint64_t seed = std::random_device{}();
  for (int i = 1; i < argc; ++i) {
    if (std::strcmp(argv[i], "--small") == 0) small = true;
    if (std::strcmp(argv[i], "--seed") == 0 && i + 1 < argc) seed = std::stoull(argv[i + 1]);
  }
  int devices = 0;
  if (const cudaError_t error = cudaGetDeviceCount(&devices);
      error != cudaSuccess || devices == 0) {
    std::printf("No CUDA device here: %s\n", cudaGetErrorString(error));
    return 77;
  }
  return longsight::cuda::test::run(small, seed);
}
