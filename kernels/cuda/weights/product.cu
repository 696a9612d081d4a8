// Products of 1 to 8 rows of activations with weights in their GGUF type: decoding, and verifying
// drafts. Bound by reading the weights, so everything else hides behind that.
//
// Weights are the 16-row operand of mma.m16n8k16 and activations the 8-column one: 8 rows cost what
// one does. A block has whole tiles of 16 rows, all their columns or those of one split; its warps
// share the units of up to 16 tiles evenly, each with a ring of stages of its own that runs ahead
// over tiles and batches, so no warp waits for another until the sums of a batch are added, in one
// order. Splits are combined by the block that comes last, in one order too.
//
// Codes become fp16 in registers (11 bits; a factor of 16 keeps small weights normal). Activations
// become fp16 too, or bf16 beside weights of BF16 and F32. The factor of the norm comes in at the
// end, so that the input is looked at once. Sums are f32.
#include <algorithm>

#include "device/dependent_launch.cuh"
#include "weights/product_input.cuh"
#include "weights/product_output.cuh"
#include "weights/weights.h"

namespace longsight::cuda {
namespace {

__device__ __forceinline__ void prefetchLine(const void* address) {
  asm volatile("prefetch.global.L2 [%0];" ::"l"(address));
}

// The number of stages is not known at compile time.
__device__ __forceinline__ void waitForStage(int pending) {
  switch (pending) {
    case 0:
      copyAsyncWait<0>();
      break;
    case 1:
      copyAsyncWait<1>();
      break;
    case 2:
      copyAsyncWait<2>();
      break;
    case 3:
      copyAsyncWait<3>();
      break;
    case 4:
      copyAsyncWait<4>();
      break;
    case 5:
      copyAsyncWait<5>();
      break;
    default:
      copyAsyncWait<6>();
  }
}
static_assert(kMaxStages == 8);

// The tiles and units of a block.
struct BlockWork {
  int tileBegin, tileEnd;
  int unitBegin, unitCount;
  int batchTiles;
};

// The units of one warp, in order: of each batch an even share of all units of its tiles.
struct UnitCursor {
  int batch;  // first tile of the batch
  int tile, unit, left;

