// How a model turns queries and keys by their position (RoPE), as its file says.
#pragma once

#include <cstdint>
#include <vector>

#include "attention/score_dims.h"
#include "model/architecture.h"
#include "model/gguf_metadata.h"

namespace longsight {

struct RopeSpec {
  RopeStyle style = RopeStyle::interleaved;
  // The first dimensions of a head, an even number; the others stay as they are.
  int32_t rotatedDims = 0;
  float base = 10000.0f;
  // Every angle is multiplied by this (linear scaling and the interpolated part of YaRN).
  float angleScale = 1.0f;
  // YaRN (arXiv 2309.00071): share of the unscaled angle in pairs that turn fast; 0 = no YaRN.
  // Pairs with more than betaFast turns in the original context count as fast, with fewer than
  // betaSlow as slow.
  float extrapolation = 0.0f;
  float betaFast = 32.0f;
  float betaSlow = 1.0f;
  // Rotated dimensions are multiplied by this.
  float magnitude = 1.0f;
  // The context before scaling: where YaRN counts turns, and up to where LongRoPE takes its short
  // factors.
  int64_t originalContextTokens = 0;
};

// YaRN: the share of the unscaled angle by pair, [rotatedDims / 2]; 0 everywhere without it. `base`
// stands in for spec.base.
std::vector<float> unscaledShares(const RopeSpec& spec, float base);

// Radians a position by pair, [rotatedDims / 2], with scaling of every kind: the angle of pair i is
// position * frequency i. `factors`: as ropeFactorTensor() has them, or null.
std::vector<double> ropeFrequencies(const RopeSpec& spec, float base, const float* factors);

// Reads the keys `<architecture>.rope.*`. `contextTokens`: the file's context length. Throws Error
// unsupportedArchitecture or truncatedGguf.
RopeSpec readRope(const Metadata& metadata, const Architecture& architecture, int32_t headDim,
                  int64_t contextTokens);

}  // namespace longsight
