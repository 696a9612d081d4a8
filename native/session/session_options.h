// What stays the same for the life of a session.
#pragma once

#include <cstdint>

#include "cpu/kv_rows.h"

namespace longsight {

struct SessionOptions {
  // Rows of the KV cache; 0 = what the memory estimate chooses.
  int64_t contextTokens = 0;
  int32_t threads = 1;
  double ropeBaseScale = 1.0;
  KvType kvCache = KvType::bf16;
};

}  // namespace longsight
