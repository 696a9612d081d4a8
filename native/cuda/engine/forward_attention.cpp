// Attention of a forward pass: groups of segments through the stages, and their statistics.
#include <algorithm>
#include <string>

#include "attention/geometry.h"
#include "cuda/engine/forward_pass.h"
#include "filter/drawn_votes.h"

namespace longsight::cuda {
namespace {

// Share of the pairs of a sparse segment that are computed, to begin with.
constexpr double kSparseShare = 0.2;

}  // namespace

Chunk ForwardPass::chunkOf(std::span<const Segment> segments, int32_t layer) const {
  const bool byHead =
      request_.params.headEpsilons != nullptr && request_.params.policy == LS_POLICY_PEAK;
  const float* epsilons = session_.scratch<float>(session_.plan_.scratch.epsilons) +
                          layer * epsilonStride(shape_.heads);
  return {segments, session_.plan_.kv.shape,
          sparseOptions(request_.params, byHead ? epsilons : nullptr)};
}

Tensors ForwardPass::tensorsOf(int32_t layer, int64_t firstRow) const {
  const ScratchPlan& plan = session_.plan_.scratch;
  const Session::Layer cache = session_.layer(layer);
  const int64_t offset = (firstRow - begin_) * shape_.queryWidth() * 2;
  Tensors tensors;
  tensors.queries = session_.scratch<char>(plan.queries) + offset;
  tensors.output = session_.scratch<char>(plan.attention) + offset;
  tensors.keys = cache.keys;
  tensors.values = cache.values;
  tensors.keyScales = cache.keyScales;
  tensors.valueScales = cache.valueScales;
  tensors.capacityRows = session_.plan_.kv.capacityRows;
  tensors.logSumExp = session_.scratch<float>(plan.logSums);
  tensors.scale = shape_.attentionScale;
  return tensors;
}

double ForwardPass::pairWork(std::span<const Segment> segments) const {
  double pairs = 0;
  for (const Segment& segment : segments)
    pairs += (segment.dense ? 1 : kSparseShare) *
             static_cast<double>(causalPairCount(segment.begin, segment.end));
  return pairs * shape_.heads;
}

double ForwardPass::predictAttention(std::span<const Segment> segments) const {
  const double work = pairWork(segments);
  double ms = 0;
  for (const Part part : {Part::stage1, Part::stage2, Part::stage3, Part::audit})
    ms += clock_.predict(part, work);
  return ms;
}

std::vector<Segment> ForwardPass::lastSegments() const {
  const int64_t from = begin_ + lastQueries_;
  std::vector<Segment> segments;
  for (const Segment& segment : segments_) {
    if (segment.end > from) segments.push_back(segment);
  }
  if (!segments.empty()) segments.front().begin = from;
  return segments;
}

void ForwardPass::attend(int32_t layer) {
  const std::vector<Segment> segments = layer + 1 == shape_.layers ? lastSegments() : segments_;
  const size_t skipped = segments_.size() - segments.size();
  for (size_t first = 0; first < segments.size();) {
    const auto rest = std::span<const Segment>(segments).subspan(first);
    const size_t count = groupSize(rest);
    attendGroup(layer, rest.first(count), skipped + first);
    first += count;
  }
}

size_t ForwardPass::groupSize(std::span<const Segment> segments) const {
  const size_t most = std::min<size_t>(segments.size(), kMaxChunkSegments);
  const uint64_t reserved = session_.plan_.scratch.attentionWorkspaceBytes;
  size_t count = 1;
  while (count < most) {
    const auto longer = segments.first(count + 1);
    if (predictAttention(longer) > PassClock::kUnitMs) break;
    if (static_cast<uint64_t>(workspaceBytes(chunkOf(longer, 0))) > reserved) break;
    ++count;
  }
  return count;
}

void ForwardPass::attendGroup(int32_t layer, std::span<const Segment> segments,
                              size_t firstSegment) {
  Chunk chunk = chunkOf(segments, layer);
  const Tensors tensors = tensorsOf(layer, segments.front().begin);
  void* workspace = session_.scratch<char>(session_.plan_.scratch.attentionWorkspace);
  const bool sparse =
      std::any_of(segments.begin(), segments.end(), [](const Segment& s) { return !s.dense; });
  const double work = pairWork(segments);
  clock_.admit(predictAttention(segments));

  if (session_.plan_.kv.isQ8()) {
    check(launchDequantize(chunk, tensors, workspace, stream_), "Expanding the cache");
    clock_.mark(Part::rest);
  }
  if (sparse) {
    check(launchSample(chunk, tensors, workspace, Path::best, stream_), "Stage 1 of attention");
    clock_.mark(Part::stage1, work);
  }
  check(launchColumnLists(chunk, workspace, stream_), "Stage 2 of attention");
  clock_.mark(Part::stage2, work);
  if (sparse && request_.forcedDensity >= 0) {
    // Votes are where policy `peak` has them; nothing else of the workspace is needed any more.
    chunk.options.policy = Policy::peak;
    chunk.options.scoreDims = allDims(shape_.headDim);
    const ListDraw draw{.density = request_.forcedDensity, .layer = layer};
    check(launchDrawnVotes(chunk, draw, workspace, stream_), "Drawing votes");
    check(launchColumnLists(chunk, workspace, stream_), "Lists of drawn votes");
    clock_.mark(Part::rest);
  }
  check(launchAttend(chunk, tensors, workspace, Path::best, stream_), "Stage 3 of attention");
  clock_.mark(Part::stage3, work, attentionShare_ * work);
  if (sparse && request_.coverage != nullptr && chunk.options.auditRows > 0) {
    check(launchAudit(chunk, tensors, workspace, stream_), "The audit of attention");
    clock_.mark(Part::audit, work);
  }
  fetchStats(chunk, workspace, layer, firstSegment);
}

void ForwardPass::fetchStats(const Chunk& chunk, const void* workspace, int32_t layer,
                             size_t firstSegment) {
  if (request_.stats == nullptr && request_.coverage == nullptr) return;
  const WorkspaceOffsets offsets = workspaceOffsets(chunk);
  const char* from = static_cast<const char*>(workspace);
  char* to = session_.passHost_.data();
  const size_t first = static_cast<size_t>(layer) * segments_.size() + firstSegment;
  const auto heads = static_cast<size_t>(shape_.heads);
  const size_t count = chunk.segments.size() * heads;
  if (request_.stats != nullptr) {
    check(
        cudaMemcpyAsync(to + host_.stats + first * heads * sizeof(HeadStats), from + offsets.stats,
                        count * sizeof(HeadStats), cudaMemcpyDeviceToHost, stream_),
        "Copying statistics");
  }
  const auto audits = static_cast<size_t>(request_.params.auditRows);
  if (request_.coverage != nullptr && audits > 0) {
    // The audit leaves the places of dense segments alone.
    for (size_t i = 0; i < chunk.segments.size(); ++i) {
      if (chunk.segments[i].dense) continue;
      check(cudaMemcpyAsync(to + host_.coverage + (first + i) * heads * audits * 4,
                            from + offsets.coverage + static_cast<int64_t>(i * heads * audits * 4),
                            heads * audits * 4, cudaMemcpyDeviceToHost, stream_),
            "Copying statistics");
    }
  }
  clock_.mark(Part::rest);
}

}  // namespace longsight::cuda
