#include "model/tokenizer.h"

#include <algorithm>
#include <cctype>

#include "cpu/ggml_runtime.h"
#include "error.h"
#include "llama.h"
#include "model/utf8.h"

namespace longsight {
namespace {

// libllama runs some pre-tokenizers through std::regex, whose stack and time grow with the length
// of its input. Text is therefore handed over in pieces, cut where every pre-tokenizer cuts anyway.
constexpr size_t kPieceBytes = size_t{32} << 10;

// U+2581, which SentencePiece vocabularies use for a space.
constexpr std::string_view kSpaceMark = "\xE2\x96\x81";

bool isAsciiLetter(char c) {
  return std::isalpha(static_cast<unsigned char>(c)) != 0 && (c & 0x80) == 0;
}

// End of the piece that begins at `begin`: before a space between two ASCII letters, which starts a
// new word for byte-level BPE and SentencePiece alike; else before a character.
size_t pieceEnd(std::string_view text, size_t begin) {
  if (text.size() - begin <= kPieceBytes) return text.size();
  const size_t most = begin + kPieceBytes;
  for (size_t at = most; at > begin + kPieceBytes / 2; --at)
    if (text[at] == ' ' && isAsciiLetter(text[at - 1]) && isAsciiLetter(text[at + 1])) return at;
  size_t at = most;
  while (at > begin && (text[at] & 0xC0) == 0x80) --at;
  return at > begin ? at : most;
}

// User-defined tokens that stand for structure (<|im_start|>, [INST]) rather than for common text
// such as runs of spaces. Some conversions declare chat marks so instead of as control tokens.
bool isMarkup(std::string_view text) {
  if (text.size() < 3) return false;
  const char first = text.front(), last = text.back();
  return (first == '<' && last == '>') || (first == '[' && last == ']') ||
         (first == '{' && last == '}');
}

}  // namespace

Tokenizer::Tokenizer(const ModelSpec& spec) : spacePrefix_(spec.spacePrefix) {
  cpuDevice();
  LogCapture log;
  llama_model_params params = llama_model_default_params();
  params.vocab_only = true;
  // The space that SentencePiece puts before text belongs after special tokens (appendSpecial), not
  // before each of the pieces that a prompt is tokenized in.
  llama_model_kv_override overrides[2] = {};
  overrides[0].tag = LLAMA_KV_OVERRIDE_TYPE_BOOL;
  std::snprintf(overrides[0].key, sizeof(overrides[0].key), "tokenizer.ggml.add_space_prefix");
  overrides[0].val_bool = false;
  params.kv_overrides = overrides;
  model_ = llama_model_load_from_file(spec.path.c_str(), params);
  if (!model_)
    throw Error(
        ErrorCode::unsupportedTokenizer,
        "libllama cannot use the tokenizer of \"" + spec.path +
            "\": " + log.reason("no reason given") + ".",
        "Choose a GGUF with a gpt2 (BPE) or llama (SentencePiece) tokenizer that llama.cpp knows.");
  vocab_ = llama_model_get_vocab(model_);
  vocabulary_ = llama_vocab_n_tokens(vocab_);
  sentencePiece_ = llama_vocab_type(vocab_) == LLAMA_VOCAB_TYPE_SPM;

  try {
    classifyTokens();
    std::vector<int32_t> tokens;
    tokenize("a \xff\n", false, tokens);
  } catch (const std::exception& error) {
    // libllama throws when a vocabulary lacks tokens that it takes for granted.
    llama_model_free(model_);
    throw Error(ErrorCode::unsupportedTokenizer,
                "The tokenizer of \"" + spec.path + "\" is incomplete (" + error.what() + ").",
                "Choose another conversion of the model.");
  }
}

void Tokenizer::classifyTokens() {
  reserved_.resize(static_cast<size_t>(vocabulary_));
  byteTokens_.fill(-1);
  for (int32_t token = 0; token < vocabulary_; ++token) {
    const llama_token_attr attributes = llama_vocab_get_attr(vocab_, token);
    const bool control = (attributes & LLAMA_TOKEN_ATTR_CONTROL) != 0;
    const bool markup = (attributes & LLAMA_TOKEN_ATTR_USER_DEFINED) != 0 &&
                        isMarkup(llama_vocab_get_text(vocab_, token));
    reserved_[static_cast<size_t>(token)] = control || markup || llama_vocab_is_eog(vocab_, token);
    if (control) continue;
    const std::string bytes = piece(token, false);
    if (bytes.size() != 1) continue;
    int32_t& byteToken = byteTokens_[static_cast<uint8_t>(bytes[0])];
    const bool isByte = (attributes & LLAMA_TOKEN_ATTR_BYTE) != 0;
    if (byteToken < 0 || isByte) byteToken = token;
  }
  callLibrary("\xEF\xBF\xBD", false, replacement_);
}

Tokenizer::~Tokenizer() { llama_model_free(model_); }

void Tokenizer::callLibrary(std::string_view text, bool special,
                            std::vector<int32_t>& tokens) const {
  const size_t before = tokens.size();
  const auto length = static_cast<int32_t>(text.size());
  tokens.resize(before + text.size() + 2);
  int32_t count = llama_tokenize(vocab_, text.data(), length, tokens.data() + before,
                                 static_cast<int32_t>(tokens.size() - before), false, special);
  if (count < 0) {
    tokens.resize(before + static_cast<size_t>(-count));
    count =
        llama_tokenize(vocab_, text.data(), length, tokens.data() + before, -count, false, special);
  }
  tokens.resize(before + static_cast<size_t>(std::max(count, 0)));
}

bool Tokenizer::hasTokensFor(std::string_view bytes) const {
  return std::all_of(bytes.begin(), bytes.end(),
                     [&](char c) { return byteTokens_[static_cast<uint8_t>(c)] >= 0; });
}

void Tokenizer::appendBytes(std::string_view bytes, std::vector<int32_t>& tokens) const {
  if (!hasTokensFor(bytes)) {
    tokens.insert(tokens.end(), replacement_.begin(), replacement_.end());
    return;
  }
  for (char c : bytes) tokens.push_back(byteTokens_[static_cast<uint8_t>(c)]);
}

// Without reserved tokens: where one comes out, its text is tokenized in two halves instead.
void Tokenizer::appendPlain(std::string_view text, std::vector<int32_t>& tokens) const {
  std::vector<int32_t> found;
  callLibrary(text, false, found);
  for (int32_t token : found) {
    if (!isReserved(token)) {
      tokens.push_back(token);
      continue;
    }
    const std::string written = piece(token, true);
    size_t half = written.size() / 2;
    while (half > 0 && (written[half] & 0xC0) == 0x80) --half;
    if (half == 0) {
      appendBytes(written, tokens);
    } else {
      appendPlain(std::string_view(written).substr(0, half), tokens);
      appendPlain(std::string_view(written).substr(half), tokens);
    }
  }
}

void Tokenizer::appendSpecial(std::string_view text, std::vector<int32_t>& tokens) const {
  if (!spacePrefix_) return callLibrary(text, true, tokens);
  std::vector<int32_t> found;
  callLibrary(text, true, found);
  for (size_t i = 0; i < found.size();) {
    tokens.push_back(found[i]);
    if (!isReserved(found[i++])) continue;
    std::string following;
    while (i < found.size() && !isReserved(found[i])) following += piece(found[i++], true);
    if (!following.empty()) callLibrary(" " + following, false, tokens);
  }
}

void Tokenizer::tokenizeValid(std::string_view text, bool special,
                              std::vector<int32_t>& tokens) const {
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = pieceEnd(text, begin);
    if (special)
      appendSpecial(text.substr(begin, end - begin), tokens);
    else
      appendPlain(text.substr(begin, end - begin), tokens);
    begin = end;
  }
}

