#include "cuda/engine/session.h"

#include <algorithm>
#include <string>

#include "cuda/engine/forward_pass.h"

namespace longsight::cuda {
namespace {

// Floating point operations a second of one multiprocessor, about: only until something is
// measured.
constexpr double kFlopPerProcessor = 2e12;
constexpr double kPairFlop = 4;
constexpr int64_t kProbeRows = 2048;
// Of the first pass: so many rows of each kind, of which the sparse ones have remote columns.
constexpr int64_t kWarmRows = 256;
constexpr int32_t kWarmStride = 8;
// Of a pass that is enqueued whole.
constexpr size_t kMarksOfLayer = 20;

SessionPlan planOn(Model& model, const LsSessionDesc& desc) {
  use(model.device());
  // What they are staged in is free then.
  model.finishUploads();
  checkSession(model.plan(), desc);
  const DeviceBytes device = deviceBytes();
  SessionPlan plan = planSession(model.plan(), desc, device.free);
  if (plan.bytes() + kKernelBytes > device.free)
    throw outOfMemory(model.plan(), desc, plan, device);
  return plan;
}

}  // namespace

Failure outOfMemory(const ModelPlan& model, const LsSessionDesc& desc, const SessionPlan& plan,
                    const DeviceBytes& device) {
  const int64_t largest = largestContextRows(model, desc, device.free);
  return {LS_OUT_OF_MEMORY,
          "A context of " + std::to_string(desc.capacityRows) + " tokens needs " +
              std::to_string(plan.kv.bytes) + " bytes of GPU memory for the cache and " +
              std::to_string(plan.scratchBytes()) + " for scratch, but " +
              std::to_string(device.free) + " of " + std::to_string(device.total) + " are free.",
          largest > 0 ? "Use a context of at most " + std::to_string(largest) + " tokens" +
                            (plan.kv.isQ8() ? "." : ", or the KV cache type q8.")
                      : "Use a smaller model or quantization, or close other programs that use "
                        "the GPU.",
          largest};
}

Session::Session(Model& model, const LsSessionDesc& desc)
    : model_(model),
      capacityRows_(desc.capacityRows),
      rope_(desc.rope),
      plan_(planOn(model, desc)),
      kv_(plan_.kv.bytes),
      scratch_(plan_.scratch.bytes),
      step_(plan_.step.bytes),
      transfer_(stream_),
      clock_(stream_, kMarksOfLayer * static_cast<size_t>(model.shape().layers)) {
  rope_.frequencies = nullptr;
  transfer_.toDevice(step_.data() + plan_.step.frequencies, desc.rope.frequencies,
                     static_cast<uint64_t>(desc.rope.rotatedDims / 2) * sizeof(double));
  check(cudaMemsetAsync(step_.data() + plan_.step.productWorkspace, 0,
                        plan_.step.productWorkspaceBytes, stream_),
        "Clearing the workspace");
  warmUp(desc.params);
  int processors = 0;
  check(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, model.device()),
        "Reading the GPU's properties");
  const double msPerFlop = 1e3 / (kFlopPerProcessor * processors);
  clock_.expect(Part::linear, msPerFlop);
  clock_.expect(Part::stage3, kPairFlop * model.shape().headDim * msPerFlop);
}

void Session::warmUp(const LsAttentionParams& params) {
  const int64_t most = std::min(capacityRows_, plan_.scratch.rows);
  const int64_t dense = std::min(kWarmRows, most);
  const bool sparse = params.policy != LS_POLICY_DENSE && most >= 2 * kWarmRows;
  const LsSegment segments[] = {{0, dense, 1, 0, 0},
                                {dense, dense + kWarmRows, 0, kWarmStride, kTileRows}};
  const std::vector<int32_t> tokens(2 * kWarmRows, 0);
  std::vector<float> state(static_cast<size_t>(model_.shape().embedding)),
      logits(static_cast<size_t>(model_.shape().vocabulary));
  const size_t pairs =
      static_cast<size_t>(model_.shape().layers) * 2 * static_cast<size_t>(model_.shape().heads);
  std::vector<LsHeadStats> stats(pairs);
  std::vector<float> coverage(pairs * static_cast<size_t>(params.auditRows));
  LsForward request{};
  request.tokens = tokens.data();
  request.segments = segments;
  request.segmentCount = sparse ? 2 : 1;
  request.params = params;
  const int64_t end = segments[request.segmentCount - 1].end;
  request.outputBegin = end - 1;
  request.states = state.data();
  request.stats = stats.data();
  request.coverage = coverage.data();
  request.forcedDensity = -1;
  forward(request);
  step(end - 1, tokens.data(), 1, logits.data());
  truncate(0);
  // The clock has learned how long it takes to load kernels.
  clock_.forget();
  stepMs_ = 0;
}

