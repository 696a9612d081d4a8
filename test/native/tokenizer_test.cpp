#include "model/tokenizer.h"

#include <gtest/gtest.h>

#include <chrono>
#include <cstdlib>
#include <random>
#include <sstream>

#include "error.h"
#include "temporary.h"
#include "tiny_gguf.h"
#include "tiny_model.h"

namespace longsight::test {
namespace {

const Tokenizer& real() {
  static const Tokenizer tokenizer(readGguf(realModelPath()));
  return tokenizer;
}

std::vector<int32_t> tokenize(const std::string& text, bool special = false) {
  std::vector<int32_t> tokens;
  real().tokenize(text, special, tokens);
  return tokens;
}

std::string detokenize(const std::vector<int32_t>& tokens) {
  std::string text;
  for (int32_t token : tokens) text += real().piece(token, true);
  return text;
}

const std::vector<std::string>& uglyTexts() {
  static const std::vector<std::string> texts = {
      "",
      " ",
      "Hello, world!",
      "  leading and trailing  ",
      "tabs\t\tand\r\nCRLF\r\n\r\n\tmixed \n\n\n  end\n",
      "日本語のテキスト、中文文本，한국어 텍스트",
      "emoji 👩‍👩‍👧‍👦 🏳️‍🌈 🇩🇪 and e\u0301 combining",
      "don't you're I'LL it's 'quoted' we've",
      "1234567890 3.14159 0xFF 1e-9 ١٢٣ Ⅻ ½",
      "İstanbul ǅ ß ſ ŉ ﬁ",
      "zero\u200bwidth\u00a0nbsp\u3000ideographic\u2028line",
      std::string("nul\0inside", 10),
      "int main() { return x->y != 0 ? a[i]++ : ~b; } // ünïcode",
      "\u00b5\u03a9\u2126 \ufb01 \ufffd \U0010fffd",
  };
  return texts;
}

TEST(Tokenizer, TextsRoundTrip) {
  for (const std::string& text : uglyTexts()) EXPECT_EQ(detokenize(tokenize(text)), text);
}

// Bytes that the vocabulary has no token for.
bool isUnwritable(char c) {
  static const std::vector<bool> unwritable = [] {
    std::vector<bool> missing(256, true);
    for (int32_t token = 0; token < real().vocabulary(); ++token)
      if (const std::string bytes = real().piece(token, false); bytes.size() == 1)
        missing[static_cast<uint8_t>(bytes[0])] = false;
    return missing;
  }();
  return unwritable[static_cast<uint8_t>(c)];
}

TEST(Tokenizer, AnyBytesRoundTrip) {
  for (const std::string& text :
       {std::string("\xfe broken \xc3"), std::string("\xed\xa0\x80 surrogate"),
        std::string("\xc0\xaf overlong"), std::string("cut \xf0\x9f\x98"),
        std::string("\xf4\x90\x80\x80 beyond"), std::string("\x04 control \x16")}) {
    std::string expected;
    for (char c : text)
      expected += isUnwritable(c) ? std::string("\xEF\xBF\xBD") : std::string(1, c);
    EXPECT_EQ(detokenize(tokenize(text)), expected);
  }
  std::mt19937 random(3);
  int kept = 0;
  for (int round = 0; round < 20; ++round) {
    std::string bytes(500, '\0');
    for (char& byte : bytes) {
      do byte = static_cast<char>(random());
      while (isUnwritable(byte));
      ++kept;
    }
    EXPECT_TRUE(detokenize(tokenize(bytes)) == bytes) << "round " << round;
  }
  EXPECT_EQ(kept, 10000);
}

TEST(Tokenizer, PlainTextNeverYieldsSpecialTokens) {
  std::string all;
  int specials = 0;
  for (int32_t token = 0; token < real().vocabulary(); ++token) {
    if (!real().isReserved(token)) continue;
    ++specials;
    const std::string text = real().piece(token, true);
    all += text + " x" + text + text + "\n";
    // With `special` it is that token, so the text is right.
    EXPECT_EQ(tokenize(text, true), std::vector<int32_t>{token}) << text;
  }
  EXPECT_GT(specials, 2);
  const std::vector<int32_t> tokens = tokenize(all);
  for (int32_t token : tokens) EXPECT_FALSE(real().isReserved(token)) << real().piece(token, true);
  EXPECT_EQ(detokenize(tokens), all);
}

TEST(Tokenizer, SentencePieceVocabularies) {
  TinyModel tiny;
  tiny.sentencePiece = true;
  const std::string path = temporaryPath("sentencepiece.gguf");
  writeTinyModel(path, tiny);
  const Tokenizer tokenizer(readGguf(path));
  auto run = [&](const std::string& text, bool special) {
    std::vector<int32_t> tokens;
    tokenizer.tokenize(text, special, tokens);
    return tokens;
  };
  auto write = [&](const std::vector<int32_t>& tokens) {
    std::string text;
    for (int32_t token : tokens) text += tokenizer.piece(token, true);
    return text;
  };
  // Plain text: no space is added, no special token comes out, and every byte comes back.
  for (const std::string& text :
       {std::string("the"), std::string(" the the"), std::string("<s></s><s>x"),
        std::string("<|user|> the"), std::string("\u2581 mark \u00e9 \xff\xc3"),
        std::string("\u65e5\u672c\n\t")}) {
    const std::vector<int32_t> tokens = run(text, false);
    EXPECT_EQ(write(tokens), text);
    for (int32_t token : tokens) EXPECT_FALSE(tokenizer.isReserved(token)) << text;
  }
  // Template text: special tokens, and a space after each.
  EXPECT_EQ(run("<s>", true), std::vector<int32_t>{1});
  EXPECT_EQ(write(run("<s>the</s>the", true)), "<s> the</s> the");
  EXPECT_EQ(write(run("the<s>", true)), "the<s>");

  TinyModel broken = tiny;
  broken.byteTokens = false;
  const std::string brokenPath = temporaryPath("nobytes.gguf");
  writeTinyModel(brokenPath, broken);
  try {
    const Tokenizer unusable(readGguf(brokenPath));
    FAIL() << "accepted";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::unsupportedTokenizer) << error.message();
  }
}

TEST(Tokenizer, LongLinesAreQuickAndRoundTrip) {
  std::string words, cjk;
  const size_t size = size_t{1} << 20;
  while (words.size() < size) words += "lorem ipsum dolor(42), ";
  while (cjk.size() < size) cjk += "漢字かな交じり文";
  for (const std::string& line :
       {std::string(size, 'a'), std::string(size, ' '), std::string(size, '7'),
        std::string(size, '\n'), std::string(size, '('), words, cjk, std::string(size, '\xff')}) {
    const auto start = std::chrono::steady_clock::now();
    const std::vector<int32_t> tokens = tokenize(line);
    const double seconds =
        std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    EXPECT_LT(seconds, 10) << line.substr(0, 20);
    std::string expected;
    for (char c : line) expected += isUnwritable(c) ? "\xEF\xBF\xBD" : std::string(1, c);
    EXPECT_TRUE(detokenize(tokens) == expected) << line.substr(0, 20);
  }
}

// Compares the tokens of every text with what tokenizer_oracle.py says; returns how many there
// were.
size_t expectOracleTokens(const std::string& modelPath, const Tokenizer& tokenizer,
                          const std::vector<std::string>& texts) {
  std::string input;
  for (const std::string& text : texts) {
    const auto length = static_cast<uint32_t>(text.size());
    for (int shift = 0; shift < 32; shift += 8) input += static_cast<char>(length >> shift);
    input += text;
  }
  const std::string inputPath = temporaryPath("texts"), outputPath = temporaryPath("tokens");
  writeFile(inputPath, input);
  runPython("tokenizer_oracle.py", "'" + modelPath + "'", inputPath, outputPath);
  std::istringstream lines(readFile(outputPath));
  size_t compared = 0;
  for (const std::string& text : texts) {
    std::string row;
    EXPECT_TRUE(std::getline(lines, row));
    std::istringstream numbers(row);
    std::vector<int32_t> expected, tokens;
    for (int32_t token; numbers >> token;) expected.push_back(token);
    tokenizer.tokenize(text, false, tokens);
    EXPECT_TRUE(tokens == expected) << modelPath << ": " << text.substr(0, 80);
    compared += expected.size();
  }
  return compared;
}

TEST(Tokenizer, EqualsPyPiTokenizers) {
  std::vector<std::string> texts = uglyTexts();
  texts.push_back(realText(120000));
  std::string line;
  while (line.size() < (size_t{1} << 20)) line += "const value = compute(index + 17) * scale; ";
  texts.push_back(line);
  EXPECT_GT(expectOracleTokens(realModelPath(), real(), texts), 200000u);
}

// The ways in which the supported architectures cut text, on vocabularies learnt for the test.
TEST(Tokenizer, EveryArchitectureEqualsPyPiTokenizers) {
  const std::vector<TinyGguf> models = {
      {"cut-llama3", R"("arch": "llama")"},
      {"cut-smollm", R"("arch": "llama", "pre": "smollm")"},
      {"cut-qwen2", R"("arch": "qwen2")"},
      {"cut-qwen3", R"("arch": "qwen3")"},
      {"cut-r1-qwen", R"("arch": "qwen2", "pre": "deepseek-r1-qwen")"},
      {"cut-internlm2", R"("arch": "internlm2")"},
      {"cut-chatglm", R"("arch": "chatglm")"},
      {"cut-glm4", R"("arch": "glm4")"},
  };
  writeTinyGgufs(models);
  std::vector<std::string> texts = uglyTexts();
  texts.push_back("12 123 1234 12345 x1y22z333 ٣٤٥٦ ½¾ I'LL we'Ve '\u017F");
  texts.push_back("a\n\n b\r\n\t\tc  \n   d !!!\n\n?? (x)[y]{z} ...\n");
  texts.push_back(realText(60000));
  for (const TinyGguf& model : models) {
    const std::string path = tinyGgufPath(model.name);
    const Tokenizer tokenizer(readGguf(path));
    EXPECT_GT(expectOracleTokens(path, tokenizer, texts), 10000u) << model.name;

    // Every byte comes back, and no special token comes out of plain text.
    std::mt19937 random(3);
    std::string bytes(3000, '\0');
    for (char& byte : bytes) byte = static_cast<char>(random());
    std::string specials;
    for (int32_t token = 0; token < tokenizer.vocabulary(); ++token)
      if (tokenizer.isReserved(token)) specials += tokenizer.piece(token, true) + "x";
    EXPECT_GT(specials.size(), 10u) << model.name;
    texts.push_back(bytes);
    texts.push_back(specials);
    for (const std::string& text : texts) {
      std::vector<int32_t> tokens;
      tokenizer.tokenize(text, false, tokens);
      std::string back;
      for (int32_t token : tokens) {
        EXPECT_FALSE(tokenizer.isReserved(token)) << model.name;
        back += tokenizer.piece(token, true);
      }
      EXPECT_TRUE(back == text) << model.name << ": " << text.substr(0, 80);
    }
    texts.resize(texts.size() - 2);
  }
}

// What chat templates write: each mark is one token, whatever stands around it.
TEST(Tokenizer, MarksOfChatTemplatesAreTokens) {
  const std::vector<TinyGguf> models = {
      {"marks-llama3", R"("arch": "llama")"},
      {"marks-qwen2", R"("arch": "qwen2")"},
      {"marks-internlm2", R"("arch": "internlm2")"},
      {"marks-glm4", R"("arch": "glm4")"},
  };
  const std::vector<std::vector<std::string>> marks = {
      {"<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"},
      {"<|im_start|>", "<|im_end|>"},
      {"<|im_start|>", "<|im_end|>"},
      {"[gMASK]", "<sop>", "<|user|>", "<|assistant|>"}};
  writeTinyGgufs(models);
  for (size_t i = 0; i < models.size(); ++i) {
    const Tokenizer tokenizer(readGguf(tinyGgufPath(models[i].name)));
    std::string text;
    for (const std::string& mark : marks[i]) text += mark + "user\n";
    std::vector<int32_t> tokens;
    tokenizer.tokenize(text, true, tokens);
    std::vector<std::string> found;
    std::string whole;
    for (int32_t token : tokens) {
      whole += tokenizer.piece(token, true);
      if (tokenizer.isReserved(token)) found.push_back(tokenizer.piece(token, true));
    }
    EXPECT_EQ(found, marks[i]) << models[i].name;
    EXPECT_EQ(whole, text) << models[i].name;
  }
  const Tokenizer glm(readGguf(tinyGgufPath("marks-glm4")));
  std::vector<int32_t> end;
  glm.tokenize("<|user|><|endoftext|>", true, end);
  for (int32_t token : end) EXPECT_TRUE(glm.isEndOfGeneration(token));
}

}  // namespace
}  // namespace longsight::test
