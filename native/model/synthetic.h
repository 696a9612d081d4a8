// Models that exist only as a shape: for measurements on a GPU, which makes the weights.
#pragma once

#include <string>

#include "model/gguf_file.h"

namespace longsight {

// `name`: llama-3.1-8b and so on. `weights`: bf16, f16, q8_0, q4_0 or q4_k_m, with the types by
// tensor that llama.cpp's quantizer chooses (src/llama-quant.cpp). The spec has no path, no
// tokenizer, and a context beyond every prompt, since random weights know no positions. Throws
// Error invalidParams, naming what there is, for another name or type.
ModelSpec syntheticSpec(const std::string& name, const std::string& weights);

}  // namespace longsight
