// Weights on the device: placing, expansion, embedding rows and the products of few rows, against
// the file's blocks in double precision (test/kernels/weight_formats.h, which ggml confirms).
//   test_cuda_weights [--small] [seed]     --small: what compute-sanitizer has time for
#include <cmath>
#include <cstdio>
#include <cstring>
#include <memory>
#include <string>

#include "device_memory.h"
#include "kernels/cuda/weights/weights.h"
#include "numbers.h"
#include "test/kernels/weight_formats.h"

namespace longsight::cuda::test {
namespace {

using longsight::test::expandWeights;
using longsight::test::randomWeights;
using longsight::test::weightFormat;
using longsight::test::WeightFormat;
using longsight::test::weightFormats;

int passed = 0, failed = 0;

void report(const std::string& name, const std::string& fault) {
  fault.empty() ? ++passed : ++failed;
  std::printf("%s %s%s%s\n", fault.empty() ? "ok  " : "FAIL", name.c_str(),
              fault.empty() ? "" : ": ", fault.c_str());
}

std::string numberText(double value) {
  char text[32];
  std::snprintf(text, sizeof text, "%.6g", value);
  return text;
}

// A matrix as a file has it, what it stands for, and its place on the device.
struct TestMatrix {
  TestMatrix(int32_t type, int64_t rows, int64_t columns, std::mt19937_64& random)
      : format(weightFormat(type)),
        buffer(deviceMatrixBytes(type, rows, columns)),
        matrix{buffer.data(), type, rows, columns},
        file(randomWeights(format, rows * columns, 1.0f / std::sqrt(static_cast<float>(columns)),
                           random)),
        values(expandWeights(format, file, rows * columns)) {}

  // Rows [begin, end) of the file to rows target, target + step, ... of the device.
  void place(int64_t begin, int64_t end, int64_t target, int64_t step) const {
    const int64_t rowBytes = fileRowBytes(format.type, matrix.columns);
    DeviceBuffer staging((end - begin) * rowBytes);
    staging.write(
        0, std::vector<uint8_t>(file.begin() + begin * rowBytes, file.begin() + end * rowBytes));
    require(launchPlace(staging.data(), end - begin, matrix, target, step, nullptr), "place");
    require(cudaDeviceSynchronize(), "place");
  }
  void placeAll() const { place(0, matrix.rows, 0, 1); }

