#include "cpu/dot_products.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>

#include "cpu/ggml_runtime.h"
#include "ggml-cpu.h"

namespace longsight {
namespace {

static_assert(DotProducts::kMaxRows == kMaxFewRows);

// Weights of one work item: enough to pay for handing it out, few enough to fill the threads.
constexpr int64_t kElementsAtOnce = int64_t{1} << 16;

int64_t ggmlRowBytes(ggml_type type, int64_t columns) {
  return static_cast<int64_t>(ggml_row_size(type, columns));
}

// How activations are rounded for a weight: by our own kernels, or to this type of ggml.
struct Rounding {
  bool own;
  ggml_type type;
  bool operator==(const Rounding&) const = default;
};

Rounding roundingFor(const FewRowKernels* own, const WeightView& weight) {
  if (own != nullptr && own->takes(weight.type)) return {true, GGML_TYPE_F32};
  return {false, cpuTypeTraits(weight.type)->vec_dot_type};
}

}  // namespace

uint64_t DotProducts::bytesFor(int64_t maxColumns) {
  // Of ggml's types f32 is the widest.
  int64_t bytes = maxColumns * static_cast<int64_t>(sizeof(float));
  if (const FewRowKernels* own = chooseFewRowKernels())
    bytes = std::max(bytes, own->rowBytes(maxColumns));
  return static_cast<uint64_t>(kMaxRows * bytes + static_cast<int64_t>(sizeof(Line)));
}

DotProducts::DotProducts(int64_t maxColumns)
    : rounded_(bytesFor(maxColumns) / sizeof(Line)), own_(chooseFewRowKernels()) {}

bool DotProducts::multiply(const float* activations, int64_t rows, int64_t aStride,
                           std::span<const LinearOutput> outputs, ThreadPool& pool,
                           const CancelFlag& cancel) {
  const int64_t columns = outputs.front().weight.columns;
  const Rounding rounding = roundingFor(own_, outputs.front().weight);
  // Files mix types within a layer; the rounded activations serve those that share one.
  const auto other = std::find_if(outputs.begin(), outputs.end(), [&](const LinearOutput& output) {
    return !(roundingFor(own_, output.weight) == rounding);
  });
  if (other != outputs.end()) {
    const auto split = static_cast<size_t>(other - outputs.begin());
    return multiply(activations, rows, aStride, outputs.first(split), pool, cancel) &&
           multiply(activations, rows, aStride, outputs.subspan(split), pool, cancel);
  }
  const int64_t rowBytes =
      rounding.own ? own_->rowBytes(columns) : ggmlRowBytes(rounding.type, columns);
  if (rows > kMaxRows || static_cast<size_t>(rowBytes * rows) > rounded_.size() * sizeof(Line))
    throw std::invalid_argument("too many rows or columns for dot products");
  std::byte* rounded = rounded_.front().bytes;
  for (int64_t row = 0; row < rows; ++row) {
    const float* source = activations + row * aStride;
    std::byte* target = rounded + row * rowBytes;
    if (rounding.own)
      own_->packRow(source, columns, target);
    else if (rounding.type == GGML_TYPE_F32)
      std::memcpy(target, source, static_cast<size_t>(rowBytes));
    else
      cpuTypeTraits(rounding.type)->from_float(source, target, columns);
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
    const int64_t weightBytes = ggmlRowBytes(weight.type, columns);
    const int64_t begin = item * chunk;
    const int64_t end = std::min(weight.rows, begin + chunk);
    const auto* weights = static_cast<const std::byte*>(weight.data) + begin * weightBytes;
    float* out = output->out + begin;
    if (rounding.own) {
      const ggml_type_traits* traits = ggml_get_type_traits(weight.type);
      own_->multiply({rounded, rowBytes, static_cast<int32_t>(rows), columns, weight.type,
                      traits->blck_size, static_cast<int64_t>(traits->type_size), weights,
                      weightBytes, end - begin, out, output->stride});
      return;
    }
    const ggml_vec_dot_t dot = cpuTypeTraits(weight.type)->vec_dot;
    for (int64_t index = 0; index < end - begin; ++index) {
      for (int64_t row = 0; row < rows; ++row)
        dot(static_cast<int>(columns), out + row * output->stride + index, 0,
            weights + index * weightBytes, 0, rounded + row * rowBytes, 0, 1);
    }
  });
  return !cancel.isSet();
}

}  // namespace longsight
