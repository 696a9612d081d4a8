// Small random models of every architecture, written by test/native/tiny_gguf.py with the package
// `gguf`, as converters write them.
#pragma once

#include <string>
#include <vector>

namespace longsight::test {

struct TinyGguf {
  std::string name;
  // More fields of the JSON object that tiny_gguf.py describes: `"arch": "qwen2", "type": "Q8_0"`.
  std::string fields;
};

// Writes the models; throws with the program's message when it fails.
void writeTinyGgufs(const std::vector<TinyGguf>& models);

// Where writeTinyGgufs put the model of that name.
std::string tinyGgufPath(const std::string& name);

// Runs a program of test/native with the test packages; throws with its message when it fails.
void runPython(const std::string& program, const std::string& arguments,
               const std::string& inputPath, const std::string& outputPath);

}  // namespace longsight::test
