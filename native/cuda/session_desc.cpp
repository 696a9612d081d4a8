#include "cuda/session_desc.h"

#include "attention/score_dims.h"
#include "model/tensor_file.h"

namespace longsight {

LsAttentionParams cudaParams(const SampleAttentionParams& params, const RopeSpec& rope,
                             int32_t headDim) {
  LsAttentionParams out{};
  switch (params.policy) {
    case Policy::dense:
      out.policy = LS_POLICY_DENSE;
      break;
    case Policy::mass:
      out.policy = LS_POLICY_MASS;
      break;
    case Policy::peak:
      out.policy = LS_POLICY_PEAK;
      break;
  }
  out.alpha = params.alpha;
  out.epsilon = params.epsilon;
  out.headEpsilons = params.headEpsilons.empty() ? nullptr : params.headEpsilons.data();
  const DimRanges dims = scoreDimRanges(params.scoreDims, rope.style, headDim, rope.rotatedDims);
  for (size_t i = 0; i < 2; ++i) {
    out.scoreDims[i][0] = dims.ranges[i].begin;
    out.scoreDims[i][1] = dims.ranges[i].end;
  }
  out.sinkTokens = params.sinkTokens;
  out.maxListShare = params.maxListShare;
  out.auditRows = params.auditRows;
  return out;
}

CudaSessionDesc::CudaSessionDesc(const ModelSpec& spec, const SessionOptions& options,
                                 int64_t capacityRows, const SampleAttentionParams& params,
                                 int64_t chunkRows)
    : params_(params) {
  const RopeSpec& rope = spec.rope;
  std::vector<float> factors;
  if (const TensorSource* source = ropeFactorTensor(spec, capacityRows)) {
    factors.resize(static_cast<size_t>(rope.rotatedDims / 2));
    TensorFile(spec.path).read(factors.data(), source->bytes, source->fileOffset);
  }
  const auto base = static_cast<float>(rope.base * options.ropeBaseScale);
  frequencies_ = ropeFrequencies(rope, base, factors.empty() ? nullptr : factors.data());

  desc_.capacityRows = capacityRows;
  desc_.kvType = options.kvCache == KvType::q8 ? LS_KV_Q8 : LS_KV_BF16;
  desc_.rope = {rope.style == RopeStyle::neox ? LS_ROPE_NEOX : LS_ROPE_INTERLEAVED,
                rope.rotatedDims, frequencies_.data(), rope.magnitude};
  desc_.chunkRows = chunkRows;
  desc_.params = cudaParams(params_, rope, spec.headDim);
  desc_.segmentRows = params_.segmentRows;
  desc_.sampleStride = params_.sampleStride;
  desc_.windowTokens = params_.windowTokens;
  desc_.windowFraction = params_.windowFraction;
}

}  // namespace longsight
