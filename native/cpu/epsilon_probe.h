// Measures on audit rows what each epsilon would cost and miss (attention/epsilon_curves.h).
#pragma once

#include "attention/epsilon_curves.h"
#include "cpu/attention.h"
#include "kernels/cpu/linear/linear.h"

namespace longsight {

// After runAttention of a sparse segment under policy peak with task.scratch: adds the segment to
// the curves of a layer. `projection` is the layer's attention output matrix, `residual` the
// stream before it, f32 [row - segment.begin][width]. Audit rows are those of task.params. A norm
// between the projection and the stream is not seen.
void probeEpsilons(const AttentionTask& task, const WeightView& projection, const float* residual,
                   int32_t layer, ThreadPool& pool, EpsilonCurves& curves);

}  // namespace longsight
