// What test_cuda_pointwise runs.
#pragma once

#include <string>
#include <vector>

#include "kernels/cuda/pointwise/pointwise.h"

namespace longsight::cuda::test {

// Of a norm alone (input f32, output `normed`), and of the sum into the residual stream.
struct NormCase {
  int64_t rows = 1;
  int32_t width = 64;
  // Of the values, standard deviation.
  float size = 1.0f;
  Number block = Number::bf16;
  Number normed = Number::bf16;
  bool bias = false;
  bool blockNorm = false;
  bool nextNorm = true;
  float epsilon = 1e-5f;

  std::string name() const {
    const auto number = [](Number n) { return n == Number::bf16 ? "bf16" : "f32"; };
    return std::to_string(rows) + " x " + std::to_string(width) + " of " + std::to_string(size) +
           ", " + number(block) + " to " + number(normed) + (bias ? ", bias" : "") +
           (blockNorm ? ", norm of the block" : "") + (nextNorm ? ", next norm" : "");
  }
};

struct RopeCase {
  HeadShape shape;
  RopeStyle style = RopeStyle::neox;
  int32_t rotatedDims = 0;
  float magnitude = 1.0f;
  Number number = Number::bf16;
  bool bias = false;
  bool norms = false;
  bool wantQueries = true;
  bool wantCache = true;
  bool onDevice = false;
  int64_t rows = 1;
  int64_t firstRow = 0;
  int64_t capacityRows = 0;

  std::string name() const {
    return "rope, " + std::to_string(rows) + " rows at " + std::to_string(firstRow) + ", " +
           std::to_string(shape.heads) + "/" + std::to_string(shape.kvHeads) + " d" +
           std::to_string(shape.headDim) + ", " + std::to_string(rotatedDims) +
           (style == RopeStyle::neox ? " in halves" : " interleaved") +
           (number == Number::bf16 ? "" : ", f32") +
           (shape.storage == KvStorage::q8 ? ", q8" : "") + (bias ? ", bias" : "") +
           (norms ? ", norms" : "") + (wantQueries ? "" : ", no queries") +
           (wantCache ? "" : ", no cache") + (onDevice ? ", position on the device" : "");
  }
};

inline std::vector<NormCase> normCases(bool small) {
  std::vector<NormCase> cases;
  const std::vector<int32_t> widths =
      small ? std::vector<int32_t>{8, 576, 2056}
            : std::vector<int32_t>{8, 64, 576, 896, 1000, 2048, 3584, 4096, 5120, 8192, 16384};
  for (const int32_t width : widths) {
    for (const int64_t rows : {1, 3, 131}) {
      for (int i = 0; i < 6; ++i) {
        NormCase c;
        c.rows = rows;
        c.width = width;
        c.size = i == 4 ? 300.0f : i == 5 ? 0.001f : 1.0f;
        c.block = i % 2 == 0 ? Number::bf16 : Number::f32;
        c.normed = i % 3 == 0 ? Number::f32 : Number::bf16;
        c.bias = i % 4 < 2;
        c.blockNorm = i >= 2;
        c.nextNorm = i != 3;
        cases.push_back(c);
      }
    }
  }
  return cases;
}

inline std::vector<RopeCase> ropeCases(bool small) {
  std::vector<RopeCase> cases;
  int turn = 0;
  for (const int32_t dim : {64, 80, 96, 128, 256}) {
    for (const RopeStyle style : {RopeStyle::interleaved, RopeStyle::neox}) {
      for (const int32_t rotated : {dim, dim / 32 * 16, style == RopeStyle::neox ? 16 : 18}) {
        for (const KvStorage storage : {KvStorage::element, KvStorage::q8}) {
          RopeCase c;
          c.shape = {6, 2, dim, Element::bf16, storage};
          c.style = style;
          c.rotatedDims = rotated;
          // All combinations come, with changing rows.
          c.number = turn % 2 == 0 ? Number::bf16 : Number::f32;
          c.bias = turn % 3 == 0;
          c.norms = turn % 4 < 2;
          c.onDevice = turn % 5 == 0;
          c.magnitude = turn % 7 == 0 ? 1.19f : 1.0f;
          const int64_t rows[] = {1, 3, 8, 129, 601};
          c.rows = small ? rows[turn % 3] : rows[turn % 5];
          c.firstRow = turn % 2 == 0 ? 0 : 1003;
          c.capacityRows = 1800;
          c.wantQueries = turn % 6 != 1;
          c.wantCache = turn % 9 != 2;
          cases.push_back(c);
          ++turn;
        }
      }
    }
  }
  for (const HeadShape& shape : {HeadShape{9, 3, 64}, HeadShape{14, 2, 64}, HeadShape{28, 4, 128},
                                 HeadShape{32, 8, 128}, HeadShape{40, 8, 128}}) {
    for (const int64_t rows : {1, 8, 130}) {
      RopeCase c;
      c.shape = shape;
      c.rotatedDims = shape.headDim;
      c.rows = rows;
      c.firstRow = 511;
      c.capacityRows = 1024;
      c.bias = shape.heads == 14;
      cases.push_back(c);
    }
  }
  if (small) return cases;
  for (const RopeStyle style : {RopeStyle::interleaved, RopeStyle::neox}) {
    RopeCase c;
    c.shape = {4, 2, 128};
    c.style = style;
    c.rotatedDims = 128;
    c.rows = 700;
    c.firstRow = (1 << 20) - 700;
    c.capacityRows = (1 << 20) + 8;
    cases.push_back(c);
    c.rows = 1;
    c.firstRow = (1 << 20) - 1;
    c.onDevice = true;
    c.number = Number::f32;
    cases.push_back(c);
  }
  return cases;
}

}  // namespace longsight::cuda::test
