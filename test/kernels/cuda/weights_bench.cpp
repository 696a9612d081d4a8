// Times of the products of few rows and of expansion, at the shapes of llama-3.1-8b. Matrices are
// taken in turn from more than the level-2 cache holds, in a graph as decoding does it.
#include <algorithm>
#include <cstdio>
#include <functional>
#include <memory>
#include <vector>

#include "device_memory.h"
#include "kernels/cuda/weights/weights.h"
#include "test/kernels/weight_formats.h"

namespace longsight::cuda::test {
namespace {

using longsight::test::weightFormat;

constexpr int64_t kBeyondCache = 400 << 20;

// Milliseconds of what `record` enqueues, as a graph: the median of some launches.
double graphMs(const std::function<void(cudaStream_t)>& record) {
  cudaStream_t stream;
  require(cudaStreamCreate(&stream), "stream");
  cudaGraph_t graph;
  cudaGraphExec_t executable;
  require(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "capture");
  record(stream);
  require(cudaStreamEndCapture(stream, &graph), "capture");
  require(cudaGraphInstantiate(&executable, graph, 0), "instantiate");
  cudaEvent_t begin, end;
  require(cudaEventCreate(&begin), "event");
  require(cudaEventCreate(&end), "event");
  std::vector<float> times;
  for (int i = 0; i < 12; ++i) {
    require(cudaEventRecord(begin, stream), "event");
    require(cudaGraphLaunch(executable, stream), "graph");
    require(cudaEventRecord(end, stream), "event");
    require(cudaEventSynchronize(end), "run");
    float ms = 0.0f;
    require(cudaEventElapsedTime(&ms, begin, end), "time");
    if (i >= 2) times.push_back(ms);
  }
  cudaEventDestroy(begin);
  cudaEventDestroy(end);
  cudaGraphExecDestroy(executable);
  cudaGraphDestroy(graph);
  cudaStreamDestroy(stream);
  std::nth_element(times.begin(), times.begin() + 5, times.end());
  return times[5];
}

struct RandomMatrix {
  RandomMatrix(int32_t type, int64_t rows, int64_t columns, uint64_t seed)
      : buffer(deviceMatrixBytes(type, rows, columns)), matrix{buffer.data(), type, rows, columns} {
    require(launchFillRandom(matrix, seed, nullptr), "fill");
    require(cudaDeviceSynchronize(), "fill");
  }
  DeviceBuffer buffer;
  DeviceMatrix matrix;
};

// What all products of the benchmark read and write.
struct Ground {
  Ground()
      : input(8 * 14336 * 4), norm(14336 * 4), out(int64_t{8} * 128256 * 4), workspace(64 << 20) {
    auto* values = static_cast<float*>(input.data());
    require(launchFillRandomVector(values, 8 * 14336, 0.0f, 1.0f, 5, nullptr), "input");
    require(launchFillRandomVector(static_cast<float*>(norm.data()), 14336, 1.0f, 0.1f, 6, nullptr),
            "norm");
    require(cudaMemset(workspace.data(), 0, static_cast<size_t>(workspace.bytes())), "zero");
    require(cudaDeviceSynchronize(), "ground");
  }
  ProductTask task(std::vector<DeviceMatrix> matrices, int32_t rows, bool normed,
                   ProductEpilogue epilogue) const {
    ProductTask task;
    task.rows = rows;
    task.input = input.data();
    task.inputStride = matrices[0].columns;
    if (normed) task.normWeights = static_cast<const float*>(norm.data());
    task.normEpsilon = 1e-5f;
    task.epilogue = epilogue;
    char* target = static_cast<char*>(out.data());
    for (const DeviceMatrix& matrix : matrices) {
      task.parts[task.partCount++] = {matrix, nullptr, target, matrix.rows};
      target += rows * matrix.rows * 4;
    }
    if (productWorkspaceBytes(task) > workspace.bytes()) std::abort();
    return task;
  }
  DeviceBuffer input, norm, out, workspace;
};

// TB/s of reading alone, by a copy of device memory: half of its traffic is reading, but it is what
// any machine can measure.
double copyBandwidth() {
  constexpr int64_t kBytes = int64_t{2} << 30;
  DeviceBuffer a(kBytes), b(kBytes);
  const double ms = graphMs([&](cudaStream_t stream) {
    require(cudaMemcpyAsync(b.data(), a.data(), kBytes, cudaMemcpyDeviceToDevice, stream), "copy");
  });
  return 2.0 * kBytes / ms * 1e-9;
}

void benchProduct(const Ground& ground, int32_t type, int64_t rows, int64_t columns) {
  std::vector<std::unique_ptr<RandomMatrix>> matrices;
  const int64_t bytes = deviceMatrixBytes(type, rows, columns);
  const int64_t count = std::max<int64_t>(2, kBeyondCache / bytes + 1);
  for (int64_t i = 0; i < count; ++i) {
    matrices.push_back(std::make_unique<RandomMatrix>(type, rows, columns, i + 1));
  }
  std::printf("product %s %lld x %lld:", weightFormat(type).name, static_cast<long long>(rows),
              static_cast<long long>(columns));
  const ProductEpilogue epilogue =
      rows == 28672 ? ProductEpilogue::swigluF32 : ProductEpilogue::storeF32;
  for (const int32_t inputRows : {1, 2, 4, 8}) {
    const double ms = graphMs([&](cudaStream_t stream) {
      for (const auto& matrix : matrices) {
        const ProductTask task =
            ground.task({matrix->matrix}, inputRows, columns == 4096, epilogue);
        require(launchProduct(task, ground.workspace.data(), stream), "product");
      }
    });
    const double us = ms * 1e3 / static_cast<double>(count);
    std::printf("  %d: %.2f us %.2f TB/s", inputRows, us, static_cast<double>(bytes) / us * 1e-6);
  }
  std::printf("\n");
}

// q, k and v where v has another type, as in half of the layers of Q4_K_M.
void benchMixed(const Ground& ground) {
  std::vector<std::unique_ptr<RandomMatrix>> matrices;
  constexpr int kLaunches = 30;
  for (uint64_t i = 0; i < kLaunches; ++i) {
    matrices.push_back(std::make_unique<RandomMatrix>(12, 5120, 4096, 2 * i + 1));
    matrices.push_back(std::make_unique<RandomMatrix>(14, 1024, 4096, 2 * i + 2));
  }
  std::printf("product Q4_K 5120 and Q6_K 1024 x 4096:");
  for (const int32_t rows : {1, 2, 4, 8}) {
    const double ms = graphMs([&](cudaStream_t stream) {
      for (size_t i = 0; i < matrices.size(); i += 2) {
        const ProductTask task = ground.task({matrices[i]->matrix, matrices[i + 1]->matrix}, rows,
                                             true, ProductEpilogue::storeF32);
        require(launchProduct(task, ground.workspace.data(), stream), "product");
      }
    });
    std::printf("  %d: %.2f us", rows, ms * 1e3 / kLaunches);
  }
  std::printf("\n");
}

// The products of a token of llama-3.1-8b, in order.
void benchModel(const Ground& ground, const char* name, int32_t most, int32_t better) {
  constexpr int kLayers = 32;
  std::vector<std::unique_ptr<RandomMatrix>> matrices;
  std::vector<std::vector<DeviceMatrix>> products;
  int64_t bytes = 0;
  const auto add = [&](std::vector<std::pair<int32_t, int64_t>> parts, int64_t columns) {
    products.emplace_back();
    for (const auto& [type, rows] : parts) {
      matrices.push_back(std::make_unique<RandomMatrix>(type, rows, columns, matrices.size() + 1));
      products.back().push_back(matrices.back()->matrix);
      bytes += matrices.back()->buffer.bytes();
    }
  };
  for (int layer = 0; layer < kLayers; ++layer) {
    // Q4_K_M has the better type for v and down in half of the layers.
    const bool more = layer < kLayers / 8 || layer >= kLayers * 7 / 8 || layer % 3 == 2;
    const int32_t other = more ? better : most;
    if (other == most) {
      add({{most, 6144}}, 4096);
    } else {
      add({{most, 5120}, {other, 1024}}, 4096);
    }
    add({{most, 4096}}, 4096);
    add({{most, 28672}}, 4096);
    add({{other, 4096}}, 14336);
  }
  add({{better, 128256}}, 4096);
  std::printf("model %s, %.2f GB:", name, static_cast<double>(bytes) * 1e-9);
  for (const int32_t rows : {1, 2, 4, 8}) {
    const double ms = graphMs([&](cudaStream_t stream) {
      for (size_t i = 0; i < products.size(); ++i) {
        const bool head = i + 1 == products.size();
        const size_t which = i % 4;
        const ProductEpilogue epilogue = head || which == 0 ? ProductEpilogue::storeF32
                                         : which == 2       ? ProductEpilogue::swigluF32
                                                            : ProductEpilogue::addF32;
        const bool normed = head || which == 0 || which == 2;
        require(launchProduct(ground.task(products[i], rows, normed, epilogue),
                              ground.workspace.data(), stream),
                "product");
      }
    });
    std::printf("  %d: %.3f ms %.2f TB/s", rows, ms, static_cast<double>(bytes) / ms * 1e-9);
  }
  std::printf("\n");
}

void benchExpand(int32_t type, int64_t rows, int64_t columns) {
  std::vector<std::unique_ptr<RandomMatrix>> matrices;
  for (int i = 0; i < 8; ++i) {
    matrices.push_back(std::make_unique<RandomMatrix>(type, rows, columns, i + 1));
  }
  DeviceBuffer out(rows * columns * 2);
  const double us =
      1e3 / 8 * graphMs([&](cudaStream_t stream) {
        for (const auto& matrix : matrices) {
          require(launchExpand(matrix->matrix, 0, rows, out.data(), columns, stream), "expand");
        }
      });
  const double bytes = static_cast<double>(matrices[0]->buffer.bytes() + rows * columns * 2);
  std::printf("expand %s %lld x %lld: %.1f us %.2f TB/s\n", weightFormat(type).name,
              static_cast<long long>(rows), static_cast<long long>(columns), us, bytes / us * 1e-6);
}

// Placing what lies on the device already: what it adds to an upload.
void benchPlace(int32_t type, int64_t rows, int64_t columns) {
  RandomMatrix matrix(type, rows, columns, 1);
  DeviceBuffer staging(rows * fileRowBytes(type, columns));
  const double us =
      1e3 * graphMs([&](cudaStream_t stream) {
        require(launchPlace(staging.data(), rows, matrix.matrix, 0, 1, stream), "place");
      });
  std::printf("place %s %lld x %lld: %.1f us %.2f TB/s\n", weightFormat(type).name,
              static_cast<long long>(rows), static_cast<long long>(columns), us,
              2.0 * static_cast<double>(staging.bytes()) / us * 1e-6);
}

int run(bool all) {
  cudaDeviceProp properties;
  require(cudaGetDeviceProperties(&properties, 0), "properties");
  std::printf("%s, %d processors, copy %.2f TB/s\n", properties.name,
              properties.multiProcessorCount, copyBandwidth());
  const Ground ground;
  benchModel(ground, "Q4_K_M", 12, 14);
  benchModel(ground, "Q8_0", 8, 8);
  benchModel(ground, "BF16", 30, 30);
  benchMixed(ground);
  const int64_t shapes[][2] = {
      {6144, 4096}, {4096, 4096}, {28672, 4096}, {4096, 14336}, {128256, 4096}};
  for (const int32_t type : {12, 14, 8, 30}) {
    for (const auto& shape : shapes) benchProduct(ground, type, shape[0], shape[1]);
  }
  for (const int32_t type : {2, 3, 6, 7, 13, 23, 1, 0}) {
    for (const auto& shape : shapes) {
      if (all || shape[0] == 28672) benchProduct(ground, type, shape[0], shape[1]);
    }
  }
  for (const auto& format : longsight::test::weightFormats()) {
    benchExpand(format.type, 28672, 4096);
    benchPlace(format.type, 28672, 4096);
  }
  return 0;
}

}  // namespace
}  // namespace longsight::cuda::test

int main(int count, char**) { return longsight::cuda::test::run(count > 1); }
