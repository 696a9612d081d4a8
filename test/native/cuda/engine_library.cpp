#include "engine_library.h"

#include <dlfcn.h>
#include <unistd.h>

#include <climits>
#include <cmath>
#include <cstdio>
#include <cstdlib>

#include "attention/params.h"
#include "attention/score_dims.h"

namespace longsight::cuda::test {
namespace {

std::string besideProgram(const std::string& file) {
  char path[PATH_MAX] = {};
  if (readlink("/proc/self/exe", path, sizeof path - 1) < 0) return file;
  const std::string program = path;
  return program.substr(0, program.rfind('/') + 1) + file;
}

// Whether Q4_K_M has more bits for this layer's values and down projection.
bool takesMoreBits(int32_t layer, int32_t layers) {
  return layer < layers / 8 || layer >= 7 * layers / 8 || (layer - layers / 8) % 3 == 2;
}

int32_t typeNamed(const std::string& name) {
  if (name == "f32") return kF32;
  if (name == "q8_0") return kQ8_0;
  if (name == "q4_k") return kQ4_K;
  if (name == "q6_k") return kQ6_K;
  return kBf16;
}

}  // namespace

const LsCudaApi& engine() {
  static const LsCudaApi* const api = [] {
    const char* named = std::getenv("LONGSIGHT_CUDA_LIBRARY");
    const std::string path = named != nullptr ? named : besideProgram("longsight-cuda.so");
    void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr) {
      std::fprintf(stderr, "%s\n", dlerror());
      std::exit(1);
    }
    const auto function = reinterpret_cast<LsCudaApiFunction>(dlsym(library, LS_CUDA_API_SYMBOL));
    const LsCudaApi* table = function == nullptr ? nullptr : function(LS_CUDA_API_VERSION);
    if (table == nullptr) {
      std::fprintf(stderr, "%s does not speak version %d\n", path.c_str(), LS_CUDA_API_VERSION);
      std::exit(1);
    }
    return table;
  }();
  return *api;
}

void must(LsStatus status, const LsError& error, const char* what) {
  if (status == LS_OK) return;
  std::fprintf(stderr, "%s: status %d: %s %s\n", what, status, error.message, error.remedy);
  std::fflush(stdout);
  std::exit(1);
}

ModelSizes namedSizes(const std::string& name) {
  ModelSizes sizes;
  if (name == "llama-3.1-8b") {
    sizes = {name, 32, 32, 8, 128, 4096, 14336, 128256};
  } else if (name == "qwen2.5-7b") {
    sizes = {name, 28, 28, 4, 128, 3584, 18944, 152064, LS_ROPE_NEOX, 1e6};
    sizes.projectionBias = true;
  } else if (name == "tiny") {
    sizes = {name, 4, 6, 2, 64, 256, 768, 1003};
  }
  return sizes;
}

Recipe::Recipe(const ModelSizes& sizes, const std::string& weights) : sizes_(sizes) {
  const bool mixed = weights == "q4_k_m";
  const int32_t type = mixed ? kQ4_K : typeNamed(weights);
  const int64_t width = sizes.embedding, inner = sizes.feedForward;
  const int64_t queries = int64_t{sizes.heads} * sizes.headDim;
  const int64_t keys = int64_t{sizes.kvHeads} * sizes.headDim;
  add(LS_TOKEN_EMBEDDING, 0, 0, type, sizes.vocabulary, width);
  if (!sizes.tied) add(LS_OUTPUT, 0, 0, mixed ? kQ6_K : type, sizes.vocabulary, width);
  add(LS_OUTPUT_NORM, 0, 0, kF32, 1, width);
  for (int32_t layer = 0; layer < sizes.layers; ++layer) {
    const int32_t better = mixed && takesMoreBits(layer, sizes.layers) ? int32_t{kQ6_K} : type;
    add(LS_LAYER_NORM, layer, LS_NORM_ATTENTION, kF32, 1, width);
    add(LS_LAYER_NORM, layer, LS_NORM_FEED_FORWARD, kF32, 1, width);
    if (sizes.headNorms) {
      add(LS_LAYER_NORM, layer, LS_NORM_QUERY, kF32, 1, sizes.headDim);
      add(LS_LAYER_NORM, layer, LS_NORM_KEY, kF32, 1, sizes.headDim);
    }
    if (sizes.outputNorms) {
      add(LS_LAYER_NORM, layer, LS_NORM_ATTENTION_OUTPUT, kF32, 1, width);
      add(LS_LAYER_NORM, layer, LS_NORM_FEED_FORWARD_OUTPUT, kF32, 1, width);
    }
    add(LS_LAYER_MATRIX, layer, LS_QUERY, type, queries, width);
    add(LS_LAYER_MATRIX, layer, LS_KEY, type, keys, width);
    add(LS_LAYER_MATRIX, layer, LS_VALUE, better, keys, width);
    if (sizes.projectionBias) {
      add(LS_LAYER_BIAS, layer, LS_QUERY, kF32, 1, queries);
      add(LS_LAYER_BIAS, layer, LS_KEY, kF32, 1, keys);
      add(LS_LAYER_BIAS, layer, LS_VALUE, kF32, 1, keys);
    }
    add(LS_LAYER_MATRIX, layer, LS_ATTENTION_OUTPUT, type, width, queries);
    add(LS_LAYER_MATRIX, layer, LS_GATE, type, inner, width);
    add(LS_LAYER_MATRIX, layer, LS_UP, type, inner, width);
    add(LS_LAYER_MATRIX, layer, LS_DOWN, better, width, inner);
  }
  for (int32_t pair = 0; pair < sizes.headDim / 2; ++pair)
    frequencies_.push_back(std::pow(sizes.ropeBase, -2.0 * pair / sizes.headDim));
  desc_ = {0,
           sizes.layers,
           sizes.heads,
           sizes.kvHeads,
           sizes.headDim,
           sizes.embedding,
           sizes.feedForward,
           sizes.vocabulary,
           1e-5f,
           static_cast<float>(1 / std::sqrt(static_cast<double>(sizes.headDim))),
           tensors_.data(),
           static_cast<int32_t>(tensors_.size())};
}

