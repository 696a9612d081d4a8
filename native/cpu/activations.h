// What flows from one stage of a segment to the next: residual stream, queries, attention output.
#pragma once

#include <cstdint>

#include "ggml-backend.h"
#include "model/gguf_file.h"

namespace longsight {

// Rows of a segment, relative to its begin, that go through a stage together.
struct RowBlock {
  int64_t begin = 0;
  int64_t end = 0;
  // Position of the segment's row 0.
  int64_t position = 0;

  int64_t rows() const { return end - begin; }
  // Position of the block's first row.
  int64_t firstPosition() const { return position + begin; }
};

class Activations {
 public:
  explicit Activations(const ModelSpec& spec);
  ~Activations();
  Activations(const Activations&) = delete;
  Activations& operator=(const Activations&) = delete;

  // Room for segments of up to `rows` rows; what was there is lost when it grows. Throws Error
  // notEnoughMemory.
  void reserve(int64_t rows);

  // f32 [row][embedding]; f32 [row][head][headDim].
  float* residual(int64_t row) const { return residual_ + row * width_; }
  float* queries(int64_t row) const { return queries_ + row * queryWidth_; }
  float* attention(int64_t row) const { return attention_ + row * queryWidth_; }
  int64_t width() const { return width_; }
  int64_t queryWidth() const { return queryWidth_; }

  // The memory of all three, for ggml tensors that lie in it.
  ggml_backend_buffer_t buffer() const { return buffer_; }
  uint64_t bytes() const { return bytesFor(rows_); }
  uint64_t bytesFor(int64_t rows) const;

 private:
  int64_t width_;
  int64_t queryWidth_;
  int64_t rows_ = 0;
  ggml_backend_buffer_t buffer_ = nullptr;
  float* residual_ = nullptr;
  float* queries_ = nullptr;
  float* attention_ = nullptr;
};

}  // namespace longsight
