// SampleAttention on a CUDA device: the launchers of stages 1 to 3, audit and decode.
// docs/sample-attention.md defines what they compute, docs/kernels.md draws the index structures.
//
// Every launcher only enqueues work on the caller's stream and current device: it never
// synchronises, allocates or copies, so a sequence of them can be captured into a graph. It returns
// cudaErrorInvalidValue when validate() finds fault with its arguments, otherwise the launch's
// error.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <span>
#include <string>

#include "attention/geometry.h"
#include "attention/params.h"
#include "attention/plan.h"
#include "attention/score_dims.h"
#include "cpu/kv_rows.h"
#include "path.h"

namespace longsight::cuda {

enum class Element { bf16, f16 };

// How keys and values are stored: like the queries, or as the q8 of KvType, with integers and
// scales in matrices of their own so that 16 bytes of either start at multiples of 16.
enum class KvStorage { element, q8 };
LONGSIGHT_HOST_DEVICE constexpr int32_t q8Blocks(int32_t headDim) {
  return (headDim + kQ8Block - 1) / kQ8Block;
}

// What policy `peak` scores with: the cache's elements, or int8 with scales (for logits of ordinary
// size: see docs/kernels.md).
enum class ScoreNumbers { stored, int8 };

struct HeadShape {
  int32_t heads = 0;
  // Divides heads; heads / kvHeads <= 16.
  int32_t kvHeads = 0;
  // 64, 80, 96, 128 or 256.
  int32_t headDim = 0;
  // Of queries and output; what is stored as q8 is rounded to it before it is multiplied.
  Element element = Element::bf16;
  KvStorage storage = KvStorage::element;
};
// Empty when there are kernels for the shape; else one sentence with the value and the rule.
std::string validateShape(const HeadShape& shape);

// The parameters of SampleAttentionParams that the kernels need; values as the specification
// defines them.
struct SparseOptions {
  // peak or mass; a dense segment says so itself.
  Policy policy = Policy::peak;
  double alpha = 0.95;
  double epsilon = 0.003;
  // Policy `peak`: [head] on the device, in place of `epsilon`; 0 <= value < 1. Null: `epsilon` for
  // all heads.
  const float* headEpsilons = nullptr;
  DimRanges scoreDims;
  ScoreNumbers scoreNumbers = ScoreNumbers::stored;
  int32_t sinkTokens = 16;
  double maxListShare = 0.6;
  int32_t auditRows = 8;
};

// One layer of one prefill chunk. Device pointers, 16-byte aligned.
struct Tensors {
  // [row - chunk begin][head][headDim], after RoPE.
  const void* queries = nullptr;
  // [kvHead][capacityRows][headDim]; rows [0, chunk end) are filled. Later rows are never read.
  // Elements, or int8_t when stored as q8.
  const void* keys = nullptr;
  const void* values = nullptr;
  // Only q8: fp16 [kvHead][capacityRows][q8Blocks(headDim)]. A value is its integer times this.
  const void* keyScales = nullptr;
  const void* valueScales = nullptr;
  // A multiple of 8 with q8, so that the scales of 16 rows start at a multiple of 16 bytes.
  int64_t capacityRows = 0;
  // Like queries; every element of the chunk's rows is written.
  void* output = nullptr;
  // Natural logarithm of each row's softmax sum over what it attends to, [head][row - chunk begin].
  float* logSumExp = nullptr;
  // Usually 1 / sqrt(headDim).
  float scale = 0.0f;
};

// What one (segment, head) kept; [segment][head] on the device.
struct HeadStats {
  int64_t keptPairs;
  int64_t causalPairs;
  // Columns of the list without the sinks; what stage 2 found, also where the head fell back.
  int32_t listLength;
  // 1 when the segment is dense or the list was longer than maxListShare allows.
  int32_t dense;
};

inline constexpr int32_t kMaxChunkSegments = 64;

// The chunk: consecutive segments without gaps, at most kMaxChunkSegments.
struct Chunk {
  std::span<const Segment> segments;
  HeadShape shape;
  SparseOptions options;
};

// Empty when the launchers can run the chunk; else one sentence with the value and the rule.
std::string validate(const Chunk& chunk);

// Bytes of the workspace that the launchers below share: a pure function of the shapes.
int64_t workspaceBytes(const Chunk& chunk);

// Where things lie in the workspace, for tests and statistics; byte offsets.
struct WorkspaceOffsets {
  int64_t masses;    // policy `mass`: float [segment][head][columns]
  int64_t votes;     // bit masks, uint32 [segment][head][columns / 32]
  int64_t stats;     // HeadStats [segment][head]
  int64_t indices;   // int32 lists, sinks first
  int64_t before;    // int32 [segment][head][128-blocks + 1]
  int64_t coverage;  // float [segment][auditRows][head], -1 where there is no audit row
  // First word of a mask, from votes; 32 times that is the first of the masses.
  int64_t maskWords(int32_t segment, int32_t head) const;
  int64_t listBegin(int32_t segment, int32_t head) const;    // first entry, from indices
  int64_t countsBegin(int32_t segment, int32_t head) const;  // first entry, from before
  int64_t segmentMaskWords[kMaxChunkSegments];
  int64_t segmentLists[kMaxChunkSegments];
  int64_t segmentCounts[kMaxChunkSegments];
  int64_t maskStride[kMaxChunkSegments];
  int64_t listStride[kMaxChunkSegments];
  int64_t countStride[kMaxChunkSegments];
};
WorkspaceOffsets workspaceOffsets(const Chunk& chunk);

// Keys and values of the chunk's columns, stored as q8, to elements in the workspace, where the
// launchers of stages 1 and 3 and the audit look for them. Needed before those when the shape is
// stored as q8, does nothing otherwise.
cudaError_t launchDequantize(const Chunk& chunk, const Tensors& tensors, void* workspace,
                             cudaStream_t stream);

// Stage 1. Policy `peak`: which remote columns reach epsilon, as bit masks in the workspace. Policy
// `mass`: the probability that the voters give to each remote column.
cudaError_t launchSample(const Chunk& chunk, const Tensors& tensors, void* workspace, Path path,
                         cudaStream_t stream);

// Stage 2: masses to masks, masks to sorted lists and counts, statistics, dense fall-back, order of
// the tiles.
cudaError_t launchColumnLists(const Chunk& chunk, void* workspace, cudaStream_t stream);

// Stage 3: attention over window, sinks and lists; dense segments attend to all columns <= row.
// Needs launchColumnLists first, also when every segment is dense.
cudaError_t launchAttend(const Chunk& chunk, const Tensors& tensors, void* workspace, Path path,
                         cudaStream_t stream);

// Coverage of the audit rows; needs the logSumExp that launchAttend wrote.
cudaError_t launchAudit(const Chunk& chunk, const Tensors& tensors, void* workspace,
                        cudaStream_t stream);

// All of it, in order.
cudaError_t launchPrefill(const Chunk& chunk, const Tensors& tensors, void* workspace, Path path,
                          cudaStream_t stream);

// Dense attention of a few rows over a long cache, split over the keys.
struct DecodeTask {
  HeadShape shape;
  // Row i is at absolute position firstRow + i and sees columns <= that; 1 to 16 rows.
  int64_t firstRow = 0;
  // Where the position of row 0 is read when the kernels run, so that one graph serves all
  // positions; null: firstRow is it. firstRow then is the greatest that it may hold, and alone says
  // how large grid and workspace are.
  const int32_t* firstRowOnDevice = nullptr;
  int32_t rows = 0;
  Tensors tensors;
};
std::string validate(const DecodeTask& task);
int64_t decodeWorkspaceBytes(const DecodeTask& task);
cudaError_t launchDecode(const DecodeTask& task, void* workspace, cudaStream_t stream);

// Rows that a forward pass has made, to be stored as q8: keys or values, not both.
struct QuantizeTask {
  // heads is not used.
  HeadShape shape;
  // Elements [row][kvHead][headDim].
  const void* source = nullptr;
  int64_t rows = 0;
  // Written at rows [firstRow, firstRow + rows) of [kvHead][capacityRows][...], as in Tensors.
  void* values = nullptr;
  void* scales = nullptr;
  int64_t firstRow = 0;
  int64_t capacityRows = 0;
};
std::string validate(const QuantizeTask& task);
// The scale of a block is the least fp16 number that takes its largest value to 127 or below.
cudaError_t launchQuantizeRows(const QuantizeTask& task, cudaStream_t stream);

}  // namespace longsight::cuda
