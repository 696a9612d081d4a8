// The weight types as the tests of the CUDA kernels know them, against ggml.
#include "weight_formats.h"

#include <ggml.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

namespace longsight::test {
namespace {

std::vector<float> expandedByGgml(int32_t type, const std::vector<uint8_t>& blocks, int64_t count) {
  std::vector<float> values(static_cast<size_t>(count));
  if (type == GGML_TYPE_F32) {
    std::memcpy(values.data(), blocks.data(), blocks.size());
  } else {
    ggml_get_type_traits(static_cast<ggml_type>(type))
        ->to_float(blocks.data(), values.data(), count);
  }
  return values;
}

class Formats : public testing::TestWithParam<WeightFormat> {};

TEST_P(Formats, StandForWhatGgmlMakesOfThem) {
  const WeightFormat& format = GetParam();
  const auto type = static_cast<ggml_type>(format.type);
  ASSERT_STRCASEEQ(ggml_type_name(type), format.name);
  ASSERT_EQ(ggml_blck_size(type), format.blockColumns);
  ASSERT_EQ(ggml_type_size(type), static_cast<size_t>(format.blockBytes));
  constexpr int64_t kCount = 256 * 200;
  std::mt19937_64 random(std::random_device{}());

  // Blocks of ggml's own quantizer, then random ones, which also hold what it never makes.
  std::normal_distribution<float> normal;
  std::vector<float> source(kCount);
  for (float& value : source) value = 0.02f * normal(random);
  std::vector<uint8_t> quantized(ggml_row_size(type, kCount));
  ggml_quantize_chunk(type, source.data(), quantized.data(), 0, 1, kCount, nullptr);
  for (const std::vector<uint8_t>& blocks :
       {quantized, randomWeights(format, kCount, 0.02f, random)}) {
    const std::vector<float> expected = expandedByGgml(format.type, blocks, kCount);
    const std::vector<float> values = expandWeights(format, blocks, kCount);
    for (int64_t i = 0; i < kCount; ++i) {
      ASSERT_EQ(expected[i], values[i]) << "weight " << i;
    }
  }
}

TEST_P(Formats, RandomOnesHaveTheSizeAskedFor) {
  std::mt19937_64 random(std::random_device{}());
  constexpr int64_t kCount = 256 * 400;
  const auto values =
      expandWeights(GetParam(), randomWeights(GetParam(), kCount, 0.02f, random), kCount);
  double squares = 0.0;
  for (const float value : values) squares += double{value} * value;
  const double size = std::sqrt(squares / kCount);
  EXPECT_GT(size, 0.01);
  EXPECT_LT(size, 0.04);
}

INSTANTIATE_TEST_SUITE_P(All, Formats,
                         testing::ValuesIn(weightFormats().begin(), weightFormats().end()),
                         [](const auto& format) { return std::string(format.param.name); });

}  // namespace
}  // namespace longsight::test
