// Random inputs of linear layers, and the double-precision product that outputs are held against.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "kernels/cpu/linear/kernels.h"
#include "kernels/cpu/linear/linear.h"

namespace longsight::test {

inline constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
inline constexpr uint32_t kGuardBits = 0x7fc0dead;
inline constexpr int64_t kGuardFloats = 64;

// A new one each run, printed, or LONGSIGHT_TEST_SEED.
inline uint32_t seed() {
  static const uint32_t value = [] {
    const char* given = std::getenv("LONGSIGHT_TEST_SEED");
    const uint32_t chosen =
        given ? static_cast<uint32_t>(std::strtoul(given, nullptr, 10)) : std::random_device{}();
    std::printf("LONGSIGHT_TEST_SEED=%u\n", chosen);
    return chosen;
  }();
  return value;
}

inline std::vector<InstructionSet> setsThatRun() {
  std::vector<InstructionSet> sets;
  for (InstructionSet set : kInstructionSets) {
    if (instructionSetRuns(set)) sets.push_back(set);
  }
  return sets;
}

inline std::vector<ggml_type> weightTypes() {
  std::vector<ggml_type> types;
  for (int t = 0; t < GGML_TYPE_COUNT; ++t) {
    if (isLinearType(static_cast<ggml_type>(t))) types.push_back(static_cast<ggml_type>(t));
  }
  return types;
}

inline std::vector<float> randomFloats(std::mt19937& random, int64_t count) {
  std::normal_distribution<float> normal;
  std::vector<float> values(static_cast<size_t>(count));
  for (float& v : values) v = normal(random);
  return values;
}

// Random weights in a file type, and what ggml expands them to. Any bytes are a block of weights;
// blocks with a useless scale are drawn again.
struct Weights {
  Weights(std::mt19937& random, ggml_type type, int64_t rows, int64_t columns)
      : data(ggml_row_size(type, columns) * static_cast<size_t>(rows)),
        view{data.data(), type, rows, columns} {
    if (type == GGML_TYPE_F32) {
      expanded = randomFloats(random, rows * columns);
      std::memcpy(data.data(), expanded.data(), data.size());
      return;
    }
    expanded.resize(static_cast<size_t>(rows * columns));
    const ggml_type_traits* traits = ggml_get_type_traits(type);
    std::byte* block = data.data();
    for (int64_t i = 0; i < rows * columns; i += traits->blck_size, block += traits->type_size) {
      float largest = 0.0f;
      while (!(largest > 0.1f && largest < 10.0f)) {
        for (size_t b = 0; b < traits->type_size; ++b) block[b] = static_cast<std::byte>(random());
        traits->to_float(block, expanded.data() + i, traits->blck_size);
        largest = 0.0f;
        for (int64_t j = i; j < i + traits->blck_size; ++j) {
          const float size = std::fabs(expanded[static_cast<size_t>(j)]);
          if (!std::isfinite(size)) {
            largest = size;
            break;
          }
          largest = std::max(largest, size);
        }
      }
    }
  }

  std::vector<std::byte> data;
  std::vector<float> expanded;
  WeightView view;
};

// An output with NaN in every element and guard words around and between the rows.
class GuardedOutput {
 public:
  GuardedOutput(int64_t rows, int64_t width, int64_t gap)
      : rows_(rows), width_(width), stride_(width + gap) {
    float guard;
    std::memcpy(&guard, &kGuardBits, sizeof(guard));
    storage_.assign(static_cast<size_t>(rows * stride_ + 2 * kGuardFloats), guard);
    for (int64_t r = 0; r < rows; ++r) std::fill_n(data() + r * stride_, width, kNan);
  }
  float* data() { return storage_.data() + kGuardFloats; }
  int64_t stride() const { return stride_; }
  float at(int64_t row, int64_t column) const {
    return storage_[static_cast<size_t>(kGuardFloats + row * stride_ + column)];
  }
  bool guardsIntact() const {
    for (int64_t i = 0; i < static_cast<int64_t>(storage_.size()); ++i) {
      const int64_t inside = i - kGuardFloats;
      const bool isOutput = inside >= 0 && inside < rows_ * stride_ && inside % stride_ < width_;
      uint32_t bits;
      std::memcpy(&bits, &storage_[static_cast<size_t>(i)], sizeof(bits));
      if (!isOutput && bits != kGuardBits) return false;
    }
    return true;
  }
  bool sameBits(const GuardedOutput& other) const {
    return storage_.size() == other.storage_.size() &&
           std::memcmp(storage_.data(), other.storage_.data(), storage_.size() * sizeof(float)) ==
               0;
  }

