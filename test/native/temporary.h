// Files that a test needs and leaves no trace of, and the real model of the tests.
#pragma once

#include <cstdint>
#include <string>

namespace longsight::test {

// A path in a folder that is removed when the process ends.
std::string temporaryPath(const std::string& name);

void writeFile(const std::string& path, const std::string& bytes);
std::string readFile(const std::string& path);

// LONGSIGHT_TEST_SEED, else fresh; printed once.
uint64_t randomSeed();

// LONGSIGHT_TEST_MODEL, else SmolLM2 in the models folder. Throws when there is none.
std::string realModelPath();

// `bytes` of source code and prose: the llama.cpp headers this build was made with.
std::string realText(size_t bytes);

}  // namespace longsight::test
