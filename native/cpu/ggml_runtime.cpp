#include "cpu/ggml_runtime.h"

#include <dlfcn.h>

#include <cstring>

#include "error.h"
#include "ggml-cpu.h"
#include "ggml.h"
#include "llama.h"

namespace longsight {
namespace {

thread_local LogCapture* currentCapture = nullptr;

std::string folderOfThisLibrary() {
  Dl_info info{};
  if (dladdr(reinterpret_cast<void*>(&folderOfThisLibrary), &info) == 0 || !info.dli_fname)
    return ".";
  const std::string path = info.dli_fname;
  const size_t slash = path.find_last_of('/');
  return slash == std::string::npos ? "." : path.substr(0, slash);
}

void onLog(ggml_log_level level, const char* text, void*);

struct Runtime {
  ggml_backend_dev_t device = nullptr;
  std::string folder;

  Runtime() {
    ggml_log_set(onLog, nullptr);
    llama_log_set(onLog, nullptr);
    folder = folderOfThisLibrary();
    ggml_backend_load_all_from_path(folder.c_str());
    device = ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU);
  }
};

Runtime& runtime() {
  static Runtime instance;
  return instance;
}

Error incompleteLibrary(const char* name) {
  return Error(ErrorCode::deviceUnavailable,
               std::string("The ggml CPU library has no function ") + name + ".",
               "Reinstall Longsight: its libraries do not belong together.");
}

// A function that the backend registers by name.
template <typename Function>
Function registeredFunction(const char* name) {
  ggml_backend_reg_t registry = ggml_backend_dev_backend_reg(cpuDevice());
  auto function = reinterpret_cast<Function>(ggml_backend_reg_get_proc_address(registry, name));
  if (!function) throw incompleteLibrary(name);
  return function;
}

// File of the CPU variant that was loaded.
std::string variantPath() {
  Dl_info info{};
  void* function = registeredFunction<void*>("ggml_backend_set_n_threads");
  if (dladdr(function, &info) == 0 || !info.dli_fname) throw incompleteLibrary("file name");
  return info.dli_fname;
}

// A function that the variant exports but does not register.
template <typename Function>
Function variantFunction(const char* name) {
  void* library = dlopen(variantPath().c_str(), RTLD_LAZY | RTLD_NOLOAD);
  auto function = library ? reinterpret_cast<Function>(dlsym(library, name)) : nullptr;
  // The backend keeps the library; this only gives back the extra reference.
  if (library) dlclose(library);
  if (!function) throw incompleteLibrary(name);
  return function;
}

}  // namespace

void appendToCapture(const char* text) {
  if (currentCapture) currentCapture->text_ += text;
}

namespace {
void onLog(ggml_log_level level, const char* text, void*) {
  if (level == GGML_LOG_LEVEL_WARN || level == GGML_LOG_LEVEL_ERROR || level == GGML_LOG_LEVEL_CONT)
    appendToCapture(text);
}
}  // namespace

LogCapture::LogCapture() : outer_(currentCapture) {
  runtime();
  currentCapture = this;
}

LogCapture::~LogCapture() { currentCapture = outer_; }

std::string LogCapture::reason(const std::string& fallback) const {
  // The cause comes first; ggml adds where it noticed in the following lines.
  size_t end = text_.find('\n');
  std::string line = text_.substr(0, end);
  if (const size_t colon = line.find(": "); colon != std::string::npos)
    line = line.substr(colon + 2);
  while (!line.empty() && (line.back() == ' ' || line.back() == '.')) line.pop_back();
  return line.empty() ? fallback : line;
}

ggml_backend_dev_t cpuDevice() {
  Runtime& loaded = runtime();
  if (!loaded.device)
    throw Error(ErrorCode::deviceUnavailable,
                "None of the CPU libraries in " + loaded.folder + " runs on this processor.",
                "Reinstall Longsight, or use a processor with SSE4.2.");
  return loaded.device;
}

std::string cpuVariant() {
  // The variant's name is only in its file name.
  const std::string path = variantPath();
  const size_t begin = path.rfind("cpu-");
  if (begin == std::string::npos) return "unknown";
  const std::string name = path.substr(begin + 4);
  return name.substr(0, name.find('.'));
}

std::vector<std::string> cpuFeatures() {
  std::vector<std::string> features;
  const auto get = registeredFunction<ggml_backend_get_features_t>("ggml_backend_get_features");
  for (const ggml_backend_feature* feature = get(ggml_backend_dev_backend_reg(cpuDevice()));
       feature && feature->name; ++feature)
    if (std::strcmp(feature->value, "1") == 0) features.emplace_back(feature->name);
  return features;
}

const ggml_type_traits_cpu* cpuTypeTraits(ggml_type type) {
  static const auto traits =
      variantFunction<decltype(&ggml_get_type_traits_cpu)>("ggml_get_type_traits_cpu");
  return traits(type);
}

}  // namespace longsight
