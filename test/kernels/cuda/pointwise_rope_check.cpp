// checkRope and checkRopeGraph: RoPE with the writing of queries and cache.
#include <memory>

#include "pointwise_comparison.h"

namespace longsight::cuda::test {
namespace {

// A task with all that it points to.
struct RopeData {
  RopeStoreTask task;
  std::vector<float> projected, bias, queryNorm, keyNorm;
  std::vector<double> frequencies;
  std::unique_ptr<DeviceBuffer> deviceProjected, vectors, deviceFrequencies, position;
  std::unique_ptr<DeviceBuffer> queries, keys, values, keyScales, valueScales;

  RopeData(const RopeCase& c, std::mt19937_64& random) {
    const HeadShape& shape = c.shape;
    const int32_t width = (shape.heads + 2 * shape.kvHeads) * shape.headDim;
    const int32_t queryWidth = shape.heads * shape.headDim;
    const int32_t keyWidth = shape.kvHeads * shape.headDim;
    projected = normals(random, c.rows * width);
    bias = normals(random, width);
    queryNorm = normals(random, shape.headDim);
    keyNorm = normals(random, shape.headDim);
    for (int32_t i = 0; i < c.rotatedDims / 2; ++i) {
      frequencies.push_back(std::pow(500000.0, -2.0 * i / c.rotatedDims) * (i % 3 == 0 ? 1 : 0.7));
    }
    frequencies.push_back(0);
    deviceProjected = std::make_unique<DeviceBuffer>(c.rows * width * bytesOf(c.number));
    upload(*deviceProjected, projected, c.number);
    vectors = std::make_unique<DeviceBuffer>((width + 2 * shape.headDim) * 4);
    vectors->write(0, bias);
    vectors->write(width * 4, queryNorm);
    vectors->write((width + shape.headDim) * 4, keyNorm);
    deviceFrequencies =
        std::make_unique<DeviceBuffer>(static_cast<int64_t>(frequencies.size()) * 8);
    deviceFrequencies->write(0, frequencies);
    position = std::make_unique<DeviceBuffer>(4);
    position->write(0, std::vector<int32_t>{static_cast<int32_t>(c.firstRow)});

    const bool q8 = shape.storage == KvStorage::q8;
    const int64_t cacheRows = shape.kvHeads * c.capacityRows;
    queries = std::make_unique<DeviceBuffer>(c.rows * queryWidth * 2);
    for (auto* side : {&keys, &values}) {
      *side = std::make_unique<DeviceBuffer>(cacheRows * shape.headDim * (q8 ? 1 : 2));
    }
    for (auto* side : {&keyScales, &valueScales}) {
      *side = std::make_unique<DeviceBuffer>(q8 ? cacheRows * q8Blocks(shape.headDim) * 2 : 16);
    }
    const auto at = [&](int64_t column) {
      return static_cast<const void*>(static_cast<const char*>(deviceProjected->data()) +
                                      column * bytesOf(c.number));
    };
    const auto* floats = static_cast<const float*>(vectors->data());
    task.shape = shape;
    if (c.wantQueries) task.projectedQueries = at(0);
    if (c.wantCache) {
      task.projectedKeys = at(queryWidth);
      task.projectedValues = at(queryWidth + keyWidth);
    }
    task.number = c.number;
    task.rowStride = width;
    if (c.bias) {
      task.queryBias = floats;
      task.keyBias = floats + queryWidth;
      task.valueBias = floats + queryWidth + keyWidth;
    }
    if (c.norms) {
      task.queryNorm = floats + width;
      task.keyNorm = floats + width + shape.headDim;
    }
    task.epsilon = 1e-5f;
    task.rope = {c.style, c.rotatedDims, static_cast<const double*>(deviceFrequencies->data()),
                 c.magnitude};
    task.rows = c.rows;
    // With the position on the device, the host's is a bound.
    task.firstRow = c.onDevice ? c.capacityRows - c.rows : c.firstRow;
    if (c.onDevice) task.firstRowOnDevice = static_cast<const int32_t*>(position->data());
    task.queries = queries->data();
    task.keys = keys->data();
    task.values = values->data();
    task.keyScales = keyScales->data();
    task.valueScales = valueScales->data();
    task.capacityRows = c.capacityRows;
  }

