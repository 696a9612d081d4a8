// Text to tokens and back with libllama's vocabulary, for any bytes.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "model/gguf_file.h"

struct llama_model;
struct llama_vocab;

namespace longsight {

class Tokenizer {
 public:
  // Throws Error unsupportedTokenizer when libllama cannot use the vocabulary.
  explicit Tokenizer(const ModelSpec& spec);
  ~Tokenizer();
  Tokenizer(const Tokenizer&) = delete;
  Tokenizer& operator=(const Tokenizer&) = delete;

  // Appends the tokens of `text`. With `special`, special tokens written out in the text become
  // that token; without, the result holds no control token and no user-defined mark-up token,
  // whatever the text says. Bytes that are not UTF-8 become byte tokens, so that detokenizing gives
  // the same bytes.
  void tokenize(std::string_view text, bool special, std::vector<int32_t>& tokens) const;

  // Bytes of a token; control tokens give their text with `special`, else nothing.
  std::string piece(int32_t token, bool special) const;

  bool isEndOfGeneration(int32_t token) const;
  bool addsBos() const;
  // Empty when the vocabulary has none.
  std::string bosText() const;
  std::string eosText() const;
  int32_t vocabulary() const { return vocabulary_; }
  // Whether plain text must never produce this token.
  bool isReserved(int32_t token) const { return reserved_[static_cast<size_t>(token)]; }

 private:
  void classifyTokens();
  void tokenizeValid(std::string_view text, bool special, std::vector<int32_t>& tokens) const;
  void callLibrary(std::string_view text, bool special, std::vector<int32_t>& tokens) const;
  void appendSpecial(std::string_view text, std::vector<int32_t>& tokens) const;
  void appendPlain(std::string_view text, std::vector<int32_t>& tokens) const;
  void appendBytes(std::string_view bytes, std::vector<int32_t>& tokens) const;
  bool hasTokensFor(std::string_view bytes) const;

  llama_model* model_ = nullptr;
  const llama_vocab* vocab_ = nullptr;
  int32_t vocabulary_ = 0;
  bool sentencePiece_ = false;
  bool spacePrefix_;
  std::vector<bool> reserved_;
  // Token of each byte; -1 when the vocabulary has none.
  std::array<int32_t, 256> byteTokens_{};
  // Tokens of U+FFFD.
  std::vector<int32_t> replacement_;
};

}  // namespace longsight
