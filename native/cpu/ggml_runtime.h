// The process-wide side of ggml: backends loaded once from the folder of this library, its log, and
// the functions of the CPU variant that are only reachable by name.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "cpu/cancel_flag.h"
#include "ggml-backend.h"

namespace longsight {

// Loads the best CPU variant once. Throws Error deviceUnavailable when no variant runs here or the
// loaded libraries are not those this engine was built with.
ggml_backend_dev_t cpuDevice();

// E.g. `zen4`; the instruction sets it uses, e.g. `AVX512_BF16`.
std::string cpuVariant();
std::vector<std::string> cpuFeatures();

// Null when the CPU variant has no repacked layouts.
ggml_backend_buffer_type_t repackBufferType();

// What ggml and libllama log on this thread while the object lives.
class LogCapture {
 public:
  LogCapture();
  ~LogCapture();
  LogCapture(const LogCapture&) = delete;
  LogCapture& operator=(const LogCapture&) = delete;
  // The last warning or error without its function name; `fallback` when there was none.
  std::string lastLine(const std::string& fallback) const;

 private:
  friend void appendToCapture(const char* text);
  std::string text_;
  LogCapture* outer_;
};

// A ggml CPU backend with threads that live as long as it does. Not for use by two threads at once.
class GgmlCpu {
 public:
  // threads >= 1, the caller included.
  explicit GgmlCpu(int32_t threads);
  ~GgmlCpu();
  GgmlCpu(const GgmlCpu&) = delete;
  GgmlCpu& operator=(const GgmlCpu&) = delete;

  // False when `cancel` was set while it ran: results are then undefined. Checked before every
  // node.
  bool compute(ggml_cgraph* graph, const CancelFlag& cancel);
  ggml_backend_t handle() const { return backend_; }

 private:
  ggml_backend_t backend_ = nullptr;
  struct ggml_threadpool* threads_ = nullptr;
};

}  // namespace longsight