void Tokenizer::tokenize(std::string_view text, bool special, std::vector<int32_t>& tokens) const {
  size_t begin = 0;
  size_t at = 0;
  while (at < text.size()) {
    size_t length = validCharacter(text, at);
    const bool isSpaceMark =
        sentencePiece_ && length == kSpaceMark.size() && text.substr(at, length) == kSpaceMark;
    // Libllama would leave out bytes that have no token.
    if (length > 0 && !isSpaceMark && hasTokensFor(text.substr(at, length))) {
      at += length;
      continue;
    }
    tokenizeValid(text.substr(begin, at - begin), special, tokens);
    length = std::max<size_t>(length, 1);
    appendBytes(text.substr(at, length), tokens);
    at += length;
    begin = at;
  }
  tokenizeValid(text.substr(begin), special, tokens);
}

std::string Tokenizer::piece(int32_t token, bool special) const {
  if (token < 0 || token >= vocabulary_) return "";
  std::string bytes(64, '\0');
  int32_t length = llama_token_to_piece(vocab_, token, bytes.data(),
                                        static_cast<int32_t>(bytes.size()), 0, special);
  if (length < 0) {
    bytes.resize(static_cast<size_t>(-length));
    length = llama_token_to_piece(vocab_, token, bytes.data(), -length, 0, special);
  }
  bytes.resize(static_cast<size_t>(std::max(length, 0)));
  return bytes;
}

bool Tokenizer::isEndOfGeneration(int32_t token) const { return llama_vocab_is_eog(vocab_, token); }

bool Tokenizer::addsBos() const { return llama_vocab_get_add_bos(vocab_); }

std::string Tokenizer::bosText() const {
  const int32_t token = llama_vocab_bos(vocab_);
  return token < 0 ? "" : piece(token, true);
}

std::string Tokenizer::eosText() const {
  const int32_t token = llama_vocab_eos(vocab_);
  return token < 0 ? "" : piece(token, true);
}

}  // namespace longsight
