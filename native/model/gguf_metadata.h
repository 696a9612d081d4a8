// The metadata of a GGUF file, looked up with types and ranges, and the errors about such a file.
#pragma once

#include <algorithm>
#include <cmath>
#include <initializer_list>
#include <limits>
#include <optional>
#include <string>
#include <vector>

#include "error.h"
#include "gguf.h"

namespace longsight {

// In quotes, shortened.
inline std::string quoted(const std::string& text) {
  std::string result = "\"";
  result.append(text, 0, 200);
  return result += '"';
}

inline constexpr const char* kOtherFile =
    "Choose a GGUF of a dense model that Longsight runs, for example Llama 2/3, Mistral 7B, "
    "SmolLM2, "
    "Qwen2.5, Qwen3, InternLM2.5 or GLM-4-9B.";
inline constexpr const char* kFetchAgain = "Download the file again: it is damaged or incomplete.";

inline Error unsupported(const std::string& what) {
  return Error(ErrorCode::unsupportedArchitecture, what, kOtherFile);
}

inline Error damaged(const std::string& path, const std::string& what) {
  return Error(ErrorCode::truncatedGguf,
               "The GGUF file " + quoted(path) + " is damaged: " + what + ".", kFetchAgain);
}

// Typed look-ups in the metadata. A key of the wrong type is an error, not an assertion.
class Metadata {
 public:
  Metadata(const gguf_context* context, std::string path)
      : context_(context), path_(std::move(path)) {}

  bool has(const std::string& key) const { return gguf_find_key(context_, key.c_str()) >= 0; }

  std::optional<int64_t> integer(const std::string& key) const {
    const int64_t id = gguf_find_key(context_, key.c_str());
    if (id < 0) return std::nullopt;
    switch (gguf_get_kv_type(context_, id)) {
      case GGUF_TYPE_UINT8:
        return gguf_get_val_u8(context_, id);
      case GGUF_TYPE_INT8:
        return gguf_get_val_i8(context_, id);
      case GGUF_TYPE_UINT16:
        return gguf_get_val_u16(context_, id);
      case GGUF_TYPE_INT16:
        return gguf_get_val_i16(context_, id);
      case GGUF_TYPE_UINT32:
        return gguf_get_val_u32(context_, id);
      case GGUF_TYPE_INT32:
        return gguf_get_val_i32(context_, id);
      case GGUF_TYPE_INT64:
        return gguf_get_val_i64(context_, id);
      case GGUF_TYPE_UINT64: {
        const uint64_t value = gguf_get_val_u64(context_, id);
        if (value <= static_cast<uint64_t>(std::numeric_limits<int64_t>::max()))
          return static_cast<int64_t>(value);
        break;
      }
      case GGUF_TYPE_ARRAY:
        throw unsupported(quoted(path_) + " has a different " + key + " in every layer.");
      default:
        break;
    }
    throw damaged(path_, key + " is not a whole number");
  }

  std::optional<double> number(const std::string& key) const {
    const int64_t id = gguf_find_key(context_, key.c_str());
    if (id < 0) return std::nullopt;
    switch (gguf_get_kv_type(context_, id)) {
      case GGUF_TYPE_FLOAT32:
        return gguf_get_val_f32(context_, id);
      case GGUF_TYPE_FLOAT64:
        return gguf_get_val_f64(context_, id);
      default:
        return static_cast<double>(*integer(key));
    }
  }

  std::optional<bool> boolean(const std::string& key) const {
    const int64_t id = gguf_find_key(context_, key.c_str());
    if (id < 0) return std::nullopt;
    if (gguf_get_kv_type(context_, id) != GGUF_TYPE_BOOL)
      throw damaged(path_, key + " is not true or false");
    return gguf_get_val_bool(context_, id);
  }

  std::optional<std::string> text(const std::string& key) const {
    const int64_t id = gguf_find_key(context_, key.c_str());
    if (id < 0) return std::nullopt;
    if (gguf_get_kv_type(context_, id) != GGUF_TYPE_STRING)
      throw damaged(path_, key + " is not a text");
    return gguf_get_val_str(context_, id);
  }

  // Length of an array of the given element type; nullopt when the key is missing.
  std::optional<int64_t> arrayLength(const std::string& key,
                                     std::initializer_list<gguf_type> types) const {
    const int64_t id = gguf_find_key(context_, key.c_str());
    if (id < 0) return std::nullopt;
    if (gguf_get_kv_type(context_, id) != GGUF_TYPE_ARRAY ||
        std::find(types.begin(), types.end(), gguf_get_arr_type(context_, id)) == types.end())
      throw damaged(path_, key + " is not an array of the expected type");
    return static_cast<int64_t>(gguf_get_arr_n(context_, id));
  }

  // The elements of a 32-bit integer array; none when the key is missing.
  std::vector<int64_t> integers(const std::string& key) const {
    const auto length = arrayLength(key, {GGUF_TYPE_INT32, GGUF_TYPE_UINT32});
    if (!length) return {};
    const int64_t id = gguf_find_key(context_, key.c_str());
    const auto* values = static_cast<const int32_t*>(gguf_get_arr_data(context_, id));
    return {values, values + *length};
  }

  int64_t requiredInteger(const std::string& key, int64_t low, int64_t high) const {
    const auto value = integer(key);
    if (!value) throw damaged(path_, key + " is missing");
    return inRange(key, *value, low, high);
  }

  int64_t integerOr(const std::string& key, int64_t fallback, int64_t low, int64_t high) const {
    return inRange(key, integer(key).value_or(fallback), low, high);
  }

  double positiveOr(const std::string& key, double fallback) const {
    const double value = number(key).value_or(fallback);
    if (!std::isfinite(value) || value <= 0)
      throw damaged(path_, key + " is " + std::to_string(value) + ", expected a positive number");
    return value;
  }

  const gguf_context* context() const { return context_; }
  const std::string& path() const { return path_; }

 private:
  int64_t inRange(const std::string& key, int64_t value, int64_t low, int64_t high) const {
    if (value < low || value > high)
      throw damaged(path_, key + " is " + std::to_string(value) + ", expected " +
                               std::to_string(low) + " to " + std::to_string(high));
    return value;
  }

  const gguf_context* context_;
  std::string path_;
};

}  // namespace longsight
