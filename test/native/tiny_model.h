// Small random models of architecture llama, written as GGUF.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "ggml.h"
#include "gguf.h"

namespace longsight::test {

struct TinyModel {
  ggml_type type = GGML_TYPE_F32;
  int32_t headDim = 64;
  int32_t heads = 4;
  int32_t kvHeads = 2;
  int32_t layers = 2;
  int32_t feedForward = 512;
  int32_t contextTokens = 4096;
  bool tiedOutput = false;
  bool biases = false;
  bool ropeFactors = false;
  // A SentencePiece vocabulary instead of byte-level BPE; without its byte tokens it is broken.
  bool sentencePiece = false;
  bool byteTokens = true;
  // Last changes to the metadata before it is written.
  std::function<void(gguf_context*)> change;
};

// Vocabulary of the tiny models: the 256 bytes and a few merges and special tokens.
inline constexpr int32_t kTinyVocabulary = 288;

void writeTinyModel(const std::string& path, const TinyModel& model);

// A model of 256 columns whose tensors are declared but not written: sparse on disk.
void writeSparseModel(const std::string& path, int32_t layers, int64_t feedForward);

// Copies a model with every tensor expanded to f32.
void writeDequantized(const std::string& from, const std::string& to);

}  // namespace longsight::test
