// Checks the CUDA kernels against the double-precision reference.
//   test_cuda_kernels [--small] [--mma-sync] [--seed N] [--only SUBSTRING]
// --small: only what compute-sanitizer can run in reasonable time. Exit code 77: no device.
#include <cmath>
#include <cstdio>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "cuda_case.h"
#include "drawn_check.h"
#include "million_check.h"

namespace longsight::cuda::test {
namespace {

SampleAttentionParams sparseParams() {
  SampleAttentionParams params;
  params.denseBelowTokens = 0;
  return params;
}

CaseOptions makeCase(std::string name, int64_t tokens, HeadShape shape) {
  CaseOptions options;
  options.name = std::move(name);
  options.tokens = tokens;
  options.shape = shape;
  options.params = sparseParams();
  return options;
}

constexpr HeadShape kSmollm{9, 3, 64};
constexpr HeadShape kQwenSmall{14, 2, 64};
constexpr HeadShape kQwen{28, 4, 128};
constexpr HeadShape kLlama{32, 8, 128};

HeadShape withDim(HeadShape shape, int32_t dim) {
  shape.headDim = dim;
  return shape;
}
HeadShape asQ8(HeadShape shape) {
  shape.storage = KvStorage::q8;
  return shape;
}
HeadShape asF16(HeadShape shape) {
  shape.element = Element::f16;
  return shape;
}

// Head dimensions beyond 64 and 128, and caches stored as q8.
void addSmallShapes(std::vector<CaseOptions>& cases) {
  const auto add = [&](const char* name, int64_t tokens, const HeadShape& shape) {
    CaseOptions options = makeCase(name, tokens, shape);
    options.params.segmentRows = 256;
    options.params.windowTokens = 128;
    options.drawnDensity = 0.3;
    options.spareRows = 0;
    cases.push_back(options);
  };
  for (const int32_t dim : {64, 80, 96, 128, 256}) {
    add("drawn lists", 641, withDim({4, 2, 0}, dim));
    add("few rows, drawn lists", 129, asQ8(withDim({4, 2, 0}, dim)));
  }
  add("drawn lists", 641, asF16(asQ8({4, 2, 128})));
}

// A few dense rows behind many, in a chunk of their own: stage 3 splits their columns.
void addQuestions(std::vector<CaseOptions>& cases, int64_t tokens) {
  for (const HeadShape& shape :
       {HeadShape{3, 1, 64}, HeadShape{4, 2, 80}, HeadShape{4, 2, 96}, HeadShape{4, 2, 128},
        HeadShape{4, 1, 256}, asF16({6, 2, 128}), asQ8({8, 2, 128})}) {
    for (const int64_t rows : {1, 100, 256, 301}) {
      CaseOptions options = makeCase("question of " + std::to_string(rows), tokens, shape);
      options.params.policy = Policy::dense;
      options.denseFrom = tokens - rows;
      options.segmentsPerChunk = 1;
      options.outputRows = 64;
      cases.push_back(options);
    }
  }
}

void addShapes(std::vector<CaseOptions>& cases) {
  // q8 in all layouts.
  for (const HeadShape& shape :
       {kSmollm, kQwenSmall, kQwen, kLlama, HeadShape{40, 8, 128}, HeadShape{32, 32, 64}}) {
    CaseOptions options = makeCase("q8 layout", 4097, asQ8(shape));
    options.listHeads = 2;
    cases.push_back(options);
  }
  // Stage 1 with score dims that do not begin and end at multiples of 8 (80, neox).
  for (const int32_t dim : {80, 96, 256}) {
    for (const RopeStyle style : {RopeStyle::interleaved, RopeStyle::neox}) {
      CaseOptions options = makeCase("new dims, voted lists", 2900, withDim({6, 2, 0}, dim));
      options.ropeStyle = style;
      options.params.segmentRows = 1024;
      options.params.epsilon = 0.01;
      options.listHeads = 2;
      cases.push_back(options);
      if (dim != 256) {
        options.params.scoreDims = ScoreDims::all;
        options.shape = asF16(options.shape);
        cases.push_back(options);
      }
    }
    CaseOptions options = makeCase("new dims, mass", 2900, asQ8(withDim({6, 2, 0}, dim)));
    options.params.policy = Policy::mass;
    options.params.segmentRows = 1024;
    options.listHeads = 2;
    cases.push_back(options);
  }
  for (const int32_t dim : {80, 96, 256}) {
    for (const HeadShape& layout :
         {HeadShape{9, 3, 0}, HeadShape{14, 2, 0}, HeadShape{40, 8, 0}, HeadShape{8, 8, 0}}) {
      CaseOptions options = makeCase("layout, drawn lists", 4097, withDim(layout, dim));
      options.drawnDensity = 0.2;
      options.listHeads = 2;
      cases.push_back(options);
    }
  }
  for (const int32_t dim : {64, 80, 96, 128, 256}) {
    const HeadShape shape = withDim({4, 2, 0}, dim);
    const auto addDrawn = [&](const HeadShape& drawn, double density, Data data) {
      CaseOptions options = makeCase("drawn lists", 3001, drawn);
      options.params.segmentRows = 1024;
      options.params.maxListShare = 1;
      options.drawnDensity = density;
      options.data = data;
      cases.push_back(options);
    };
    for (const HeadShape& drawn : {shape, asF16(shape), asQ8(shape)}) {
      addDrawn(drawn, 0.5, Data::huge);
    }
    for (const double density : {0.0, 1.0}) addDrawn(shape, density, Data::planted);
    CaseOptions options =
        makeCase("drawn lists, borders, tail, chunks", 7777, asQ8(withDim({6, 2, 0}, dim)));
    options.borders = {1500, 4321, 4700, 6999};
    options.denseFrom = 6999;
    options.segmentsPerChunk = 2;
    options.drawnDensity = 0.1;
    cases.push_back(options);
  }
  {
    CaseOptions options = makeCase("q8 offsets beyond 2^32 bytes", 2500, asQ8({32, 32, 128}));
    options.spareRows = (int64_t{1} << 33) / 32 / 128 - 2500 + 4096;
    options.listHeads = 2;
    cases.push_back(options);
  }
  for (const HeadShape& shape : {asQ8({4, 1, 128}), HeadShape{4, 1, 256}, HeadShape{4, 1, 80}}) {
    CaseOptions options = makeCase("long, drawn lists", 100003, shape);
    options.drawnDensity = 0.1;
    options.listHeads = 1;
    options.outputRows = 64;
    cases.push_back(options);
  }
}

std::vector<CaseOptions> smallCases() {
  std::vector<CaseOptions> cases;
  for (const int64_t tokens : {1, 2, 127, 128, 129}) {
    cases.push_back(makeCase("few rows", tokens, kSmollm));
    cases.push_back(makeCase("few rows", tokens, {4, 1, 128}));
  }
  for (const HeadShape shape : {HeadShape{3, 1, 64}, HeadShape{4, 2, 128}}) {
    CaseOptions options = makeCase("short segments", 1153, shape);
    options.params.segmentRows = 256;
    options.params.windowTokens = 128;
    options.params.epsilon = 0.1;
    options.spareRows = 0;
    cases.push_back(options);
    options.name = "one vote each, neox";
    options.params.sampleStride = 1;
    options.params.segmentRows = 384;
    options.params.sinkTokens = 0;
    options.ropeStyle = RopeStyle::neox;
    cases.push_back(options);
    options.name = "int8, one vote each, neox";
    options.scoreNumbers = ScoreNumbers::int8;
    cases.push_back(options);
    options.scoreNumbers = ScoreNumbers::stored;
    options.name = "mass, short segments";
    options.params.policy = Policy::mass;
    options.params.sampleStride = 4;
    cases.push_back(options);
    options.name = "mass, one segment";
    options.params.segmentRows = 0;
    cases.push_back(options);
  }
  addSmallShapes(cases);
  addQuestions(cases, 2500);
  return cases;
}

// Another epsilon for each head; the common one would keep everything.
void addHeadEpsilons(std::vector<CaseOptions>& cases) {
  for (const ScoreNumbers numbers : {ScoreNumbers::stored, ScoreNumbers::int8}) {
    for (const HeadShape& shape : {HeadShape{6, 2, 64}, HeadShape{12, 4, 128}}) {
      CaseOptions options = makeCase("epsilon by head", 2900, shape);
      options.scoreNumbers = numbers;
      options.params.segmentRows = 1024;
      options.params.epsilon = 0;
      for (int32_t head = 0; head < shape.heads; ++head) {
        options.params.headEpsilons.push_back(
            head == 1 ? 0.0f : 0.0005f * std::pow(2.0f, static_cast<float>(head)));
      }
      cases.push_back(options);
    }
  }
}

// Policy `mass`: in segments, and as one segment with the paper's stride and window.
void addMassCases(std::vector<CaseOptions>& cases) {
  const auto add = [&](const char* name, int64_t tokens, HeadShape shape) -> CaseOptions& {
    CaseOptions options = makeCase(std::string("mass, ") + name, tokens, shape);
    options.params.policy = Policy::mass;
    options.params.sampleStride = 20;
    cases.push_back(options);
    return cases.back();
  };
  const auto addOneSegment = [&](const char* name, int64_t tokens,
                                 HeadShape shape) -> CaseOptions& {
    CaseOptions& options = add(name, tokens, shape);
    options.params.segmentRows = 0;
    options.params.windowTokens = 128;
    options.params.windowFraction = 0.08;
    options.params.sinkTokens = 0;
    return options;
  };
  for (const HeadShape shape :
       {kSmollm, kQwenSmall, kQwen, kLlama, HeadShape{40, 8, 128}, HeadShape{32, 32, 64}}) {
    add("layout", 4097, shape).listHeads = 3;
    addOneSegment("layout, one segment", 4097, shape).listHeads = 3;
  }
  for (const Data data : {Data::normal, Data::huge, Data::tiny, Data::ties}) {
    for (const HeadShape shape : {HeadShape{4, 2, 64}, HeadShape{4, 2, 128, Element::f16}}) {
      CaseOptions& options =
          add(("data " + std::to_string(static_cast<int>(data))).c_str(), 2900, shape);
      options.data = data;
      options.params.segmentRows = 512;
      options.params.sampleStride = 3;
      CaseOptions& whole = addOneSegment(
          ("one segment, data " + std::to_string(static_cast<int>(data))).c_str(), 2900, shape);
      whole.data = data;
      whole.params.sampleStride = 3;
      whole.params.maxListShare = 1;
    }
  }
  CaseOptions& everything = add("everything kept", 3001, {4, 2, 128});
  everything.params.alpha = 1;
  everything.params.maxListShare = 1;
  everything.params.segmentRows = 1024;
  CaseOptions& empty = add("empty lists", 3001, {4, 2, 128});
  empty.params.alpha = 0.01;
  empty.params.segmentRows = 1024;
  add("every head falls back", 3001, {4, 2, 64}).params.maxListShare = 0.01;
  CaseOptions& sinks = add("128 sinks, one vote each", 3001, {6, 2, 128});
  sinks.params.sinkTokens = 128;
  sinks.params.windowTokens = 128;
  sinks.params.sampleStride = 1;
  sinks.params.segmentRows = 1024;
  CaseOptions& borders = add("borders, dense tail, chunks", 7777, {6, 2, 64});
  borders.borders = {1500, 4321, 4700, 6999};
  borders.denseFrom = 6999;
  borders.segmentsPerChunk = 2;
  CaseOptions& longPrompt = add("long", 100003, {4, 1, 128});
  longPrompt.listHeads = 1;
  longPrompt.outputRows = 64;
  CaseOptions& longOne = addOneSegment("long, one segment", 100003, {4, 1, 128});
  // The reference takes a segment as one piece of work.
  longOne.params.sampleStride = 64;
  longOne.listHeads = 1;
  longOne.outputRows = 64;
}

// int8 scores, on logits of ordinary size.
void addQuantizedCases(std::vector<CaseOptions>& cases) {
  const auto add = [&](const char* name, int64_t tokens, HeadShape shape) -> CaseOptions& {
    CaseOptions options = makeCase(std::string("int8, ") + name, tokens, shape);
    options.scoreNumbers = ScoreNumbers::int8;
    cases.push_back(options);
    return cases.back();
  };
  for (const HeadShape shape : {kSmollm, kQwen, kLlama, HeadShape{32, 32, 64, Element::f16}}) {
    add("layout", 4097, shape).listHeads = 3;
  }
  for (const Data data : {Data::normal, Data::tiny, Data::ties}) {
    for (const HeadShape shape : {HeadShape{4, 2, 64}, HeadShape{4, 2, 128, Element::f16}}) {
      CaseOptions& options =
          add(("data " + std::to_string(static_cast<int>(data))).c_str(), 2900, shape);
      options.data = data;
      options.params.segmentRows = 512;
      options.params.epsilon = data == Data::normal ? 0.02 : 0.003;
      options.params.scoreDims = shape.headDim == 64 ? ScoreDims::all : ScoreDims::slowHalf;
    }
  }
  CaseOptions& everything = add("everything kept, all dims", 3001, {4, 2, 128});
  everything.params.epsilon = 0;
  everything.params.maxListShare = 1;
  everything.params.scoreDims = ScoreDims::all;
  CaseOptions& votes = add("one vote each, one segment", 3001, {6, 2, 128});
  votes.params.sampleStride = 1;
  votes.params.segmentRows = 0;
  CaseOptions& borders = add("borders, dense tail, chunks", 7777, {6, 2, 64});
  borders.borders = {1500, 4321, 4700, 6999};
  borders.denseFrom = 6999;
  borders.segmentsPerChunk = 2;
  borders.ropeStyle = RopeStyle::neox;
  CaseOptions& longPrompt = add("long", 100003, {4, 1, 128});
  longPrompt.listHeads = 1;
  longPrompt.outputRows = 64;
}

std::vector<CaseOptions> allCases() {
  std::vector<CaseOptions> cases = smallCases();
  addShapes(cases);
  addMassCases(cases);
  addQuantizedCases(cases);
  addHeadEpsilons(cases);
  addQuestions(cases, 9001);
  for (const HeadShape shape :
       {kSmollm, kQwenSmall, kQwen, kLlama, HeadShape{40, 8, 128}, HeadShape{32, 32, 64}}) {
    CaseOptions options = makeCase("layout", 4097, shape);
    options.listHeads = 3;
    cases.push_back(options);
  }
  for (const Data data : {Data::normal, Data::huge, Data::tiny, Data::ties}) {
    for (const HeadShape shape : {HeadShape{4, 2, 64}, HeadShape{4, 2, 128}}) {
      CaseOptions options = makeCase("data " + std::to_string(static_cast<int>(data)), 2900, shape);
      options.data = data;
      options.params.segmentRows = 512;
      options.params.epsilon = data == Data::normal ? 0.02 : 0.003;
      cases.push_back(options);
      options.name += " all score dims, f16";
      options.params.scoreDims = ScoreDims::all;
      options.shape.element = Element::f16;
      cases.push_back(options);
    }
  }
  {
    CaseOptions options = makeCase("everything kept", 3001, {4, 2, 128});
    options.params.epsilon = 0;
    options.params.maxListShare = 1;
    options.params.segmentRows = 1024;
    cases.push_back(options);
    options.name = "every head falls back";
    options.params.maxListShare = 0.01;
    cases.push_back(options);
    options.name = "empty lists";
    options.params.maxListShare = 0.6;
    options.params.epsilon = 0.999999;
    options.data = Data::tiny;
    cases.push_back(options);
    options.name = "no sinks, wide window";
    options.params.sinkTokens = 0;
    options.params.windowTokens = 1000;
    options.params.epsilon = 0.003;
    options.data = Data::planted;
    cases.push_back(options);
    options.name = "128 sinks";
    options.params.sinkTokens = 128;
    options.params.windowTokens = 128;
    cases.push_back(options);
  }
  {
    CaseOptions options = makeCase("borders, dense tail, chunks", 7777, {6, 2, 64});
    options.borders = {1500, 4321, 4700, 6999};
    options.denseFrom = 6999;
    options.segmentsPerChunk = 2;
    cases.push_back(options);
    options.shape = {8, 2, 128};
    options.name += ", one segment, paper's window";
    options.params.segmentRows = 0;
    options.params.windowFraction = 0.08;
    options.params.sampleStride = 3;
    cases.push_back(options);
  }
  {
    CaseOptions options = makeCase("offsets beyond 2^32 bytes", 2500, {32, 32, 128});
    options.spareRows = (int64_t{1} << 33) / 32 / 256 - 2500 + 4096;
    options.listHeads = 2;
    cases.push_back(options);
  }
  {
    CaseOptions options = makeCase("long", 100003, {4, 1, 128});
    options.listHeads = 1;
    options.outputRows = 192;
    cases.push_back(options);
  }
  return cases;
}

const char* elementName(const HeadShape& shape) {
  if (shape.storage == KvStorage::q8) return shape.element == Element::bf16 ? "q8" : "q8 f16";
  return shape.element == Element::bf16 ? "bf16" : "f16";
}

int run(bool small, const std::vector<Path>& paths, uint64_t seed, const std::string& only) {
  int failures = 0;
  std::printf("%-52s %7s %6s %4s %9s | %-8s %6s %11s %6s %9s %9s %9s %9s\n", "case", "tokens",
              "heads", "dim", "element", "path", "failed", "columns", "near", "mass", "output",
              "log sum", "coverage");
  for (const CaseOptions& options : small ? smallCases() : allCases()) {
    if (options.name.find(only) == std::string::npos) continue;
    CudaCase c(options, seed);
    const auto report = [&](const char* what, const CaseResult& result) {
      failures += result.failures;
      std::printf("%-52s %7lld %3d/%-2d %4d %9s | %-8s %6d %11lld %6lld %9.1e %9.1e %9.1e %9.1e\n",
                  options.name.c_str(), static_cast<long long>(options.tokens), options.shape.heads,
                  options.shape.kvHeads, options.shape.headDim, elementName(options.shape), what,
                  result.failures, static_cast<long long>(result.listColumns),
                  static_cast<long long>(result.borderline), result.worstMass, result.worstOutput,
                  result.worstLogSum, result.worstCoverage);
      std::fflush(stdout);
    };
    for (const Path path : paths) report(path == Path::best ? "best" : "mma.sync", c.check(path));
    for (const int32_t rows : {1, 5, 16}) {
      if (rows > options.tokens || options.tokens > 10000) continue;
      report(rows == 1 ? "decode1" : rows == 5 ? "decode5" : "decode16", c.checkDecode(rows));
    }
    if (options.shape.storage == KvStorage::q8) report("quantize", c.checkQuantize());
  }
  const std::string million = "a million rows, 28/4 heads";
  if (!small && million.find(only) != std::string::npos) {
    const MillionResult result = checkMillion(paths.front(), seed);
    failures += result.failures;
    std::printf("%s: density %.3f, %d of %d rows failed, output %.1e, log sum %.1e\n",
                million.c_str(), result.density, result.failures, result.rows, result.worstOutput,
                result.worstLogSum);
  }
  const std::string drawn = "drawn votes";
  if (!small && drawn.find(only) != std::string::npos) failures += checkDrawnVotes(seed);
  std::printf("%s: %d failures, seed %llu\n", failures == 0 ? "PASSED" : "FAILED", failures,
              static_cast<unsigned long long>(seed));
  return failures == 0 ? 0 : 1;
}

}  // namespace
}  // namespace longsight::cuda::test

int main(int argc, char** argv) {
  using longsight::cuda::Path;
  bool small = false;
  std::string only;
  std::vector<Path> paths = {Path::best, Path::mmaSync};
  uint64_t seed = std::random_device{}();
  for (int i = 1; i < argc; ++i) {
    if (std::strcmp(argv[i], "--small") == 0) small = true;
    if (std::strcmp(argv[i], "--mma-sync") == 0) paths = {Path::mmaSync};
    if (std::strcmp(argv[i], "--only") == 0 && i + 1 < argc) only = argv[i + 1];
    if (std::strcmp(argv[i], "--seed") == 0 && i + 1 < argc) seed = std::stoull(argv[i + 1]);
  }
  int devices = 0;
  if (const cudaError_t error = cudaGetDeviceCount(&devices);
      error != cudaSuccess || devices == 0) {
    std::printf("No CUDA device here: %s\n", cudaGetErrorString(error));
    return 77;
  }
  return longsight::cuda::test::run(small, paths, seed, only);
}
