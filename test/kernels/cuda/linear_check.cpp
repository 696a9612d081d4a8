// Checks linear layers against double precision, with every tiling of the sm_90a kernels.
//   test_cuda_linear [--small] [--mma-sync] [--seed N]
// --small: only what compute-sanitizer can run in reasonable time. --mma-sync: the general path
// alone. Exit code 77: no device.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include "device_memory.h"
#include "kernels/cuda/linear/linear_launch.h"
#include "linear_reference.h"
#include "numbers.h"

namespace longsight::cuda::test {
namespace {

constexpr LinearEpilogue kEpilogues[] = {LinearEpilogue::storeBf16, LinearEpilogue::storeF32,
                                         LinearEpilogue::addToF32, LinearEpilogue::swigluBf16};
constexpr const char* kEpilogueNames[] = {"bf16", "f32", "add", "swiglu"};

// What computes the product: a path, or a tiling of the sm_90a kernels.
struct Way {
  Path path = Path::best;
  std::optional<LinearTiling> tiling;

  std::string name() const {
    if (tiling.has_value()) {
      return "tile of " + std::to_string(tiling->tileRows) + " rows, " +
             std::to_string(tiling->splits) + " splits, bands of " +
             std::to_string(tiling->bandTiles);
    }
    return path == Path::best ? "best" : "mma.sync";
  }
};

struct Checker {
  std::mt19937_64 random;
  DeviceTraits device{};
  int cases = 0;
  int failures = 0;
  double worst = 0;

  void fail(const std::string& name, const std::string& what) {
    ++failures;
    std::printf("FAIL %s: %s\n", name.c_str(), what.c_str());
    std::fflush(stdout);
  }

  cudaError_t launch(const LinearTask& task, void* workspace, const Way& way, cudaStream_t stream) {
    return way.tiling.has_value() ? launchLinearWgmma(task, device, *way.tiling, stream)
                                  : launchLinear(task, workspace, way.path, stream);
  }

  // Checks the task's shape in every one of the ways, with fresh inputs; once through a graph.
  void check(LinearTask task, bool withBias, LinearData data, const std::vector<Way>& ways) {
    const bool swiglu = task.epilogue == LinearEpilogue::swigluBf16;
    const bool adds = task.epilogue == LinearEpilogue::addToF32;
    const int elementBytes = adds || task.epilogue == LinearEpilogue::storeF32 ? 4 : 2;
    const int64_t results = task.rows * (swiglu ? task.outputs / 2 : task.outputs);
    const uint64_t seed = random() >> 24;
    const std::string shape =
        std::to_string(task.rows) + " x " + std::to_string(task.inner) + " to " +
        std::to_string(task.outputs) + " " + kEpilogueNames[static_cast<int>(task.epilogue)] +
        (withBias ? " with bias" : "") + (data == LinearData::integers ? ", integers" : "");
    if (const std::string fault = validate(task); !fault.empty()) return fail(shape, fault);

    const bool e4m3 = task.numbers == LinearNumbers::e4m3;
    DeviceBuffer input(task.rows * task.inner * (e4m3 ? 1 : 2));
    DeviceBuffer weight(int64_t{task.outputs} * task.inner * (e4m3 ? 1 : 2));
    DeviceBuffer inputScales(e4m3 ? task.rows * 4 : 16);
    DeviceBuffer weightScales(e4m3 ? int64_t{task.outputs} * 4 : 16);
    DeviceBuffer bias(withBias ? int64_t{task.outputs} * 4 : 16);
    DeviceBuffer output(results * elementBytes);
    DeviceBuffer again(results * elementBytes);
    std::unique_ptr<DeviceBuffer> before;
    DeviceBuffer workspace(std::max<int64_t>(16, linearWorkspaceBytes(task)));
    const auto fill = e4m3 ? fillE4m3 : fillBf16;
    fill(input.data(), task.rows * task.inner, data, seed);
    fill(weight.data(), int64_t{task.outputs} * task.inner, data, seed + 1);
    if (e4m3) {
      fillScales(inputScales.data(), task.rows, data, seed + 4);
      fillScales(weightScales.data(), task.outputs, data, seed + 5);
      task.inputScales = static_cast<const float*>(inputScales.data());
      task.weightScales = static_cast<const float*>(weightScales.data());
    }
    if (withBias) fillF32(bias.data(), task.outputs, data, seed + 2);
    if (adds) {
      before = std::make_unique<DeviceBuffer>(results * 4);
      fillF32(before->data(), results, data, seed + 3);
    }
    task.input = input.data();
    task.weight = weight.data();
    task.bias = withBias ? static_cast<const float*>(bias.data()) : nullptr;
    const auto reset = [&](const DeviceBuffer& target) {
      if (!adds) return;
      require(cudaMemcpy(target.data(), before->data(), results * 4, cudaMemcpyDeviceToDevice),
              "reset");
    };
    for (const Way& way : ways) {
      const std::string name = shape + ", " + way.name();
      ++cases;
      for (DeviceBuffer* target : {&output, &again}) {
        target->poison();
        workspace.poison();
        reset(*target);
        task.output = target->data();
        cudaError_t error = launch(task, workspace.data(), way, nullptr);
        if (error == cudaSuccess) error = cudaDeviceSynchronize();
        if (error != cudaSuccess) {
          fail(name, cudaGetErrorString(error));
          if (cudaGetLastError(); cudaDeviceSynchronize() != cudaSuccess) std::exit(1);
          return;
        }
      }
      task.output = output.data();
      const Difference found =
          compareWithDouble(task, adds ? static_cast<float*>(before->data()) : nullptr, data);
      worst = std::max(worst, found.worstShare);
      if (found.wrong != 0) {
        char text[256];
        std::snprintf(text, sizeof text,
                      "%lld of %lld results are wrong, such as row %lld, result %lld: %.9g instead "
                      "of %.9g",
                      static_cast<long long>(found.wrong), static_cast<long long>(results),
                      static_cast<long long>(found.row), static_cast<long long>(found.output),
                      found.got, found.expected);
        fail(name, text);
      }
      if (const int64_t bytes = countDifferent(output.data(), again.data(), results * elementBytes);
          bytes != 0) {
        fail(name, std::to_string(bytes) + " bytes differ in a second run");
      }
      for (const DeviceBuffer* buffer :
           {&input, &weight, &inputScales, &weightScales, &bias, &output, &again, &workspace}) {
        if (!buffer->guardsIntact()) fail(name, "wrote beyond a buffer");
      }
    }
  }

