// Linear layers of a prefill: output = input * weight^T, operands in bf16 or 8-bit floats, sums in
// fp32.
// docs/kernels.md says how.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <string>

#include "path.h"

namespace longsight::cuda {

// e4m3: 8-bit floats with a scale for each row of input and weight. Devices from sm_89 on. A
// Hopper's tensor cores add products of e4m3 with about 14 bits.
enum class LinearNumbers { bf16, e4m3 };

// What becomes of the sums (bias added first where there is one).
enum class LinearEpilogue {
  // bf16 [rows][outputs], rounded once.
  storeBf16,
  // fp32 [rows][outputs].
  storeF32,
  // fp32 [rows][outputs], read and written in place: output += sums. The residual stream.
  addToF32,
  // bf16 [rows][outputs / 2] = silu(gate) * up, rounded once. Weight rows (and the bias) are gate
  // and up of a feature in turns: 2 i and 2 i + 1.
  swigluBf16,
};

// One product. Device pointers, 16-byte aligned; no row has padding. The input must not overlap
// the output.
struct LinearTask {
  // [rows][inner], of `numbers`.
  const void* input = nullptr;
  // [outputs][inner], of `numbers`.
  const void* weight = nullptr;
  // fp32 [outputs], or none.
  const float* bias = nullptr;
  // As the epilogue says.
  void* output = nullptr;
  // 1 to 2^30.
  int64_t rows = 0;
  // A multiple of 8, of 16 with swigluBf16; rows of the weight.
  int32_t outputs = 0;
  // A multiple of 8, of 16 with e4m3.
  int32_t inner = 0;
  LinearEpilogue epilogue = LinearEpilogue::storeBf16;
  LinearNumbers numbers = LinearNumbers::bf16;
  // fp32 [rows] and [outputs], only with e4m3: a value is its number times its row's scale.
  const float* inputScales = nullptr;
  const float* weightScales = nullptr;
};

// Empty when launchLinear() can run the task; else one sentence with the value and the rule.
// Looks at the shape alone, not at the pointers.
std::string validate(const LinearTask& task);

// Bytes of workspace that the task needs on any device and path, 0 for many: a pure function of
// the shape. Tasks that follow one another on a stream may share one workspace.
int64_t linearWorkspaceBytes(const LinearTask& task);

// Enqueues the product on the stream and current device; never synchronises, allocates or copies,
// so it can be captured into a graph. What the workspace (16-byte aligned; may be null when it
// needs no bytes) held before does not matter. The same inputs give the same bits on the same kind
// of device and path. cudaErrorInvalidValue when validate() finds fault or a pointer is missing or
// not aligned, cudaErrorNotSupported for e4m3 where the device, or the code that there is for it,
// is below sm_89, otherwise the launch's error.
cudaError_t launchLinear(const LinearTask& task, void* workspace, Path path, cudaStream_t stream);

// bf16 [rows][inner] to e4m3 of the same shape and an fp32 scale a row, which takes the row's
// largest value to 448; a row of zeros has scale 1. `inner`: a multiple of 16; pointers 16-byte
// aligned. Rounds to nearest even; what is not finite becomes NaN.
cudaError_t launchToE4m3(const void* source, int64_t rows, int32_t inner, void* target,
                         float* scales, cudaStream_t stream);

}  // namespace longsight::cuda
