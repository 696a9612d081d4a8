#include "attention/plan.h"

#include <algorithm>
#include <cmath>

#include "attention/geometry.h"

namespace longsight {
namespace {

// A later part with fewer rows is dense.
constexpr int64_t kShortPartRows = 1024;
constexpr int64_t kDenseSegmentRows = 2048;

Segment makeSegment(int64_t begin, int64_t end, bool shortPart,
                    const SampleAttentionParams& params) {
  Segment segment;
  segment.begin = begin;
  segment.end = end;
  segment.dense = shortPart || params.policy == Policy::dense || end <= params.denseBelowTokens;
  if (segment.dense) return segment;

  // A short segment keeps as many voters as a full one. The single segment is full by definition.
  const int64_t stride =
      params.segmentRows == 0
          ? params.sampleStride
          : std::max<int64_t>(1, params.sampleStride * (end - begin) / params.segmentRows);
  segment.stride = static_cast<int32_t>(stride);
  const auto share = std::floor(params.windowFraction * static_cast<double>(end));
  segment.windowTokens = std::max<int64_t>(params.windowTokens, static_cast<int64_t>(share));
  return segment;
}

}  // namespace

std::vector<Segment> planSegments(int64_t tokens, std::span<const int64_t> borders,
                                  int64_t denseFrom, const SampleAttentionParams& params) {
  std::vector<Segment> segments;
  const int64_t sparseEnd = std::clamp<int64_t>(denseFrom, 0, tokens);

  const auto addPart = [&](int64_t partBegin, int64_t partEnd) {
    const bool shortPart = partBegin > 0 && partEnd - partBegin < kShortPartRows;
    for (int64_t begin = partBegin; begin < partEnd;) {
      int64_t end = partEnd;
      if (params.segmentRows > 0) {
        end = std::min(end, (begin / params.segmentRows + 1) * params.segmentRows);
      }
      segments.push_back(makeSegment(begin, end, shortPart, params));
      begin = end;
    }
  };
  int64_t partBegin = 0;
  if (params.segmentRows > 0) {
    for (const int64_t border : borders) {
      if (border <= partBegin || border >= sparseEnd) continue;
      addPart(partBegin, border);
      partBegin = border;
    }
  }
  addPart(partBegin, sparseEnd);

  const int64_t denseRows = params.segmentRows > 0 ? params.segmentRows : kDenseSegmentRows;
  for (int64_t begin = sparseEnd; begin < tokens; begin += denseRows) {
    Segment segment;
    segment.begin = begin;
    segment.end = std::min(begin + denseRows, tokens);
    segments.push_back(segment);
  }
  return segments;
}

std::vector<int64_t> votingRows(const Segment& segment) {
  std::vector<int64_t> rows;
  if (segment.dense) return rows;
  const int64_t length = segment.end - segment.begin;
  for (int64_t row = segment.begin + (length - 1) % segment.stride; row < segment.end;
       row += segment.stride) {
    rows.push_back(row);
  }
  return rows;
}

std::vector<int64_t> auditRows(const Segment& segment, const SampleAttentionParams& params) {
  std::vector<int64_t> rows;
  if (segment.dense || segment.stride == 1) return rows;
  const int64_t length = segment.end - segment.begin;
  for (int64_t i = 0; i < params.auditRows; ++i) {
    int64_t row = segment.begin + (2 * i + 1) * length / (2 * int64_t{params.auditRows});
    // Voters are at least two rows apart, so one step down always leaves them.
    if (votes(row, segment.end, segment.stride)) --row;
    if (row < segment.begin || (!rows.empty() && row <= rows.back())) continue;
    rows.push_back(row);
  }
  return rows;
}

}  // namespace longsight
