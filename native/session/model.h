// An opened model: what the file says, its tokenizer, and the weights once a session needs them.
#pragma once

#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>

#include "cpu/cancel_flag.h"
#include "cpu/weights.h"
#include "model/gguf_file.h"
#include "model/tokenizer.h"
#include "session/memory_estimate.h"

namespace longsight {

class Model {
 public:
  // Reads header, metadata and vocabulary. Throws Error when the file cannot be run.
  explicit Model(const std::string& path) : spec_(readGguf(path)), tokenizer_(spec_) {}

  const ModelSpec& spec() const { return spec_; }
  const Tokenizer& tokenizer() const { return tokenizer_; }

  MemoryEstimate estimate(int64_t contextTokens, const SampleAttentionParams& params,
                          KvType kvCache = KvType::bf16);

  // Loads on the first call; later ones share. Throws like Weights::load.
  std::shared_ptr<const Weights> weights(const CancelFlag& cancel,
                                         const std::function<void(uint64_t, uint64_t)>& onProgress);

  // A checksum of all that the file says, metadata and weights: the same for copies of a file
  // wherever they lie. The first call reads the weights in memory once, at its speed, on all cores.
  // Throws Error unreadableFile; weights must have been loaded.
  uint64_t identity();

 private:
  ModelSpec spec_;
  Tokenizer tokenizer_;
  std::mutex loading_;
  std::mutex guard_;
  // Kept while the model is open, so that a new session need not read the file again.
  std::shared_ptr<const Weights> weights_;
  std::optional<uint64_t> identity_;
};

}  // namespace longsight
