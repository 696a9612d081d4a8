// Linear layers: GFLOP/s of multiply() and of ggml's own mul_mat, and their share of the measured
// peak of the instruction set. Bursts of the candidates alternate, so that other load on the
// machine hits all of them; the best burst counts, the median is shown beside it.
//
//   linear_bench LIBS [--sets a,b] [--types Q4_1,Q4_K] [--shapes 576x1536,...] [--rows 1,512]
//                [--threads 2] [--bursts 15] [--no-ggml] [--cpu-time]
// LIBS: folder with ggml's CPU variants.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include "ggml-alloc.h"
#include "ggml-backend.h"
#include "ggml-cpu.h"
#include "ggml.h"
#include "kernels/cpu/linear/linear.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace longsight {
namespace {

// Wall time, or the processor time of all threads divided by their number: the latter leaves out
// what other processes took, but not the waiting of a thread for another.
struct Stopwatch {
  explicit Stopwatch(int cpuTimeThreads) : threads(cpuTimeThreads), start(now()) {}
  double seconds() const { return now() - start; }

 private:
  double now() const {
    if (threads > 0) return static_cast<double>(std::clock()) / CLOCKS_PER_SEC / threads;
    const auto time = std::chrono::steady_clock::now().time_since_epoch();
    return std::chrono::duration<double>(time).count();
  }
  int threads;
  double start;
};

// ---- peak: multiply-adds on registers
// ------------------------------------------------------------ The empty asm statements keep the
// compiler from seeing that all sums are equal.

volatile float sinkValue;

#if defined(__x86_64__)
// Each runs `rounds` rounds of independent multiply-adds and returns their number of operations.
__attribute__((target("avx512f,avx512bf16"))) double peakBf16(int64_t rounds) {
  __m512 sum[16] = {};
  __m512bh a = (__m512bh)_mm512_set1_epi32(0x3f803f80), b = a;
  for (auto& s : sum) asm volatile("" : "+v"(s));
  for (int64_t i = 0; i < rounds; ++i) {
    asm volatile("" : "+v"(a), "+v"(b));
#pragma GCC unroll 16
    for (int j = 0; j < 16; ++j) sum[j] = _mm512_dpbf16_ps(sum[j], a, b);
  }
  float total = 0.0f;
  for (__m512& s : sum) total += _mm512_reduce_add_ps(s);
  sinkValue = total;
  return static_cast<double>(rounds) * 16 * 64;
}

__attribute__((target("avx512f"))) double peakAvx512(int64_t rounds) {
  __m512 sum[16] = {};
  __m512 a = _mm512_set1_ps(1.0f), b = a;
  for (auto& s : sum) asm volatile("" : "+v"(s));
  for (int64_t i = 0; i < rounds; ++i) {
    asm volatile("" : "+v"(a), "+v"(b));
#pragma GCC unroll 16
    for (int j = 0; j < 16; ++j) sum[j] = _mm512_fmadd_ps(a, b, sum[j]);
  }
  float total = 0.0f;
  for (__m512& s : sum) total += _mm512_reduce_add_ps(s);
  sinkValue = total;
  return static_cast<double>(rounds) * 16 * 32;
}

__attribute__((target("avx2,fma"))) double peakAvx2(int64_t rounds) {
  __m256 sum[12] = {};
  __m256 a = _mm256_set1_ps(1.0f), b = a;
  for (auto& s : sum) asm volatile("" : "+x"(s));
  for (int64_t i = 0; i < rounds; ++i) {
    asm volatile("" : "+x"(a), "+x"(b));
#pragma GCC unroll 12
    for (int j = 0; j < 12; ++j) sum[j] = _mm256_fmadd_ps(a, b, sum[j]);
  }
  float total = 0.0f;
  for (__m256& s : sum) total += s[0];
  sinkValue = total;
  return static_cast<double>(rounds) * 12 * 16;
}

double peakPortable(int64_t rounds) {
  __m128 sum[12] = {};
  __m128 a = _mm_set1_ps(1.0f), b = a;
  for (auto& s : sum) asm volatile("" : "+x"(s));
  for (int64_t i = 0; i < rounds; ++i) {
    asm volatile("" : "+x"(a), "+x"(b));
#pragma GCC unroll 12
    for (int j = 0; j < 12; ++j) sum[j] = _mm_add_ps(sum[j], _mm_mul_ps(a, b));
  }
  float total = 0.0f;
  for (__m128& s : sum) total += s[0];
  sinkValue = total;
  return static_cast<double>(rounds) * 12 * 8;
}

// Tiles: 16 x 16 sums of 32 products an instruction.
__attribute__((target("amx-tile,amx-bf16"))) double peakAmx(int64_t rounds) {
  struct alignas(64) Config {
    uint8_t palette = 1, start = 0, reserved[14] = {};
    uint16_t rowBytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
  } config, before;
  _tile_storeconfig(&before);
  asm volatile("" : : "r"(&config), "r"(&before) : "memory");
  _tile_loadconfig(&config);
  for (int64_t i = 0; i < rounds; ++i) {
    _tile_dpbf16ps(0, 4, 5);
    _tile_dpbf16ps(1, 4, 6);
    _tile_dpbf16ps(2, 4, 7);
    _tile_dpbf16ps(3, 4, 5);
  }
  _tile_release();
  if (before.palette != 0) _tile_loadconfig(&before);
  return static_cast<double>(rounds) * 4 * 16384;
}

// Four products a sum.
__attribute__((target("avx512f,avx512vnni"))) double peakVnni(int64_t rounds) {
  __m512i sum[16] = {};
  __m512i a = _mm512_set1_epi8(1), b = a;
  for (auto& s : sum) asm volatile("" : "+v"(s));
  for (int64_t i = 0; i < rounds; ++i) {
    asm volatile("" : "+v"(a), "+v"(b));
#pragma GCC unroll 16
    for (int j = 0; j < 16; ++j) sum[j] = _mm512_dpbusd_epi32(sum[j], a, b);
  }
  int32_t total = 0;
  for (__m512i& s : sum) total += _mm512_reduce_add_epi32(s);
  sinkValue = static_cast<float>(total);
  return static_cast<double>(rounds) * 16 * 128;
}

double runPeak(InstructionSet set, int64_t rounds) {
  switch (set) {
    case InstructionSet::amx:
      return peakAmx(rounds / 8);
    case InstructionSet::avx512bf16:
      return peakBf16(rounds);
    case InstructionSet::avx512vnni:
      return peakVnni(rounds);
    case InstructionSet::avx512:
      return peakAvx512(rounds);
    case InstructionSet::avx2:
      return peakAvx2(rounds);
    case InstructionSet::portable:
      return peakPortable(rounds);
  }
  return 0.0;
}
#else
double runPeak(InstructionSet, int64_t) { return 0.0; }
#endif

// ---- measuring
// -----------------------------------------------------------------------------------

struct Candidate {
  std::string name;
  std::function<double()> run;  // returns floating-point operations
  int64_t repeats = 1;
  std::vector<double> gflops{};

