// A forward pass in double precision with plain loops, and weights for it and the engine.
#pragma once

#include <cstdint>
#include <random>
#include <vector>

#include "engine_library.h"

namespace longsight::cuda::test {

// One tensor: the bytes that are uploaded, and the values that they stand for.
struct TestTensor {
  std::vector<uint8_t> bytes;
  std::vector<float> values;
};

// Random weights for all tensors of a recipe, in its order. Types: F32, BF16, Q8_0.
std::vector<TestTensor> randomWeights(const Recipe& recipe, uint64_t seed);

struct ReferenceResult {
  // Final states after the output norm, [row][embedding].
  std::vector<double> states;
  // [row][vocabulary].
  std::vector<double> logits;
};

// Dense attention over all tokens.
ReferenceResult runReference(const Recipe& recipe, const std::vector<TestTensor>& weights,
                             const std::vector<int32_t>& tokens);

}  // namespace longsight::cuda::test
