// Checks the engine through its C boundary against a double-precision forward pass of a small
// model: one pass and several, steps, logits, restored rows, cancel, sparse segments, memory.
//   engine_check [--seed N]
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>

#include "engine_library.h"
#include "engine_reference.h"

namespace longsight::cuda::test {
namespace {

int failures = 0;

void expect(bool good, const std::string& what) {
  if (good) return;
  ++failures;
  std::printf("FAILED %s\n", what.c_str());
}

// Largest relative error of a row, by lengths of vectors.
double worstRow(const float* made, const double* wanted, int64_t rows, int64_t width) {
  double worst = 0;
  for (int64_t row = 0; row < rows; ++row) {
    double error = 0, length = 0;
    for (int64_t i = row * width; i < (row + 1) * width; ++i) {
      error += (made[i] - wanted[i]) * (made[i] - wanted[i]);
      length += wanted[i] * wanted[i];
    }
    const double relative = std::sqrt(error / length);
    worst = std::isnan(relative) ? 1e9 : std::max(worst, relative);
  }
  return worst;
}

struct Pass {
  LsForward request{};
  std::vector<LsSegment> segments;
  std::vector<float> states;
};

class Case {
 public:
  Case(std::string name, const Recipe& recipe, LsKvType kvType, double tolerance, uint64_t seed)
      : name_(std::move(name)), recipe_(recipe), kvType_(kvType), tolerance_(tolerance) {
    std::mt19937_64 random(seed);
    for (int64_t i = 0; i < kTokens; ++i)
      tokens_.push_back(
          static_cast<int32_t>(random() % static_cast<uint64_t>(recipe.sizes().vocabulary)));
    weights_ = randomWeights(recipe, seed + 1);
    wanted_ = runReference(recipe, weights_, tokens_);
  }

  void run() {
    const LsSessionDesc desc = recipe_.session(kCapacity, kvType_);
    LsMemory estimate{};
    LsError error{};
    must(engine().estimateMemory(&recipe_.desc(), &desc, &estimate, &error), error, "estimate");
    ModelHandle model = createModel(recipe_);
    for (int32_t i = 0; i < recipe_.desc().tensorCount; ++i) uploadInPieces(model.get(), i);
    SessionHandle session = createSession(model.get(), desc);
    LsMemory memory{};
    must(engine().sessionMemory(session.get(), &memory, &error), error, "memory");
    expect(memory.weightBytes == estimate.weightBytes && memory.kvBytes == estimate.kvBytes &&
               memory.scratchBytes == estimate.scratchBytes,
           name_ + ": the estimate is not what was taken");

    const std::vector<float> whole = denseStates(session.get(), {0, kTokens}, 0);
    check("one pass", whole.data(), wanted_.states.data(), kTokens, width());
    expect(denseStates(session.get(), {0, kTokens}, 0) == whole, name_ + ": other bits again");
    const std::vector<float> pieces = denseStates(session.get(), {0, 257, 513, kTokens}, 600);
    check("passes of 257, 256 and 187 rows", pieces.data(), wanted_.states.data() + 600 * width(),
          kTokens - 600, width());

    checkLogits(session.get(), whole);
    checkSteps(session.get());
    checkRestore(model.get(), session.get(), desc);
    checkCancel(session.get());
    checkSparse(session.get());
    LsSpeed speed{};
    must(engine().sessionProbe(session.get(), &speed, &error), error, "probe");
    expect(speed.linearMsPerRow > 0 && speed.attentionMsPerPair > 0, name_ + ": probe");
    std::printf("%s: probe %.3g ms a row, %.3g ms a pair\n", name_.c_str(), speed.linearMsPerRow,
                speed.attentionMsPerPair);
  }

 private:
  static constexpr int64_t kTokens = 700;
  static constexpr int64_t kCapacity = 900;
  int64_t width() const { return recipe_.sizes().embedding; }
  int64_t vocabulary() const { return recipe_.sizes().vocabulary; }

  void check(const std::string& what, const float* made, const double* wanted, int64_t rows,
             int64_t columns) {
    const double worst = worstRow(made, wanted, rows, columns);
    std::printf("%s: %s: relative error of the worst row %.5f\n", name_.c_str(), what.c_str(),
                worst);
    expect(worst < tolerance_, name_ + ": " + what);
  }

  void uploadInPieces(LsModel* model, int32_t tensor) {
    const LsTensorDesc& desc = recipe_.desc().tensors[tensor];
    const std::vector<uint8_t>& bytes = weights_[static_cast<size_t>(tensor)].bytes;
    const auto rowBytes = static_cast<int64_t>(bytes.size()) / desc.rows;
    LsError error{};
    for (int64_t row = 0; row < desc.rows; row += 37) {
      must(engine().modelUpload(model, tensor, row, std::min<int64_t>(37, desc.rows - row),
                                bytes.data() + row * rowBytes, &error),
           error, "upload");
    }
  }

