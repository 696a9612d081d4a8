// The errors that people see: a code of the protocol, one sentence with the values, the way out.
#pragma once

#include <exception>
#include <string>

namespace longsight {

// The subset of the protocol's error codes that native code raises; codeName gives the same name.
enum class ErrorCode {
  modelNotFound,
  notGguf,
  truncatedGguf,
  unsupportedArchitecture,
  unsupportedTensorType,
  unsupportedTokenizer,
  invalidParams,
  notEnoughMemory,
  promptTooLong,
  unreadableFile,
  writeFailed,
  notSessionFile,
  damagedSessionFile,
  otherSessionFile,
  deviceUnavailable,
  cancelled,
  internal,
};

inline const char* codeName(ErrorCode code) {
  switch (code) {
    case ErrorCode::modelNotFound:
      return "modelNotFound";
    case ErrorCode::notGguf:
      return "notGguf";
    case ErrorCode::truncatedGguf:
      return "truncatedGguf";
    case ErrorCode::unsupportedArchitecture:
      return "unsupportedArchitecture";
    case ErrorCode::unsupportedTensorType:
      return "unsupportedTensorType";
    case ErrorCode::unsupportedTokenizer:
      return "unsupportedTokenizer";
    case ErrorCode::invalidParams:
      return "invalidParams";
    case ErrorCode::notEnoughMemory:
      return "notEnoughMemory";
    case ErrorCode::promptTooLong:
      return "promptTooLong";
    case ErrorCode::unreadableFile:
      return "unreadableFile";
    case ErrorCode::writeFailed:
      return "writeFailed";
    case ErrorCode::notSessionFile:
      return "notSessionFile";
    case ErrorCode::damagedSessionFile:
      return "damagedSessionFile";
    case ErrorCode::otherSessionFile:
      return "otherSessionFile";
    case ErrorCode::deviceUnavailable:
      return "deviceUnavailable";
    case ErrorCode::cancelled:
      return "cancelled";
    case ErrorCode::internal:
      break;
  }
  return "internal";
}

class Error : public std::exception {
 public:
  Error(ErrorCode code, std::string message, std::string action)
      : code_(code), message_(std::move(message)), action_(std::move(action)) {}

  const char* what() const noexcept override { return message_.c_str(); }
  ErrorCode code() const { return code_; }
  const std::string& message() const { return message_; }
  const std::string& action() const { return action_; }

 private:
  ErrorCode code_;
  std::string message_;
  std::string action_;
};

inline Error cancelledError() {
  return Error(ErrorCode::cancelled, "The operation was stopped.",
               "Ask again: what was finished is reused.");
}

}  // namespace longsight
