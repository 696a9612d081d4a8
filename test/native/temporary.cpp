#include "temporary.h"

#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>
#include <stdexcept>

namespace longsight::test {
namespace {

namespace fs = std::filesystem;

struct Folder {
  fs::path path;
  Folder() {
    std::string pattern = (fs::temp_directory_path() / "longsight-test-XXXXXX").string();
    if (!mkdtemp(pattern.data())) throw std::runtime_error("no temporary folder");
    path = pattern;
  }
  ~Folder() {
    std::error_code ignored;
    fs::remove_all(path, ignored);
  }
};

std::string environment(const char* name) {
  const char* value = std::getenv(name);
  return value ? value : "";
}

}  // namespace

std::string temporaryPath(const std::string& name) {
  static const Folder folder;
  return (folder.path / name).string();
}

void writeFile(const std::string& path, const std::string& bytes) {
  std::ofstream file(path, std::ios::binary);
  file.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  if (!file.good()) throw std::runtime_error("cannot write " + path);
}

std::string readFile(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw std::runtime_error("cannot read " + path);
  return {std::istreambuf_iterator<char>(file), {}};
}

uint64_t randomSeed() {
  static const uint64_t seed = [] {
    const std::string given = environment("LONGSIGHT_TEST_SEED");
    const uint64_t chosen = given.empty() ? std::random_device{}() : std::stoull(given);
    std::printf("LONGSIGHT_TEST_SEED=%llu\n", static_cast<unsigned long long>(chosen));
    return chosen;
  }();
  return seed;
}

std::string realModelPath() {
  if (const std::string path = environment("LONGSIGHT_TEST_MODEL"); !path.empty()) return path;
  std::string data = environment("XDG_DATA_HOME");
  if (data.empty()) data = environment("HOME") + "/.local/share";
  const std::string path = data + "/longsight/models/SmolLM2-135M-Instruct.Q4_1.gguf";
  if (!fs::exists(path))
    throw std::runtime_error("no test model: set LONGSIGHT_TEST_MODEL or put it at " + path);
  return path;
}

std::string realText(size_t bytes) {
  const fs::path here = fs::path(LONGSIGHT_LLAMA_DIR);
  std::string text;
  for (const char* name : {"include/llama.h", "ggml/include/ggml.h", "ggml/include/ggml-backend.h"})
    text += readFile((here / name).string());
  if (text.size() < bytes) throw std::runtime_error("not enough text for the test");
  text.resize(bytes);
  return text;
}

}  // namespace longsight::test
