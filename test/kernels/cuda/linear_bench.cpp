// Times linear layers of the Llama 3.1 8B shape: each alone, the four of a layer in turns, and a
// sustained run of them in which the card's power limits.
//   bench_cuda_linear [--tilings]
// --tilings: also every tiling of the sm_90a kernels.
// One line a measurement: name, milliseconds (median), TFLOP/s.
#include <algorithm>
#include <cstdio>
#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "bench_data.h"
#include "device_memory.h"
#include "kernels/cuda/linear/linear_launch.h"
#include "linear_reference.h"

namespace longsight::cuda::test {
namespace {

struct Shape {
  const char* name;
  int32_t inner;
  int32_t outputs;
  LinearEpilogue epilogue;
};
constexpr Shape kLayer[] = {
    {"qkv, bf16", 4096, 6144, LinearEpilogue::storeBf16},
    {"output, add", 4096, 4096, LinearEpilogue::addToF32},
    {"gate|up, swiglu", 4096, 28672, LinearEpilogue::swigluBf16},
    {"down, add", 14336, 4096, LinearEpilogue::addToF32},
};

double flop(const LinearTask& task) { return 2.0 * task.rows * task.inner * task.outputs; }

// One layer's weights and activations; the weights are 436 MB, so each product meets an L2 cache
// full of others.
class Layer {
 public:
  Layer(int64_t rows, LinearNumbers numbers) {
    for (const Shape& shape : kLayer) {
      const int64_t weights = int64_t{shape.outputs} * shape.inner;
      DeviceBuffer& input = add(rows * shape.inner * 2);
      DeviceBuffer& weight = add(weights * 2);
      DeviceBuffer& output = add(rows * shape.outputs * 4);
      const auto fill = numbers == LinearNumbers::e4m3 ? fillE4m3 : fillBf16;
      fill(input.data(), rows * shape.inner, LinearData::real, 1);
      fill(weight.data(), weights, LinearData::real, 2);
      fillF32(output.data(), rows * shape.outputs, LinearData::real, 3);
      tasks.push_back({input.data(), weight.data(), nullptr, output.data(), rows, shape.outputs,
                       shape.inner, shape.epilogue});
      if (numbers == LinearNumbers::e4m3) {
        DeviceBuffer& inputScales = add(rows * 4);
        DeviceBuffer& weightScales = add(int64_t{shape.outputs} * 4);
        fillScales(inputScales.data(), rows, LinearData::real, 4);
        fillScales(weightScales.data(), shape.outputs, LinearData::real, 5);
        tasks.back().numbers = numbers;
        tasks.back().inputScales = static_cast<const float*>(inputScales.data());
        tasks.back().weightScales = static_cast<const float*>(weightScales.data());
      }
      workspaceBytes = std::max(workspaceBytes, linearWorkspaceBytes(tasks.back()));
    }
    workspace = &add(workspaceBytes);
  }
  double totalFlop() const {
    double total = 0;
    for (const LinearTask& task : tasks) total += flop(task);
    return total;
  }
  cudaError_t launchAll(Path path) const {
    for (const LinearTask& task : tasks) {
      const cudaError_t error = launchLinear(task, workspace->data(), path, nullptr);
      if (error != cudaSuccess) return error;
    }
    return cudaSuccess;
  }

  std::vector<LinearTask> tasks;
  DeviceBuffer* workspace = nullptr;

 private:
  DeviceBuffer& add(int64_t bytes) {
    buffers_.push_back(std::make_unique<DeviceBuffer>(bytes));
    return *buffers_.back();
  }
  int64_t workspaceBytes = 16;
  std::vector<std::unique_ptr<DeviceBuffer>> buffers_;
};

class Clock {
 public:
  Clock() : flush_(int64_t{256} << 20), sink_(4096) {
    require(cudaEventCreate(&begin_), "event");
    require(cudaEventCreate(&end_), "event");
  }
  double once(const std::function<cudaError_t()>& work, bool flush) {
    // By reading: lines that were written would have to leave the cache during the run.
    if (flush) readThrough(flush_.data(), flush_.bytes(), sink_.data());
    require(cudaEventRecord(begin_), "record");
    require(work(), "launch");
    require(cudaEventRecord(end_), "record");
    require(cudaEventSynchronize(end_), "run");
    float ms = 0;
    require(cudaEventElapsedTime(&ms, begin_, end_), "time");
    return ms;
  }
  double median(int runs, const std::function<cudaError_t()>& work, bool flush = true) {
    std::vector<double> times;
    for (int i = 0; i <= runs; ++i) times.push_back(once(work, flush));
    times.erase(times.begin());
    std::nth_element(times.begin(), times.begin() + runs / 2, times.end());
    return times[runs / 2];
  }

