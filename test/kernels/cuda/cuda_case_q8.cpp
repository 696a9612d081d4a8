// A cache stored as q8: the rows as the host makes them, and launchQuantizeRows against those.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "cuda_case.h"
#include "numbers.h"

namespace longsight::cuda::test {
namespace {

struct Q8Row {
  std::vector<int8_t> integers;
  std::vector<uint16_t> scales;  // fp16
};

Q8Row quantizeRow(const uint16_t* values, int32_t dim, bool wholePowers) {
  Q8Row row;
  for (int32_t begin = 0; begin < dim; begin += kQ8Block) {
    const int32_t end = std::min(begin + kQ8Block, dim);
    float most = 0;
    for (int32_t d = begin; d < end; ++d) most = std::max(most, std::abs(fromBf16(values[d])));
    uint16_t scale = halfAtLeast(most / 127.0f);
    if (wholePowers && (scale & 0x3FF) != 0) scale = static_cast<uint16_t>((scale | 0x3FF) + 1);
    row.scales.push_back(scale);
    const auto divisor = static_cast<float>(fromDevice(scale, Element::f16));
    for (int32_t d = begin; d < end; ++d) {
      const float integer = divisor > 0 ? std::nearbyint(fromBf16(values[d]) / divisor) : 0.0f;
      row.integers.push_back(static_cast<int8_t>(std::clamp(integer, -127.0f, 127.0f)));
    }
  }
  return row;
}

}  // namespace

void CudaCase::uploadQ8(std::vector<uint16_t>& source, DeviceBuffer& integers,
                        DeviceBuffer& scales) {
  const HeadShape& shape = options_.shape;
  const int32_t dim = shape.headDim;
  const int64_t tokens = options_.tokens;
  const int32_t blocks = q8Blocks(dim);
  std::vector<int8_t> allIntegers(source.size());
  std::vector<uint16_t> allScales(static_cast<size_t>(shape.kvHeads * tokens * blocks));
  parallelFor(shape.kvHeads * tokens, [&](int64_t row) {
    uint16_t* values = source.data() + row * dim;
    // Products that f16 rounds are not bf16 numbers, as which the reference reads them; with powers
    // of two as scales both hold them exactly.
    const Q8Row stored = quantizeRow(values, dim, shape.element == Element::f16);
    std::copy(stored.integers.begin(), stored.integers.end(), allIntegers.begin() + row * dim);
    std::copy(stored.scales.begin(), stored.scales.end(), allScales.begin() + row * blocks);
    for (int32_t d = 0; d < dim; ++d) {
      const auto scale = static_cast<float>(
          fromDevice(stored.scales[static_cast<size_t>(d / kQ8Block)], Element::f16));
      values[d] = toBf16(static_cast<float>(stored.integers[static_cast<size_t>(d)]) * scale);
    }
  });
  for (int64_t head = 0; head < shape.kvHeads; ++head) {
    integers.write(head * capacityRows() * dim,
                   std::vector<int8_t>(allIntegers.begin() + head * tokens * dim,
                                       allIntegers.begin() + (head + 1) * tokens * dim));
    scales.write(head * capacityRows() * blocks * 2,
                 std::vector<uint16_t>(allScales.begin() + head * tokens * blocks,
                                       allScales.begin() + (head + 1) * tokens * blocks));
  }
}

CaseResult CudaCase::checkQuantize() {
  CaseResult result;
  const HeadShape& shape = options_.shape;
  const int32_t dim = shape.headDim;
  const int32_t blocks = q8Blocks(dim);
  const int64_t tokens = options_.tokens;
  // As a forward pass has them: [row][KV head][headDim].
  std::vector<uint16_t> staged(unroundedKeys_.size());
  for (int64_t row = 0; row < tokens; ++row) {
    for (int64_t i = 0; i < shape.kvHeads * dim; ++i) {
      const int64_t from = (i / dim * tokens + row) * dim + i % dim;
      staged[static_cast<size_t>(row * shape.kvHeads * dim + i)] =
          toDevice(unroundedKeys_[static_cast<size_t>(from)], shape.element);
    }
  }
  DeviceBuffer source(static_cast<int64_t>(staged.size()) * 2);
  source.write(0, staged);
  DeviceBuffer integers(deviceKeys_->bytes());
  DeviceBuffer scales(deviceKeyScales_->bytes());
  // In two calls, as chunks come.
  for (const auto& [begin, end] :
       {std::pair<int64_t, int64_t>{0, tokens / 3}, {tokens / 3, tokens}}) {
    QuantizeTask task;
    task.shape = shape;
    task.source = static_cast<char*>(source.data()) + begin * shape.kvHeads * dim * 2;
    task.rows = end - begin;
    task.values = integers.data();
    task.scales = scales.data();
    task.firstRow = begin;
    task.capacityRows = capacityRows();
    require(launchQuantizeRows(task, nullptr), "launchQuantizeRows");
  }
  require(cudaDeviceSynchronize(), "quantize");
  for (int64_t head = 0; head < shape.kvHeads; ++head) {
    const int64_t first = head * capacityRows();
    // The rows after the prompt's stay poisoned.
    const int64_t rows = std::min<int64_t>(capacityRows(), tokens + 1000);
    const auto gotIntegers = integers.read<int8_t>(first * dim, rows * dim);
    const auto gotScales = scales.read<uint16_t>(first * blocks * 2, rows * blocks);
    for (int64_t row = 0; row < rows; ++row) {
      Q8Row expected{std::vector<int8_t>(static_cast<size_t>(dim), -1),
                     std::vector<uint16_t>(static_cast<size_t>(blocks), 0xFFFF)};
      if (row < tokens) {
        expected = quantizeRow(unroundedKeys_.data() + (head * tokens + row) * dim, dim, false);
      }
      if (!std::equal(expected.integers.begin(), expected.integers.end(),
                      gotIntegers.begin() + row * dim) ||
          !std::equal(expected.scales.begin(), expected.scales.end(),
                      gotScales.begin() + row * blocks)) {
        fail(result, "quantized row " + std::to_string(row) + " of KV head " +
                         std::to_string(head) + " differs");
        break;
      }
    }
  }
  if (!integers.guardsIntact() || !scales.guardsIntact()) {
    fail(result, "guard words of the quantized rows changed");
  }
  return result;
}

}  // namespace longsight::cuda::test