  // Rows of very different sizes, the first of zeros.
  void checkToE4m3(int64_t rows, int32_t inner) {
    ++cases;
    DeviceBuffer source(rows * inner * 2), target(rows * inner), scales(rows * 4);
    std::vector<uint16_t> values(static_cast<size_t>(rows * inner));
    std::normal_distribution<float> normal;
    for (int64_t row = 1; row < rows; ++row) {
      const float size = std::exp2(normal(random) * 8);
      for (int32_t i = 0; i < inner; ++i) values[row * inner + i] = toBf16(normal(random) * size);
    }
    source.write(0, values);
    const std::string name = "to e4m3, " + std::to_string(rows) + " x " + std::to_string(inner);
    cudaError_t error = launchToE4m3(source.data(), rows, inner, target.data(),
                                     static_cast<float*>(scales.data()), nullptr);
    if (error == cudaSuccess) error = cudaDeviceSynchronize();
    if (error != cudaSuccess) return fail(name, cudaGetErrorString(error));
    const Difference found = compareE4m3Rows(source.data(), rows, inner, target.data(),
                                             static_cast<float*>(scales.data()));
    if (found.wrong != 0) {
      fail(name, std::to_string(found.wrong) + " values are wrong, such as row " +
                     std::to_string(found.row) + ", " + std::to_string(found.output) + ": " +
                     std::to_string(found.got) + " instead of " + std::to_string(found.expected));
    }
    for (const DeviceBuffer* buffer : {&source, &target, &scales}) {
      if (!buffer->guardsIntact()) fail(name, "wrote beyond a buffer");
    }
  }