  __device__ __forceinline__ UnitCursor(const BlockWork& work, int warp) : batch(work.tileBegin) {
    startBatch(work, warp);
  }
  __device__ __forceinline__ int tilesOfBatch(const BlockWork& work) const {
    return min(work.batchTiles, work.tileEnd - batch);
  }
  __device__ __forceinline__ void startBatch(const BlockWork& work, int warp) {
    const int units = tilesOfBatch(work) * work.unitCount;
    // Warps with units follow each other without a gap.
    const int begin = units < kProductWarps ? min(warp, units) : warp * units / kProductWarps;
    const int end =
        units < kProductWarps ? min(warp + 1, units) : (warp + 1) * units / kProductWarps;
    left = end - begin;
    tile = batch + begin / work.unitCount;
    unit = begin % work.unitCount;
  }
  __device__ __forceinline__ void next(const BlockWork& work) {
    --left;
    if (++unit == work.unitCount) {
      unit = 0;
      ++tile;
    }
  }
  // Goes on to the next batch with units for this warp; false when there is none.
  __device__ __forceinline__ bool more(const BlockWork& work, int warp) {
    while (left == 0) {
      if (batch + work.batchTiles >= work.tileEnd) return false;
      batch += work.batchTiles;
      startBatch(work, warp);
    }
    return true;
  }
};

template <int32_t kType>
__device__ __forceinline__ void runPart(const ProductArguments& arguments,
                                        const PartArguments& part, char* shared,
                                        BlockScratch& scratch) {
  using Reader = UnitReader<kType>;
  using Operand = typename Reader::Operand;
  const PartPlan& plan = part.plan;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int local = static_cast<int>(blockIdx.x) - plan.firstCta;
  const int split = local / plan.ctasPerSplit;
  const int index = local % plan.ctasPerSplit;
  const int blockBegin = split * plan.columnBlocks / plan.splits;
  const int blockEnd = (split + 1) * plan.columnBlocks / plan.splits;
  BlockWork work;
  work.tileBegin = static_cast<int>(int64_t{index} * plan.tiles / plan.ctasPerSplit);
  work.tileEnd = static_cast<int>(int64_t{index + 1} * plan.tiles / plan.ctasPerSplit);
  work.unitBegin = blockBegin * Reader::kUnitsPerBlock;
  work.unitCount = (blockEnd - blockBegin) * Reader::kUnitsPerBlock;
  work.batchTiles = plan.batchTiles;

  // The ring of this warp begins to fill with weights while the launch before still runs.
  const int stages = plan.stages;
  char* ring = shared + warp * stages * Reader::kUnitBytes;
  const uint32_t ringAddress = sharedAddress(ring);
  UnitCursor load(work, warp);
  const auto fill = [&](int stage) {
    if (load.more(work, warp)) {
      Reader::copyUnit(ringAddress + stage * Reader::kUnitBytes, part.source, load.tile,
                       work.unitBegin + load.unit, lane);
      load.next(work);
    }
    copyAsyncCommit();
  };
  for (int stage = 0; stage < stages - 1; ++stage) fill(stage);
  if (arguments.normWeights != nullptr) {
    const int line = static_cast<int>(blockIdx.x + threadIdx.x * gridDim.x) * 32;
    if (line < arguments.columns) prefetchLine(arguments.normWeights + line);
  }
  if (part.bias != nullptr) {
    const int row = work.tileBegin * kTileRows + static_cast<int>(threadIdx.x) * 32;
    if (row < min(work.tileEnd * kTileRows, part.source.rows)) prefetchLine(part.bias + row);
  }

  char* input = shared + arguments.inputOffset;
  const int firstColumn = blockBegin * Reader::kBlockColumns;
  const int endColumn = blockEnd * Reader::kBlockColumns;
  if (arguments.rows == 1) {
    stageInput<Operand, 1>(arguments, firstColumn, endColumn, input, scratch);
  } else if (arguments.rows == 2) {
    stageInput<Operand, 2>(arguments, firstColumn, endColumn, input, scratch);
  } else {
    stageInput<Operand, 4>(arguments, firstColumn, endColumn, input, scratch);
  }
  __syncthreads();
  // Not earlier, or the weights of the next launch would queue before this input.
  letNextStart();
  if (static_cast<int>(threadIdx.x) < arguments.rows) {
    computeOutScale<Operand>(arguments, threadIdx.x, Reader::kScale, scratch);
  }

  const int rows = arguments.rows;
  const int t = lane % 4;
  // Lanes beyond the rows read the last one; their sums are not stored.
  const int inputRow = min(lane / 4, rows - 1);
  const char* laneInput = input + inputRow * arguments.inputRowBytes;
  const int shift = outputShift(rows);
  UnitCursor cursor(work, warp);
  int consumed = 0, filled = stages - 1;
  for (int turn = 0;; turn ^= 1) {
    float sum[2][4] = {};
    while (cursor.left > 0) {
      waitForStage(stages - 2);
      __syncwarp();
      fill(filled);
      filled = filled + 1 == stages ? 0 : filled + 1;
      Reader reader(ring + consumed * Reader::kUnitBytes, lane);
      consumed = consumed + 1 == stages ? 0 : consumed + 1;
#pragma unroll
      for (int piece = 0; piece < Reader::kPieces; ++piece) {
        if (piece % 4 == 0) reader.loadHalf(piece / 4);
        const uint4 x = *reinterpret_cast<const uint4*>(
            laneInput + inputOffset(inputRow, Reader::block128(cursor.unit, piece), t,
                                    Reader::pieceOfBlock(cursor.unit, piece)));
        uint32_t upper[4], lower[4];
        reader.pairs(piece, 0, upper);
        reader.pairs(piece, 1, lower);
        mma16x8x16<Operand>(sum[0], {upper[0], lower[0], upper[1], lower[1]}, x.x, x.y);
        mma16x8x16<Operand>(sum[1], {upper[2], lower[2], upper[3], lower[3]}, x.z, x.w);
      }
      const int tile = cursor.tile - cursor.batch;
      if (lane == 0 && cursor.unit == 0) scratch.firstWarp[turn][tile] = static_cast<uint8_t>(warp);
      cursor.next(work);
      if (cursor.unit == 0 || cursor.left == 0) {
        if (lane == 0 && cursor.unit == 0)
          scratch.lastWarp[turn][tile] = static_cast<uint8_t>(warp);
        float* slot =
            sumsOf(arguments, shared, work.batchTiles, turn, tile, warp, shift) + lane / 4;
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const int row = 2 * t + i;
          if (row < rows) {
            slot[row * kTileRows] = sum[0][i] + sum[1][i];
            slot[row * kTileRows + 8] = sum[0][2 + i] + sum[1][2 + i];
          }
          sum[0][i] = sum[1][i] = sum[0][2 + i] = sum[1][2 + i] = 0.0f;
        }
      }
    }
    __syncthreads();
    finishBatch(arguments, part, split, cursor.batch, cursor.tilesOfBatch(work), turn, shared,
                scratch);
    if (cursor.batch + work.batchTiles >= work.tileEnd) break;
    cursor.batch += work.batchTiles;
    cursor.startBatch(work, warp);
  }
  if (plan.splits > 1) combineSplits(arguments, part, work.tileBegin, work.tileEnd, scratch);
}

__global__ __launch_bounds__(kProductThreads, 2) void multiplyFewRows(
    const __grid_constant__ ProductArguments constants) {
  extern __shared__ __align__(128) char shared[];
  __shared__ BlockScratch scratch;
  // The first look at a constant takes long; all of them at once, while the launch before runs.
  __shared__ uint4 copy[sizeof(ProductArguments) / 16];
  static_assert(sizeof(ProductArguments) % 16 == 0 &&
                sizeof(ProductArguments) / 16 <= kProductThreads);
  if (threadIdx.x < sizeof(ProductArguments) / 16) {
    copy[threadIdx.x] = reinterpret_cast<const uint4*>(&constants)[threadIdx.x];
  }
  __syncthreads();
  const auto& arguments = *reinterpret_cast<const ProductArguments*>(copy);
  int i = 0;
  while (i + 1 < arguments.partCount &&
         static_cast<int>(blockIdx.x) >= arguments.parts[i + 1].plan.firstCta) {
    ++i;
  }
  const PartArguments& part = arguments.parts[i];
  switch (part.type) {
    case kTypeF32:
      return runPart<kTypeF32>(arguments, part, shared, scratch);
    case kTypeF16:
      return runPart<kTypeF16>(arguments, part, shared, scratch);
    case kTypeBF16:
      return runPart<kTypeBF16>(arguments, part, shared, scratch);
    case kTypeQ4_0:
      return runPart<kTypeQ4_0>(arguments, part, shared, scratch);
    case kTypeQ4_1:
      return runPart<kTypeQ4_1>(arguments, part, shared, scratch);
    case kTypeQ5_0:
      return runPart<kTypeQ5_0>(arguments, part, shared, scratch);
    case kTypeQ5_1:
      return runPart<kTypeQ5_1>(arguments, part, shared, scratch);
    case kTypeQ8_0:
      return runPart<kTypeQ8_0>(arguments, part, shared, scratch);
    case kTypeQ4_K:
      return runPart<kTypeQ4_K>(arguments, part, shared, scratch);
    case kTypeQ5_K:
      return runPart<kTypeQ5_K>(arguments, part, shared, scratch);
    case kTypeQ6_K:
      return runPart<kTypeQ6_K>(arguments, part, shared, scratch);
    case kTypeIQ4_XS:
      return runPart<kTypeIQ4_XS>(arguments, part, shared, scratch);
  }
}

}  // namespace

