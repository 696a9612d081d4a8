// How the engine fails inside: by throwing a Failure, which the boundary turns into an LsError.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <exception>
#include <new>
#include <string>
#include <utility>

#include "cuda/api.h"

namespace longsight::cuda {

struct Failure {
  LsStatus status = LS_CUDA_ERROR;
  std::string message;
  std::string remedy;
  int64_t largestContextRows = 0;
};

inline Failure invalid(std::string message) {
  return {LS_INVALID_ARGUMENT, std::move(message), {}, 0};
}
inline Failure unsupported(std::string message) {
  return {LS_UNSUPPORTED, std::move(message), "Use the CPU backend for this model.", 0};
}
inline Failure cancelled() { return {LS_CANCELLED, "Cancelled.", {}, 0}; }

// Throws the Failure that belongs to an error of the runtime; `what` says what was tried. Finds out
// whether the context survived and, if not, marks the current device as lost.
void check(cudaError_t error, const char* what);

// Whether an error has left the device's context unusable for the rest of the process.
bool isLost(int device);
// Makes the device current on this thread; throws when it is lost.
void use(int device);

// Copies into `error`, which may be null, and returns the status.
LsStatus report(LsError* error, const Failure& failure);

// Runs body() and turns what it throws into a status.
template <class Body>
LsStatus guarded(LsError* error, const Body& body) noexcept {
  if (error != nullptr) *error = LsError{};
  try {
    try {
      body();
      return LS_OK;
    } catch (const Failure& failure) {
      return report(error, failure);
    } catch (const std::bad_alloc&) {
      return report(error, {LS_OUT_OF_MEMORY, "The host has no memory left.",
                            "Close other programs or use a smaller context.", 0});
    } catch (const std::exception& other) {
      return report(error, {LS_CUDA_ERROR, other.what(), {}, 0});
    }
  } catch (...) {
    return LS_CUDA_ERROR;
  }
}

}  // namespace longsight::cuda