  // The same bits when captured into a graph and replayed.
  void checkGraph(Path path, int64_t rows) {
    LinearTask task{nullptr, nullptr, nullptr, nullptr, rows, 576, 1536, LinearEpilogue::storeF32};
    DeviceBuffer input(rows * 1536 * 2), weight(576 * 1536 * 2), direct(rows * 576 * 4),
        replayed(rows * 576 * 4), workspace(std::max<int64_t>(16, linearWorkspaceBytes(task)));
    fillBf16(input.data(), rows * 1536, LinearData::real, random());
    fillBf16(weight.data(), 576 * 1536, LinearData::real, random());
    task.input = input.data();
    task.weight = weight.data();
    task.output = direct.data();
    require(launchLinear(task, workspace.data(), path, nullptr), "launch");
    require(cudaDeviceSynchronize(), "run");
    workspace.poison();
    cudaStream_t stream;
    cudaGraph_t graph;
    cudaGraphExec_t executable;
    require(cudaStreamCreate(&stream), "stream");
    require(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal), "begin capture");
    task.output = replayed.data();
    require(launchLinear(task, workspace.data(), path, stream), "capture");
    require(cudaStreamEndCapture(stream, &graph), "end capture");
    require(cudaGraphInstantiate(&executable, graph, 0), "instantiate");
    for (int run = 0; run < 3; ++run) require(cudaGraphLaunch(executable, stream), "replay");
    require(cudaStreamSynchronize(stream), "replay");
    ++cases;
    if (countDifferent(direct.data(), replayed.data(), rows * 576 * 4) != 0) {
      fail("graph of " + std::to_string(rows) + " rows", "gives other bits than a launch");
    }
    require(cudaGraphExecDestroy(executable), "destroy");
    require(cudaGraphDestroy(graph), "destroy");
    require(cudaStreamDestroy(stream), "destroy");
  }
};

void checkRefusals(Checker& checker) {
  const auto refused = [&](LinearTask task, const char* word) {
    ++checker.cases;
    if (validate(task).find(word) == std::string::npos) {
      checker.fail("refusal", "\"" + validate(task) + "\" does not say \"" + word + "\"");
    }
    if (launchLinear(task, nullptr, Path::best, nullptr) != cudaErrorInvalidValue) {
      checker.fail("refusal", std::string("launched in spite of: ") + word);
    }
  };
  LinearTask good{nullptr, nullptr, nullptr, nullptr, 5, 64, 64, LinearEpilogue::storeBf16};
  if (!validate(good).empty()) checker.fail("refusal", validate(good));
  LinearTask task = good;
  task.rows = 0;
  refused(task, "0 rows");
  task = good;
  task.outputs = 60;
  refused(task, "60 outputs");
  task = good;
  task.outputs = 72;
  task.epilogue = LinearEpilogue::swigluBf16;
  refused(task, "multiple of 16");
  task = good;
  task.inner = 12;
  refused(task, "inner dimension of 12");
  if (launchLinear(good, nullptr, Path::best, nullptr) != cudaErrorInvalidValue) {
    checker.fail("refusal", "launched without pointers");
  }
}

LinearTask shapeOf(int64_t rows, int32_t inner, int32_t outputs, LinearEpilogue epilogue) {
  return {nullptr, nullptr, nullptr, nullptr, rows, outputs, inner, epilogue};
}

int run(int argc, char** argv) {
  bool small = false, mmaSyncOnly = false;
  uint64_t seed = std::random_device{}();
  if (const char* text = std::getenv("LONGSIGHT_TEST_SEED")) seed = std::strtoull(text, nullptr, 0);
  for (int i = 1; i < argc; ++i) {
    if (std::strcmp(argv[i], "--small") == 0) small = true;
    if (std::strcmp(argv[i], "--mma-sync") == 0) mmaSyncOnly = true;
    if (std::strcmp(argv[i], "--seed") == 0 && i + 1 < argc) {
      seed = std::strtoull(argv[++i], nullptr, 0);
    }
  }
  Checker checker;
  if (deviceTraits(checker.device) != cudaSuccess) {
    std::printf("No CUDA device: linear layers were not checked.\n");
    return 77;
  }
  std::printf("seed %llu\n", static_cast<unsigned long long>(seed));
  checker.random.seed(seed);
  checkRefusals(checker);

  const bool wgmma = checker.device.computeCapability == 90 && !mmaSyncOnly;
  std::vector<Way> paths{{Path::mmaSync, {}}};
  if (wgmma) paths.push_back({Path::best, {}});
  // All tilings that a product with this inner dimension may take, in narrow and wide bands.
  const auto allWays = [&](int32_t inner) {
    std::vector<Way> ways = paths;
    for (const int32_t tileRows : {64, 128, 192, 256}) {
      for (const int32_t splits : {1, 2, 3, 4}) {
        if (wgmma && splits <= (inner + 63) / 64) {
          ways.push_back({Path::best, LinearTiling{tileRows, splits, splits == 2 ? 3 : 8}});
        }
      }
    }
    return ways;
  };
  const auto checkAll = [&](int64_t rows, int32_t inner, int32_t outputs, LinearData data) {
    for (const LinearEpilogue epilogue : kEpilogues) {
      if (epilogue == LinearEpilogue::swigluBf16 && outputs % 16 != 0) continue;
      LinearTask task = shapeOf(rows, inner, outputs, epilogue);
      checker.check(task, checker.random() % 2 == 0, data, allWays(inner));
      if (checker.device.computeCapability < 89 || inner % 16 != 0) continue;
      task.numbers = LinearNumbers::e4m3;
      // Sums of products of integers stay below the 14 bits of a Hopper.
      checker.check(task, checker.random() % 2 == 0, inner <= 2048 ? data : LinearData::real,
                    allWays(inner / 2));
    }
  };
  checkAll(1, 8, 8, LinearData::integers);
  checkAll(7, 64, 64, LinearData::integers);
  checkAll(129, 328, 208, LinearData::integers);
  checkAll(300, 72, 400, LinearData::real);
  checkAll(35, 208, 96, LinearData::real);
  checker.checkToE4m3(5, 16);
  checker.checkToE4m3(67, 1040);
  if (small) {
    std::printf("%d cases, %d failures, worst error %.3f of what is allowed\n", checker.cases,
                checker.failures, checker.worst);
    return checker.failures == 0 ? 0 : 1;
  }
  for (const int64_t rows : {16, 33, 127, 200, 256, 777}) {
    checkAll(rows, 576, 1104, rows % 2 == 0 ? LinearData::real : LinearData::integers);
  }
  checkAll(2051, 1000, 1000, LinearData::integers);
  checkAll(2051, 1536, 6144, LinearData::real);
  const auto pick = [&](int64_t low, int64_t high) {
    return low + static_cast<int64_t>(checker.random() % static_cast<uint64_t>(high - low + 1));
  };
  for (int i = 0; i < 24; ++i) {
    checkAll(pick(1, 700), static_cast<int32_t>(pick(1, 300) * 8),
             static_cast<int32_t>(pick(1, 200) * 8),
             i % 2 == 0 ? LinearData::integers : LinearData::real);
  }
  // The layers of Llama 3.1 8B as an engine runs them.
  for (const int64_t rows : {17, 200, 4096 + 3}) {
    checker.check(shapeOf(rows, 4096, 6144, LinearEpilogue::storeBf16), true, LinearData::real,
                  paths);
    checker.check(shapeOf(rows, 4096, 4096, LinearEpilogue::addToF32), false, LinearData::integers,
                  paths);
    checker.check(shapeOf(rows, 4096, 28672, LinearEpilogue::swigluBf16), false, LinearData::real,
                  paths);
    checker.check(shapeOf(rows, 14336, 4096, LinearEpilogue::addToF32), false, LinearData::real,
                  paths);
  }
  if (checker.device.computeCapability >= 89) {
    for (const int64_t rows : {200, 4096 + 3}) {
      LinearTask task = shapeOf(rows, 4096, 28672, LinearEpilogue::swigluBf16);
      task.numbers = LinearNumbers::e4m3;
      checker.check(task, false, LinearData::real, paths);
      task = shapeOf(rows, 14336, 4096, LinearEpilogue::addToF32);
      task.numbers = LinearNumbers::e4m3;
      checker.check(task, true, LinearData::real, paths);
    }
  }
  checker.checkToE4m3(8192 + 1, 14336);
  checker.check(shapeOf(3, 4096, 128256, LinearEpilogue::storeF32), false, LinearData::real, paths);
  // More than 2^31 elements of the output, and of the input.
  checker.check(shapeOf(350'003, 64, 6144, LinearEpilogue::storeBf16), false, LinearData::integers,
                paths);
  checker.check(shapeOf(150'001, 14464, 64, LinearEpilogue::addToF32), true, LinearData::integers,
                paths);
  for (const Way& way : paths) {
    for (const int64_t rows : {5, 300}) checker.checkGraph(way.path, rows);
  }
  std::printf("%d cases, %d failures, worst error %.3f of what is allowed\n", checker.cases,
              checker.failures, checker.worst);
  return checker.failures == 0 ? 0 : 1;
}

}  // namespace
}  // namespace longsight::cuda::test

int main(int argc, char** argv) { return longsight::cuda::test::run(argc, argv); }
