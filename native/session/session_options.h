// What stays the same for the life of a session.
#pragma once

#include <cstdint>

#include "cpu/kv_rows.h"
#include "session/backend.h"

namespace longsight {

struct SessionOptions {
  // Rows of the KV cache; 0 = what the memory estimate chooses.
  int64_t contextTokens = 0;
  // Of the CPU backend.
  int32_t threads = 1;
  double ropeBaseScale = 1.0;
  KvType kvCache = KvType::bf16;
  BackendKind backend = BackendKind::cpu;
  // Of the CUDA backend: ordinal of the GPU, -1 = the one that has the weights already or the most
  // free memory.
  int32_t device = -1;
  // Of the CUDA backend: rows that a prefill takes through all layers together; 0 = as it likes.
  int64_t chunkRows = 0;
};

}  // namespace longsight
