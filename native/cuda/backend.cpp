#include "cuda/backend.h"

#include <algorithm>
#include <array>
#include <exception>

#include "cuda/session_desc.h"
#include "error.h"
#include "session/build_identity.h"
#include "session/checksum.h"

namespace longsight {
namespace {

// Segments of a chunk: what the statistics of one pass take stays small.
constexpr size_t kMostSegments = 64;

// What a callback of the library works on. Exceptions must not cross its boundary: they wait here.
struct Progress {
  const CancelFlag& cancel;
  const std::function<void(double)>& report;
  std::exception_ptr failure = nullptr;

  static int32_t proceed(void* context, double shareDone) {
    auto& self = *static_cast<Progress*>(context);
    try {
      if (self.report) self.report(shareDone);
    } catch (...) {
      self.failure = std::current_exception();
    }
    return !self.failure && !self.cancel.isSet();
  }
};

}  // namespace

template <typename Function, typename... Arguments>
bool CudaBackend::call(Function function, Arguments... arguments) const {
  LsError error{};
  LsStatus status;
  {
    const std::lock_guard turn(model_->turn());
    status = function(arguments..., &error);
  }
  if (status == LS_CANCELLED) return false;
  checkCuda(status, error);
  return true;
}

CudaBackend::CudaBackend(std::shared_ptr<CudaModel> model, const SessionOptions& options,
                         int64_t capacityRows)
    : model_(std::move(model)), options_(options), capacityRows_(capacityRows) {
  const CudaSessionDesc desc(spec(), options_, capacityRows, SampleAttentionParams{},
                             options_.chunkRows);
  call(api().sessionCreate, model_->handle(), desc.get(), &session_);
  chunkRows_ = deviceMemory().chunkRows;
}

CudaBackend::~CudaBackend() {
  const std::lock_guard turn(model_->turn());
  api().sessionDestroy(session_);
}

MemoryEstimate CudaBackend::estimate(const ModelSpec& spec, const LsDevice& device,
                                     CudaModel* loaded, const SessionOptions& options,
                                     const SampleAttentionParams& params) {
  const int64_t wanted = options.contextTokens > 0 ? options.contextTokens : spec.contextTokens;
  const CudaModelDesc model(spec, device.ordinal);
  CudaSessionDesc session(spec, options, wanted, params, options.chunkRows);
  auto estimate = [&](int64_t rows) {
    session.setCapacity(rows);
    LsMemory memory{};
    if (loaded) {
      const std::lock_guard turn(loaded->turn());
      callCuda(loaded->library()->sessionEstimate, loaded->handle(), session.get(), &memory);
    } else {
      callCuda(CudaLibrary::get()->estimateMemory, model.get(), session.get(), &memory);
    }
    return memory;
  };
  LsMemory memory = estimate(wanted);
  const int64_t largest = std::min(memory.largestContextRows, spec.contextTokens);
  MemoryEstimate result;
  result.contextTokens = wanted;
  if (options.contextTokens == 0 && !memory.fits && largest > 0) {
    memory = estimate(largest);
    result.contextTokens = largest;
  }
  result.weightBytes = memory.weightBytes;
  result.kvBytes = memory.kvBytes;
  result.scratchBytes = memory.scratchBytes;
  result.fixedBytes = memory.fixedBytes;
  result.availableBytes = memory.freeBytes + (loaded ? memory.weightBytes : 0);
  result.fits = memory.fits != 0;
  result.largestContextTokens = largest;
  return result;
}

Backend::Chunking CudaBackend::chunking() const { return {chunkRows_, kMostSegments, chunkRows_}; }

bool CudaBackend::forward(const Chunk& chunk, const CancelFlag& cancel,
                          std::vector<SegmentAttention>& attention) {
  if (chunk.curves)
    throw Error(ErrorCode::invalidParams, "The CUDA backend does not measure epsilons by head.",
                "Calibrate with the CPU backend; the result holds for both.");
  const auto layers = static_cast<size_t>(spec().layers), heads = static_cast<size_t>(spec().heads);
  std::vector<LsSegment> segments;
  bool isSparse = false;
  for (const Segment& segment : chunk.segments) {
    segments.push_back(
        {segment.begin, segment.end, segment.dense, segment.stride, segment.windowTokens});
    isSparse = isSparse || !segment.dense;
  }
  const auto auditRows = static_cast<size_t>(chunk.params->auditRows);
  std::vector<LsHeadStats> stats(isSparse ? layers * segments.size() * heads : 0);
  std::vector<float> coverage(stats.size() * auditRows, -1.0f);

  Progress progress{cancel, chunk.onProgress};
  LsForward forward{};
  forward.tokens = chunk.tokens.data();
  forward.segments = segments.data();
  forward.segmentCount = static_cast<int32_t>(segments.size());
  forward.params = cudaParams(*chunk.params, spec().rope, spec().headDim);
  forward.outputBegin = chunk.outputBegin;
  forward.states = chunk.outputBegin < chunk.end() ? chunk.states : nullptr;
  forward.stats = stats.empty() ? nullptr : stats.data();
  forward.coverage = coverage.empty() ? nullptr : coverage.data();
  forward.forcedDensity = chunk.forcedDensity.value_or(-1.0);
  forward.proceed = &Progress::proceed;
  forward.context = &progress;
  const bool finished =
      call(api().sessionForward, session_, static_cast<const LsForward*>(&forward));
  if (progress.failure) std::rethrow_exception(progress.failure);
  if (!finished) return false;
  collect(chunk, stats, coverage, attention);
  if (chunk.onProgress) chunk.onProgress(1.0);
  return true;
}

void CudaBackend::collect(const Chunk& chunk, std::span<const LsHeadStats> stats,
                          std::span<const float> coverage,
                          std::vector<SegmentAttention>& attention) const {
  const auto layers = static_cast<size_t>(spec().layers), heads = static_cast<size_t>(spec().heads);
  const auto auditRows = static_cast<size_t>(chunk.params->auditRows);
  const size_t count = chunk.segments.size();
  attention.assign(count, SegmentAttention(layers));
  if (stats.empty()) return;
  for (size_t layer = 0; layer < layers; ++layer)
    for (size_t segment = 0; segment < count; ++segment) {
      const size_t place = layer * count + segment;
      const std::span made = stats.subspan(place * heads, heads);
      const bool isComputed = std::any_of(
          made.begin(), made.end(), [](const LsHeadStats& head) { return head.causalPairs > 0; });
      if (chunk.segments[segment].dense || !isComputed) continue;
      for (size_t head = 0; head < heads; ++head) {
        HeadAttention result{made[head].keptPairs,
                             made[head].causalPairs,
                             made[head].listLength,
                             made[head].dense != 0,
                             {}};
        for (size_t row = 0; row < auditRows; ++row)
          if (const float share = coverage[(place * auditRows + row) * heads + head]; share >= 0)
            result.coverage.push_back(share);
        attention[segment][layer].push_back(std::move(result));
      }
    }
}

bool CudaBackend::step(std::span<const int32_t> tokens, int64_t position, float* logits,
                       const CancelFlag& cancel) {
  static_assert(kMostStepRows == LS_MOST_STEP_ROWS);
  return !cancel.isSet() && call(api().sessionStep, session_, position, tokens.data(),
                                 static_cast<int32_t>(tokens.size()), logits);
}

bool CudaBackend::logits(const float* states, int64_t rows, float* out, const CancelFlag& cancel) {
  const std::function<void(double)> silent;
  Progress progress{cancel, silent};
  return !cancel.isSet() && call(api().sessionLogits, session_, states, rows, out,
                                 &Progress::proceed, static_cast<void*>(&progress));
}

Backend::Speed CudaBackend::probe(int64_t usedRows, const CancelFlag& cancel) {
  LsSpeed speed{};
  {
    // Rows that the session has forgotten are room for the probe.
    const std::lock_guard turn(model_->turn());
    api().sessionTruncate(session_, usedRows);
  }
  if (!cancel.isSet()) call(api().sessionProbe, session_, &speed);
  return {speed.linearMsPerRow, speed.attentionMsPerPair};
}

LsMemory CudaBackend::deviceMemory() const {
  LsMemory memory{};
  call(api().sessionMemory, session_, &memory);
  return memory;
}

MemoryUse CudaBackend::memory() const {
  const LsMemory memory = deviceMemory();
  return {memory.weightBytes, memory.kvBytes, memory.scratchBytes, memory.fixedBytes,
          model_->peakBytes(memory.freeBytes)};
}

Backend::ScratchNeed CudaBackend::scratchFor(const SampleAttentionParams& params,
                                             int64_t segmentRows) {
  const LsMemory held = deviceMemory();
  const CudaSessionDesc desc(spec(), options_, capacityRows_, params,
                             std::max(segmentRows, chunkRows_));
  LsMemory estimate{};
  call(api().sessionEstimate, model_->handle(), desc.get(), &estimate);
  return {estimate.scratchBytes, held.freeBytes + held.scratchBytes};
}

ForwardTimes CudaBackend::times() const {
  LsTimes times{};
  {
    const std::lock_guard turn(model_->turn());
    api().sessionTimes(session_, &times);
  }
  ForwardTimes result;
  result.linearMs = times.linearMs;
  result.expandMs = times.expandMs;
  result.restMs = times.pointwiseMs + times.restMs;
  result.sampleMs = times.stage1Ms;
  result.listMs = times.stage2Ms;
  result.attendMs = times.stage3Ms;
  result.auditMs = times.auditMs;
  result.attentionMs = times.stage1Ms + times.stage2Ms + times.stage3Ms + times.auditMs;
  return result;
}

uint64_t CudaBackend::identity() const {
  const std::array<uint64_t, 3> parts{buildIdentity(), model_->library().identity(),
                                      static_cast<uint64_t>(model_->device().computeCapability)};
  return checksum64(std::as_bytes(std::span(parts)), parts.size());
}

std::vector<uint64_t> CudaBackend::planeRowBytes() const {
  const std::lock_guard turn(model_->turn());
  std::vector<int64_t> bytes(static_cast<size_t>(api().sessionPlanes(session_, nullptr, 0)));
  api().sessionPlanes(session_, bytes.data(), static_cast<int32_t>(bytes.size()));
  return {bytes.begin(), bytes.end()};
}

void CudaBackend::readRows(size_t plane, int64_t first, int64_t rows, std::byte* target) const {
  call(api().sessionReadRows, session_, static_cast<int32_t>(plane), first, rows,
       static_cast<void*>(target));
}

void CudaBackend::writeRows(size_t plane, int64_t first, int64_t rows, const std::byte* source) {
  call(api().sessionWriteRows, session_, static_cast<int32_t>(plane), first, rows,
       static_cast<const void*>(source));
}

void CudaBackend::filled(int64_t rows) { call(api().sessionRestored, session_, rows); }

}  // namespace longsight