  const WeightFormat& format;
  DeviceBuffer buffer;
  DeviceMatrix matrix;
  std::vector<uint8_t> file;
  std::vector<float> values;
};

// The row of the file that device row `row` holds when the first half of the file's rows and the
// second take turns.
int64_t interleaved(int64_t row, int64_t rows) { return row / 2 + row % 2 * ((rows + 1) / 2); }

void checkExpansion(const TestMatrix& test, bool turns, std::mt19937_64& random) {
  const DeviceMatrix& matrix = test.matrix;
  const int64_t rows = matrix.rows, columns = matrix.columns;
  std::string fault;
  if (turns) {
    test.place(0, (rows + 1) / 2, 0, 2);
    if (rows > 1) test.place((rows + 1) / 2, rows, 1, 2);
  } else {
    // In two pieces, the second first.
    const int64_t cut = static_cast<int64_t>(random() % static_cast<uint64_t>(rows));
    test.place(cut, rows, cut, 1);
    if (cut > 0) test.place(0, cut, 0, 1);
  }
  if (!test.buffer.guardsIntact()) fault = "guard words of the matrix changed";

  const int64_t first = static_cast<int64_t>(random() % static_cast<uint64_t>(rows));
  const int64_t count = 1 + static_cast<int64_t>(random() % static_cast<uint64_t>(rows - first));
  const int64_t stride = columns + 8 * static_cast<int64_t>(random() % 3);
  DeviceBuffer out(count * stride * 2);
  require(launchExpand(matrix, first, count, out.data(), stride, nullptr), "expand");
  require(cudaDeviceSynchronize(), "expand");
  const auto got = out.read<uint16_t>(0, count * stride);
  for (int64_t i = 0; i < count * stride && fault.empty(); ++i) {
    const int64_t row = first + i / stride, column = i % stride;
    const int64_t fileRow = turns ? interleaved(row, rows) : row;
    const uint16_t expected =
        column < columns ? toBf16(test.values[static_cast<size_t>(fileRow * columns + column)])
                         : uint16_t{0xFFFF};
    if (got[static_cast<size_t>(i)] != expected) {
      fault = "row " + std::to_string(row) + " column " + std::to_string(column) + ": " +
              numberText(fromBf16(got[static_cast<size_t>(i)])) + " for " +
              numberText(fromBf16(expected));
    }
  }
  if (fault.empty() && !out.guardsIntact()) fault = "guard words of the expansion changed";

  std::vector<int32_t> tokens = {0, static_cast<int32_t>(rows - 1), -1, static_cast<int32_t>(rows)};
  for (int i = 0; i < 5; ++i) {
    tokens.push_back(static_cast<int32_t>(random() % static_cast<uint64_t>(rows)));
  }
  const auto tokenCount = static_cast<int64_t>(tokens.size());
  DeviceBuffer deviceTokens(tokenCount * 4), embedded(tokenCount * columns * 4);
  deviceTokens.write(0, tokens);
  require(launchEmbed(matrix, static_cast<const int32_t*>(deviceTokens.data()), tokenCount,
                      static_cast<float*>(embedded.data()), nullptr),
          "embed");
  require(cudaDeviceSynchronize(), "embed");
  const auto gotRows = embedded.read<float>(0, tokenCount * columns);
  for (int64_t i = 0; i < tokenCount * columns && fault.empty(); ++i) {
    const int64_t token = tokens[static_cast<size_t>(i / columns)];
    float expected = 0.0f;
    if (token >= 0 && token < rows) {
      const int64_t fileRow = turns ? interleaved(token, rows) : token;
      expected = test.values[static_cast<size_t>(fileRow * columns + i % columns)];
    }
    if (gotRows[static_cast<size_t>(i)] != expected) {
      fault = "embedding of " + std::to_string(token) + " column " + std::to_string(i % columns) +
              ": " + numberText(gotRows[static_cast<size_t>(i)]) + " for " + numberText(expected);
    }
  }
  if (fault.empty() && !embedded.guardsIntact()) fault = "guard words of the embedding changed";
  report(std::string("expand ") + test.format.name + " " + std::to_string(rows) + " x " +
             std::to_string(columns) + (turns ? " in turns" : ""),
         fault);
}

struct ProductCase {
  std::vector<int32_t> types;
  std::vector<int64_t> matrixRows;
  int64_t columns;
  int32_t rows;
  ProductEpilogue epilogue = ProductEpilogue::storeF32;
  bool norm = false, bias = false, bf16Input = false;
  // Size of the input's values; one is 300 times as large.
  float inputSize = 1.0f;
};

bool isGated(ProductEpilogue epilogue) {
  return epilogue == ProductEpilogue::swigluF32 || epilogue == ProductEpilogue::swigluBf16;
}
bool isBf16(ProductEpilogue epilogue) {
  return epilogue == ProductEpilogue::storeBf16 || epilogue == ProductEpilogue::swigluBf16;
}

std::string describe(const ProductCase& options) {
  std::string text = "product";
  for (size_t i = 0; i < options.types.size(); ++i) {
    text += std::string(" ") + weightFormat(options.types[i]).name + ":" +
            std::to_string(options.matrixRows[i]);
  }
  const char* names[] = {"store", "store bf16", "add", "swiglu", "swiglu bf16"};
  return text + " x " + std::to_string(options.columns) + ", " + std::to_string(options.rows) +
         " rows, " + names[static_cast<int>(options.epilogue)] + (options.norm ? ", norm" : "") +
         (options.bias ? ", bias" : "") + (options.bf16Input ? ", bf16 input" : "");
}

// A task with everything it points to.
class ProductRun {
 public:
  ProductRun(const ProductCase& options, std::mt19937_64& random)
      : options_(options),
        inputStride_((options.columns + 15) / 8 * 8),
        inputBuffer_(options.rows * inputStride_ * (options.bf16Input ? 2 : 4)),
        normBuffer_(options.columns * 4) {
    std::normal_distribution<float> normal;
    const auto count = static_cast<size_t>(options.rows * inputStride_);
    input_.resize(count);
    for (float& value : input_) value = options.inputSize * normal(random);
    for (int32_t row = 0; row < options.rows; ++row) {
      input_[static_cast<size_t>(row * inputStride_) +
             random() % static_cast<uint64_t>(options.columns)] *= 300.0f;
    }
    if (options.bf16Input) {
      std::vector<uint16_t> bits;
      for (float& value : input_) {
        bits.push_back(toBf16(value));
        value = fromBf16(bits.back());
      }
      inputBuffer_.write(0, bits);
    } else {
      inputBuffer_.write(0, input_);
    }
    for (int64_t i = 0; i < options.columns; ++i) {
      normWeights_.push_back(1.0f + 0.3f * normal(random));
    }
    normBuffer_.write(0, normWeights_);
    task_.rows = options.rows;
    task_.inputType = options.bf16Input ? ProductInput::bf16 : ProductInput::f32;
    task_.input = inputBuffer_.data();
    task_.inputStride = inputStride_;
    if (options.norm) task_.normWeights = static_cast<const float*>(normBuffer_.data());
    task_.normEpsilon = 1e-5f;
    task_.epilogue = options.epilogue;
    for (size_t i = 0; i < options.types.size(); ++i) addPart(i, random);
    workspace_ = std::make_unique<DeviceBuffer>(productWorkspaceBytes(task_));
  }

