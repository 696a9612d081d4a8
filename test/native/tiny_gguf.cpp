#include "tiny_gguf.h"

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <stdexcept>

#include "temporary.h"

namespace longsight::test {

void runPython(const std::string& program, const std::string& arguments,
               const std::string& inputPath, const std::string& outputPath) {
  const std::string errorPath = temporaryPath("python-errors");
  const std::string command = "PYTHONDONTWRITEBYTECODE=1 PYTHONPATH='" LONGSIGHT_PYTHON_PACKAGES
                              "' python3 '" LONGSIGHT_NATIVE_TESTS "/" +
                              program + "' " + arguments + " < '" + inputPath + "' > '" +
                              outputPath + "' 2> '" + errorPath + "'";
  if (std::system(command.c_str()) != 0)
    throw std::runtime_error(program + ": " + readFile(errorPath) +
                             "Needed: pip install --target .deps/python -r test/requirements.txt");
}

std::string tinyGgufPath(const std::string& name) { return temporaryPath(name + ".gguf"); }

void writeTinyGgufs(const std::vector<TinyGguf>& models) {
  std::string lines;
  for (const TinyGguf& model : models) {
    std::string fields = model.fields;
    std::replace(fields.begin(), fields.end(), '\n', ' ');
    lines += "{\"name\": \"" + model.name + "\", " + fields + "}\n";
  }
  const std::string input = temporaryPath("models.jsonl");
  writeFile(input, lines);
  const std::string folder =
      std::filesystem::path(tinyGgufPath(models.front().name)).parent_path().string();
  runPython("tiny_gguf.py", "'" + folder + "'", input, temporaryPath("python-output"));
}

}  // namespace longsight::test
