#include "attention/params.h"

#include <sstream>

namespace longsight {
namespace {

std::string outside(const char* name, double value, const char* range) {
  std::ostringstream text;
  text << name << " is " << value << ", but must be " << range << '.';
  return text.str();
}

}  // namespace

// Conditions are written so that NaN fails them.
std::string validate(const SampleAttentionParams& p) {
  if (!(p.alpha > 0.0 && p.alpha <= 1.0)) {
    return outside("alpha", p.alpha, "greater than 0 and at most 1");
  }
  if (!(p.epsilon >= 0.0 && p.epsilon < 1.0)) {
    return outside("epsilon", p.epsilon, "at least 0 and less than 1");
  }
  if (p.sampleStride < 1 || p.sampleStride > 64) {
    return outside("sampleStride", p.sampleStride, "from 1 to 64");
  }
  if (p.segmentRows != 0 &&
      (p.segmentRows < 256 || p.segmentRows > 8192 || p.segmentRows % 128 != 0)) {
    return outside("segmentRows", p.segmentRows, "a multiple of 128 from 256 to 8192, or 0");
  }
  if (p.windowTokens < 128 || p.windowTokens > 8192) {
    return outside("windowTokens", p.windowTokens, "from 128 to 8192");
  }
  if (!(p.windowFraction >= 0.0 && p.windowFraction <= 0.5)) {
    return outside("windowFraction", p.windowFraction, "from 0 to 0.5");
  }
  if (p.sinkTokens < 0 || p.sinkTokens > 128) {
    return outside("sinkTokens", p.sinkTokens, "from 0 to 128");
  }
  if (p.denseBelowTokens < 0) {
    return outside("denseBelowTokens", p.denseBelowTokens, "0 or more");
  }
  if (!(p.maxListShare >= 0.0 && p.maxListShare <= 1.0)) {
    return outside("maxListShare", p.maxListShare, "from 0 to 1");
  }
  if (p.auditRows < 0 || p.auditRows > 256) {
    return outside("auditRows", p.auditRows, "from 0 to 256");
  }
  for (const float epsilon : p.headEpsilons) {
    if (!(epsilon >= 0.0f && epsilon < 1.0f)) {
      return outside("headEpsilons", epsilon, "at least 0 and less than 1");
    }
  }
  return {};
}

}  // namespace longsight
