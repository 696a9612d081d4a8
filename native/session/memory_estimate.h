// What a session needs and whether the computer has it.
#pragma once

#include <cstdint>

#include "attention/params.h"
#include "cpu/kv_rows.h"
#include "model/gguf_file.h"

namespace longsight {

struct MemoryEstimate {
  uint64_t weightBytes = 0;
  uint64_t kvBytes = 0;
  uint64_t scratchBytes = 0;
  // What a driver and its kernels take on a GPU.
  uint64_t fixedBytes = 0;
  int64_t contextTokens = 0;
  // Includes the weights when they are loaded already.
  uint64_t availableBytes = 0;
  bool fits = false;
  // Of the model's context; 0 when not even the weights fit.
  int64_t largestContextTokens = 0;
};

// contextTokens 0 = the model's context, or the largest that fits.
MemoryEstimate estimateMemory(const ModelSpec& spec, const SampleAttentionParams& params,
                              int64_t contextTokens, KvType kvCache, uint64_t loadedWeightBytes);

}  // namespace longsight
