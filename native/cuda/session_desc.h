// What a session is, in the words of the CUDA library.
#pragma once

#include <vector>

#include "attention/params.h"
#include "cuda/api.h"
#include "model/gguf_file.h"
#include "session/session_options.h"

namespace longsight {

// `headEpsilons` of the result point into `params`.
LsAttentionParams cudaParams(const SampleAttentionParams& params, const RopeSpec& rope,
                             int32_t headDim);

class CudaSessionDesc {
 public:
  // Passes will be like those of `params`; the chunk takes `chunkRows` rows, 0 = as the library
  // likes. Reads the factors of RoPE where the file has some. Throws Error unreadableFile.
  CudaSessionDesc(const ModelSpec& spec, const SessionOptions& options, int64_t capacityRows,
                  const SampleAttentionParams& params, int64_t chunkRows);
  CudaSessionDesc(const CudaSessionDesc&) = delete;
  CudaSessionDesc& operator=(const CudaSessionDesc&) = delete;

  const LsSessionDesc* get() const { return &desc_; }
  void setCapacity(int64_t rows) { desc_.capacityRows = rows; }

 private:
  SampleAttentionParams params_;
  std::vector<double> frequencies_;
  LsSessionDesc desc_{};
};

}  // namespace longsight
