// Broken and foreign files: a typed error with the values, never a crash.
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmath>
#include <fstream>
#include <random>

#include "error.h"
#include "session/machine.h"
#include "session/session.h"
#include "temporary.h"
#include "tiny_gguf.h"
#include "tiny_model.h"

namespace longsight::test {
namespace {

// What opening the file says; fails the test when it says nothing.
Error errorOf(const std::string& path) {
  try {
    const Model model(path);
  } catch (const Error& error) {
    EXPECT_FALSE(error.message().empty());
    EXPECT_FALSE(error.action().empty());
    return error;
  }
  ADD_FAILURE() << path << " was accepted";
  return Error(ErrorCode::internal, "", "");
}

std::string tinyPath(const std::string& name, const TinyModel& model) {
  const std::string path = temporaryPath(name);
  writeTinyModel(path, model);
  return path;
}

ErrorCode codeWith(const std::function<void(gguf_context*)>& change, const std::string& part) {
  TinyModel tiny;
  tiny.change = change;
  const Error error = errorOf(tinyPath("changed.gguf", tiny));
  EXPECT_NE(error.message().find(part), std::string::npos) << error.message();
  return error.code();
}

TEST(Gguf, ReadsASoundFile) {
  TinyModel tiny;
  tiny.type = GGML_TYPE_Q8_0;
  const ModelSpec spec = readGguf(tinyPath("sound.gguf", tiny));
  EXPECT_EQ(spec.layers, 2);
  EXPECT_EQ(spec.headDim, 64);
  EXPECT_EQ(spec.vocabulary, kTinyVocabulary);
  EXPECT_EQ(spec.fileType, "q8_0");
  EXPECT_EQ(spec.tensors.size(), 3u + 2u * 9u);
}

TEST(Gguf, NamesForeignFiles) {
  EXPECT_EQ(errorOf("/nowhere/model.gguf").code(), ErrorCode::modelNotFound);
  EXPECT_EQ(errorOf("/tmp").code(), ErrorCode::notGguf);
  EXPECT_EQ(errorOf("/dev/zero").code(), ErrorCode::notGguf);
  const std::string path = temporaryPath("foreign");
  for (const std::string& bytes : {std::string(), std::string("\x89PNG\r\n\x1a\n and more"),
                                   std::string("just some text\n"), std::string("ggml")}) {
    writeFile(path, bytes);
    EXPECT_EQ(errorOf(path).code(), ErrorCode::notGguf) << bytes;
  }
  writeFile(path, "GG");
  EXPECT_EQ(errorOf(path).code(), ErrorCode::truncatedGguf);
}

TEST(Gguf, NamesUnreadableFiles) {
  const std::string path = tinyPath("unreadable.gguf", {});
  chmod(path.c_str(), 0);
  // Root reads everything: look through another user's eyes.
  const bool isRoot = geteuid() == 0;
  chmod(path.substr(0, path.find_last_of('/')).c_str(), 0755);
  if (isRoot) {
    ASSERT_EQ(seteuid(65534), 0);
  }
  const ErrorCode code = errorOf(path).code();
  if (isRoot) {
    ASSERT_EQ(seteuid(0), 0);
  }
  EXPECT_EQ(code, ErrorCode::unreadableFile);
}

TEST(Gguf, NamesWhatItDoesNotSupport) {
  auto text = [](const char* key, const char* value) {
    return [=](gguf_context* gguf) { gguf_set_val_str(gguf, key, value); };
  };
  auto number = [](const char* key, uint32_t value) {
    return [=](gguf_context* gguf) { gguf_set_val_u32(gguf, key, value); };
  };
  EXPECT_EQ(codeWith(text("general.architecture", "gemma3"),
                     "\"gemma3\"; supported are llama, qwen2, qwen3, internlm2, chatglm, glm4"),
            ErrorCode::unsupportedArchitecture);
  EXPECT_EQ(codeWith(text("general.type", "adapter"), "adapter"),
            ErrorCode::unsupportedArchitecture);
  EXPECT_EQ(codeWith(number("llama.expert_count", 8), "8"), ErrorCode::unsupportedArchitecture);
  EXPECT_EQ(codeWith(number("split.count", 3), "3"), ErrorCode::unsupportedArchitecture);
  EXPECT_EQ(codeWith(number("llama.rope.dimension_count", 32), "32"),
            ErrorCode::unsupportedArchitecture);
  EXPECT_EQ(codeWith(text("llama.rope.scaling.type", "spiral"), "spiral"),
            ErrorCode::unsupportedArchitecture);
  EXPECT_EQ(codeWith(number("llama.attention.sliding_window", 4096), "4096"),
            ErrorCode::unsupportedArchitecture);
  EXPECT_EQ(codeWith(number("llama.nextn_predict_layers", 1), "several tokens at once"),
            ErrorCode::unsupportedArchitecture);
  EXPECT_EQ(codeWith(number("llama.pooling_type", 3), "embeddings"),
            ErrorCode::unsupportedArchitecture);
  EXPECT_EQ(
      codeWith(
          [](gguf_context* gguf) { gguf_set_val_f32(gguf, "llama.final_logit_softcapping", 30); },
          "final_logit_softcapping is 30"),
      ErrorCode::unsupportedArchitecture);
  EXPECT_EQ(
      codeWith([](gguf_context* gguf) { gguf_set_val_bool(gguf, "llama.attention.causal", false); },
               "not causal"),
      ErrorCode::unsupportedArchitecture);
  EXPECT_EQ(codeWith(
                [](gguf_context* gguf) {
                  const int32_t sections[4] = {8, 12, 12, 0};
                  gguf_set_arr_data(gguf, "llama.rope.dimension_sections", GGUF_TYPE_INT32,
                                    sections, 4);
                },
                "M-RoPE"),
            ErrorCode::unsupportedArchitecture);
  EXPECT_EQ(codeWith(text("tokenizer.ggml.model", "t5"), "t5"), ErrorCode::unsupportedTokenizer);
  EXPECT_EQ(codeWith(text("tokenizer.ggml.pre", "no-such"), "no-such"),
            ErrorCode::unsupportedTokenizer);

  TinyModel narrow;
  narrow.headDim = 32;
  narrow.heads = 8;
  const Error dims = errorOf(tinyPath("narrow.gguf", narrow));
  EXPECT_EQ(dims.code(), ErrorCode::unsupportedArchitecture);
  EXPECT_NE(dims.message().find("32"), std::string::npos);

  TinyModel wrongType;
  wrongType.type = GGML_TYPE_I8;
  wrongType.type = GGML_TYPE_F32;
  wrongType.change = [](gguf_context* gguf) {
    gguf_set_tensor_type(gguf, "blk.0.attn_q.weight", GGML_TYPE_I32);
  };
  const Error type = errorOf(tinyPath("type.gguf", wrongType));
  EXPECT_EQ(type.code(), ErrorCode::unsupportedTensorType);
  EXPECT_NE(type.message().find("blk.0.attn_q.weight"), std::string::npos);
  EXPECT_NE(type.message().find("q4_K"), std::string::npos) << "lists what is supported";
}

TEST(Gguf, NamesAbsurdMetadata) {
  auto number = [](const char* key, uint32_t value) {
    return [=](gguf_context* gguf) { gguf_set_val_u32(gguf, key, value); };
  };
  const ErrorCode damaged = ErrorCode::truncatedGguf;
  EXPECT_EQ(codeWith(number("llama.attention.head_count", 0), "head_count is 0"), damaged);
  EXPECT_EQ(codeWith(number("llama.attention.head_count_kv", 0), "head_count_kv is 0"), damaged);
  EXPECT_EQ(codeWith(number("llama.attention.head_count_kv", 3), "3"), damaged);
  EXPECT_EQ(codeWith(number("llama.block_count", 4000000000u), "4000000000"), damaged);
  EXPECT_EQ(codeWith(number("llama.block_count", 3), "blk.2."), damaged);
  EXPECT_EQ(codeWith(number("llama.embedding_length", 0), "embedding_length"), damaged);
  EXPECT_EQ(codeWith(number("llama.feed_forward_length", 256), "[256, 512]"), damaged);
  EXPECT_EQ(codeWith(number("llama.context_length", 0), "context_length is 0"), damaged);
  EXPECT_EQ(codeWith(number("tokenizer.ggml.bos_token_id", 5000), "5000"), damaged);
  auto real = [](const char* key, float value) {
    return [=](gguf_context* gguf) { gguf_set_val_f32(gguf, key, value); };
  };
  auto yarn = [](const char* key, float value) {
    return [=](gguf_context* gguf) {
      gguf_set_val_str(gguf, "llama.rope.scaling.type", "yarn");
      gguf_set_val_f32(gguf, key, value);
    };
  };
  EXPECT_EQ(codeWith(real("llama.rope.scaling.factor", -4), "scaling.factor"), damaged);
  EXPECT_EQ(codeWith(real("llama.rope.scaling.factor", std::nanf("")), "scaling.factor"), damaged);
  EXPECT_EQ(codeWith(real("llama.rope.freq_base", 0), "freq_base"), damaged);
  EXPECT_EQ(codeWith(number("llama.rope.scaling.original_context_length", 0), "is 0"), damaged);
  EXPECT_EQ(codeWith(yarn("llama.rope.scaling.yarn_beta_fast", 0), "beta_fast"), damaged);
  EXPECT_EQ(codeWith(yarn("llama.rope.scaling.yarn_ext_factor", 2), "ext_factor"), damaged);
  EXPECT_EQ(codeWith([](gguf_context* gguf) { gguf_remove_key(gguf, "llama.block_count"); },
                     "llama.block_count is missing"),
            damaged);
  EXPECT_EQ(codeWith(
                [](gguf_context* gguf) {
                  gguf_set_val_f32(gguf, "llama.attention.layer_norm_rms_epsilon", -1.0f);
                },
                "rms_epsilon"),
            damaged);
  EXPECT_EQ(codeWith(
                [](gguf_context* gguf) {
                  const int32_t types[3] = {1, 1, 1};
                  gguf_set_arr_data(gguf, "tokenizer.ggml.token_type", GGUF_TYPE_INT32, types, 3);
                },
                "token_type has 3"),
            damaged);
}

TEST(Gguf, EveryTruncationIsAnError) {
  TinyModel tiny;
  tiny.type = GGML_TYPE_Q4_0;
  const std::string whole = readFile(tinyPath("whole.gguf", tiny));
  const std::string path = temporaryPath("cut.gguf");
  std::mt19937 random(5);
  for (int round = 0; round < 300; ++round) {
    const size_t length =
        round < 100 ? static_cast<size_t>(round) * 97 : random() % (whole.size() - 1);
    writeFile(path, whole.substr(0, length));
    const ErrorCode code = errorOf(path).code();
    EXPECT_TRUE(code == ErrorCode::truncatedGguf || (length == 0 && code == ErrorCode::notGguf))
        << length << " bytes: " << codeName(code);
  }
  writeFile(path, whole.substr(0, whole.size() - 100));
  EXPECT_NE(errorOf(path).message().find(std::to_string(whole.size() - 100)), std::string::npos);
}

struct FlipCounts {
  int refused = 0;
  int ran = 0;
};

// Changes up to three of the bytes [begin, end) in each round, and runs what is accepted.
FlipCounts runWithFlips(const std::string& whole, size_t begin, size_t end, int rounds,
                        int roundsBetweenSessions) {
  const std::string path = temporaryPath("flipped.gguf");
  std::mt19937 random(9);
  FlipCounts counts;
  for (int round = 0; round < rounds; ++round) {
    std::string bytes = whole;
    const int flips = 1 + static_cast<int>(random() % 3);
    for (int flip = 0; flip < flips; ++flip)
      bytes[begin + random() % (end - begin)] = static_cast<char>(random());
    writeFile(path, bytes);
    try {
      auto model = std::make_shared<Model>(path);
      std::vector<int32_t> tokens;
      model->tokenizer().tokenize("the quick <|begin|> fox \xff", true, tokens);
      if (tokens.empty()) tokens.push_back(0);
      if (round % roundsBetweenSessions == 0) {
        Prompt prompt;
        prompt.tokens = tokens;
        prompt.borders = {static_cast<int64_t>(tokens.size())};
        prompt.denseFrom = 0;
        const CancelFlag never;
        Session session(model,
                        {.contextTokens = std::min<int64_t>(64, model->spec().contextTokens)},
                        never, nullptr);
        GenerateOptions options;
        options.maxTokens = 3;
        session.generate(prompt, options, {});
      }
      ++counts.ran;
    } catch (const Error&) {
      ++counts.refused;
    }
  }
  return counts;
}

TEST(Gguf, FlippedBytesNeverCrash) {
  TinyModel tiny;
  tiny.type = GGML_TYPE_Q4_0;
  const std::string whole = readFile(tinyPath("flip.gguf", tiny));
  const size_t headerBytes = whole.size() - readGguf(temporaryPath("flip.gguf")).weightBytes;
  const FlipCounts counts = runWithFlips(whole, 0, headerBytes, 600, 10);
  EXPECT_GT(counts.refused, 100);
  EXPECT_GT(counts.ran, 50);
}

// Sizes, RoPE and names of tensors; the vocabulary between them is left alone.
TEST(Gguf, FlippedBytesOfEveryArchitectureNeverCrash) {
  std::vector<TinyGguf> models;
  for (const std::string arch : {"llama", "qwen2", "qwen3", "internlm2", "chatglm", "glm4"})
    models.push_back({"flip-" + arch, R"("layers": 1, "feed_forward": 64, "arch": ")" + arch +
                                          R"(", "keys": {"rope.scaling.type": "yarn",
                                          "rope.scaling.factor": 4.0,
                                          "rope.scaling.original_context_length": 64,
                                          "rope.scaling.yarn_beta_fast": 16.0}, "type": "Q8_0")"});
  writeTinyGgufs(models);
  for (const TinyGguf& model : models) {
    const std::string path = tinyGgufPath(model.name);
    const std::string whole = readFile(path);
    const size_t vocabulary = whole.find("tokenizer.ggml.model");
    const size_t tensors = whole.find("token_embd.weight");
    ASSERT_LT(vocabulary, tensors);
    FlipCounts counts = runWithFlips(whole, 24, vocabulary, 150, 1);
    const FlipCounts names =
        runWithFlips(whole, tensors, whole.size() - readGguf(path).weightBytes, 50, 1);
    EXPECT_GT(counts.refused + names.refused, 50) << model.name;
    EXPECT_GT(counts.ran + names.ran, 5) << model.name;
  }
}

TEST(Gguf, FileOf400GigabytesIsRefusedBeforeReading) {
  // A model with one huge feed-forward width, sparse on disk: only the header is written.
  TinyModel tiny;
  const std::string small = tinyPath("small.gguf", tiny);
  const std::string path = temporaryPath("huge.gguf");
  // 512 layers of 256 x 2^18 in f32 are about 412 GB.
  writeSparseModel(path, /*layers=*/512, /*feedForward=*/int64_t{1} << 18);
  struct stat status {};
  ASSERT_EQ(stat(path.c_str(), &status), 0);
  EXPECT_GT(status.st_size, int64_t{400} * 1000 * 1000 * 1000);
  EXPECT_LT(status.st_blocks * 512, int64_t{100} << 20);
  auto model = std::make_shared<Model>(path);
  EXPECT_FALSE(model->estimate({}, {}).fits);
  EXPECT_EQ(model->estimate({}, {}).largestContextTokens, 0);
  const CancelFlag never;
  try {
    Session session(model, {}, never, nullptr);
    FAIL() << "loaded";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::notEnoughMemory);
    EXPECT_NE(error.message().find(std::to_string(model->spec().weightBytes)), std::string::npos)
        << error.message();
  }
}

TEST(Gguf, LoadingCanBeCancelledAndReportsBytes) {
  Model model(realModelPath());
  CancelFlag cancel;
  uint64_t last = 0;
  EXPECT_THROW(model.weights(cancel,
                             [&](uint64_t doneBytes, uint64_t totalBytes) {
                               EXPECT_GT(doneBytes, last);
                               EXPECT_EQ(totalBytes, model.spec().weightBytes);
                               last = doneBytes;
                               if (doneBytes > totalBytes / 3) cancel.set();
                             }),
               Error);
  EXPECT_LT(last, model.spec().weightBytes / 2);
  cancel.clear();
  EXPECT_NE(model.weights(cancel, [&](uint64_t doneBytes, uint64_t) { last = doneBytes; }),
            nullptr);
  EXPECT_EQ(last, model.spec().weightBytes);
}

}  // namespace
}  // namespace longsight::test