  void check() {
    std::string fault = validate(task_);
    double worst = 0.0;
    if (fault.empty()) {
      // Only the counters have to be zero.
      require(cudaMemset(workspace_->data(), 0, static_cast<size_t>(workspace_->bytes())), "zero");
      const std::vector<std::vector<uint8_t>> first = run();
      if (run() != first) fault = "a second product gives other bits";
      for (size_t i = 0; i < parts_.size() && fault.empty(); ++i) {
        fault = compare(*parts_[i], first[i], worst);
      }
      if (fault.empty() && !workspace_->guardsIntact()) fault = "guards of the workspace changed";
    }
    report(describe(options_) + ", error " + numberText(worst), fault);
  }

 private:
  struct Part {
    std::unique_ptr<TestMatrix> matrix;
    std::unique_ptr<DeviceBuffer> bias, out;
    std::vector<float> biasValues, before;
    int64_t width = 0, stride = 0;
  };

  void addPart(size_t i, std::mt19937_64& random) {
    auto part = std::make_unique<Part>();
    const int64_t rows = options_.matrixRows[i];
    part->matrix = std::make_unique<TestMatrix>(options_.types[i], rows, options_.columns, random);
    part->matrix->placeAll();
    part->bias = std::make_unique<DeviceBuffer>(rows * 4);
    std::normal_distribution<float> normal;
    for (int64_t row = 0; row < rows; ++row) part->biasValues.push_back(normal(random));
    part->bias->write(0, part->biasValues);
    part->width = isGated(options_.epilogue) ? rows / 2 : rows;
    part->stride = part->width + 3;
    part->out = std::make_unique<DeviceBuffer>(options_.rows * part->stride *
                                               (isBf16(options_.epilogue) ? 2 : 4));
    for (int64_t k = 0; k < options_.rows * part->stride; ++k) {
      part->before.push_back(normal(random));
    }
    ProductPart& target = task_.parts[task_.partCount++];
    target.matrix = part->matrix->matrix;
    if (options_.bias) target.bias = static_cast<const float*>(part->bias->data());
    target.out = part->out->data();
    target.outStride = part->stride;
    parts_.push_back(std::move(part));
  }

