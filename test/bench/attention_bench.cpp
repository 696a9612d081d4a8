// Speed of attention on this machine, beside the measured peak of the products that it is made of.
//   attention_bench [--tokens N] [--heads H] [--kv-heads K] [--dim D] [--threads T] [--rows R]
//                   [--density X] [--repeat N] [--policy peak|mass]
// Computes the last R rows of N as dense and as sparse. For the sparse run every key that should be
// kept (a share X of them) points the way of all queries, so that X is about the remote density.
// Then the time that each kind of kernel takes, as a share of the dense run's.
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <string>
#include <vector>

#include "../bench/attention_stages.h"
#include "attention_case.h"
#include "kernels/cpu/attention/kernels.h"

using namespace longsight;

namespace {

double seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// Of all threads: unlike wall time it does not count what other processes take.
double cpuSeconds() { return static_cast<double>(std::clock()) / CLOCKS_PER_SEC; }

// Independent chains of multiply-adds that never leave the registers.
#if defined(__x86_64__)
__attribute__((target("avx2,fma"))) float chains(int64_t rounds) {
  const __m256 a = _mm256_set1_ps(0.5f);
  const __m256 b = _mm256_set1_ps(1.0f);
  __m256 sums[12];
#pragma GCC unroll 12
  for (__m256& sum : sums) {
    sum = _mm256_setzero_ps();
    asm volatile("" : "+x"(sum));  // else the compiler merges equal chains
  }
  for (int64_t i = 0; i < rounds; ++i) {
#pragma GCC unroll 12
    for (__m256& sum : sums) sum = _mm256_fmadd_ps(sum, a, b);
  }
  float total = 0;
#pragma GCC unroll 12
  for (const __m256& sum : sums) total += _mm256_cvtss_f32(sum);
  return total;
}
constexpr double kFlopPerRound = 12 * 8 * 2;

// The same of bf16 products.
__attribute__((target("avx512f,avx512bf16"))) float bf16Chains(int64_t rounds) {
  __m512bh a = (__m512bh)_mm512_set1_epi32(0x3f803f80);
  __m512 sums[16];
#pragma GCC unroll 16
  for (__m512& sum : sums) {
    sum = _mm512_setzero_ps();
    asm volatile("" : "+v"(sum));
  }
  for (int64_t i = 0; i < rounds; ++i) {
    asm volatile("" : "+v"(a));
#pragma GCC unroll 16
    for (__m512& sum : sums) sum = _mm512_dpbf16_ps(sum, a, a);
  }
  float total = 0;
#pragma GCC unroll 16
  for (const __m512& sum : sums) total += _mm512_cvtss_f32(sum);
  return total;
}
constexpr double kBf16FlopPerRound = 16 * 32 * 2;
#else
float chains(int64_t rounds) {
  float sums[32] = {};
  for (int64_t i = 0; i < rounds; ++i) {
    for (float& sum : sums) sum = sum * 0.5f + 1.0f;
  }
  return sums[0];
}
constexpr double kFlopPerRound = 32 * 2;
float bf16Chains(int64_t rounds) { return chains(rounds); }
constexpr double kBf16FlopPerRound = kFlopPerRound;
#endif

// Of one thread, a second of its time.
double peakGflops(ThreadPool& pool, bool bf16) {
  constexpr int64_t kRounds = 20'000'000;
  const double flopPerRound = bf16 ? kBf16FlopPerRound : kFlopPerRound;
  std::vector<float> sink(static_cast<size_t>(pool.threads()));
  double best = 0;
  for (int repeat = 0; repeat < 3; ++repeat) {
    const double start = cpuSeconds();
    pool.forEach(pool.threads(), [&](int64_t item, int32_t) {
      sink[static_cast<size_t>(item)] = bf16 ? bf16Chains(kRounds) : chains(kRounds);
    });
    best = std::max(best, kRounds * flopPerRound * pool.threads() / (cpuSeconds() - start) / 1e9);
  }
  return best;
}

struct Options {
  int64_t tokens = 8192;
  int64_t rows = 2048;
  int32_t heads = 9;
  int32_t kvHeads = 3;
  int32_t dim = 64;
  int32_t threads = 2;
  int repeat = 3;
  double density = 0.1;
  Policy policy = Policy::peak;
};

struct Time {
  double wall = 1e9;
  double cpu = 1e9;
};

Time bestOf(test::AttentionCase& attention, ThreadPool& pool, int repeat) {
  Time best;
  for (int i = 0; i < repeat; ++i) {
    const double wall = seconds();
    const double cpu = cpuSeconds();
    attention.run(pool);
    best.wall = std::min(best.wall, seconds() - wall);
    best.cpu = std::min(best.cpu, cpuSeconds() - cpu);
  }
  return best;
}

void reportStages(test::AttentionCase& attention, ThreadPool& pool, int repeat, double denseCpu) {
  bench::StageSeconds least{1e9, 1e9, 1e9};
  for (int i = 0; i < repeat; ++i) {
    const bench::CountedKernels counted(attention.scratch);
    attention.run(pool);
    const bench::StageSeconds taken = bench::CountedKernels::seconds();
    least = {std::min(least.vote, taken.vote), std::min(least.pack, taken.pack),
             std::min(least.attend, taken.attend)};
  }
  std::printf("        of the dense run's time: stage 1 %.1f %%, packing %.1f %%, attend %.1f %%\n",
              least.vote / denseCpu * 100, least.pack / denseCpu * 100,
              least.attend / denseCpu * 100);
}

void report(const char* name, const test::AttentionCase& attention, Time time, double peak) {
  double kept = 0;
  double causal = 0;
  for (const HeadAttention& head : attention.heads) {
    kept += static_cast<double>(head.keptPairs);
    causal += static_cast<double>(head.causalPairs);
  }
  const double gflop = kept * attention.task.kv.headDim * 4 / 1e9;
  std::printf(
      "%-7s %9.3f ms  density %.3f  %7.1f GFLOP/s; a thread and second of its time: %.1f GFLOP, "
      "%.0f %% of peak\n",
      name, time.wall * 1e3, kept / causal, gflop / time.wall, gflop / time.cpu,
      gflop / time.cpu / peak * 100);
}

}  // namespace

