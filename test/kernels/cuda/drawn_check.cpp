#include "drawn_check.h"

#include <cmath>
#include <cstdio>
#include <vector>

#include "attention/plan.h"
#include "device_memory.h"
#include "kernels/cuda/filter/drawn_votes.h"

namespace longsight::cuda::test {
namespace {

constexpr int64_t kTokens = 131072;

struct Drawn {
  std::vector<HeadStats> stats;
  std::vector<uint32_t> votes;
};

Drawn draw(const Chunk& chunk, const ListDraw& wanted) {
  DeviceBuffer workspace(workspaceBytes(chunk));
  require(launchDrawnVotes(chunk, wanted, workspace.data(), nullptr), "launchDrawnVotes");
  require(launchColumnLists(chunk, workspace.data(), nullptr), "launchColumnLists");
  require(cudaDeviceSynchronize(), "drawn votes");
  const WorkspaceOffsets offsets = workspaceOffsets(chunk);
  const auto last = static_cast<int32_t>(chunk.segments.size()) - 1;
  return {workspace.read<HeadStats>(offsets.stats, int64_t{last + 1} * chunk.shape.heads),
          workspace.read<uint32_t>(offsets.votes, offsets.maskWords(last, chunk.shape.heads))};
}

}  // namespace

int checkDrawnVotes(uint64_t seed) {
  int failures = 0;
  SampleAttentionParams params;
  params.denseBelowTokens = 0;
  const std::vector<Segment> segments = planSegments(kTokens, {}, kTokens, params);
  SparseOptions options;
  options.scoreDims = allDims(128);
  const HeadShape shape{32, 8, 128};
  for (const double density : {0.05, 0.13, 0.30}) {
    for (const size_t first : {size_t{0}, segments.size() - 8}) {
      const Chunk chunk{std::span(segments).subspan(first), shape, options};
      const ListDraw wanted{density, seed, 3};
      const Drawn drawn = draw(chunk, wanted);
      double kept = 0, causal = 0, logs = 0, squares = 0;
      int heads = 0, fellBack = 0;
      for (const HeadStats& s : drawn.stats) {
        kept += static_cast<double>(s.keptPairs);
        causal += static_cast<double>(s.causalPairs);
        fellBack += s.dense;
        if (s.listLength == 0) continue;
        // Segments of the end alone: there the list is nearly all that a head keeps.
        const double log =
            std::log(static_cast<double>(s.listLength) / static_cast<double>(s.causalPairs));
        logs += log;
        squares += log * log;
        ++heads;
      }
      const double sigma = std::sqrt(squares / heads - logs / heads * logs / heads);
      const double reached = kept / causal;
      const bool asWanted = std::abs(reached / density - 1) <= 0.02 && fellBack == 0;
      const bool spread = first == 0 || density > 0.2 || std::abs(sigma - 0.8) < 0.15;
      const bool repeats = draw(chunk, wanted).votes == drawn.votes;
      const bool differs = draw(chunk, {density, seed, 4}).votes != drawn.votes;
      std::printf("drawn votes, %zu segments: density %.4f of %.2f, sigma %.2f, %d fell back%s%s\n",
                  chunk.segments.size(), reached, density, sigma, fellBack,
                  repeats ? "" : ", other bits twice", differs ? "" : ", layers alike");
      failures += !asWanted + !spread + !repeats + !differs;
    }
  }
  return failures;
}

}  // namespace longsight::cuda::test