  std::vector<std::vector<uint8_t>> run() {
    for (const auto& part : parts_) {
      part->out->poison();
      if (options_.epilogue == ProductEpilogue::addF32) part->out->write(0, part->before);
    }
    require(launchProduct(task_, workspace_->data(), nullptr), "launchProduct");
    require(cudaDeviceSynchronize(), "product");
    std::vector<std::vector<uint8_t>> bits;
    for (const auto& part : parts_) bits.push_back(part->out->read<uint8_t>(0, part->out->bytes()));
    return bits;
  }

  // Input of a row as the product takes it, normalised.
  std::vector<double> inputOf(int32_t row) const {
    const float* values = input_.data() + row * inputStride_;
    std::vector<double> result(values, values + options_.columns);
    if (!options_.norm) return result;
    double squares = 0.0;
    for (const double value : result) squares += value * value;
    const double factor = 1.0 / std::sqrt(squares / static_cast<double>(options_.columns) + 1e-5f);
    for (int64_t i = 0; i < options_.columns; ++i) {
      result[static_cast<size_t>(i)] *= factor * normWeights_[static_cast<size_t>(i)];
    }
    return result;
  }

  // worst: largest error as a share of the root of the squares of a sum's terms. Where a weight is
  // the difference of a product and an offset, the size of these counts.
  std::string compare(const Part& part, const std::vector<uint8_t>& bits, double& worst) const {
    const bool halves = isBf16(options_.epilogue), gated = isGated(options_.epilogue);
    const int32_t type = part.matrix->format.type;
    // Rounding of the operands: fp16, or bf16 beside BF16 and F32.
    const double allowed = type == 30 || type == 0 ? 8.0 / 512.0 : 8.0 / 4096.0;
    const bool offsets = type == 3 || type == 7 || type == 12 || type == 13;
    const double offsetSize =
        offsets ? 2.0 / std::sqrt(static_cast<double>(options_.columns)) : 0.0;
    const auto rows = static_cast<int64_t>(part.biasValues.size());
    for (int32_t row = 0; row < options_.rows; ++row) {
      const std::vector<double> input = inputOf(row);
      std::vector<double> product(static_cast<size_t>(rows)), size(static_cast<size_t>(rows));
      parallelFor(rows, [&](int64_t i) {
        double sum = 0.0, squares = 0.0;
        const float* weights = part.matrix->values.data() + i * options_.columns;
        for (int64_t k = 0; k < options_.columns; ++k) {
          const double term = input[static_cast<size_t>(k)] * weights[k];
          sum += term;
          const double allowance = input[static_cast<size_t>(k)] * offsetSize;
          squares += term * term + allowance * allowance;
        }
        if (options_.bias) sum += part.biasValues[static_cast<size_t>(i)];
        product[static_cast<size_t>(i)] = sum;
        size[static_cast<size_t>(i)] = std::sqrt(squares) + 1e-6;
      });
      for (int64_t i = 0; i < part.stride; ++i) {
        const int64_t index = row * part.stride + i;
        float got;
        uint32_t raw = 0;
        std::memcpy(&raw, bits.data() + index * (halves ? 2 : 4), halves ? 2 : 4);
        got = halves ? fromBf16(static_cast<uint16_t>(raw)) : std::bit_cast<float>(raw);
        const std::string where = "row " + std::to_string(row) + " output " + std::to_string(i);
        if (i >= part.width) {
          const uint32_t untouched =
              halves ? 0xFFFFu
              : options_.epilogue == ProductEpilogue::addF32
                  ? std::bit_cast<uint32_t>(part.before[static_cast<size_t>(index)])
                  : ~0u;
          if (raw != untouched) return where + ", beyond the matrix, was written";
          continue;
        }
        double expected = product[static_cast<size_t>(gated ? 2 * i : i)];
        double bound = size[static_cast<size_t>(gated ? 2 * i : i)];
        if (gated) {
          const double up = product[static_cast<size_t>(2 * i + 1)];
          const double silu = expected / (1.0 + std::exp(-expected));
          // silu has a slope below 1.1.
          bound = 1.1 * bound * std::abs(up) +
                  std::abs(silu) * size[static_cast<size_t>(2 * i + 1)] +
                  bound * size[static_cast<size_t>(2 * i + 1)] * allowed;
          expected = silu * up;
        }
        if (options_.epilogue == ProductEpilogue::addF32) {
          expected += part.before[static_cast<size_t>(index)];
        }
        double error = std::abs(got - expected);
        // What bf16 or f32 leave of the output.
        error -= std::abs(expected) * (halves ? 1.0 / 256 : 1e-6);
        worst = std::max(worst, error / bound);
        if (!(error <= allowed * bound)) {
          return where + ": " + numberText(got) + " for " + numberText(expected) + ", off by " +
                 numberText(error / bound) + " of " + numberText(bound);
        }
      }
      if (!part.out->guardsIntact()) return "guards of the output changed";
    }
    return {};
  }

