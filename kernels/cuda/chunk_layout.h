// The chunk as the kernels see it: passed by value, so that planning never touches device memory.
#pragma once

#include <cstdint>

#include "attention/geometry.h"
#include "device_traits.h"
#include "sample_attention.h"

namespace longsight::cuda {

// Rows and columns fit 32 bits; every product with a stride is taken in 64 bits.
struct SegmentLayout {
  int32_t begin;
  int32_t end;
  int32_t stride;  // 0: dense
  int32_t windowTokens;
  int32_t tiles;         // 128-row tiles that hold a row of the segment
  int32_t firstTileRow;  // floor128(begin) where windows start by tile; begin of a dense segment
  int32_t voters;
  int32_t blocks;        // 128-column blocks of [0, end)
  int32_t remoteBlocks;  // blocks that are remote to at least one row of the segment
  int32_t listCapacity;  // entries of one list
  int64_t maskBegin;     // uint32 words
  int64_t listBegin;     // entries
  int64_t countBegin;    // entries; blocks + 1 a head
  int64_t voterBegin;    // voter values; `voters` a head
};

struct ChunkLayout {
  int32_t segmentCount;
  int32_t begin;
  int32_t end;
  int32_t heads;
  int32_t kvHeads;
  int32_t group;  // heads / kvHeads
  int32_t sinkTokens;
  int32_t auditRows;
  int32_t auditSplitColumns;  // that a block of the audit takes
  int32_t maxTiles;           // most tiles of a segment
  bool allDense;  // then units are taken from the last backwards, which is most work first
  // Parts into which stage 3 splits the columns of every tile: 1, or more where there are too few
  // tiles to fill a device, all of them dense.
  int32_t columnSplits;
  double maxListShare;
  SegmentLayout segments[kMaxChunkSegments];
};

// Pointers into the workspace.
struct Workspace {
  uint32_t* votes;
  // [segment][head][voter]. Policy `peak`: the smallest raw score that reaches epsilon; `mass`: the
  // log sum over all columns that the row sees, in units of log2.
  float* voterValues;
  float* masses;  // policy `mass`: c_j, [segment][head][column]; begins at 32 * maskBegin
  // int8 scores: [kvHead][row][score dims], [kvHead][128-block] and, like the voter values,
  // [score dims] each.
  int8_t* quantizedKeys;
  float* keyScales;
  int8_t* quantizedVoters;
  HeadStats* stats;
  int32_t* indices;
  int32_t* before;
  int32_t* unitOrder;    // (segment * kvHeads + kvHead), most work first
  float2* auditPartial;  // (maximum, sum) by [key split][packed audit row]
  float* coverage;
  // Only with column splits, [split][row][head][headDim], and (maximum,
  // sum) [split][row][head].
  float* partialOutputs;
  float2* partialSums;
  // Only with a q8 cache: the chunk's columns as elements, [kvHead][chunk end][headDim].
  void* keys;
  void* values;
};

struct WorkspacePlan {
  ChunkLayout layout;
  int64_t bytes;
  int64_t votes, voterValues, masses, quantizedKeys, keyScales, quantizedVoters, stats, indices,
      before, unitOrder, auditPartial, coverage, partialOutputs, partialSums, keys, values;

  Workspace at(void* base) const;
};

WorkspacePlan planWorkspace(const Chunk& chunk);

// Remote blocks of the segment that has most.
int32_t mostRemoteBlocks(const ChunkLayout& layout);

// The kernels' launchers, one for each implementation.
struct LaunchContext {
  const ChunkLayout& layout;
  const Chunk& chunk;
  const Tensors& tensors;
  Workspace workspace;
  DeviceTraits device;
  cudaStream_t stream;
};
cudaError_t launchCacheToElements(const LaunchContext& context, const Tensors& stored);
cudaError_t launchAnchors(const LaunchContext& context);
cudaError_t launchQuantize(const LaunchContext& context);
cudaError_t launchVotesMmaSync(const LaunchContext& context);
cudaError_t launchVotesWgmma(const LaunchContext& context);
cudaError_t launchMassesMmaSync(const LaunchContext& context);
cudaError_t launchMassesWgmma(const LaunchContext& context);
// Log sums of the voters on the general path: of all, or of those that are +inf.
cudaError_t launchVoterLogSums(const LaunchContext& context, bool overflowedOnly);
cudaError_t launchMassThreshold(const LaunchContext& context);
cudaError_t launchFilter(const LaunchContext& context);
cudaError_t launchAttendMmaSync(const LaunchContext& context);
cudaError_t launchAttendWgmma(const LaunchContext& context);
// After either of them where columnSplits > 1.
cudaError_t launchCombine(const LaunchContext& context);
cudaError_t launchAuditRows(const LaunchContext& context);

}  // namespace longsight::cuda