std::string validate(const ProductTask& task) {
  if (task.rows < 1 || task.rows > kMaxProductRows) {
    return "a product of " + std::to_string(task.rows) + " rows: it takes 1 to " +
           std::to_string(kMaxProductRows);
  }
  if (task.partCount < 1 || task.partCount > kMaxProductParts) {
    return "a product with " + std::to_string(task.partCount) + " matrices: it takes 1 to " +
           std::to_string(kMaxProductParts);
  }
  const int64_t columns = task.parts[0].matrix.columns;
  for (int32_t i = 0; i < task.partCount; ++i) {
    const ProductPart& part = task.parts[i];
    const DeviceMatrix& matrix = part.matrix;
    if (std::string fault = validateMatrix(matrix.type, matrix.rows, matrix.columns);
        !fault.empty()) {
      return fault;
    }
    if (matrix.columns != columns) {
      return "matrices of " + std::to_string(columns) + " and " + std::to_string(matrix.columns) +
             " columns in one product";
    }
    const bool gated =
        task.epilogue == ProductEpilogue::swigluF32 || task.epilogue == ProductEpilogue::swigluBf16;
    if (gated && matrix.rows % 2 != 0) {
      return "SwiGLU of " + std::to_string(matrix.rows) + " rows, which are not pairs";
    }
    const int64_t width = gated ? matrix.rows / 2 : matrix.rows;
    if (task.rows > 1 && part.outStride < width) {
      return "rows of " + std::to_string(width) + " outputs do not fit a stride of " +
             std::to_string(part.outStride);
    }
    if (matrix.rows > kCounterBytes / 4 * kTileRows || matrix.columns > 1 << 20) {
      return "a matrix of " + std::to_string(matrix.rows) + " x " + std::to_string(matrix.columns) +
             " is larger than 524288 x 1048576";
    }
  }
  if (task.rows > 1 && (task.inputStride < columns || task.inputStride % 8 != 0)) {
    return "an input stride of " + std::to_string(task.inputStride) +
           ": it must be a multiple of 8 and at least " + std::to_string(columns);
  }
  if (task.normWeights != nullptr && task.inputType != ProductInput::f32) {
    return "a norm of bf16 input: it takes f32";
  }
  return {};
}

