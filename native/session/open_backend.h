// From a model and the options of a session to what computes it.
#pragma once

#include <functional>
#include <memory>

#include "cpu/cancel_flag.h"
#include "session/backend.h"
#include "session/model.h"
#include "session/session_options.h"

namespace longsight {

// Loads the weights unless another session of the model has, and reserves the cache.
// `onProgress(doneBytes, totalBytes)` is of the weights. Throws Error: invalidParams,
// notEnoughMemory and those of Model::weights and
// Model::weightsOn.
std::unique_ptr<Backend> openBackend(Model& model, const SessionOptions& options,
                                     const CancelFlag& cancel,
                                     const std::function<void(uint64_t, uint64_t)>& onProgress);

}  // namespace longsight
