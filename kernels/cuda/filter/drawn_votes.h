// Votes drawn at random in place of those of stage 1, for measurements with weights that have no
// structure: stage 3 then meets lists of a wanted density.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "sample_attention.h"

namespace longsight::cuda {

struct VoteDraw {
  // Wanted share of the causal pairs that the sparse segments of the chunk keep, window and sinks
  // included. Where these alone are more, lists are empty.
  double density = 0.13;
  uint64_t seed = 0;
  int32_t layer = 0;
};

// Overwrites the votes in the workspace; launchColumnLists, run after it, makes lists of them. The
// lists of a (segment, head) are independent of others. Their densities are log-normal with sigma
// 0.8, scaled to the wanted one over all pairs, but none so long that it falls back; head 0 of the
// middle segment keeps 0.55 of its remote pairs. The same seed, layer and chunk give the same bits.
cudaError_t launchDrawnVotes(const Chunk& chunk, const VoteDraw& draw, void* workspace,
                             cudaStream_t stream);

}  // namespace longsight::cuda
