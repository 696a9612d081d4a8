#include "cpu/dot_products.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>

#include "cpu/ggml_runtime.h"
#include "ggml-cpu.h"

namespace longsight {
namespace {

// Weights of one work item: enough to pay for handing it out, few enough to fill the threads.
constexpr int64_t kElementsAtOnce = int64_t{1} << 16;

// What ggml rounds activations to for this weight.
ggml_type pairedType(const LinearOutput& output) {
  return cpuTypeTraits(output.weight.type)->vec_dot_type;
}

}  // namespace

uint64_t DotProducts::bytesFor(int64_t maxColumns) {
  // f32 is the widest type that a row is rounded to.
  return static_cast<uint64_t>(kMaxRows * maxColumns) * sizeof(float);
}

DotProducts::DotProducts(int64_t maxColumns) : rounded_(bytesFor(maxColumns)) {}

bool DotProducts::multiply(const float* activations, int64_t rows, int64_t aStride,
                           std::span<const LinearOutput> outputs, ThreadPool& pool,
                           const CancelFlag& cancel) {
  const int64_t columns = outputs.front().weight.columns;
  const ggml_type type = pairedType(outputs.front());
  // Files mix types within a layer; the rounded activations serve those that share one.
  const auto other = std::find_if(outputs.begin(), outputs.end(), [&](const LinearOutput& output) {
    return pairedType(output) != type;
  });
  if (other != outputs.end()) {
    const auto split = static_cast<size_t>(other - outputs.begin());
    return multiply(activations, rows, aStride, outputs.first(split), pool, cancel) &&
           multiply(activations, rows, aStride, outputs.subspan(split), pool, cancel);
  }
  const size_t rowBytes = ggml_row_size(type, columns);
  if (rows > kMaxRows || rowBytes * static_cast<size_t>(rows) > rounded_.size())
    throw std::invalid_argument("too many rows or columns for dot products");
  const ggml_from_float_t convert = cpuTypeTraits(type)->from_float;
  for (int64_t row = 0; row < rows; ++row) {
    uint8_t* target = rounded_.data() + static_cast<size_t>(row) * rowBytes;
    if (type == GGML_TYPE_F32)
      std::memcpy(target, activations + row * aStride, rowBytes);
    else
      convert(activations + row * aStride, target, columns);
  }

  const int64_t chunk = std::max<int64_t>(16, kElementsAtOnce / columns / 16 * 16);
  int64_t items = 0;
  for (const LinearOutput& output : outputs) items += (output.weight.rows + chunk - 1) / chunk;
  pool.forEach(items, [&](int64_t item, int32_t) {
    if (cancel.isSet()) return;
    const LinearOutput* output = outputs.data();
    for (int64_t count; item >= (count = (output->weight.rows + chunk - 1) / chunk); item -= count)
      ++output;
    const WeightView& weight = output->weight;
    const ggml_vec_dot_t dot = cpuTypeTraits(weight.type)->vec_dot;
    const size_t weightBytes = ggml_row_size(weight.type, columns);
    const int64_t end = std::min(weight.rows, (item + 1) * chunk);
    for (int64_t index = item * chunk; index < end; ++index) {
      const auto* values =
          static_cast<const uint8_t*>(weight.data) + static_cast<size_t>(index) * weightBytes;
      for (int64_t row = 0; row < rows; ++row)
        dot(static_cast<int>(columns), output->out + row * output->stride + index, 0, values, 0,
            rounded_.data() + static_cast<size_t>(row) * rowBytes, 0, 1);
    }
  });
  return !cancel.isSet();
}

}  // namespace longsight