int64_t productWorkspaceBytes(const ProductTask& task) {
  ProductDevice device;
  if (!validate(task).empty() || productDevice(device) != cudaSuccess) return 0;
  return planProduct(task, device).workspaceBytes;
}

cudaError_t launchProduct(const ProductTask& task, void* workspace, cudaStream_t stream) {
  if (!validate(task).empty()) return cudaErrorInvalidValue;
  ProductDevice device;
  cudaError_t error = productDevice(device);
  if (error != cudaSuccess) return error;
  const ProductPlan plan = planProduct(task, device);
  ProductArguments arguments{};
  for (int32_t i = 0; i < task.partCount; ++i) {
    const ProductPart& part = task.parts[i];
    arguments.parts[i] = {
        plan.parts[i],
        {static_cast<const char*>(part.matrix.data), static_cast<int32_t>(part.matrix.rows),
         static_cast<int32_t>(part.matrix.columns)},
        part.matrix.type,
        part.bias,
        part.out,
        part.outStride};
  }
  arguments.partCount = task.partCount;
  arguments.rows = task.rows;
  arguments.columns = static_cast<int32_t>(task.parts[0].matrix.columns);
  arguments.inputIsBf16 = task.inputType == ProductInput::bf16;
  arguments.input = task.input;
  arguments.inputStride = task.inputStride;
  arguments.normWeights = task.normWeights;
  arguments.normEpsilon = task.normEpsilon;
  arguments.epilogue = task.epilogue;
  arguments.inputOffset = plan.inputOffset;
  arguments.sumsOffset = plan.sumsOffset;
  arguments.inputRowBytes = plan.inputRowBytes;
  arguments.counters = static_cast<uint32_t*>(workspace);
  arguments.partials = reinterpret_cast<float*>(static_cast<char*>(workspace) + kCounterBytes);

  error = cudaFuncSetAttribute(multiplyFewRows, cudaFuncAttributeMaxDynamicSharedMemorySize,
                               device.sharedBytesAlone);
  // So that the blocks of two launches fit beside each other.
  if (error == cudaSuccess) {
    error = cudaFuncSetAttribute(multiplyFewRows, cudaFuncAttributePreferredSharedMemoryCarveout,
                                 cudaSharedmemCarveoutMaxShared);
  }
  if (error != cudaSuccess) return error;
  return launchDependent(multiplyFewRows, dim3(static_cast<unsigned>(plan.ctas)), kProductThreads,
                         static_cast<size_t>(plan.sharedBytes), stream, arguments);
}

}  // namespace longsight::cuda