  double best() const { return *std::max_element(gflops.begin(), gflops.end()); }
  double median() const {
    std::vector<double> sorted = gflops;
    std::sort(sorted.begin(), sorted.end());
    return sorted[sorted.size() / 2];
  }
};

void measure(std::vector<Candidate>& candidates, int bursts, int cpuTimeThreads) {
  constexpr double kBurstSeconds = 0.01;
  for (Candidate& c : candidates) {
    c.run();
    const Stopwatch watch(cpuTimeThreads);
    c.run();
    c.repeats = std::max<int64_t>(1, static_cast<int64_t>(kBurstSeconds / watch.seconds()));
  }
  for (int i = 0; i < bursts; ++i) {
    for (Candidate& c : candidates) {
      const Stopwatch watch(cpuTimeThreads);
      double operations = 0.0;
      for (int64_t r = 0; r < c.repeats; ++r) operations += c.run();
      c.gflops.push_back(operations / watch.seconds() * 1e-9);
    }
  }
}

// ---- ggml
// ----------------------------------------------------------------------------------------

class GgmlMultiply {
 public:
  // Repacked weights where `repack` and the CPU variant has them for the type.
  GgmlMultiply(ggml_backend_t backend, ggml_type type, int64_t columns, int64_t outputs,
               int64_t rows, const void* weights, const float* activations, bool repack)
      : backend_(backend) {
    ggml_backend_dev_t device = ggml_backend_get_device(backend);
    ggml_backend_buffer_type_t kind = ggml_backend_dev_buffer_type(device);
    if (repack) {
      auto getExtra =
          reinterpret_cast<ggml_backend_dev_get_extra_bufts_t>(ggml_backend_reg_get_proc_address(
              ggml_backend_dev_backend_reg(device), "ggml_backend_dev_get_extra_bufts"));
      ggml_backend_buffer_type_t* extra = getExtra ? getExtra(device) : nullptr;
      if (extra == nullptr || *extra == nullptr) return;
      kind = *extra;
    }
    weightContext_ = ggml_init({ggml_tensor_overhead() * 2, nullptr, true});
    context_ = ggml_init({ggml_tensor_overhead() * 8 + ggml_graph_overhead(), nullptr, true});
    ggml_tensor* w = ggml_new_tensor_2d(weightContext_, type, columns, outputs);
    weightBuffer_ = ggml_backend_alloc_ctx_tensors_from_buft(weightContext_, kind);
    if (repack && w->extra == nullptr) return;
    ggml_backend_tensor_set(w, weights, 0, ggml_nbytes(w));
    ggml_tensor* a = ggml_new_tensor_2d(context_, GGML_TYPE_F32, columns, rows);
    ggml_tensor* product = ggml_mul_mat(context_, w, a);
    graph_ = ggml_new_graph(context_);
    ggml_build_forward_expand(graph_, product);
    buffer_ = ggml_backend_alloc_ctx_tensors(context_, backend);
    ggml_backend_tensor_set(a, activations, 0, ggml_nbytes(a));
    operations_ = 2.0 * static_cast<double>(columns * outputs * rows);
  }
  ~GgmlMultiply() {
    if (buffer_) ggml_backend_buffer_free(buffer_);
    if (weightBuffer_) ggml_backend_buffer_free(weightBuffer_);
    if (context_) ggml_free(context_);
    if (weightContext_) ggml_free(weightContext_);
  }
  GgmlMultiply(const GgmlMultiply&) = delete;
  GgmlMultiply& operator=(const GgmlMultiply&) = delete;

