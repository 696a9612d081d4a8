#include "session/prefill_prediction.h"

#include <algorithm>

namespace longsight {
namespace {

// Until a sparse segment was measured: share of the remote pairs that lists keep (0.07 at 8k to
// 0.09 at 16k with the default parameters, plus heads that fall back to dense), and what a gathered
// pair costs compared with one of the dense kernel. Lists of policy mass are about as long.
constexpr double kAssumedRemoteShare = 0.12;
constexpr double kGatherCost = 1.3;
// A voter's pair under policy mass, compared with one of the dense kernel: its score and
// exponential are computed twice, its value is not read. Measured with AVX2 and with AVX512_BF16.
constexpr double kMassVoterCost = 1.15;

// Fewer rows say little about a rate.
constexpr int64_t kLeastRows = 64;

double causalPairs(int64_t begin, int64_t end) {
  const auto first = static_cast<double>(begin), last = static_cast<double>(end);
  return (last * (last + 1) - first * (first + 1)) / 2;
}

// Half of what was believed, half of what was seen.
void blend(double& believed, double seen) {
  believed = believed > 0 ? (believed + seen) / 2 : seen;
}

}  // namespace

// In pairs of the dense kernel, one head and layer.
double PrefillPrediction::attentionWork(const Segment& segment,
                                        const SampleAttentionParams& params) const {
  const double causal = causalPairs(segment.begin, segment.end);
  if (segment.dense) return causal;
  const auto rows = static_cast<double>(segment.end - segment.begin);
  // A tile's window reaches back half a tile further than windowTokens on average.
  const double window =
      std::min(causal, rows * static_cast<double>(segment.windowTokens + 64 + params.sinkTokens));
  const double dims = params.scoreDims == ScoreDims::all ? 1.0 : 0.5;
  const double voterCost = params.policy == Policy::mass ? kMassVoterCost : 0.5 * dims;
  const double sampling = causal / segment.stride * voterCost;
  return sampling + (window + (causal - window) * kAssumedRemoteShare) * kGatherCost;
}

double PrefillPrediction::chunkMs(std::span<const Segment> segments,
                                  const SampleAttentionParams& params) const {
  double ms = 0;
  for (const Segment& segment : segments) {
    const double attention = attentionWork(segment, params) * heads_ * speed_.attentionMsPerPair *
                             (segment.dense ? 1.0 : sparseCorrection_);
    ms += static_cast<double>(segment.end - segment.begin) * speed_.linearMsPerRow + attention;
  }
  // The last layer only makes keys and values: a small part, counted as none.
  return ms * std::max(1, layers_ - 1);
}

void PrefillPrediction::observe(std::span<const Segment> segments,
                                const SampleAttentionParams& params, const ForwardTimes& times) {
  const int64_t rows = segments.back().end - segments.front().begin;
  if (rows < kLeastRows) return;
  const int32_t layers = std::max(1, layers_ - 1);
  const double linearMs = times.linearMs + times.expandMs + times.restMs;
  blend(speed_.linearMsPerRow, linearMs / (static_cast<double>(rows) * layers));
  double denseWork = 0, sparseWork = 0;
  for (const Segment& segment : segments)
    (segment.dense ? denseWork : sparseWork) += attentionWork(segment, params) * heads_ * layers;
  if (sparseWork == 0) {
    blend(speed_.attentionMsPerPair, times.attentionMs / denseWork);
  } else if (speed_.attentionMsPerPair > 0) {
    // Of a chunk with both, what dense rows are believed to take is taken off.
    const double sparseMs = times.attentionMs - denseWork * speed_.attentionMsPerPair;
    if (sparseMs > 0) blend(sparseCorrection_, sparseMs / (sparseWork * speed_.attentionMsPerPair));
  }
}

}  // namespace longsight