int main(int argc, char** argv) {
  Options o;
  for (int i = 1; i + 1 < argc; i += 2) {
    const std::string name = argv[i];
    const double value = std::atof(argv[i + 1]);
    if (name == "--tokens") o.tokens = static_cast<int64_t>(value);
    if (name == "--rows") o.rows = static_cast<int64_t>(value);
    if (name == "--heads") o.heads = static_cast<int32_t>(value);
    if (name == "--kv-heads") o.kvHeads = static_cast<int32_t>(value);
    if (name == "--dim") o.dim = static_cast<int32_t>(value);
    if (name == "--threads") o.threads = static_cast<int32_t>(value);
    if (name == "--repeat") o.repeat = static_cast<int>(value);
    if (name == "--density") o.density = value;
    if (name == "--policy" && argv[i + 1] == std::string("mass")) o.policy = Policy::mass;
  }
  o.rows = std::min(o.rows, o.tokens);
  ThreadPool pool(o.threads);
  const InstructionSet set = chooseAttentionKernels().set;
  const bool bf16 = set == InstructionSet::avx512bf16;
  const double peak = peakGflops(pool, bf16);
  std::printf("%s peak of a thread: %.1f GFLOP/s\n", bf16 ? "bf16 product" : "f32 multiply-add",
              peak);
  std::printf("rows %lld to %lld, %d/%d heads, d = %d, instruction set %s\n",
              static_cast<long long>(o.tokens - o.rows), static_cast<long long>(o.tokens), o.heads,
              o.kvHeads, o.dim, instructionSetName(set));

  SampleAttentionParams params;
  params.policy = o.policy;
  Segment segment{o.tokens - o.rows, o.tokens, true, 0, 0};
  std::mt19937_64 random(1);
  double denseCpu = 0;
  {
    test::AttentionCase dense({o.heads, o.kvHeads, o.dim}, segment, params, random);
    const Time time = bestOf(dense, pool, o.repeat);
    denseCpu = time.cpu;
    report("dense", dense, time, peak);
    reportStages(dense, pool, o.repeat, denseCpu);
  }
  segment = {o.tokens - o.rows, o.tokens, false, params.sampleStride, params.windowTokens};
  test::AttentionCase sparse({o.heads, o.kvHeads, o.dim}, segment, params, random);
  // In the last score dim: every query holds 16, a kept key 10, any other -10.
  std::uniform_real_distribution<double> share;
  const auto dim = static_cast<int64_t>(o.dim) - 1;
  for (int64_t row = segment.begin; row < segment.end; ++row) {
    for (int32_t head = 0; head < o.heads; ++head) sparse.query(row, head)[dim] = 16.0f;
  }
  for (int32_t head = 0; head < o.kvHeads; ++head) {
    for (int64_t row = 0; row < o.tokens; ++row) {
      sparse.key(head, row)[dim] = test::toBf16(share(random) < o.density ? 10.0f : -10.0f);
    }
  }
  report("sparse", sparse, bestOf(sparse, pool, o.repeat), peak);
  reportStages(sparse, pool, o.repeat, denseCpu);
  return 0;
}