Session::~Session() {
  cudaSetDevice(model_.device());
  cudaStreamSynchronize(stream_);
  for (cudaGraphExec_t graph : graphs_) {
    if (graph != nullptr) cudaGraphExecDestroy(graph);
  }
}

Session::Layer Session::layer(int32_t index) const {
  const KvPlan& kv = plan_.kv;
  const auto at = static_cast<uint64_t>(index);
  char* base = kv_.data();
  Layer layer{base + kv.keys + at * kv.layerBytes(), base + kv.values + at * kv.layerBytes(),
              nullptr, nullptr};
  if (kv.isQ8()) {
    layer.keyScales = base + kv.keyScales + at * kv.layerScaleBytes();
    layer.valueScales = base + kv.valueScales + at * kv.layerScaleBytes();
  }
  return layer;
}

RopeTable Session::ropeTable() const {
  return {rope_.style == LS_ROPE_NEOX ? RopeStyle::neox : RopeStyle::interleaved, rope_.rotatedDims,
          stepPart<double>(plan_.step.frequencies), static_cast<float>(rope_.magnitude)};
}

void Session::reserveScratch(int64_t rows, uint64_t attentionWorkspaceBytes) {
  const ScratchPlan& old = plan_.scratch;
  if (rows <= old.rows && attentionWorkspaceBytes <= old.attentionWorkspaceBytes &&
      scratch_.data() != nullptr)
    return;
  const ScratchPlan plan =
      planScratch(model_.plan(), std::max(rows, old.rows),
                  std::max(attentionWorkspaceBytes, old.attentionWorkspaceBytes));
  const uint64_t before = old.bytes;
  scratch_ = DeviceBlock();
  const DeviceBytes device = deviceBytes();
  if (plan.bytes > device.free) {
    scratch_ = DeviceBlock(before);
    throw Failure{LS_OUT_OF_MEMORY,
                  "A pass of " + std::to_string(rows) + " rows needs " +
                      std::to_string(plan.bytes) + " bytes of scratch, but " +
                      std::to_string(device.free) + " of " + std::to_string(device.total) +
                      " are free.",
                  "Use fewer files, shorter segments or a smaller context.", 0};
  }
  scratch_ = DeviceBlock(plan.bytes);
  plan_.scratch = plan;
}

void Session::forward(const LsForward& request) {
  use(model_.device());
  ForwardPass pass(*this, request);
  reserveScratch(pass.rows(), pass.leastWorkspaceBytes());
  // Rows that are replaced count as gone, whatever comes of the pass.
  rows_ = pass.begin();
  try {
    pass.run(model_.shape().layers);
  } catch (...) {
    clock_.abandon();
    throw;
  }
  rows_ = pass.end();
}

LsSpeed Session::probe() {
  use(model_.device());
  const int64_t begin = rows_;
  const int64_t count = std::min({kProbeRows, capacityRows_ - begin, plan_.scratch.rows});
  LsSpeed speed{};
  if (count <= 0 || model_.shape().layers < 2) return speed;
  const std::vector<int32_t> tokens(static_cast<size_t>(count), 0);
  const LsSegment segment{begin, begin + count, 1, 0, 0};
  LsForward request{};
  request.tokens = tokens.data();
  request.segments = &segment;
  request.segmentCount = 1;
  request.params.policy = LS_POLICY_DENSE;
  request.params.alpha = 1;
  request.params.maxListShare = 1;
  request.outputBegin = begin + count;
  request.forcedDensity = -1;
  const auto totals = clock_.totals();
  std::array<double, kParts> spent{};
  // The second run counts: kernels are loaded then, and the clock is up.
  for (int run = 0; run < 2; ++run) {
    ForwardPass pass(*this, request);
    reserveScratch(pass.rows(), pass.leastWorkspaceBytes());
    const auto before = clock_.totals();
    try {
      pass.run(2);
    } catch (...) {
      clock_.abandon();
      clock_.setTotals(totals);
      throw;
    }
    for (size_t part = 0; part < kParts; ++part) spent[part] = clock_.totals()[part] - before[part];
  }
  clock_.setTotals(totals);
  const auto of = [&](Part part) { return spent[static_cast<size_t>(part)]; };
  const double pairs = static_cast<double>(causalPairCount(begin, begin + count));
  speed.linearMsPerRow =
      (of(Part::linear) + of(Part::expand) + of(Part::pointwise)) / static_cast<double>(count);
  speed.attentionMsPerPair = of(Part::stage3) / (pairs * model_.shape().heads);
  return speed;
}