 private:
  DeviceBuffer flush_, sink_;
  cudaEvent_t begin_, end_;
};

void print(const std::string& name, double ms, double flop) {
  std::printf("%-66s %10.4f ms %8.1f TFLOP/s\n", name.c_str(), ms, flop / ms / 1e9);
  std::fflush(stdout);
}

void benchTilings(Clock& clock, const Layer& layer, const DeviceTraits& device) {
  for (size_t i = 0; i < layer.tasks.size(); ++i) {
    const LinearTask& task = layer.tasks[i];
    const LinearTiling chosen = chooseTiling(task, device);
    for (const int32_t tileRows : {64, 128, 192, 256}) {
      if (tileRows > 64 && tileRows / 2 >= task.rows) continue;
      for (const int32_t splits : {1, 2, 3, 4}) {
        const bool many = task.rows > 1024;
        if (many && (splits > 1 || tileRows < 192)) continue;
        for (const int32_t bandRows : many ? std::vector{1024, 2048, 4096} : std::vector{2048}) {
          const LinearTiling tiling{tileRows, splits, std::max(1, bandRows / tileRows)};
          const bool taken = tiling.tileRows == chosen.tileRows && tiling.splits == chosen.splits &&
                             tiling.bandTiles == chosen.bandTiles;
          print("tiling: " + std::to_string(task.rows) +
                    (task.numbers == LinearNumbers::e4m3 ? " rows e4m3 " : " rows ") +
                    kLayer[i].name + " tile " + std::to_string(tileRows) + " splits " +
                    std::to_string(splits) + " band " + std::to_string(tiling.bandTiles) +
                    (taken ? " *" : ""),
                clock.median(5, [&] { return launchLinearWgmma(task, device, tiling, nullptr); }),
                flop(task));
        }
      }
    }
  }
}

void bench(int64_t rows, LinearNumbers numbers, bool tilings) {
  Layer layer(rows, numbers);
  Clock clock;
  DeviceTraits device{};
  require(deviceTraits(device), "device");
  const bool e4m3 = numbers == LinearNumbers::e4m3;
  const std::string prefix = std::to_string(rows) + (e4m3 ? " rows e4m3 " : " rows ");
  if (e4m3 && rows > 1024) {
    const LinearTask& task = layer.tasks[3];
    DeviceBuffer source(rows * task.inner * 2), scales(rows * 4);
    const double ms = clock.median(7, [&] {
      return launchToE4m3(source.data(), rows, task.inner, const_cast<void*>(task.input),
                          static_cast<float*>(scales.data()), nullptr);
    });
    std::printf("%-66s %10.4f ms %8.1f GB/s\n", (prefix + "input of down from bf16").c_str(), ms,
                static_cast<double>(rows) * task.inner * 3 / ms / 1e6);
    fillE4m3(const_cast<void*>(task.input), rows * task.inner, LinearData::real, 1);
  }
  for (const Path path : {Path::best, Path::mmaSync}) {
    if (path == Path::best && device.computeCapability != 90) continue;
    // A Hopper has no such products by mma.sync.
    if (path == Path::mmaSync && e4m3 && device.computeCapability == 90) continue;
    const std::string suffix = path == Path::best ? "" : ", mma.sync";
    for (size_t i = 0; i < layer.tasks.size(); ++i) {
      const LinearTask& task = layer.tasks[i];
      print(prefix + kLayer[i].name + suffix,
            clock.median(
                7, [&] { return launchLinear(task, layer.workspace->data(), path, nullptr); }),
            flop(task));
    }
    // Long enough for the clocks to settle where power limits.
    constexpr int kLayers = 32;
    const auto model = [&] {
      for (int i = 0; i < kLayers; ++i) {
        if (const cudaError_t error = layer.launchAll(path); error != cudaSuccess) return error;
      }
      return cudaSuccess;
    };
    const int runs = rows > 1024 ? static_cast<int>(16384 * 6 / rows) : 20;
    double ms = 0;
    for (int i = 0; i < runs; ++i) {
      const double once = clock.once(model, false);
      if (i >= runs / 2) ms += once / (runs - runs / 2);
    }
    print(prefix + "32 layers in turns, sustained" + suffix, ms, kLayers * layer.totalFlop());
    if (rows > 1024 && path == Path::best && !e4m3) {
      // What the copy into the residual stream adds to plain products.
      LinearTask plain = layer.tasks[3];
      plain.epilogue = LinearEpilogue::storeBf16;
      print(prefix + "down, bf16",
            clock.median(
                7, [&] { return launchLinear(plain, layer.workspace->data(), path, nullptr); }),
            flop(plain));
      plain = layer.tasks[2];
      plain.epilogue = LinearEpilogue::storeBf16;
      print(prefix + "gate|up, bf16",
            clock.median(
                7, [&] { return launchLinear(plain, layer.workspace->data(), path, nullptr); }),
            flop(plain));
    }
  }
  if (tilings && device.computeCapability == 90) benchTilings(clock, layer, device);
}

}  // namespace
}  // namespace longsight::cuda::test

int main(int argc, char** argv) {
  using namespace longsight;
  const bool tilings = argc > 1 && std::strcmp(argv[1], "--tilings") == 0;
  cuda::DeviceTraits device{};
  if (cuda::deviceTraits(device) != cudaSuccess) {
    std::printf("No CUDA device: linear layers were not timed.\n");
    return 77;
  }
  for (const int64_t rows : {16, 64, 200, 256, 8192, 16384}) {
    cuda::test::bench(rows, cuda::LinearNumbers::bf16, tilings);
  }
  if (device.computeCapability < 89) return 0;
  for (const int64_t rows : {200, 8192, 16384}) {
    cuda::test::bench(rows, cuda::LinearNumbers::e4m3, tilings);
  }
  return 0;
}