  ProductCase options_;
  int64_t inputStride_;
  DeviceBuffer inputBuffer_, normBuffer_;
  std::vector<float> input_, normWeights_;
  std::vector<std::unique_ptr<Part>> parts_;
  std::unique_ptr<DeviceBuffer> workspace_;
  ProductTask task_;
};

// Products that need each other's results, one after the other as a graph: their launches overlap,
// and the bits must be those of launches that the host waits for.
void checkChain(int32_t type, std::mt19937_64& random) {
  const int64_t width = 768, inner = 1536;
  TestMatrix up(type, 2 * inner, width, random), down(type, width, inner, random);
  up.placeAll();
  down.placeAll();
  constexpr int32_t kRows = 3;
  std::vector<float> start(kRows * width), norm(width, 1.0f);
  std::normal_distribution<float> normal;
  for (float& value : start) value = normal(random);
  DeviceBuffer stream(kRows * width * 4), gated(kRows * inner * 2), weights(width * 4);
  weights.write(0, norm);
  ProductTask first, second;
  first.rows = second.rows = kRows;
  first.input = stream.data();
  first.inputStride = width;
  first.normWeights = static_cast<const float*>(weights.data());
  first.normEpsilon = 1e-6f;
  first.epilogue = ProductEpilogue::swigluBf16;
  first.partCount = second.partCount = 1;
  first.parts[0] = {up.matrix, nullptr, gated.data(), inner};
  second.inputType = ProductInput::bf16;
  second.input = gated.data();
  second.inputStride = inner;
  second.epilogue = ProductEpilogue::addF32;
  second.parts[0] = {down.matrix, nullptr, stream.data(), width};
  DeviceBuffer workspace(std::max(productWorkspaceBytes(first), productWorkspaceBytes(second)));
  require(cudaMemset(workspace.data(), 0, static_cast<size_t>(workspace.bytes())), "zero");
  constexpr int kLayers = 20;

  stream.write(0, start);
  for (int i = 0; i < kLayers; ++i) {
    require(launchProduct(first, workspace.data(), nullptr), "up");
    require(cudaDeviceSynchronize(), "up");
    require(launchProduct(second, workspace.data(), nullptr), "down");
    require(cudaDeviceSynchronize(), "down");
  }
  const auto expected = stream.read<float>(0, kRows * width);

  cudaStream_t queue;
  require(cudaStreamCreate(&queue), "stream");
  cudaGraph_t graph;
  cudaGraphExec_t executable;
  require(cudaStreamBeginCapture(queue, cudaStreamCaptureModeThreadLocal), "capture");
  for (int i = 0; i < kLayers; ++i) {
    require(launchProduct(first, workspace.data(), queue), "up");
    require(launchProduct(second, workspace.data(), queue), "down");
  }
  require(cudaStreamEndCapture(queue, &graph), "capture");
  require(cudaGraphInstantiate(&executable, graph, 0), "instantiate");
  std::string fault;
  for (int run = 0; run < 20 && fault.empty(); ++run) {
    stream.write(0, start);
    require(cudaGraphLaunch(executable, queue), "graph");
    require(cudaStreamSynchronize(queue), "graph");
    if (stream.read<float>(0, kRows * width) != expected) {
      fault = "run " + std::to_string(run) + " of the graph gives other bits";
    }
  }
  for (const float value : expected) {
    if (!std::isfinite(value)) fault = "the chain left the numbers";
  }
  cudaGraphExecDestroy(executable);
  cudaGraphDestroy(graph);
  cudaStreamDestroy(queue);
  report(std::string("chain of ") + weightFormat(type).name, fault);
}

void checkFill(int32_t type, int64_t rows, int64_t columns) {
  DeviceBuffer buffer(deviceMatrixBytes(type, rows, columns));
  DeviceBuffer out(rows * columns * 2);
  const DeviceMatrix matrix{buffer.data(), type, rows, columns};
  const auto fill = [&](uint64_t seed) {
    buffer.poison();
    require(launchFillRandom(matrix, seed, nullptr), "fill");
    require(launchExpand(matrix, 0, rows, out.data(), columns, nullptr), "expand");
    require(cudaDeviceSynchronize(), "fill");
    return out.read<uint16_t>(0, rows * columns);
  };
  const auto first = fill(7);
  std::string fault;
  if (fill(7) != first) fault = "the same seed gives other bits";
  if (fill(8) == first) fault = "another seed gives the same bits";
  if (!buffer.guardsIntact()) fault = "guards changed";
  double sum = 0.0, squares = 0.0;
  for (const uint16_t bits : first) {
    sum += fromBf16(bits);
    squares += double{fromBf16(bits)} * fromBf16(bits);
  }
  const auto count = static_cast<double>(first.size());
  const double deviation = std::sqrt(squares / count * static_cast<double>(columns));
  const double mean = sum / count * std::sqrt(static_cast<double>(columns));
  if (!(deviation > 0.85 && deviation < 1.15)) fault = "deviation " + numberText(deviation);
  if (!(std::abs(mean) < 0.06)) fault = "mean " + numberText(mean);
  report(std::string("fill ") + weightFormat(type).name + ", deviation " + numberText(deviation),
         fault);
}

void checkFillVector() {
  constexpr int64_t kCount = 100001;
  DeviceBuffer buffer(kCount * 4);
  require(
      launchFillRandomVector(static_cast<float*>(buffer.data()), kCount, 1.0f, 0.1f, 3, nullptr),
      "vector");
  require(cudaDeviceSynchronize(), "vector");
  double sum = 0.0, squares = 0.0;
  for (const float value : buffer.read<float>(0, kCount)) {
    sum += value;
    squares += (value - 1.0) * (value - 1.0);
  }
  const bool good = std::abs(sum / kCount - 1.0) < 2e-3 &&
                    std::abs(std::sqrt(squares / kCount) - 0.1) < 2e-3 && buffer.guardsIntact();
  report("fill vector", good ? "" : "mean " + numberText(sum / kCount));
}

void checkRefusals() {
  ProductTask task;
  const auto refused = [](const std::string& what, bool good) {
    report("refuses " + what, good ? "" : "accepted");
  };
  refused("no rows", !validate(task).empty());
  task.rows = 1;
  task.partCount = 1;
  task.parts[0].matrix = {nullptr, 12, 16, 100};
  refused("Q4_K of 100 columns", !validate(task).empty());
  task.parts[0].matrix = {nullptr, 10, 16, 256};
  refused("Q2_K", !validate(task).empty());
  task.parts[0].matrix = {nullptr, 12, 15, 256};
  task.epilogue = ProductEpilogue::swigluF32;
  refused("SwiGLU of 15 rows", !validate(task).empty());
  task.epilogue = ProductEpilogue::storeF32;
  refused("nothing of a good task", validate(task).empty());
  task.rows = 9;
  refused("9 rows", !validate(task).empty());
  refused("rows beyond the matrix", launchExpand({nullptr, 12, 16, 256}, 10, 7, nullptr, 256,
                                                 nullptr) == cudaErrorInvalidValue);
}

int64_t columnsOf(const WeightFormat& format, int which) {
  const int64_t floats[] = {8, 136, 1000}, small[] = {32, 160, 576}, super[] = {256, 768, 2304};
  return format.blockColumns == 1    ? floats[which]
         : format.blockColumns == 32 ? small[which]
                                     : super[which];
}

int run(bool small, uint64_t seed) {
  std::mt19937_64 random(seed);
  for (const WeightFormat& format : weightFormats()) {
    const int64_t rows[] = {1, 7, 33};
    for (int i = 0; i < (small ? 2 : 3); ++i) {
      for (const bool turns : {false, true}) {
        checkExpansion({format.type, rows[i], columnsOf(format, i), random}, turns, random);
      }
    }
    if (!small) checkExpansion({format.type, 259, 4096, random}, true, random);
    checkFill(format.type, small ? 16 : 96, small ? 1024 : 2048);
  }
  checkFillVector();
  checkRefusals();

  int32_t rows = 0;
  const auto product = [&](ProductCase options) {
    rows = rows % kMaxProductRows + 1;
    if (options.rows == 0) options.rows = rows;
    ProductRun(options, random).check();
  };
  using enum ProductEpilogue;
  for (const WeightFormat& format : weightFormats()) {
    const int32_t type = format.type;
    product({{type}, {1}, columnsOf(format, 0), 0, storeF32});
    product({{type}, {50}, columnsOf(format, 1), 0, storeBf16, true, true});
    product({{type}, {130}, columnsOf(format, 2), 0, swigluBf16, false, false, true});
    product({{type}, {46}, columnsOf(format, 2), 0, swigluF32, true, true});
    product({{type}, {333}, columnsOf(format, 1), 0, addF32, false, true, true, 100.0f});
    if (small) continue;
    product({{type}, {576}, 1536, 1, addF32, false, false, true, 1e-3f});
    product({{type}, {2100}, 4096, 1, storeF32, true});
    product({{type}, {1024}, 4096, 8, storeF32, true});
    product({{type}, {512}, 14336, 8, addF32, false, false, true, 100.0f});
    product({{type}, {896}, 3584, 5, swigluBf16, true});
    product({{type}, {6000}, 512, 3, storeF32, true});
  }
  // q, k and v of different types, as Q4_K_M and others have them.
  for (const int32_t count : {1, 4, 8}) {
    product({{12, 12, 14},
             {small ? 256 : 2048, small ? 64 : 512, 64},
             1024,
             count,
             storeF32,
             true,
             true});
    product({{2, 8, 30}, {96, 32, 32}, 576, count, storeBf16, true});
    product({{0, 1, 23}, {80, 1, 250}, 768, count, storeF32, false, true, true});
  }
  for (const int32_t type : {12, 14, 30, 8}) checkChain(type, random);
  std::printf("%d passed, %d failed\n", passed, failed);
  return failed == 0 ? 0 : 1;
}

}  // namespace
}  // namespace longsight::cuda::test

int main(int count, char** arguments) {
  bool small = false;
  uint64_t seed = std::random_device{}();
  for (int i = 1; i < count; ++i) {
    if (std::strcmp(arguments[i], "--small") == 0) {
      small = true;
    } else {
      seed = std::strtoull(arguments[i], nullptr, 10);
    }
  }
  std::printf("seed %llu\n", static_cast<unsigned long long>(seed));
  return longsight::cuda::test::run(small, seed);
}