  bool usable() const { return graph_ != nullptr; }
  double run() {
    ggml_backend_graph_compute(backend_, graph_);
    return operations_;
  }

 private:
  ggml_backend_t backend_;
  ggml_context* weightContext_ = nullptr;
  ggml_context* context_ = nullptr;
  ggml_backend_buffer_t weightBuffer_ = nullptr;
  ggml_backend_buffer_t buffer_ = nullptr;
  ggml_cgraph* graph_ = nullptr;
  double operations_ = 0.0;
};

// ---- command line
// --------------------------------------------------------------------------------

std::vector<std::string> split(const std::string& text) {
  std::vector<std::string> parts;
  size_t begin = 0;
  while (begin <= text.size()) {
    const size_t end = std::min(text.find(',', begin), text.size());
    if (end > begin) parts.push_back(text.substr(begin, end - begin));
    begin = end + 1;
  }
  return parts;
}

ggml_type typeNamed(const std::string& name) {
  for (int t = 0; t < GGML_TYPE_COUNT; ++t) {
    const char* known = ggml_type_name(static_cast<ggml_type>(t));
    if (known != nullptr && strcasecmp(known, name.c_str()) == 0) return static_cast<ggml_type>(t);
  }
  std::fprintf(stderr, "no type %s\n", name.c_str());
  std::exit(2);
}

struct Options {
  std::string libraries;
  std::vector<std::string> sets, types = {"Q4_1", "Q4_K"}, rows = {"1", "4", "16", "512", "2048"};
  std::vector<std::string> shapes = {"576x576",   "576x192",  "576x1536",  "1536x576",
                                     "576x49152", "896x4864", "4096x4096", "4096x14336"};
  int threads = 2;
  int bursts = 15;
  bool ggml = true;
  bool cpuTime = false;
};

Options parse(int argc, char** argv) {
  Options options;
  if (argc < 2) {
    std::fprintf(stderr, "usage: linear_bench LIBS [options], see the source\n");
    std::exit(2);
  }
  options.libraries = argv[1];
  for (int i = 2; i < argc; ++i) {
    const std::string flag = argv[i];
    if (flag == "--no-ggml") {
      options.ggml = false;
      continue;
    }
    if (flag == "--cpu-time") {
      options.cpuTime = true;
      continue;
    }
    if (i + 1 == argc) std::exit(2);
    const std::string value = argv[++i];
    if (flag == "--sets") options.sets = split(value);
    if (flag == "--types") options.types = split(value);
    if (flag == "--shapes") options.shapes = split(value);
    if (flag == "--rows") options.rows = split(value);
    if (flag == "--threads") options.threads = std::stoi(value);
    if (flag == "--bursts") options.bursts = std::stoi(value);
  }
  if (options.sets.empty()) options.sets = {instructionSetName(chooseLinearSets().integers)};
  return options;
}

void runBench(const Options& options) {
  ThreadPool pool(options.threads);
  const CancelFlag cancel;
  ggml_backend_t backend = nullptr;
  if (options.ggml) {
    ggml_backend_load_all_from_path(options.libraries.c_str());
    backend = ggml_backend_init_by_type(GGML_BACKEND_DEVICE_TYPE_CPU, nullptr);
    if (backend == nullptr) {
      std::fprintf(stderr, "no CPU variant of ggml in %s\n", options.libraries.c_str());
      std::exit(1);
    }
    auto setThreads =
        reinterpret_cast<ggml_backend_set_n_threads_t>(ggml_backend_reg_get_proc_address(
            ggml_backend_dev_backend_reg(ggml_backend_get_device(backend)),
            "ggml_backend_set_n_threads"));
    setThreads(backend, options.threads);
  }
  std::printf("%d threads; GFLOP/s: best (median) of %d bursts; share: best of best peak\n\n",
              options.threads, options.bursts);
  std::printf("| k x n | type | rows | set | peak | own | share | ggml | ggml repacked |\n");
  std::printf("|---|---|---|---|---|---|---|---|---|\n");
  std::mt19937 random(1);
  std::uniform_real_distribution<float> uniform(-1.0f, 1.0f);
  for (const std::string& shape : options.shapes) {
    const int64_t columns = std::atoll(shape.c_str());
    const int64_t outputs = std::atoll(shape.c_str() + shape.find('x') + 1);
    for (const std::string& typeName : options.types) {
      const ggml_type type = typeNamed(typeName);
      if (columns % ggml_blck_size(type) != 0) continue;
      // One random block of rows over and over: quantizing is slower than all the rest.
      const int64_t distinct = std::min<int64_t>(outputs, 64);
      std::vector<float> values(static_cast<size_t>(distinct * columns));
      for (float& v : values) v = uniform(random);
      const std::vector<float> importance(static_cast<size_t>(columns), 1.0f);
      const size_t rowBytes = ggml_row_size(type, columns);
      std::vector<std::byte> weights(rowBytes * static_cast<size_t>(outputs));
      ggml_quantize_chunk(type, values.data(), weights.data(), 0, distinct, columns,
                          importance.data());
      for (int64_t row = distinct; row < outputs; row += distinct) {
        std::memcpy(weights.data() + rowBytes * static_cast<size_t>(row), weights.data(),
                    rowBytes * static_cast<size_t>(std::min(distinct, outputs - row)));
      }
      for (const std::string& rowsText : options.rows) {
        const int64_t rows = std::stoll(rowsText);
        if (rows * outputs > int64_t{1} << 27) continue;
        std::vector<float> activations(static_cast<size_t>(rows * columns));
        for (float& v : activations) v = uniform(random);
        std::vector<float> out(static_cast<size_t>(rows * outputs));
        const double operations = 2.0 * static_cast<double>(columns * outputs * rows);
        for (const std::string& setName : options.sets) {
          const auto set = parseInstructionSet(setName);
          if (!set || !instructionSetRuns(*set)) {
            std::printf("%s does not run here\n", setName.c_str());
            continue;
          }
          LinearScratch scratch(std::min<int64_t>(rows, 1024), columns, options.threads, *set);
          std::vector<Candidate> candidates;
          candidates.push_back({"peak", [&] {
                                  constexpr int64_t kItems = 32, kRounds = 20000;
                                  double one = 0.0;
                                  pool.forEach(kItems, [&](int64_t item, int32_t) {
                                    const double done = runPeak(*set, kRounds);
                                    if (item == 0) one = done;
                                  });
                                  return one * kItems;
                                }});
          candidates.push_back({"own", [&] {
                                  multiply(activations.data(), rows, columns,
                                           {weights.data(), type, outputs, columns}, out.data(),
                                           outputs, scratch, pool, cancel);
                                  return operations;
                                }});
          std::unique_ptr<GgmlMultiply> plain, repacked;
          if (backend != nullptr && setName == options.sets.front()) {
            plain = std::make_unique<GgmlMultiply>(backend, type, columns, outputs, rows,
                                                   weights.data(), activations.data(), false);
            candidates.push_back({"ggml", [&] { return plain->run(); }});
            repacked = std::make_unique<GgmlMultiply>(backend, type, columns, outputs, rows,
                                                      weights.data(), activations.data(), true);
            if (repacked->usable()) {
              candidates.push_back({"ggml repacked", [&] { return repacked->run(); }});
            }
          }
          measure(candidates, options.bursts, options.cpuTime ? options.threads : 0);
          std::printf("| %s | %s | %lld | %s | %.0f | %.1f (%.1f) | %.0f %% |", shape.c_str(),
                      ggml_type_name(type), static_cast<long long>(rows), setName.c_str(),
                      candidates[0].best(), candidates[1].best(), candidates[1].median(),
                      100.0 * candidates[1].best() / candidates[0].best());
          for (size_t i = 2; i < 4; ++i) {
            if (i < candidates.size()) {
              std::printf(" %.1f (%.1f) |", candidates[i].best(), candidates[i].median());
            } else {
              std::printf(" |");
            }
          }
          std::printf("\n");
          std::fflush(stdout);
        }
      }
    }
  }
  if (backend != nullptr) ggml_backend_free(backend);
}

}  // namespace
}  // namespace longsight

int main(int argc, char** argv) {
  longsight::runBench(longsight::parse(argc, argv));
  return 0;
}