 private:
  int64_t rows_, width_, stride_;
  std::vector<float> storage_;
};

// Activations with a stride, NaN in the gaps: reading one shows in the output.
struct Activations {
  Activations(std::mt19937& random, int64_t rows, int64_t columns, int64_t gap)
      : stride(columns + gap), values(static_cast<size_t>(rows * stride), kNan) {
    for (int64_t r = 0; r < rows; ++r) {
      const std::vector<float> row = randomFloats(random, columns);
      std::copy(row.begin(), row.end(), values.begin() + r * stride);
    }
  }
  int64_t stride;
  std::vector<float> values;
};

inline float roundToBf16(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  bits = (bits + 0x7fff + ((bits >> 16) & 1)) & 0xffff0000u;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

// Activations as kernels/cpu/linear/rounded_block.h has them, a block of 32 at a time.
inline std::vector<double> roundToIntegers(const float* values, int64_t count) {
  std::vector<double> rounded(static_cast<size_t>(count));
  for (int64_t begin = 0; begin < count; begin += 32) {
    float groups[8] = {};
    for (int64_t i = 0; i < 32; ++i)
      groups[i / 4] = std::max(groups[i / 4], std::fabs(values[begin + i]));
    std::sort(std::begin(groups), std::end(groups), std::greater<>());
    const float scale = std::max(groups[2] / 127.0f, groups[0] / 16256.0f);
    for (int64_t i = begin; i < begin + 32 && scale > 0.0f; ++i) {
      const float steps = values[i] * (1.0f / scale);
      rounded[static_cast<size_t>(i)] = static_cast<double>(std::nearbyint(steps)) * scale;
    }
  }
  return rounded;
}

// The largest weight of each block of 32, in each of its columns: what a scale and a minimum can
// be off by.
inline std::vector<double> blockLargest(const Weights& w) {
  std::vector<double> largest(w.expanded.size());
  for (size_t begin = 0; begin < largest.size(); begin += 32) {
    double most = 0.0;
    for (size_t i = begin; i < begin + 32; ++i)
      most = std::max(most, std::fabs(static_cast<double>(w.expanded[i])));
    std::fill_n(largest.begin() + static_cast<int64_t>(begin), 32, most);
  }
  return largest;
}

// Every output against the double-precision product. Where a set rounds its inputs, to bf16 or to
// integers, so does the reference here: what is left is the rounding of f32 sums. The cost of
// rounding the inputs is then bounded by the root mean square over all outputs.
inline void expectProduct(const GuardedOutput& out, const Activations& a, int64_t rows,
                          const Weights& w, InstructionSet set) {
  const int64_t columns = w.view.columns;
  const LinearKernels* integerKernels = integerLinearKernels(set);
  const bool integers = integerKernels != nullptr && integerKernels->takes(w.view.type);
  const bool bf16 = set >= InstructionSet::avx512bf16;
  const std::vector<double> largest = integers ? blockLargest(w) : std::vector<double>();
  double squaredError = 0.0, squaredTerms = 0.0;
  for (int64_t r = 0; r < rows; ++r) {
    const float* x = a.values.data() + r * a.stride;
    const std::vector<double> steps =
        integers ? roundToIntegers(x, columns) : std::vector<double>();
    for (int64_t n = 0; n < w.view.rows; ++n) {
      const float* y = w.expanded.data() + n * columns;
      double exact = 0.0, rounded = 0.0, magnitude = 0.0;
      for (int64_t k = 0; k < columns; ++k) {
        exact += static_cast<double>(x[k]) * y[k];
        magnitude += std::fabs(static_cast<double>(x[k]) * y[k]);
        if (integers) {
          rounded += steps[static_cast<size_t>(k)] * y[k];
          magnitude += 3.0 * std::fabs(x[k]) * largest[static_cast<size_t>(n * columns + k)];
        } else {
          rounded += bf16 ? static_cast<double>(roundToBf16(x[k])) * roundToBf16(y[k])
                          : static_cast<double>(x[k]) * y[k];
        }
        squaredTerms += std::pow(static_cast<double>(x[k]) * y[k], 2);
      }
      // Rounding errors of a chain of f32 additions grow like the root of its length.
      const double tolerance =
          4.0 * std::sqrt(static_cast<double>(columns)) * 0x1p-24 * magnitude + 1e-30;
      const double got = out.at(r, n);
      ASSERT_LE(std::fabs(got - rounded), tolerance)
          << "row " << r << " output " << n << ": " << got << " instead of " << rounded;
      squaredError += (got - exact) * (got - exact);
    }
  }
  if (!bf16) return;
  // Both factors are off by 2^-8 / sqrt(3) in root mean square at most; few outputs scatter more.
  const double outputs = static_cast<double>(rows * w.view.rows);
  EXPECT_LE(std::sqrt(squaredError / squaredTerms), (1.0 + 4.0 / std::sqrt(outputs)) * 0x1p-8);
}

inline void multiplyAndCheck(ggml_type type, int64_t rows, int64_t outputs, int64_t columns,
                             InstructionSet set, int32_t threads, int64_t scratchRows = 0) {
  SCOPED_TRACE(std::string(ggml_type_name(type)) + " rows " + std::to_string(rows) + " outputs " +
               std::to_string(outputs) + " columns " + std::to_string(columns) + " " +
               instructionSetName(set) + " threads " + std::to_string(threads) + " seed " +
               std::to_string(seed()));
  std::mt19937 random(seed());
  const Weights weights(random, type, outputs, columns);
  const Activations a(random, rows, columns, 3);
  GuardedOutput out(rows, outputs, 5);
  ThreadPool pool(threads);
  LinearScratch scratch(scratchRows > 0 ? scratchRows : rows, columns, threads, set);
  scratch.fillForTest(0xff);
  ASSERT_TRUE(multiply(a.values.data(), rows, a.stride, weights.view, out.data(), out.stride(),
                       scratch, pool, CancelFlag{}));
  EXPECT_TRUE(out.guardsIntact());
  expectProduct(out, a, rows, weights, set);
}

}  // namespace longsight::test