void Recipe::add(LsTensorRole role, int32_t layer, int32_t part, int32_t type, int64_t rows,
                 int64_t columns) {
  tensors_.push_back({role, layer, part, type, rows, columns});
}

LsAttentionParams Recipe::params(LsPolicy policy) const {
  const SampleAttentionParams defaults;
  const DimRanges dims = scoreDimRanges(
      ScoreDims::slowHalf, sizes_.rope == LS_ROPE_NEOX ? RopeStyle::neox : RopeStyle::interleaved,
      sizes_.headDim);
  LsAttentionParams params{};
  params.policy = policy;
  params.alpha = defaults.alpha;
  params.epsilon = defaults.epsilon;
  for (int i = 0; i < 2; ++i) {
    params.scoreDims[i][0] = dims.ranges[static_cast<size_t>(i)].begin;
    params.scoreDims[i][1] = dims.ranges[static_cast<size_t>(i)].end;
  }
  params.sinkTokens = defaults.sinkTokens;
  params.maxListShare = defaults.maxListShare;
  params.auditRows = defaults.auditRows;
  return params;
}

LsSessionDesc Recipe::session(int64_t capacityRows, LsKvType kvType) const {
  const SampleAttentionParams defaults;
  LsSessionDesc desc{};
  desc.capacityRows = capacityRows;
  desc.kvType = kvType;
  desc.rope = {sizes_.rope, sizes_.headDim, frequencies_.data(), 1.0};
  desc.params = params(LS_POLICY_PEAK);
  desc.segmentRows = defaults.segmentRows;
  desc.sampleStride = defaults.sampleStride;
  desc.windowTokens = defaults.windowTokens;
  desc.windowFraction = defaults.windowFraction;
  return desc;
}

uint64_t Recipe::matrixBytes() const {
  double bytes = 0;
  for (const LsTensorDesc& tensor : tensors_) {
    const double bits = tensor.type == kF32    ? 32
                        : tensor.type == kBf16 ? 16
                        : tensor.type == kQ8_0 ? 8.5
                        : tensor.type == kQ6_K ? 6.5625
                                               : 4.5;
    if (tensor.role == LS_TOKEN_EMBEDDING && !sizes_.tied) continue;
    bytes += bits / 8 * static_cast<double>(tensor.rows) * static_cast<double>(tensor.columns);
  }
  return static_cast<uint64_t>(bytes);
}

double Recipe::layerWeights() const {
  double weights = 0;
  for (const LsTensorDesc& tensor : tensors_) {
    if (tensor.role == LS_LAYER_MATRIX)
      weights += static_cast<double>(tensor.rows) * static_cast<double>(tensor.columns);
  }
  return weights;
}

ModelHandle createModel(const Recipe& recipe) {
  LsModel* model = nullptr;
  LsError error{};
  must(engine().modelCreate(&recipe.desc(), &model, &error), error, "modelCreate");
  return ModelHandle(model);
}

SessionHandle createSession(LsModel* model, const LsSessionDesc& desc) {
  LsSession* session = nullptr;
  LsError error{};
  must(engine().sessionCreate(model, &desc, &session, &error), error, "sessionCreate");
  return SessionHandle(session);
}

std::vector<LsSegment> segmentsOf(const std::vector<Segment>& segments) {
  std::vector<LsSegment> out;
  for (const Segment& segment : segments)
    out.push_back(
        {segment.begin, segment.end, segment.dense ? 1 : 0, segment.stride, segment.windowTokens});
  return out;
}

}  // namespace longsight::cuda::test