  Pass pass(int64_t begin, int64_t end, int64_t outputBegin) {
    Pass pass;
    pass.segments = {{begin, end, 1, 0, 0}};
    pass.states.resize(static_cast<size_t>((end - outputBegin) * width()));
    pass.request.tokens = tokens_.data() + begin;
    pass.request.segmentCount = 1;
    pass.request.params = recipe_.params(LS_POLICY_DENSE);
    pass.request.outputBegin = outputBegin;
    pass.request.forcedDensity = -1;
    return pass;
  }

  void forward(LsSession* session, Pass& pass) {
    pass.request.segments = pass.segments.data();
    pass.request.segmentCount = static_cast<int32_t>(pass.segments.size());
    pass.request.states = pass.states.empty() ? nullptr : pass.states.data();
    LsError error{};
    must(engine().sessionForward(session, &pass.request, &error), error, "forward");
  }

  // States of the rows from `outputBegin` on, which are all in the last pass.
  std::vector<float> denseStates(LsSession* session, const std::vector<int64_t>& borders,
                                 int64_t outputBegin) {
    std::vector<float> states;
    for (size_t i = 0; i + 1 < borders.size(); ++i) {
      const bool last = i + 2 == borders.size();
      Pass one = pass(borders[i], borders[i + 1], last ? outputBegin : borders[i + 1]);
      forward(session, one);
      states = one.states;
    }
    return states;
  }

  void checkLogits(LsSession* session, const std::vector<float>& states) {
    LsError error{};
    std::vector<float> logits(static_cast<size_t>(kTokens * vocabulary()));
    must(engine().sessionLogits(session, states.data(), kTokens, logits.data(), nullptr, nullptr,
                                &error),
         error, "logits");
    check("logits of all rows", logits.data(), wanted_.logits.data(), kTokens, vocabulary());
    must(engine().sessionLogits(session, states.data(), 3, logits.data(), nullptr, nullptr, &error),
         error, "logits");
    check("logits of 3 rows", logits.data(), wanted_.logits.data(), 3, vocabulary());
  }

  std::vector<float> step(LsSession* session, int64_t row, int32_t count) {
    std::vector<float> logits(static_cast<size_t>(count * vocabulary()));
    LsError error{};
    must(engine().sessionStep(session, row, tokens_.data() + row, count, logits.data(), &error),
         error, "step");
    return logits;
  }

  void checkSteps(LsSession* session) {
    for (const int64_t prompt : {int64_t{1}, kTokens - 40}) {
      denseStates(session, {0, prompt}, prompt);
      int64_t row = prompt;
      for (const int32_t count : {1, 1, 8, 3, 1, 8, 3, 5}) {
        const std::vector<float> logits = step(session, row, count);
        check("step of " + std::to_string(count) + " at " + std::to_string(row), logits.data(),
              wanted_.logits.data() + row * vocabulary(), count, vocabulary());
        row += count;
      }
      const std::vector<float> once = step(session, row, 1);
      expect(step(session, row, 1) == once, name_ + ": a step again gives other bits");
    }
  }

  void checkRestore(LsModel* model, LsSession* session, const LsSessionDesc& desc) {
    constexpr int64_t kRows = 333;
    denseStates(session, {0, kRows}, kRows);
    SessionHandle other = createSession(model, desc);
    std::vector<int64_t> rowBytes(1024);
    const int32_t planes = engine().sessionPlanes(session, rowBytes.data(), 1024);
    LsError error{};
    for (int32_t plane = 0; plane < planes; ++plane) {
      std::vector<char> rows(static_cast<size_t>(kRows * rowBytes[static_cast<size_t>(plane)]));
      must(engine().sessionReadRows(session, plane, 0, kRows, rows.data(), &error), error, "read");
      must(engine().sessionWriteRows(other.get(), plane, 0, kRows, rows.data(), &error), error,
           "write");
    }
    must(engine().sessionRestored(other.get(), kRows, &error), error, "restored");
    const std::vector<float> own = step(session, kRows, 2);
    expect(step(other.get(), kRows, 2) == own, name_ + ": restored rows give other logits");
    check("step after restoring", own.data(), wanted_.logits.data() + kRows * vocabulary(), 2,
          vocabulary());
  }

  static int32_t stopAtSecond(void* context, double) { return ++*static_cast<int*>(context) < 2; }

