// What stands between the matrix products of a layer, row by row.
#pragma once

#include <cstdint>

namespace longsight {

// out[i] = x[i] / rms(x) * weight[i]; `out` may be `x`.
void rmsNorm(const float* x, const float* weight, float epsilon, float* out, int64_t width);

// x[i] += y[i] (+ bias[i] when there is one).
void addTo(float* x, const float* y, const float* bias, int64_t width);

// gate[i] = silu(gate[i]) * up[i], with the biases added before where they are not null.
void swiglu(float* gate, const float* up, const float* gateBias, const float* upBias,
            int64_t width);

}  // namespace longsight
