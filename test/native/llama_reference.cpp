#include "llama_reference.h"

#include <algorithm>
#include <cmath>
#include <memory>
#include <stdexcept>

#include "cpu/ggml_runtime.h"

namespace longsight::test {

std::vector<float> llamaLogits(const std::string& modelPath, const std::vector<int32_t>& tokens,
                               int64_t from,
                               const std::function<void(llama_context_params&)>& change) {
  cpuDevice();
  const std::unique_ptr<llama_model, decltype(&llama_model_free)> model(
      llama_model_load_from_file(modelPath.c_str(), llama_model_default_params()),
      &llama_model_free);
  if (!model) throw std::runtime_error("libllama does not load " + modelPath);
  llama_context_params params = llama_context_default_params();
  params.n_ctx = static_cast<uint32_t>(tokens.size());
  params.n_batch = static_cast<uint32_t>(tokens.size());
  // One: on a busy machine ggml's threads spend their time waiting for each other.
  params.n_threads = params.n_threads_batch = 1;
  params.type_k = params.type_v = GGML_TYPE_F32;
  params.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_DISABLED;
  if (change) change(params);
  const std::unique_ptr<llama_context, decltype(&llama_free)> context(
      llama_init_from_model(model.get(), params), &llama_free);
  if (!context) throw std::runtime_error("libllama makes no context for " + modelPath);

  llama_batch batch = llama_batch_init(static_cast<int32_t>(tokens.size()), 0, 1);
  for (size_t i = 0; i < tokens.size(); ++i) {
    batch.token[i] = tokens[i];
    batch.pos[i] = static_cast<llama_pos>(i);
    batch.n_seq_id[i] = 1;
    batch.seq_id[i][0] = 0;
    batch.logits[i] = static_cast<int64_t>(i) >= from;
  }
  batch.n_tokens = static_cast<int32_t>(tokens.size());
  const int32_t status = llama_decode(context.get(), batch);
  llama_batch_free(batch);
  if (status != 0) throw std::runtime_error("llama_decode returned " + std::to_string(status));

  const int32_t vocabulary = llama_vocab_n_tokens(llama_model_get_vocab(model.get()));
  std::vector<float> logits;
  for (auto row = static_cast<int32_t>(from); row < static_cast<int32_t>(tokens.size()); ++row) {
    const float* values = llama_get_logits_ith(context.get(), row);
    logits.insert(logits.end(), values, values + vocabulary);
  }
  return logits;
}

LogitComparison compareLogits(const std::vector<float>& a, const std::vector<float>& b,
                              int32_t vocabulary) {
  if (a.size() != b.size()) throw std::runtime_error("different numbers of logits");
  double sum = 0, total = 0, squares = 0;
  int64_t same = 0;
  const auto rows = static_cast<int64_t>(a.size()) / vocabulary;
  for (size_t i = 0; i < a.size(); ++i) {
    sum += (a[i] - b[i]) * (a[i] - b[i]);
    total += b[i];
    squares += b[i] * b[i];
  }
  for (int64_t row = 0; row < rows; ++row) {
    const auto best = [&](const std::vector<float>& values) {
      const auto begin = values.begin() + row * vocabulary;
      return std::max_element(begin, begin + vocabulary) - begin;
    };
    same += best(a) == best(b);
  }
  const auto count = static_cast<double>(a.size());
  const double deviation = std::sqrt(squares / count - total / count * (total / count));
  const double difference = std::sqrt(sum / count);
  return {difference, difference / deviation,
          static_cast<double>(same) / static_cast<double>(rows)};
}

double meanNll(const std::vector<float>& logits, int32_t vocabulary,
               const std::vector<int32_t>& tokens, int64_t from) {
  double sum = 0;
  const int64_t predictions = static_cast<int64_t>(tokens.size()) - from - 1;
  for (int64_t i = 0; i < predictions; ++i) {
    const float* row = logits.data() + i * vocabulary;
    const double most = *std::max_element(row, row + vocabulary);
    double total = 0;
    for (int32_t token = 0; token < vocabulary; ++token) total += std::exp(row[token] - most);
    sum += most + std::log(total) - row[tokens[static_cast<size_t>(from + i + 1)]];
  }
  return sum / static_cast<double>(predictions);
}

}  // namespace longsight::test