  void checkCancel(LsSession* session) {
    denseStates(session, {0, 100}, 100);
    int calls = 1;
    Pass one = pass(100, kTokens, kTokens);
    one.request.segments = one.segments.data();
    one.request.proceed = stopAtSecond;
    one.request.context = &calls;
    LsError error{};
    const LsStatus status = engine().sessionForward(session, &one.request, &error);
    expect(status == LS_CANCELLED && engine().sessionRows(session) == 100,
           name_ + ": cancel gave status " + std::to_string(status));
    const std::vector<float> states = denseStates(session, {100, kTokens}, 650);
    check("pass after a cancel", states.data(), wanted_.states.data() + 650 * width(),
          kTokens - 650, width());
  }

  // Everything is kept with epsilon 0: the same as dense. Of several groups, since one has at most
  // 64 segments.
  void checkSparse(LsSession* session) {
    const auto heads = static_cast<size_t>(recipe_.sizes().heads);
    const auto layers = static_cast<size_t>(recipe_.sizes().layers);
    for (const LsPolicy policy : {LS_POLICY_PEAK, LS_POLICY_MASS}) {
      Pass one = pass(0, kTokens, 0);
      one.segments.clear();
      for (int64_t begin = 0; begin < kTokens; begin += 7) {
        const int64_t end = std::min(begin + 7, kTokens);
        one.segments.push_back({begin, end, end < 300 ? 1 : 0, end < 300 ? 0 : 2, 64});
        if (end < 300) one.segments.back().windowTokens = 0;
      }
      const size_t pairs = layers * one.segments.size() * heads;
      std::vector<float> epsilons(layers * heads, 0.0f);
      std::vector<LsHeadStats> stats(pairs);
      one.request.params = recipe_.params(policy);
      one.request.params.alpha = 1;
      one.request.params.maxListShare = 1;
      one.request.params.epsilon = 0.5;
      one.request.params.headEpsilons = epsilons.data();
      std::vector<float> coverage(pairs * static_cast<size_t>(one.request.params.auditRows));
      one.request.stats = stats.data();
      one.request.coverage = coverage.data();
      forward(session, one);
      const std::string label = policy == LS_POLICY_PEAK ? "peak" : "mass";
      check(label + " that keeps all", one.states.data(), wanted_.states.data(), kTokens, width());
      double kept = 0, causal = 0;
      for (const LsHeadStats& s : stats) {
        kept += static_cast<double>(s.keptPairs);
        causal += static_cast<double>(s.causalPairs);
      }
      const double all =
          static_cast<double>(kTokens * (kTokens + 1) / 2) * static_cast<double>(layers * heads);
      // Policy mass leaves out columns whose mass is nothing in f32.
      const double least = policy == LS_POLICY_PEAK ? all : 0.98 * all;
      expect(causal == all && kept >= least && kept <= all,
             name_ + ": " + label + " kept " + std::to_string(kept) + " of " +
                 std::to_string(causal) + " pairs, not " + std::to_string(all));
      double smallest = 2;
      int64_t audited = 0;
      for (const float value : coverage) {
        if (value < 0) continue;
        ++audited;
        smallest = std::min(smallest, static_cast<double>(value));
      }
      expect(audited > 0 && smallest > 0.98 && smallest <= 1.01,
             name_ + ": coverage of everything is " + std::to_string(smallest));

      // One head keeps all, the others little.
      std::fill(epsilons.begin(), epsilons.end(), 0.9f);
      for (size_t layer = 0; layer < layers; ++layer) epsilons[layer * heads + 1] = 0.0f;
      one.request.params.alpha = 0.5;
      forward(session, one);
      double own = 0, others = 0;
      for (size_t i = 0; i < pairs; ++i)
        (i % heads == 1 ? own : others) += static_cast<double>(stats[i].keptPairs) / all;
      std::printf("%s: %s: pairs kept by head 1 %.4f, by the others %.4f of all\n", name_.c_str(),
                  label.c_str(), own, others);
      if (policy == LS_POLICY_PEAK)
        expect(std::fabs(own - 1.0 / static_cast<double>(heads)) < 1e-9 && others < 0.95 - own,
               name_ + ": epsilons by head");
      one.request.forcedDensity = 0.5;
      forward(session, one);
      double forced = 0;
      for (const LsHeadStats& s : stats) forced += static_cast<double>(s.keptPairs) / all;
      std::printf("%s: %s: density with 0.5 forced %.4f\n", name_.c_str(), label.c_str(), forced);
    }
  }

