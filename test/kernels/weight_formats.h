// Weight types as a file has them, written down a second time for the tests of the kernels: rows of
// random blocks, and what they stand for.
#pragma once

#include <cstdint>
#include <random>
#include <span>
#include <vector>

namespace longsight::test {

// Number of the ggml_type, its name, and the columns and bytes of a block.
struct WeightFormat {
  int32_t type;
  const char* name;
  int32_t blockColumns;
  int32_t blockBytes;
};
std::span<const WeightFormat> weightFormats();
const WeightFormat& weightFormat(int32_t type);

// Random weights in blocks, one after the other: any codes, any scales within a block, factors that
// take the weights to a size of about `deviation`.
std::vector<uint8_t> randomWeights(const WeightFormat& format, int64_t count, float deviation,
                                   std::mt19937_64& random);

// What the blocks stand for, with the operations of ggml's dequantize_row_*, each rounded to f32.
std::vector<float> expandWeights(const WeightFormat& format, std::span<const uint8_t> blocks,
                                 int64_t count);

}  // namespace longsight::test
