// Votes drawn at random in place of those of stage 1: lists of a wanted density.
#pragma once

#include <cuda_runtime_api.h>

#include "attention/drawn_lists.h"
#include "sample_attention.h"

namespace longsight::cuda {

// Overwrites the votes in the workspace; launchColumnLists, run after it, makes lists of them by
// the rule of attention/drawn_lists.h. The same draw and chunk give the same bits.
cudaError_t launchDrawnVotes(const Chunk& chunk, const ListDraw& draw, void* workspace,
                             cudaStream_t stream);

}  // namespace longsight::cuda
