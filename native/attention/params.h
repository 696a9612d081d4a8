// SampleAttentionParams: all that a user can tune, with the names of the specification, section 5.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace longsight {

enum class Policy { dense, mass, peak };
enum class ScoreDims { slowHalf, all };

struct SampleAttentionParams {
  Policy policy = Policy::peak;
  double alpha = 0.95;
  double epsilon = 0.003;
  ScoreDims scoreDims = ScoreDims::slowHalf;
  int32_t sampleStride = 8;
  int32_t segmentRows = 2048;
  int32_t windowTokens = 256;
  double windowFraction = 0.0;
  int32_t sinkTokens = 16;
  int32_t denseBelowTokens = 4096;
  double maxListShare = 0.6;
  int32_t auditRows = 8;
  // [layer][head]: replaces `epsilon` for that head; empty = `epsilon` for all.
  std::vector<float> headEpsilons;

  bool operator==(const SampleAttentionParams&) const = default;
};

// Empty when every value is in its range; otherwise one sentence that names the field, its value
// and the range.
std::string validate(const SampleAttentionParams& params);

}  // namespace longsight