  std::vector<DeviceBuffer*> outputs() const {
    return {queries.get(), keys.get(), values.get(), keyScales.get(), valueScales.get()};
  }
};

// kind: 0 queries, 1 keys, 2 values. `slack` is what f32 may do to each value.
void expectHead(const RopeCase& c, const RopeData& data, int kind, int64_t row, int32_t head,
                std::vector<double>& values, std::vector<double>& slack) {
  const int32_t dim = c.shape.headDim;
  const int64_t width = (c.shape.heads + 2 * c.shape.kvHeads) * dim;
  const int64_t begin =
      (kind == 0 ? head : c.shape.heads + (kind - 1) * c.shape.kvHeads + head) * dim;
  values.clear();
  for (int32_t i = 0; i < dim; ++i) {
    const double x = data.projected[static_cast<size_t>(row * width + begin + i)];
    values.push_back(x + (c.bias ? double{data.bias[static_cast<size_t>(begin + i)]} : 0.0));
  }
  slack.assign(values.size(), 0.0);
  const auto allow = [&] {
    for (size_t i = 0; i < values.size(); ++i) slack[i] = 2e-6 * (std::abs(values[i]) + 0.1);
  };
  allow();
  if (kind == 2) return;
  if (c.norms) {
    const std::vector<float>& weight = kind == 0 ? data.queryNorm : data.keyNorm;
    const double scale = inverseRms(values.data(), dim, 1e-5f);
    for (size_t i = 0; i < values.size(); ++i) values[i] *= scale * weight[i];
  }
  allow();
  const bool neighbours = c.style == RopeStyle::interleaved;
  for (int32_t pair = 0; pair < c.rotatedDims / 2; ++pair) {
    const auto a = static_cast<size_t>(neighbours ? 2 * pair : pair);
    const auto b = static_cast<size_t>(neighbours ? 2 * pair + 1 : pair + c.rotatedDims / 2);
    const double angle =
        static_cast<double>(c.firstRow + row) * data.frequencies[static_cast<size_t>(pair)];
    const double x = values[a], y = values[b];
    values[a] = (x * std::cos(angle) - y * std::sin(angle)) * c.magnitude;
    values[b] = (x * std::sin(angle) + y * std::cos(angle)) * c.magnitude;
    slack[a] = slack[b] = 3e-6 * (std::abs(x) + std::abs(y) + 0.1) * c.magnitude;
  }
}

// Rows of the cache that are not the task's stay poisoned.
void checkUntouched(Comparison& result, const RopeCase& c, const DeviceBuffer& side,
                    int64_t rowBytes) {
  for (int32_t head = 0; head < c.shape.kvHeads; ++head) {
    const int64_t begin = head * c.capacityRows;
    const int64_t near = 64;
    const int64_t before = c.wantCache ? std::min(near, c.firstRow) : 0;
    const int64_t last = c.wantCache ? c.firstRow + c.rows : 0;
    const int64_t after = std::min(near, c.capacityRows - last);
    for (const auto& [first, count] : {std::pair{c.firstRow - before, before}, {last, after}}) {
      for (const uint8_t byte : side.read<uint8_t>((begin + first) * rowBytes, count * rowBytes)) {
        result.require(byte == 0xFF, "a row of the cache beyond the task's was written");
      }
    }
  }
}

// The rows that the device wrote as elements, made q8 by launchQuantizeRows.
void checkQ8(Comparison& result, const RopeCase& c, const RopeData& q8, uint64_t seed) {
  RopeCase asElements = c;
  asElements.shape.storage = KvStorage::element;
  std::mt19937_64 random(seed);
  const RopeData elements(asElements, random);
  test::require(launchRopeStore(elements.task, nullptr), "launchRopeStore");
  const int32_t dim = c.shape.headDim;
  const int32_t heads = c.shape.kvHeads;
  for (const bool isKey : {true, false}) {
    const DeviceBuffer& rows = isKey ? *elements.keys : *elements.values;
    std::vector<uint16_t> source(static_cast<size_t>(c.rows * heads * dim));
    for (int32_t head = 0; head < heads; ++head) {
      const auto part =
          rows.read<uint16_t>((head * c.capacityRows + c.firstRow) * dim * 2, c.rows * dim);
      for (int64_t i = 0; i < c.rows * dim; ++i) {
        source[static_cast<size_t>((i / dim * heads + head) * dim + i % dim)] =
            part[static_cast<size_t>(i)];
      }
    }
    const DeviceBuffer deviceSource(c.rows * heads * dim * 2);
    deviceSource.write(0, source);
    const DeviceBuffer integers(q8.keys->bytes()), scales(q8.keyScales->bytes());
    QuantizeTask task;
    task.shape = c.shape;
    task.source = deviceSource.data();
    task.rows = c.rows;
    task.values = integers.data();
    task.scales = scales.data();
    task.firstRow = c.firstRow;
    task.capacityRows = c.capacityRows;
    test::require(launchQuantizeRows(task, nullptr), "launchQuantizeRows");
    const DeviceBuffer& gotIntegers = isKey ? *q8.keys : *q8.values;
    const DeviceBuffer& gotScales = isKey ? *q8.keyScales : *q8.valueScales;
    result.require(gotIntegers.read<uint8_t>(0, gotIntegers.bytes()) ==
                       integers.read<uint8_t>(0, integers.bytes()),
                   "integers differ from those of launchQuantizeRows");
    result.require(
        gotScales.read<uint8_t>(0, gotScales.bytes()) == scales.read<uint8_t>(0, scales.bytes()),
        "scales differ from those of launchQuantizeRows");
  }
}

}  // namespace

void checkRope(Comparison& result, const RopeCase& c, uint64_t seed) {
  std::mt19937_64 random(seed);
  const RopeData data(c, random);
  if (const std::string fault = validate(data.task); !fault.empty()) return result.fail(fault);
  runTwice(result, data.outputs(),
           [&] { test::require(launchRopeStore(data.task, nullptr), "launchRopeStore"); });
  const bool q8 = c.shape.storage == KvStorage::q8;
  const int32_t dim = c.shape.headDim;
  for (const DeviceBuffer* side : {data.keys.get(), data.values.get()}) {
    checkUntouched(result, c, *side, q8 ? dim : 2 * dim);
  }
  if (q8 && c.wantCache) checkQ8(result, c, data, seed);
  std::vector<double> expected, slack;
  const auto compare = [&](const char* what, const std::vector<uint16_t>& got, size_t begin) {
    for (size_t i = 0; i < expected.size(); ++i) {
      result.value(what, static_cast<int64_t>(begin + i), fromBf16(got[begin + i]), expected[i],
                   slack[i], Number::bf16);
    }
  };
  const auto gotQueries = data.queries->read<uint16_t>(0, data.queries->bytes() / 2);
  for (int64_t i = 0; i < c.rows * c.shape.heads; ++i) {
    const auto begin = static_cast<size_t>(i * dim);
    if (!c.wantQueries) {
      result.require(gotQueries[begin] == 0xFFFF, "queries were written though none were wanted");
      continue;
    }
    expectHead(c, data, 0, i / c.shape.heads, static_cast<int32_t>(i % c.shape.heads), expected,
               slack);
    compare("query", gotQueries, begin);
  }
  if (q8 || !c.wantCache) return;
  for (int kind = 1; kind <= 2; ++kind) {
    const DeviceBuffer& side = kind == 1 ? *data.keys : *data.values;
    for (int32_t head = 0; head < c.shape.kvHeads; ++head) {
      const auto got =
          side.read<uint16_t>((head * c.capacityRows + c.firstRow) * dim * 2, c.rows * dim);
      for (int64_t row = 0; row < c.rows; ++row) {
        expectHead(c, data, kind, row, head, expected, slack);
        compare(kind == 1 ? "key" : "value", got, static_cast<size_t>(row * dim));
      }
    }
  }
}

void checkRopeGraph(Comparison& result, const RopeCase& c, uint64_t seed) {
  std::mt19937_64 random(seed);
  RopeData inGraph(c, random);
  cudaStream_t stream;
  cudaGraph_t graph;
  cudaGraphExec_t executable;
  int32_t* pinned;
  test::require(cudaMallocHost(reinterpret_cast<void**>(&pinned), 4), "pinned");
  test::require(cudaStreamCreate(&stream), "stream");
  test::require(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "capture");
  test::require(cudaMemcpyAsync(inGraph.position->data(), pinned, 4, cudaMemcpyDefault, stream),
                "copy");
  test::require(launchRopeStore(inGraph.task, stream), "launchRopeStore");
  test::require(launchRopeStore(inGraph.task, stream), "launchRopeStore again");
  test::require(cudaStreamEndCapture(stream, &graph), "end of capture");
  test::require(cudaGraphInstantiate(&executable, graph, 0), "instantiate");
  for (const int64_t firstRow : {int64_t{0}, int64_t{77}, c.capacityRows - c.rows}) {
    RopeCase byValue = c;
    byValue.onDevice = false;
    byValue.firstRow = firstRow;
    std::mt19937_64 same(seed);
    const RopeData expected(byValue, same);
    test::require(launchRopeStore(expected.task, nullptr), "launchRopeStore");
    for (DeviceBuffer* output : inGraph.outputs()) output->poison();
    test::require(cudaDeviceSynchronize(), "rope by value");
    *pinned = static_cast<int32_t>(firstRow);
    test::require(cudaGraphLaunch(executable, stream), "graph");
    test::require(cudaStreamSynchronize(stream), "graph");
    for (size_t i = 0; i < inGraph.outputs().size(); ++i) {
      const DeviceBuffer& got = *inGraph.outputs()[i];
      const DeviceBuffer& wanted = *expected.outputs()[i];
      result.require(got.read<uint8_t>(0, got.bytes()) == wanted.read<uint8_t>(0, wanted.bytes()),
                     ("the graph gives other bits at row " + std::to_string(firstRow)).c_str());
    }
  }
  cudaGraphExecDestroy(executable);
  cudaGraphDestroy(graph);
  cudaStreamDestroy(stream);
  cudaFreeHost(pinned);
}

}  // namespace longsight::cuda::test
