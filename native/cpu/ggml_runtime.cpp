#include "cpu/ggml_runtime.h"

#include <dlfcn.h>
#include <link.h>

#include <cstring>
#include <mutex>

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

template <typename Function>
Function procedure(const char* name) {
  ggml_backend_reg_t registry = ggml_backend_dev_backend_reg(cpuDevice());
  auto function = reinterpret_cast<Function>(ggml_backend_reg_get_proc_address(registry, name));
  if (!function)
    throw Error(ErrorCode::deviceUnavailable,
                std::string("The ggml CPU library has no function ") + name + ".",
                "Reinstall Longsight: its libraries do not belong together.");
  return function;
}

bool isCancelled(void* data) { return static_cast<const CancelFlag*>(data)->isSet(); }

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

std::string LogCapture::lastLine(const std::string& fallback) const {
  // The first line is the cause; ggml adds where it noticed in the following ones.
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
  Dl_info info{};
  void* function = procedure<void*>("ggml_backend_set_n_threads");
  if (dladdr(function, &info) == 0 || !info.dli_fname) return "unknown";
  std::string name = info.dli_fname;
  const size_t begin = name.rfind("cpu-");
  if (begin == std::string::npos) return "unknown";
  name = name.substr(begin + 4);
  return name.substr(0, name.find('.'));
}

std::vector<std::string> cpuFeatures() {
  std::vector<std::string> features;
  const auto get = procedure<ggml_backend_get_features_t>("ggml_backend_get_features");
  for (const ggml_backend_feature* feature = get(ggml_backend_dev_backend_reg(cpuDevice()));
       feature && feature->name; ++feature)
    if (std::strcmp(feature->value, "1") == 0) features.emplace_back(feature->name);
  return features;
}

ggml_backend_buffer_type_t repackBufferType() {
  const auto get =
      procedure<ggml_backend_dev_get_extra_bufts_t>("ggml_backend_dev_get_extra_bufts");
  ggml_backend_buffer_type_t* types = get(cpuDevice());
  for (; types && *types; ++types)
    if (std::strcmp(ggml_backend_buft_name(*types), "CPU_REPACK") == 0) return *types;
  return nullptr;
}

GgmlCpu::GgmlCpu(int32_t threads) {
  backend_ = ggml_backend_dev_init(cpuDevice(), nullptr);
  if (!backend_)
    throw Error(ErrorCode::deviceUnavailable, "ggml could not start its CPU backend.",
                "Restart the engine.");
  procedure<ggml_backend_set_n_threads_t>("ggml_backend_set_n_threads")(backend_, threads);
  ggml_threadpool_params params = ggml_threadpool_params_default(threads);
  // Waiting threads sleep: attention runs on threads of its own between two graphs.
  params.poll = 0;
  threads_ = procedure<decltype(&ggml_threadpool_new)>("ggml_threadpool_new")(&params);
  procedure<void (*)(ggml_backend_t, ggml_threadpool*)>("ggml_backend_cpu_set_threadpool")(
      backend_, threads_);
}

GgmlCpu::~GgmlCpu() {
  if (backend_) ggml_backend_free(backend_);
  if (threads_) procedure<decltype(&ggml_threadpool_free)>("ggml_threadpool_free")(threads_);
}

bool GgmlCpu::compute(ggml_cgraph* graph, const CancelFlag& cancel) {
  procedure<ggml_backend_set_abort_callback_t>("ggml_backend_set_abort_callback")(
      backend_, &isCancelled, const_cast<CancelFlag*>(&cancel));
  const ggml_status status = ggml_backend_graph_compute(backend_, graph);
  if (status == GGML_STATUS_ABORTED || cancel.isSet()) return false;
  if (status != GGML_STATUS_SUCCESS)
    throw Error(
        ErrorCode::notEnoughMemory,
        std::string("ggml could not compute a graph: ") + ggml_status_to_string(status) + ".",
        "Use a smaller context or a smaller model.");
  return true;
}

}  // namespace longsight
