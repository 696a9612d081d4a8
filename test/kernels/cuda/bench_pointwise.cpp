#include <cmath>
#include <vector>

#include "bench_data.h"
#include "bench_parts.h"
#include "kernels/cuda/pointwise/pointwise.h"

namespace longsight::cuda::test {
namespace {

// What the kernels of `rows` rows read and write, of a model with 32/8 heads of 128.
class Rows {
 public:
  explicit Rows(int64_t rows)
      : rows_(rows),
        residual_(rows * kWidth * 4),
        block_(rows * kWidth * 4),
        normed_(rows * kWidth * 4),
        weight_(kWidth * 8),
        projected_(rows * kProjected * 4),
        queries_(rows * kWidth * 2),
        keys_(8 * rows * 128 * 2),
        values_(keys_.bytes()),
        keyScales_(8 * rows * 4 * 2),
        valueScales_(keyScales_.bytes()),
        frequencies_(64 * 8) {
    for (const DeviceBuffer* buffer : {&residual_, &block_, &normed_, &weight_, &projected_}) {
      require(cudaMemset(buffer->data(), 0x3C, static_cast<size_t>(buffer->bytes())), "fill");
    }
    std::vector<double> frequencies;
    for (int i = 0; i < 64; ++i) frequencies.push_back(std::pow(500000.0, -i / 64.0));
    frequencies_.write(0, frequencies);
  }

  RmsNormTask norm() const {
    RmsNormTask task;
    task.input = floats(residual_);
    task.weight = floats(weight_);
    task.output = normed_.data();
    task.rows = rows_;
    task.width = kWidth;
    task.epsilon = 1e-5f;
    return task;
  }
  AddBlockTask sum(Number number, bool norms) const {
    AddBlockTask task;
    task.residual = static_cast<float*>(residual_.data());
    task.block = block_.data();
    task.blockNumber = number;
    task.blockNorm = norms ? floats(weight_) : nullptr;
    task.nextNorm = floats(weight_);
    task.normed = normed_.data();
    task.rows = rows_;
    task.width = kWidth;
    task.epsilon = 1e-5f;
    return task;
  }
  RopeStoreTask rope(Number number, KvStorage storage, bool norms) const {
    const int64_t bytes = number == Number::f32 ? 4 : 2;
    const auto at = [&](int64_t column) {
      return static_cast<char*>(projected_.data()) + column * bytes;
    };
    RopeStoreTask task;
    task.shape = {32, 8, 128, Element::bf16, storage};
    task.projectedQueries = at(0);
    task.projectedKeys = at(kWidth);
    task.projectedValues = at(kWidth + 1024);
    task.number = number;
    task.rowStride = kProjected;
    task.queryNorm = task.keyNorm = norms ? floats(weight_) : nullptr;
    task.rope = {RopeStyle::neox, 128, static_cast<const double*>(frequencies_.data()), 1.0f};
    task.rows = task.capacityRows = rows_;
    task.queries = queries_.data();
    task.keys = keys_.data();
    task.values = values_.data();
    task.keyScales = keyScales_.data();
    task.valueScales = valueScales_.data();
    return task;
  }

  static constexpr int32_t kWidth = 4096;
  static constexpr int32_t kProjected = 6144;

 private:
  static const float* floats(const DeviceBuffer& buffer) {
    return static_cast<const float*>(buffer.data());
  }
  int64_t rows_;
  DeviceBuffer residual_, block_, normed_, weight_, projected_, queries_;
  DeviceBuffer keys_, values_, keyScales_, valueScales_, frequencies_;
};

}  // namespace

void benchPointwise(Clock& clock, uint64_t) {
  constexpr int kInGraph = 200;
  for (const int64_t rows : {16384, 1, 8}) {
    const Rows data(rows);
    const bool prefill = rows > 8;
    const auto time = [&](const std::string& name, double bytesPerRow,
                          const std::function<cudaError_t(cudaStream_t)>& enqueue) {
      const std::string label = "pointwise, " + std::to_string(rows) + " rows: " + name;
      if (prefill) {
        printBytes(label, clock.median(9, [&] { return enqueue(nullptr); }),
                   static_cast<double>(rows) * bytesPerRow);
        return;
      }
      const Graph graph([&](cudaStream_t stream) {
        cudaError_t error = cudaSuccess;
        for (int i = 0; i < kInGraph && error == cudaSuccess; ++i) error = enqueue(stream);
        return error;
      });
      std::printf("%-66s %10.2f us each in a graph\n", label.c_str(),
                  clock.median(5, [&] { return graph.launch(); }) * 1e3 / kInGraph);
    };
    constexpr double kWidth = Rows::kWidth;
    time("norm to bf16", kWidth * 6,
         [&](cudaStream_t stream) { return launchRmsNorm(data.norm(), stream); });
    time("bf16 added, next norm", kWidth * 12,
         [&](cudaStream_t s) { return launchAddBlock(data.sum(Number::bf16, false), s); });
    time("norm of bf16 added, next norm", kWidth * 12,
         [&](cudaStream_t s) { return launchAddBlock(data.sum(Number::bf16, true), s); });
    time("norm of f32 added, next norm", kWidth * 14,
         [&](cudaStream_t s) { return launchAddBlock(data.sum(Number::f32, true), s); });
    const auto rope = [&](const char* name, Number number, KvStorage storage, bool norms) {
      const RopeStoreTask task = data.rope(number, storage, norms);
      const double stored = storage == KvStorage::q8 ? 2048 * (1 + 2.0 / 32) : 2048 * 2;
      time(name, Rows::kProjected * (number == Number::f32 ? 4 : 2) + kWidth * 2 + stored,
           [&](cudaStream_t stream) { return launchRopeStore(task, stream); });
    };
    rope("RoPE and cache", Number::bf16, KvStorage::element, false);
    rope("RoPE and cache, head norms", Number::bf16, KvStorage::element, true);
    rope("RoPE and cache, q8", Number::bf16, KvStorage::q8, false);
    rope("RoPE and cache, from f32", Number::f32, KvStorage::element, false);
  }
}

}  // namespace longsight::cuda::test
