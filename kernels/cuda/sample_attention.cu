// Checks, workspace layout and the choice of implementation.
#include <algorithm>
#include <array>
#include <cmath>

#include "chunk_layout.h"
#include "sample/quantized.cuh"
#include "sample_attention.h"

namespace longsight::cuda {
namespace {

constexpr int64_t kAlignment = 256;

int64_t alignUp(int64_t value, int64_t step) { return (value + step - 1) / step * step; }

std::string text(int64_t value) { return std::to_string(value); }

std::string validateScoreDims(const SparseOptions& options, int32_t headDim) {
  int32_t end = 0;
  int32_t pieces = 0;
  for (const DimRange& range : options.scoreDims.ranges) {
    if (range.begin < end || range.end < range.begin || range.end > headDim) {
      return "score dims [" + text(range.begin) + ", " + text(range.end) +
             ") are not in order within a head of " + text(headDim) + " dimensions";
    }
    end = range.end;
    if (range.end > range.begin) pieces += (range.end + 7) / 8 - range.begin / 8;
  }
  if (pieces < 1 || pieces > ScoreDimsMap::kMaxPieces) {
    return "score dims touch " + text(pieces) + " groups of 8 dimensions: 1 to " +
           text(ScoreDimsMap::kMaxPieces) + " are possible";
  }
  return {};
}

}  // namespace

std::string validateShape(const HeadShape& shape) {
  constexpr std::array kHeadDims = {64, 80, 96, 128, 256};
  if (std::find(kHeadDims.begin(), kHeadDims.end(), shape.headDim) == kHeadDims.end()) {
    return "head dimension " + text(shape.headDim) + " is not 64, 80, 96, 128 or 256";
  }
  if (shape.heads < 1 || shape.kvHeads < 1 || shape.heads % shape.kvHeads != 0 ||
      shape.heads / shape.kvHeads > 16) {
    return text(shape.heads) + " heads do not share " + text(shape.kvHeads) +
           " KV heads in groups of 1 to 16";
  }
  return {};
}

std::string validate(const Chunk& chunk) {
  if (std::string fault = validateShape(chunk.shape); !fault.empty()) return fault;
  const auto count = static_cast<int64_t>(chunk.segments.size());
  if (count < 1 || count > kMaxChunkSegments) {
    return "a chunk of " + text(count) + " segments: 1 to " + text(kMaxChunkSegments) +
           " are possible";
  }
  const SparseOptions& options = chunk.options;
  if (options.sinkTokens < 0 || options.sinkTokens > 128) {
    return text(options.sinkTokens) + " sink tokens are outside 0 to 128";
  }
  if (options.auditRows < 0 || options.auditRows > 64) {
    return text(options.auditRows) + " audit rows are outside 0 to 64";
  }
  if (!(options.alpha > 0 && options.alpha <= 1)) {
    return "alpha " + std::to_string(options.alpha) + " is outside (0, 1]";
  }
  if (!(options.epsilon >= 0 && options.epsilon < 1)) {
    return "epsilon " + std::to_string(options.epsilon) + " is outside [0, 1)";
  }
  if (!(options.maxListShare >= 0 && options.maxListShare <= 1)) {
    return "maxListShare " + std::to_string(options.maxListShare) + " is outside [0, 1]";
  }
  bool sparse = false;
  for (int64_t i = 0; i < count; ++i) {
    const Segment& segment = chunk.segments[i];
    if (segment.begin < 0 || segment.end <= segment.begin || segment.end > (int64_t{1} << 30)) {
      return "segment [" + text(segment.begin) + ", " + text(segment.end) +
             ") is empty or outside 0 to 2^30";
    }
    if (i > 0 && segment.begin != chunk.segments[i - 1].end) {
      return "segment " + text(i) + " begins at " + text(segment.begin) +
             ", the one before ends at " + text(chunk.segments[i - 1].end);
    }
    if (!segment.dense && (segment.stride < 1 || segment.windowTokens < 1)) {
      return "sparse segment " + text(i) + " has stride " + text(segment.stride) + " and window " +
             text(segment.windowTokens);
    }
    sparse = sparse || !segment.dense;
  }
  if (!sparse || options.policy == Policy::mass) return {};
  return validateScoreDims(options, chunk.shape.headDim);
}

namespace {

// Blocks of stage 3 that run at once on a large card. The splits follow from the shapes alone, so
// that workspace and bits do not depend on the device.
constexpr int32_t kAttendBlocksAtOnce = 132;
constexpr int32_t kMostSplitBlocks = 4 * kAttendBlocksAtOnce;
constexpr int32_t kLeastSplitColumns = 1024;

int32_t columnSplits(const ChunkLayout& layout) {
  if (!layout.allDense) return 1;
  int32_t blocks = 0;
  for (int32_t i = 0; i < layout.segmentCount; ++i) {
    blocks += layout.heads * layout.segments[i].tiles;
    if (blocks > kMostSplitBlocks) return 1;
  }
  // Time in units of a whole tile's: how often the device is filled, times the part of the columns.
  const auto timeOf = [&](int32_t splits) {
    return static_cast<double>((blocks * splits + kAttendBlocksAtOnce - 1) / kAttendBlocksAtOnce) /
           splits;
  };
  const int32_t most = std::min(kMostSplitBlocks / blocks, layout.begin / kLeastSplitColumns);
  int32_t best = 1;
  for (int32_t splits = 2; splits <= most; ++splits) {
    // More of them have to be worth their sums.
    if (timeOf(splits) < 0.95 * timeOf(best)) best = splits;
  }
  return best;
}

// Short enough for some hundred blocks, so that few audit rows do not take their time alone.
int32_t auditSplitColumns(const ChunkLayout& layout) {
  constexpr int32_t kRowsOfBlock = 128;
  constexpr int32_t kWantedBlocks = 792;
  constexpr int32_t kMostSplits = 32;
  constexpr int64_t kLeastColumns = 256;
  constexpr int64_t kMostColumns = 8192;
  const int32_t rows = layout.segmentCount * layout.auditRows * layout.group;
  const int32_t blocks = std::max(1, (rows + kRowsOfBlock - 1) / kRowsOfBlock) * layout.kvHeads;
  const int32_t splits = std::clamp(kWantedBlocks / blocks, 1, kMostSplits);
  return static_cast<int32_t>(
      std::clamp(alignUp((layout.end + splits - 1) / splits, 128), kLeastColumns, kMostColumns));
}

}  // namespace

WorkspacePlan planWorkspace(const Chunk& chunk) {
  WorkspacePlan plan{};
  ChunkLayout& layout = plan.layout;
  const SparseOptions& options = chunk.options;
  layout.segmentCount = static_cast<int32_t>(chunk.segments.size());
  layout.begin = static_cast<int32_t>(chunk.segments.front().begin);
  layout.end = static_cast<int32_t>(chunk.segments.back().end);
  layout.heads = chunk.shape.heads;
  layout.kvHeads = chunk.shape.kvHeads;
  layout.group = layout.heads / layout.kvHeads;
  layout.sinkTokens = options.sinkTokens;
  layout.auditRows = options.auditRows;
  layout.maxListShare = options.maxListShare;
  layout.allDense = true;
  int64_t maskWords = 0, entries = 0, counts = 0, voters = 0;
  for (int32_t i = 0; i < layout.segmentCount; ++i) {
    const Segment& source = chunk.segments[i];
    SegmentLayout& segment = layout.segments[i];
    segment.begin = static_cast<int32_t>(source.begin);
    segment.end = static_cast<int32_t>(source.end);
    segment.firstTileRow =
        static_cast<int32_t>(source.dense ? source.begin : floor128(source.begin));
    segment.tiles = static_cast<int32_t>((source.end - segment.firstTileRow + 127) / 128);
    segment.blocks = static_cast<int32_t>((source.end + 127) / 128);
    segment.maskBegin = maskWords;
    segment.listBegin = entries;
    segment.countBegin = counts;
    segment.voterBegin = voters;
    layout.maxTiles = std::max(layout.maxTiles, segment.tiles);
    if (source.dense) continue;
    layout.allDense = false;
    segment.stride = source.stride;
    // A window longer than the segment's end covers everything, like one that just reaches it.
    segment.windowTokens = static_cast<int32_t>(std::min(source.windowTokens, source.end));
    segment.voters = static_cast<int32_t>((source.end - source.begin - 1) / source.stride + 1);
    segment.remoteBlocks =
        static_cast<int32_t>(windowStart(source.end - 1, segment.windowTokens) / kTileRows);
    // The longest list that is not given up, and the sinks; in whole tiles of indices.
    const auto longest =
        static_cast<int64_t>(std::floor(options.maxListShare * static_cast<double>(source.end)));
    segment.listCapacity = static_cast<int32_t>(alignUp(
        std::min<int64_t>(longest, int64_t{segment.remoteBlocks} * kTileRows) + options.sinkTokens,
        128));
    maskWords += int64_t{layout.heads} * segment.remoteBlocks * 4;
    entries += int64_t{layout.heads} * segment.listCapacity;
    counts += int64_t{layout.heads} * (segment.blocks + 1);
    voters += int64_t{layout.heads} * segment.voters;
  }
  layout.columnSplits = columnSplits(layout);
  const int64_t pairs = int64_t{layout.segmentCount} * layout.heads;
  layout.auditSplitColumns = auditSplitColumns(layout);
  const int64_t splits = (layout.end + layout.auditSplitColumns - 1) / layout.auditSplitColumns;
  const auto place = [&](int64_t bytes) {
    const int64_t at = plan.bytes;
    plan.bytes += alignUp(bytes, kAlignment);
    return at;
  };
  plan.votes = place(maskWords * 4);
  plan.voterValues = place(voters * 4);
  const bool quantized =
      options.policy == Policy::peak && options.scoreNumbers == ScoreNumbers::int8;
  const int64_t remoteBlocks = quantized ? mostRemoteBlocks(layout) : 0;
  const int64_t scoreDims = scoreDimsMap(options.scoreDims).paddedDims();
  plan.quantizedKeys = place(layout.kvHeads * remoteBlocks * kTileRows * scoreDims);
  plan.keyScales = place(layout.kvHeads * remoteBlocks * 4);
  plan.quantizedVoters = place(quantized ? voters * scoreDims : 0);
  plan.masses = place(options.policy == Policy::mass ? maskWords * 32 * 4 : 0);
  plan.stats = place(pairs * static_cast<int64_t>(sizeof(HeadStats)));
  plan.indices = place(entries * 4);
  plan.before = place(counts * 4);
  plan.unitOrder = place(int64_t{layout.segmentCount} * layout.kvHeads * 4);
  plan.auditPartial = place(splits * pairs * layout.auditRows * 8);
  plan.coverage = place(pairs * layout.auditRows * 4);
  const int64_t partials =
      layout.columnSplits == 1
          ? 0
          : int64_t{layout.columnSplits} * (layout.end - layout.begin) * layout.heads;
  plan.partialOutputs = place(partials * chunk.shape.headDim * 4);
  plan.partialSums = place(partials * 8);
  if (chunk.shape.storage == KvStorage::q8) {
    const int64_t elements = int64_t{layout.kvHeads} * layout.end * chunk.shape.headDim;
    plan.keys = place(elements * 2);
    plan.values = place(elements * 2);
  }
  return plan;
}

Workspace WorkspacePlan::at(void* base) const {
  char* bytesBase = static_cast<char*>(base);
  return {reinterpret_cast<uint32_t*>(bytesBase + votes),
          reinterpret_cast<float*>(bytesBase + voterValues),
          reinterpret_cast<float*>(bytesBase + masses),
          reinterpret_cast<int8_t*>(bytesBase + quantizedKeys),
          reinterpret_cast<float*>(bytesBase + keyScales),
          reinterpret_cast<int8_t*>(bytesBase + quantizedVoters),
          reinterpret_cast<HeadStats*>(bytesBase + stats),
          reinterpret_cast<int32_t*>(bytesBase + indices),
          reinterpret_cast<int32_t*>(bytesBase + before),
          reinterpret_cast<int32_t*>(bytesBase + unitOrder),
          reinterpret_cast<float2*>(bytesBase + auditPartial),
          reinterpret_cast<float*>(bytesBase + coverage),
          reinterpret_cast<float*>(bytesBase + partialOutputs),
          reinterpret_cast<float2*>(bytesBase + partialSums),
          bytesBase + keys,
          bytesBase + values};
}

int32_t mostRemoteBlocks(const ChunkLayout& layout) {
  int32_t most = 0;
  for (int32_t i = 0; i < layout.segmentCount; ++i) {
    most = std::max(most, layout.segments[i].remoteBlocks);
  }
  return most;
}

int64_t workspaceBytes(const Chunk& chunk) { return planWorkspace(chunk).bytes; }

int64_t WorkspaceOffsets::maskWords(int32_t segment, int32_t head) const {
  return segmentMaskWords[segment] + head * maskStride[segment];
}
int64_t WorkspaceOffsets::listBegin(int32_t segment, int32_t head) const {
  return segmentLists[segment] + head * listStride[segment];
}
int64_t WorkspaceOffsets::countsBegin(int32_t segment, int32_t head) const {
  return segmentCounts[segment] + head * countStride[segment];
}

WorkspaceOffsets workspaceOffsets(const Chunk& chunk) {
  const WorkspacePlan plan = planWorkspace(chunk);
  WorkspaceOffsets offsets{};
  offsets.votes = plan.votes;
  offsets.masses = plan.masses;
  offsets.stats = plan.stats;
  offsets.indices = plan.indices;
  offsets.before = plan.before;
  offsets.coverage = plan.coverage;
  for (int32_t i = 0; i < plan.layout.segmentCount; ++i) {
    const SegmentLayout& segment = plan.layout.segments[i];
    offsets.segmentMaskWords[i] = segment.maskBegin;
    offsets.segmentLists[i] = segment.listBegin;
    offsets.segmentCounts[i] = segment.countBegin;
    offsets.maskStride[i] = int64_t{segment.remoteBlocks} * 4;
    offsets.listStride[i] = segment.listCapacity;
    offsets.countStride[i] = segment.blocks + 1;
  }
  return offsets;
}

namespace {

template <class Launch>
cudaError_t withContext(const Chunk& chunk, const Tensors& tensors, void* workspace,
                        cudaStream_t stream, Launch launch) {
  if (!validate(chunk).empty() || workspace == nullptr) return cudaErrorInvalidValue;
  DeviceTraits device{};
  if (const cudaError_t error = deviceTraits(device); error != cudaSuccess) return error;
  const WorkspacePlan plan = planWorkspace(chunk);
  // The stages read elements, also where the cache holds q8.
  Tensors elements = tensors;
  if (chunk.shape.storage == KvStorage::q8) {
    elements.keys = plan.at(workspace).keys;
    elements.values = plan.at(workspace).values;
    elements.capacityRows = plan.layout.end;
  }
  return launch(LaunchContext{plan.layout, chunk, elements, plan.at(workspace), device, stream},
                !plan.layout.allDense);
}

bool takesWgmma(const LaunchContext& context, Path path) {
  return path == Path::best && context.device.computeCapability == 90;
}

}  // namespace

cudaError_t launchDequantize(const Chunk& chunk, const Tensors& tensors, void* workspace,
                             cudaStream_t stream) {
  return withContext(chunk, tensors, workspace, stream, [&](const LaunchContext& context, bool) {
    if (chunk.shape.storage != KvStorage::q8) return cudaSuccess;
    return launchCacheToElements(context, tensors);
  });
}

cudaError_t launchSample(const Chunk& chunk, const Tensors& tensors, void* workspace, Path path,
                         cudaStream_t stream) {
  return withContext(
      chunk, tensors, workspace, stream, [&](const LaunchContext& context, bool sparse) {
        if (!sparse) return cudaSuccess;
        const bool wgmma = takesWgmma(context, path);
        if (chunk.options.policy == Policy::mass) {
          // Heads of other dimensions are rare: the general path serves them.
          const bool common = chunk.shape.headDim == 64 || chunk.shape.headDim == 128;
          return wgmma && common ? launchMassesWgmma(context) : launchMassesMmaSync(context);
        }
        cudaError_t error = launchAnchors(context);
        if (error == cudaSuccess && chunk.options.scoreNumbers == ScoreNumbers::int8) {
          error = launchQuantize(context);
        }
        if (error != cudaSuccess) return error;
        return wgmma ? launchVotesWgmma(context) : launchVotesMmaSync(context);
      });
}

cudaError_t launchColumnLists(const Chunk& chunk, void* workspace, cudaStream_t stream) {
  return withContext(chunk, Tensors{}, workspace, stream,
                     [&](const LaunchContext& context, bool sparse) {
                       if (sparse && chunk.options.policy == Policy::mass) {
                         const cudaError_t error = launchMassThreshold(context);
                         if (error != cudaSuccess) return error;
                       }
                       return launchFilter(context);
                     });
}

cudaError_t launchAttend(const Chunk& chunk, const Tensors& tensors, void* workspace, Path path,
                         cudaStream_t stream) {
  return withContext(chunk, tensors, workspace, stream, [&](const LaunchContext& context, bool) {
    const cudaError_t error =
        takesWgmma(context, path) ? launchAttendWgmma(context) : launchAttendMmaSync(context);
    if (error != cudaSuccess || context.layout.columnSplits == 1) return error;
    return launchCombine(context);
  });
}

cudaError_t launchAudit(const Chunk& chunk, const Tensors& tensors, void* workspace,
                        cudaStream_t stream) {
  if (tensors.logSumExp == nullptr) return cudaErrorInvalidValue;
  return withContext(chunk, tensors, workspace, stream,
                     [](const LaunchContext& context, bool sparse) {
                       if (!sparse || context.layout.auditRows == 0) return cudaSuccess;
                       return launchAuditRows(context);
                     });
}

cudaError_t launchPrefill(const Chunk& chunk, const Tensors& tensors, void* workspace, Path path,
                          cudaStream_t stream) {
  cudaError_t error = launchDequantize(chunk, tensors, workspace, stream);
  if (error == cudaSuccess) error = launchSample(chunk, tensors, workspace, path, stream);
  if (error == cudaSuccess) error = launchColumnLists(chunk, workspace, stream);
  if (error == cudaSuccess) error = launchAttend(chunk, tensors, workspace, path, stream);
  if (error == cudaSuccess && tensors.logSumExp != nullptr) {
    error = launchAudit(chunk, tensors, workspace, stream);
  }
  return error;
}

std::string validate(const DecodeTask& task) {
  if (std::string fault = validateShape(task.shape); !fault.empty()) return fault;
  if (task.rows < 1 || task.rows > 16) {
    return "decode of " + text(task.rows) + " rows: 1 to 16 are possible";
  }
  if (task.firstRow < 0 || task.firstRow + task.rows > (int64_t{1} << 30)) {
    return "decode at row " + text(task.firstRow) + " is outside 0 to 2^30";
  }
  if (task.shape.storage == KvStorage::q8 && task.tensors.capacityRows % 8 != 0) {
    return "a q8 cache of " + text(task.tensors.capacityRows) + " rows is no multiple of 8 rows";
  }
  return {};
}

std::string validate(const QuantizeTask& task) {
  HeadShape shape = task.shape;
  shape.heads = shape.kvHeads;
  if (std::string fault = validateShape(shape); !fault.empty()) return fault;
  if (task.rows < 0 || task.firstRow < 0 || task.firstRow + task.rows > task.capacityRows) {
    return "rows [" + text(task.firstRow) + ", " + text(task.firstRow + task.rows) +
           ") are outside a cache of " + text(task.capacityRows);
  }
  return {};
}

}  // namespace longsight::cuda
