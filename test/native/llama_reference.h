// Logits of libllama for the same file and tokens: the oracle of the engine's dense arithmetic.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "llama.h"

namespace longsight::test {

// f32 [tokens.size() - from][vocabulary] of the rows from `from` on; f32 cache, plain attention.
// `change` may set parameters of the context.
std::vector<float> llamaLogits(const std::string& modelPath, const std::vector<int32_t>& tokens,
                               int64_t from,
                               const std::function<void(llama_context_params&)>& change = {});

struct LogitComparison {
  double rmsDifference = 0;
  // As a share of the standard deviation of `b`.
  double relativeDifference = 0;
  double top1Agreement = 0;
};

LogitComparison compareLogits(const std::vector<float>& a, const std::vector<float>& b,
                              int32_t vocabulary);

// Mean negative log-likelihood of `tokens[from + i + 1]` under row i of `logits`.
double meanNll(const std::vector<float>& logits, int32_t vocabulary,
               const std::vector<int32_t>& tokens, int64_t from);

}  // namespace longsight::test
