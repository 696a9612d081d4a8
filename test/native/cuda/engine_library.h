// longsight-cuda.so as the addon sees it, for programs that test or time the engine directly, and
// models for it to run.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "attention/plan.h"
#include "cuda/api.h"

namespace longsight::cuda::test {

// Opens longsight-cuda.so beside the program, or the file that LONGSIGHT_CUDA_LIBRARY names; ends
// the program where that fails.
const LsCudaApi& engine();

// Ends the program with the error's sentences unless the status is LS_OK.
void must(LsStatus status, const LsError& error, const char* what);

// ggml's numbers of the types that the programs use.
enum GgmlType : int32_t { kF32 = 0, kQ8_0 = 8, kQ4_K = 12, kQ6_K = 14, kBf16 = 30 };

// Sizes of a model, from which its tensors follow.
struct ModelSizes {
  std::string name;
  int32_t layers = 0, heads = 0, kvHeads = 0, headDim = 0;
  int32_t embedding = 0, feedForward = 0, vocabulary = 0;
  LsRopeStyle rope = LS_ROPE_INTERLEAVED;
  double ropeBase = 500000;
  bool tied = false;
  bool projectionBias = false;
  bool headNorms = false;
  bool outputNorms = false;
};

// llama-3.1-8b, qwen2.5-7b, tiny; empty name when there is none.
ModelSizes namedSizes(const std::string& name);

// The description of a model with all matrices in one type, or as the mix `q4_k_m`.
class Recipe {
 public:
  Recipe(const ModelSizes& sizes, const std::string& weights);
  Recipe(const Recipe&) = delete;
  Recipe& operator=(const Recipe&) = delete;
  const LsModelDesc& desc() const { return desc_; }
  // For a test that wants another type somewhere.
  std::vector<LsTensorDesc>& tensors() { return tensors_; }
  const ModelSizes& sizes() const { return sizes_; }
  const std::vector<double>& frequencies() const { return frequencies_; }
  // Default parameters with a cache of so many rows.
  LsSessionDesc session(int64_t capacityRows, LsKvType kvType) const;
  LsAttentionParams params(LsPolicy policy) const;
  // Of all that a step reads of the weights.
  uint64_t matrixBytes() const;
  // Weights of the layers' matrices.
  double layerWeights() const;

 private:
  void add(LsTensorRole role, int32_t layer, int32_t part, int32_t type, int64_t rows,
           int64_t columns);

  ModelSizes sizes_;
  std::vector<LsTensorDesc> tensors_;
  std::vector<double> frequencies_;
  LsModelDesc desc_{};
};

struct Destroy {
  void operator()(LsModel* model) const { engine().modelDestroy(model); }
  void operator()(LsSession* session) const { engine().sessionDestroy(session); }
};
using ModelHandle = std::unique_ptr<LsModel, Destroy>;
using SessionHandle = std::unique_ptr<LsSession, Destroy>;
ModelHandle createModel(const Recipe& recipe);
SessionHandle createSession(LsModel* model, const LsSessionDesc& desc);

// As planSegments() with the default parameters has them.
std::vector<LsSegment> segmentsOf(const std::vector<Segment>& segments);

}  // namespace longsight::cuda::test
