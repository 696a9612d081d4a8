// An opened model: what the file says, its tokenizer, and the weights once a session needs them.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>

#include "cpu/cancel_flag.h"
#include "cpu/weights.h"
#include "cuda/model.h"
#include "model/gguf_file.h"
#include "model/tokenizer.h"
#include "session/memory_estimate.h"
#include "session/session_options.h"

namespace longsight {

class Model {
 public:
  // Reads header, metadata and vocabulary. Throws Error when the file cannot be run.
  explicit Model(const std::string& path) : spec_(readGguf(path)), tokenizer_(spec_) {}
  // A model without a file and a tokenizer (model/synthetic.h), for the CUDA backend: the device
  // fills its weights with random numbers of this seed.
  Model(ModelSpec synthetic, uint64_t seed) : spec_(std::move(synthetic)), seed_(seed) {}

  const ModelSpec& spec() const { return spec_; }
  bool hasTokenizer() const { return tokenizer_.has_value(); }
  // Throws Error invalidParams where there is none.
  const Tokenizer& tokenizer() const;

  // What a session with these options and prompts with these parameters takes; contextTokens 0 =
  // the model's context, or the largest that fits. Throws Error deviceUnavailable.
  MemoryEstimate estimate(const SessionOptions& options, const SampleAttentionParams& params);

  // Loads on the first call; later ones share. Throws like Weights::load.
  std::shared_ptr<const Weights> weights(const CancelFlag& cancel,
                                         const std::function<void(uint64_t, uint64_t)>& onProgress);
  // The same on a GPU; `ordinal` as SessionOptions::device. Throws like CudaModel::load.
  std::shared_ptr<CudaModel> weightsOn(int32_t ordinal, const CancelFlag& cancel,
                                       const std::function<void(uint64_t, uint64_t)>& onProgress);

  // A checksum of all that the file says, metadata and weights: the same for copies of a file
  // wherever they lie. Made while weights go to a GPU; from those in memory once, at its speed, on
  // all cores. Throws Error unreadableFile; weights must have been loaded.
  uint64_t identity();

 private:
  std::shared_ptr<CudaModel> loadedOn(int32_t ordinal);
  std::vector<uint64_t> blockChecksums() const;

  ModelSpec spec_;
  std::optional<Tokenizer> tokenizer_;
  uint64_t seed_ = 0;
  std::mutex loading_;
  std::mutex guard_;
  // Kept while the model is open, so that a new session need not read the file again.
  std::shared_ptr<const Weights> weights_;
  // By ordinal of the GPU.
  std::map<int32_t, std::shared_ptr<CudaModel>> onDevices_;
  std::optional<uint64_t> identity_;
};

}  // namespace longsight
