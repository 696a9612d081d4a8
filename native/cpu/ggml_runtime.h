// The process-wide side of ggml: backends loaded once from the folder of this library, its log, and
// the functions of the CPU variant that are only reachable by name.
#pragma once

#include <string>
#include <vector>

#include "ggml-backend.h"
#include "ggml-cpu.h"

namespace longsight {

// Loads the best CPU variant once. Throws Error deviceUnavailable when no variant runs here or the
// loaded libraries are not those this engine was built with.
ggml_backend_dev_t cpuDevice();

// E.g. `zen4`; the instruction sets it uses, e.g. `AVX512_BF16`.
std::string cpuVariant();
std::vector<std::string> cpuFeatures();

// What ggml and libllama log on this thread while the object lives.
class LogCapture {
 public:
  LogCapture();
  ~LogCapture();
  LogCapture(const LogCapture&) = delete;
  LogCapture& operator=(const LogCapture&) = delete;
  // The first warning or error without its function name; `fallback` when there was none.
  std::string reason(const std::string& fallback) const;

 private:
  friend void appendToCapture(const char* text);
  std::string text_;
  LogCapture* outer_;
};

// ggml's CPU kernels for a type: dot products and rounding.
const ggml_type_traits_cpu* cpuTypeTraits(ggml_type type);

}  // namespace longsight