void Session::restored(int64_t rows) {
  if (rows < 0 || rows > capacityRows_)
    throw invalid(std::to_string(rows) + " restored rows in a cache of " +
                  std::to_string(capacityRows_) + ".");
  rows_ = rows;
}

int32_t Session::planes() const {
  return plan_.kv.layers * plan_.kv.shape.kvHeads * (plan_.kv.isQ8() ? 4 : 2);
}

int64_t Session::planeRowBytes(int32_t index) const {
  const int32_t side = plan_.kv.layers * plan_.kv.shape.kvHeads;
  return index < 2 * side ? plan_.kv.dataRowBytes() : plan_.kv.scaleRowBytes();
}

char* Session::plane(int32_t index) const {
  const KvPlan& kv = plan_.kv;
  const int32_t side = kv.layers * kv.shape.kvHeads;
  const uint64_t parts[] = {kv.keys, kv.values, kv.keyScales, kv.valueScales};
  return kv_.data() + parts[index / side] +
         static_cast<uint64_t>(index % side * kv.capacityRows * planeRowBytes(index));
}

void Session::checkPlane(int32_t index, int64_t firstRow, int64_t count, const void* data,
                         int64_t limit) const {
  if (index < 0 || index >= planes() || firstRow < 0 || count < 0 || firstRow + count > limit ||
      (count > 0 && data == nullptr))
    throw invalid("Rows [" + std::to_string(firstRow) + ", " + std::to_string(firstRow + count) +
                  ") of plane " + std::to_string(index) + " are outside " +
                  std::to_string(planes()) + " planes of " + std::to_string(limit) +
                  " rows, or there is no data.");
}

void Session::readRows(int32_t index, int64_t firstRow, int64_t count, void* data) {
  checkPlane(index, firstRow, count, data, rows_);
  use(model_.device());
  const int64_t rowBytes = planeRowBytes(index);
  transfer_.toHost(data, plane(index) + firstRow * rowBytes,
                   static_cast<uint64_t>(count * rowBytes));
}

void Session::writeRows(int32_t index, int64_t firstRow, int64_t count, const void* data) {
  checkPlane(index, firstRow, count, data, capacityRows_);
  use(model_.device());
  const int64_t rowBytes = planeRowBytes(index);
  transfer_.toDevice(plane(index) + firstRow * rowBytes, data,
                     static_cast<uint64_t>(count * rowBytes));
}

LsTimes Session::times() const {
  const auto& totals = clock_.totals();
  const auto of = [&](Part part) { return totals[static_cast<size_t>(part)]; };
  return {of(Part::linear), of(Part::expand), of(Part::pointwise), of(Part::stage1),
          of(Part::stage2), of(Part::stage3), of(Part::audit),     of(Part::rest),
          stepMs_,          logitsMs_};
}

LsMemory Session::memory() const {
  use(model_.device());
  const DeviceBytes device = deviceBytes();
  LsMemory memory{};
  memory.weightBytes = model_.weightBytes();
  memory.kvBytes = kv_.bytes();
  memory.scratchBytes = scratch_.bytes() + step_.bytes();
  memory.fixedBytes = kKernelBytes;
  memory.freeBytes = device.free;
  memory.totalBytes = device.total;
  memory.chunkRows = plan_.scratch.rows;
  memory.fits = 1;
  return memory;
}

}  // namespace longsight::cuda
