// What a session needs of whatever computes: a KV cache and a model over it. The session decides
// which rows are computed and what they are; a backend is free to fuse, chunk and schedule inside.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "attention/epsilon_curves.h"
#include "attention/head_attention.h"
#include "attention/params.h"
#include "attention/plan.h"
#include "cpu/cancel_flag.h"
#include "session/cache_rows.h"

namespace longsight {

enum class BackendKind { cpu, cuda };

// Where the time of forward passes went, in milliseconds.
struct ForwardTimes {
  // Matrix products, and on the CPU what stands between them.
  double linearMs = 0;
  double attentionMs = 0;
  // The rest: what stands between, where it is told apart.
  double restMs = 0;
  // Turning weights into what products read; part of none of the others.
  double expandMs = 0;
  // Parts of attentionMs; zero where a backend does not tell them apart: scores of the voters,
  // column lists, attention itself, audit rows.
  double sampleMs = 0;
  double listMs = 0;
  double attendMs = 0;
  double auditMs = 0;

  ForwardTimes operator-(const ForwardTimes& earlier) const {
    return {linearMs - earlier.linearMs, attentionMs - earlier.attentionMs, restMs - earlier.restMs,
            expandMs - earlier.expandMs, sampleMs - earlier.sampleMs,       listMs - earlier.listMs,
            attendMs - earlier.attendMs, auditMs - earlier.auditMs};
  }
};

struct MemoryUse {
  uint64_t weightBytes = 0;
  uint64_t kvBytes = 0;
  uint64_t scratchBytes = 0;
  // What a driver and its kernels take on a GPU, whatever the model.
  uint64_t fixedBytes = 0;
  // Most of a GPU's memory that was taken since the weights came, as the driver counts.
  std::optional<uint64_t> peakBytes;
};

class Backend : public CacheRows {
 public:
  // Consecutive segments that go through all layers together.
  struct Chunk {
    std::span<const Segment> segments;
    // One a row.
    std::span<const int32_t> tokens;
    const SampleAttentionParams* params = nullptr;
    // First row whose final state is wanted; the end of the chunk = none. The last layer computes
    // keys and values for all rows, the rest for these only.
    int64_t outputBegin = 0;
    // Final states after the output norm, f32 [row - outputBegin][embedding].
    float* states = nullptr;
    // Where sparse segments under policy peak are measured; null: nowhere. Throws Error
    // invalidParams where canMeasure() is false.
    EpsilonCurves* curves = nullptr;
    // Columns are chosen and timed as ever, then replaced by random lists of this density
    // (attention/drawn_lists.h). For measurements with weights that have no structure.
    std::optional<double> forcedDensity;
    // Called on this thread with the share of the chunk's work that is done, 0 to 1.
    std::function<void(double)> onProgress;

    int64_t begin() const { return segments.front().begin; }
    int64_t end() const { return segments.back().end; }
  };

  // How a prefill is cut: into chunks of at most `rows` rows and `segments` segments, where a
  // single longer segment is a chunk of its own; dense rows come in pieces of at most `denseRows`.
  // A cancel loses at most the chunk that was being computed.
  struct Chunking {
    int64_t rows = 0;
    size_t segments = 1;
    int64_t denseRows = 0;
  };
  virtual Chunking chunking() const = 0;

  // Rows before the chunk must be in the cache; `attention` gets an entry a segment. False when
  // cancelled: rows of the chunk are then undefined, everything before is untouched.
  virtual bool forward(const Chunk& chunk, const CancelFlag& cancel,
                       std::vector<SegmentAttention>& attention) = 0;

  // Rows that step() takes at most.
  static constexpr size_t kMostStepRows = 8;
  // Rows [position, position + tokens.size()), dense, for decoding: their logits, f32
  // [row][vocabulary]. A row's logits do not depend on the rows after it but for rounding. False
  // when cancelled.
  virtual bool step(std::span<const int32_t> tokens, int64_t position, float* logits,
                    const CancelFlag& cancel) = 0;

  // Logits f32 [rows][vocabulary] of final states [rows][embedding]. False when cancelled.
  virtual bool logits(const float* states, int64_t rows, float* out, const CancelFlag& cancel) = 0;

  // Time of one layer's linear work a row and of dense attention a (row, column, head) pair, in
  // milliseconds, from a small slice of real work; zero when cancelled or where nothing is left to
  // predict. The cache is read, never written below `usedRows`.
  struct Speed {
    double linearMsPerRow = 0;
    double attentionMsPerPair = 0;
  };
  virtual Speed probe(int64_t usedRows, const CancelFlag& cancel) = 0;

  virtual int64_t capacityRows() const = 0;
  virtual MemoryUse memory() const = 0;
  // Scratch memory for a sparse segment of this many rows, and what there is for it.
  struct ScratchNeed {
    uint64_t neededBytes = 0;
    uint64_t availableBytes = 0;
  };
  virtual ScratchNeed scratchFor(const SampleAttentionParams& params, int64_t segmentRows) = 0;
  // Since construction.
  virtual ForwardTimes times() const = 0;

  virtual BackendKind kind() const = 0;
  // Of the GPU; empty for the processor.
  virtual std::string deviceName() const = 0;
  // Forward fills Chunk::curves.
  virtual bool canMeasure() const = 0;
  // The same for the same code on the same kind of processor or device.
  virtual uint64_t identity() const = 0;
};

inline const char* backendName(BackendKind kind) {
  return kind == BackendKind::cuda ? "cuda" : "cpu";
}

}  // namespace longsight