  std::string name_;
  const Recipe& recipe_;
  LsKvType kvType_;
  double tolerance_;
  std::vector<int32_t> tokens_;
  std::vector<TestTensor> weights_;
  ReferenceResult wanted_;
};

void checkErrors() {
  const Recipe recipe(namedSizes("tiny"), "bf16");
  LsError error{};
  LsModel* model = nullptr;
  LsModelDesc desc = recipe.desc();
  desc.device = 99;
  expect(engine().modelCreate(&desc, &model, &error) == LS_NO_DEVICE, "device 99");
  desc = recipe.desc();
  desc.headDim = 60;
  expect(engine().modelCreate(&desc, &model, &error) == LS_UNSUPPORTED, "head dimension 60");
  std::printf("%s %s\n", error.message, error.remedy);
  desc = recipe.desc();
  desc.tensorCount -= 1;
  expect(engine().modelCreate(&desc, &model, &error) == LS_INVALID_ARGUMENT, "missing tensor");
  std::printf("%s\n", error.message);
  const ModelHandle whole = createModel(recipe);
  LsSession* session = nullptr;
  const LsSessionDesc large = recipe.session(int64_t{1} << 29, LS_KV_BF16);
  expect(engine().sessionCreate(whole.get(), &large, &session, &error) == LS_OUT_OF_MEMORY,
         "2^29 rows");
  std::printf("%s %s\n", error.message, error.remedy);
  LsSessionDesc fits = recipe.session(error.largestContextRows, LS_KV_BF16);
  LsMemory memory{};
  must(engine().sessionEstimate(whole.get(), &fits, &memory, &error), error, "estimate");
  expect(memory.fits == 1 && fits.capacityRows > 0, "the largest context fits");
  const SessionHandle largest = createSession(whole.get(), fits);
  fits.capacityRows += 128;
  expect(engine().sessionCreate(whole.get(), &fits, &session, &error) == LS_OUT_OF_MEMORY,
         "more than the largest");
}

int run(uint64_t seed) {
  std::printf("seed %llu\n", static_cast<unsigned long long>(seed));
  LsDevice device{};
  int32_t count = 0;
  LsError error{};
  must(engine().devices(&device, 1, &count, &error), error, "devices");
  std::printf("%d devices; %s, %d, driver %d, %.1f of %.1f GB free\n", count, device.name,
              device.computeCapability, device.driverVersion,
              static_cast<double>(device.freeBytes) / 1e9,
              static_cast<double>(device.totalBytes) / 1e9);

  const Recipe plain(namedSizes("tiny"), "bf16");
  Case("bf16", plain, LS_KV_BF16, 0.02, seed).run();
  // Kernels and context are loaded: what goes now must come back.
  const ModelHandle anchor = createModel(plain);
  const LsSessionDesc small = plain.session(128, LS_KV_BF16);
  const auto freeBytes = [&] {
    LsMemory memory{};
    must(engine().sessionEstimate(anchor.get(), &small, &memory, &error), error, "estimate");
    return memory.freeBytes;
  };
  const uint64_t before = freeBytes();

  ModelSizes sizes = namedSizes("tiny");
  sizes.rope = LS_ROPE_NEOX;
  sizes.projectionBias = true;
  sizes.headNorms = true;
  const Recipe blocks(sizes, "q8_0");
  Case("q8_0, biases, head norms, q8 cache", blocks, LS_KV_Q8, 0.03, seed + 1).run();

  sizes = namedSizes("tiny");
  sizes.outputNorms = true;
  sizes.tied = true;
  Recipe mixed(sizes, "bf16");
  for (LsTensorDesc& tensor : mixed.tensors()) {
    if (tensor.role != LS_LAYER_MATRIX) continue;
    if (tensor.part == LS_UP || tensor.part == LS_VALUE) tensor.type = kQ8_0;
    if (tensor.part == LS_DOWN) tensor.type = kF32;
  }
  Case("mixed types, output norms, tied", mixed, LS_KV_BF16, 0.02, seed + 2).run();
  checkErrors();
  const uint64_t after = freeBytes();
  std::printf("free before %llu, after %llu\n", static_cast<unsigned long long>(before),
              static_cast<unsigned long long>(after));
  expect(after >= before, "memory was not given back");
  std::printf("%d failures\n", failures);
  return failures == 0 ? 0 : 1;
}

}  // namespace
}  // namespace longsight::cuda::test

int main(int argc, char** argv) {
  uint64_t seed = std::random_device{}();
  for (int i = 1; i + 1 < argc; i += 2) {
    if (std::strcmp(argv[i], "--seed") == 0) seed = std::strtoull(argv[i + 1], nullptr, 10);
  }
  return longsight::cuda::test::run(seed);
}
