#include "cpu/activations.h"

#include <string>

#include "error.h"

namespace longsight {
namespace {

uint64_t aligned(uint64_t bytes) { return (bytes + 63) / 64 * 64; }

}  // namespace

Activations::Activations(const ModelSpec& spec)
    : width_(spec.embedding), queryWidth_(int64_t{spec.heads} * spec.headDim) {}

Activations::~Activations() { ggml_backend_buffer_free(buffer_); }

uint64_t Activations::bytesFor(int64_t rows) const {
  return aligned(static_cast<uint64_t>(rows * width_) * sizeof(float)) +
         2 * aligned(static_cast<uint64_t>(rows * queryWidth_) * sizeof(float));
}

void Activations::reserve(int64_t rows) {
  if (rows <= rows_) return;
  ggml_backend_buffer_free(buffer_);
  rows_ = 0;
  buffer_ = ggml_backend_buft_alloc_buffer(ggml_backend_cpu_buffer_type(), bytesFor(rows));
  if (!buffer_)
    throw Error(ErrorCode::notEnoughMemory,
                "Scratch memory for " + std::to_string(rows) + " rows needs " +
                    std::to_string(bytesFor(rows)) + " bytes, which the system did not give.",
                "Use smaller segments (segmentRows) or a smaller model.");
  rows_ = rows;
  auto* base = static_cast<uint8_t*>(ggml_backend_buffer_get_base(buffer_));
  const uint64_t queryBytes = aligned(static_cast<uint64_t>(rows * queryWidth_) * sizeof(float));
  queries_ = reinterpret_cast<float*>(base);
  attention_ = reinterpret_cast<float*>(base + queryBytes);
  residual_ = reinterpret_cast<float*>(base + 2 * queryBytes);
}

}  // namespace longsight
