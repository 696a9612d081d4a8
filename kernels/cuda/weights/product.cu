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
// become fp16 with a power of two for each row, which takes its largest value to 2^13, or bf16
// beside weights of BF16 and F32. Sums are f32.
#include <algorithm>

#include "weights/fragments.cuh"
#include "weights/product_plan.h"
#include "weights/weights.h"

namespace longsight::cuda {
namespace {

struct PartArguments {
  PartPlan plan;
  MatrixSource source;
  int32_t type;
  const float* bias;
  void* out;
  int64_t outStride;
};

struct ProductArguments {
  PartArguments parts[kMaxProductParts];
  int32_t partCount;
  int32_t rows;
  int32_t columns;
  bool inputIsBf16;
  const void* input;
  int64_t inputStride;
  const float* normWeights;
  float normEpsilon;
  ProductEpilogue epilogue;
  int32_t inputOffset;
  int32_t sumsOffset;
  int32_t inputRowBytes;
  uint32_t* counters;
  float* partials;
};

// Lets the next launch of the stream begin; waits until the one before has ended and its writes are
// visible. What was written by it must be read past the level-1 cache.
__device__ __forceinline__ void letNextLaunchBegin() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}
__device__ __forceinline__ void waitForLaunchBefore() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

__device__ __forceinline__ void prefetchToL2(const void* address) {
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
    const int begin = warp * units / kProductWarps;
    left = (warp + 1) * units / kProductWarps - begin;
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

// Eight activations of a row as f32.
__device__ __forceinline__ void loadInput8(const ProductArguments& arguments, int row, int column,
                                           float (&values)[8]) {
  const int64_t index = row * arguments.inputStride + column;
  if (arguments.inputIsBf16) {
    const uint4 packed =
        __ldcg(reinterpret_cast<const uint4*>(static_cast<const Bf16*>(arguments.input) + index));
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      values[2 * i] = __uint_as_float(wordOf(packed, i) << 16);
      values[2 * i + 1] = __uint_as_float(wordOf(packed, i) & 0xFFFF0000u);
    }
  } else {
    const auto* source =
        reinterpret_cast<const float4*>(static_cast<const float*>(arguments.input) + index);
    const float4 a = __ldcg(source), b = __ldcg(source + 1);
    const float all[8] = {a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w};
#pragma unroll
    for (int i = 0; i < 8; ++i) values[i] = all[i];
  }
}

__device__ __forceinline__ void multiplyByNorm(const ProductArguments& arguments, int column,
                                               float (&values)[8]) {
  const auto* weights = reinterpret_cast<const float4*>(arguments.normWeights + column);
  const float4 a = __ldg(weights), b = __ldg(weights + 1);
  const float all[8] = {a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w};
#pragma unroll
  for (int i = 0; i < 8; ++i) values[i] *= all[i];
}

// Byte offset, in a row of the input in shared memory, of the 8 columns 32 t + 8 piece of a block
// of 128: permuted so that the lanes that read at a time meet different groups of banks.
__device__ __forceinline__ int inputOffset(int row, int block, int t, int piece) {
  return block * 256 + t * 64 + (piece ^ (t >> 1) ^ ((row & 1) << 1)) * 16;
}

struct InputScratch {
  float squares[kProductWarps];
  float largest[kProductWarps];
  // What a sum with this row is multiplied by.
  float outScale[kMaxProductRows];
};

// Columns [begin, end) of all rows of the input, normalised, into shared memory; zeros beyond the
// matrix. Each row is the work of 8, 4, 2 or 1 warps.
template <class Operand, int kWarpsPerRow>
__device__ __noinline__ void stageInput(const ProductArguments& arguments, int begin, int end,
                                        float weightScale, char* target, InputScratch& scratch) {
  constexpr int kLanes = 32 * kWarpsPerRow;
  constexpr int kKept = 4;  // pieces that a lane keeps from the first pass to the second
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int row = warp / kWarpsPerRow;
  const int first = (warp % kWarpsPerRow * 32 + lane) * 8;
  const bool active = row < arguments.rows;
  const bool norm = arguments.normWeights != nullptr;
  // The mean square is of all columns, the rest of those of the split.
  const int from = norm ? 0 : begin;
  const int to = norm ? arguments.columns : min(end, arguments.columns);

  float kept[kKept][8];
  float squares = 0.0f, largest = 0.0f;
  const auto measure = [&](int column, float(&values)[8]) {
    loadInput8(arguments, row, column, values);
    if (norm) {
#pragma unroll
      for (int i = 0; i < 8; ++i) squares += values[i] * values[i];
      multiplyByNorm(arguments, column, values);
    }
    if (column >= begin && column < end) {
#pragma unroll
      for (int i = 0; i < 8; ++i) largest = fmaxf(largest, fabsf(values[i]));
    }
  };
  if (active) {
#pragma unroll
    for (int k = 0; k < kKept; ++k) {
      const int column = from + first + k * kLanes * 8;
      if (column < to) measure(column, kept[k]);
    }
#pragma unroll 4
    for (int column = from + first + kKept * kLanes * 8; column < to; column += kLanes * 8) {
      float values[8];
      measure(column, values);
    }
  }
#pragma unroll
  for (int step = 16; step > 0; step /= 2) {
    squares += __shfl_xor_sync(~0u, squares, step);
    largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, step));
  }
  if (lane == 0) {
    scratch.squares[warp] = squares;
    scratch.largest[warp] = largest;
  }
  __syncthreads();
  if (!active) return;
  squares = largest = 0.0f;
#pragma unroll
  for (int i = 0; i < kWarpsPerRow; ++i) {
    squares += scratch.squares[row * kWarpsPerRow + i];
    largest = fmaxf(largest, scratch.largest[row * kWarpsPerRow + i]);
  }
  float factor =
      norm ? rsqrtf(squares / static_cast<float>(arguments.columns) + arguments.normEpsilon) : 1.0f;
  float outScale = 1.0f / weightScale;
  if constexpr (std::is_same_v<Operand, F16>) {
    // 2^(13 - exponent of the largest), within what f32 holds.
    const int exponent = static_cast<int>(__float_as_uint(largest * factor) >> 23);
    const int scaleExponent = largest == 0.0f ? 127 : min(max(267 - exponent, 1), 253);
    factor *= __uint_as_float(static_cast<uint32_t>(scaleExponent) << 23);
    outScale *= __uint_as_float(static_cast<uint32_t>(254 - scaleExponent) << 23);
  }
  if (first == 0) scratch.outScale[row] = outScale;

  char* rowTarget = target + row * arguments.inputRowBytes;
  const auto store = [&](int column, const float(&v)[8]) {
    const int piece = (column - begin) / 8;
    const uint4 packed = make_uint4(packPair<Operand>(v[0] * factor, v[1] * factor),
                                    packPair<Operand>(v[2] * factor, v[3] * factor),
                                    packPair<Operand>(v[4] * factor, v[5] * factor),
                                    packPair<Operand>(v[6] * factor, v[7] * factor));
    *reinterpret_cast<uint4*>(rowTarget + inputOffset(row, piece / 16, piece / 4 % 4, piece % 4)) =
        packed;
  };
#pragma unroll
  for (int k = 0; k < kKept; ++k) {
    const int column = from + first + k * kLanes * 8;
    if (column < to && column >= begin && column < end) store(column, kept[k]);
  }
  const int storedEnd = min(end, arguments.columns);
#pragma unroll 4
  for (int column = from + first + kKept * kLanes * 8; column < storedEnd; column += kLanes * 8) {
    if (column < begin) continue;
    float values[8];
    loadInput8(arguments, row, column, values);
    if (norm) multiplyByNorm(arguments, column, values);
    store(column, values);
  }
  const float zeros[8] = {};
  for (int column = arguments.columns + first; column < end; column += kLanes * 8) {
    store(column, zeros);
  }
}

// One output, with its bias, to where it belongs. All lanes of a warp call it, neighbours with
// neighbouring rows of the matrix.
__device__ __forceinline__ void storeOutput(const ProductArguments& arguments,
                                            const PartArguments& part, int matrixRow, int row,
                                            float value, bool valid) {
  valid = valid && matrixRow < part.source.rows;
  if (valid && part.bias != nullptr) value += part.bias[matrixRow];
  const bool gated = arguments.epilogue == ProductEpilogue::swigluF32 ||
                     arguments.epilogue == ProductEpilogue::swigluBf16;
  const float up = __shfl_down_sync(~0u, value, 1);
  int64_t index = row * part.outStride + matrixRow;
  if (gated) {
    valid = valid && matrixRow % 2 == 0;
    index = row * part.outStride + matrixRow / 2;
    value = value / (1.0f + __expf(-value)) * up;
  }
  if (!valid) return;
  switch (arguments.epilogue) {
    case ProductEpilogue::addF32:
      value += __ldcg(static_cast<float*>(part.out) + index);
      [[fallthrough]];
    case ProductEpilogue::storeF32:
    case ProductEpilogue::swigluF32:
      static_cast<float*>(part.out)[index] = value;
      break;
    case ProductEpilogue::storeBf16:
    case ProductEpilogue::swigluBf16:
      static_cast<Bf16*>(part.out)[index] = __float2bfloat16_rn(value);
  }
}

// Sums of the warps for the tiles of a batch, in the order of the columns. Slot of (tile of the
// batch, warp) is their sum: the shares of the warps follow each other, so it occurs once.
__device__ __forceinline__ float sumOfWarps(const float* sums, int rows, int tile, int units,
                                            int unitCount, int offset) {
  const int firstUnit = tile * unitCount, lastUnit = firstUnit + unitCount - 1;
  const int firstWarp = (kProductWarps * (firstUnit + 1) - 1) / units;
  const int lastWarp = (kProductWarps * (lastUnit + 1) - 1) / units;
  float sum = 0.0f;
  for (int warp = firstWarp; warp <= lastWarp; ++warp) {
    if (warp * units / kProductWarps == (warp + 1) * units / kProductWarps) continue;
    sum += sums[(tile + warp) * kTileRows * rows + offset];
  }
  return sum;
}

// The outputs of a batch, after all warps have stored their sums. All threads.
__device__ __noinline__ void finishBatch(const ProductArguments& arguments,
                                         const PartArguments& part, BlockWork work, int split,
                                         int batch, int tiles, const float* sums,
                                         const InputScratch& scratch) {
  __shared__ bool lastOfTile[kMaxBatchTiles];
  const PartPlan& plan = part.plan;
  const int rows = arguments.rows;
  const int perTile = kTileRows * rows;
  const int outputs = tiles * perTile;
  const int rounded = (outputs + 31) / 32 * 32;
  float* partials = arguments.partials + plan.firstPartial;
  for (int index = threadIdx.x; index < rounded; index += kProductThreads) {
    const bool valid = index < outputs;
    const int tile = valid ? index / perTile : 0;
    const int offset = valid ? index % perTile : 0;
    const int row = offset / kTileRows;
    const float value =
        sumOfWarps(sums, rows, tile, tiles * work.unitCount, work.unitCount, offset) *
        scratch.outScale[row];
    if (plan.splits == 1) {
      storeOutput(arguments, part, (batch + tile) * kTileRows + offset % kTileRows, row, value,
                  valid);
    } else if (valid) {
      partials[(int64_t{batch + tile} * plan.splits + split) * perTile + offset] = value;
    }
  }
  if (plan.splits == 1) return;

  __threadfence();
  __syncthreads();
  if (threadIdx.x < tiles) {
    uint32_t* counter = arguments.counters + plan.firstCounter + batch + threadIdx.x;
    const bool last = atomicAdd(counter, 1u) == static_cast<uint32_t>(plan.splits - 1);
    if (last) *counter = 0;
    lastOfTile[threadIdx.x] = last;
    __threadfence();
  }
  __syncthreads();
  for (int index = threadIdx.x; index < rounded; index += kProductThreads) {
    const int tile = min(index / perTile, tiles - 1);
    const bool valid = index < outputs && lastOfTile[tile];
    const int offset = index % perTile;
    float value = 0.0f;
    if (valid) {
      const float* first = partials + int64_t{batch + tile} * plan.splits * perTile + offset;
      for (int i = 0; i < plan.splits; ++i) value += __ldcg(first + int64_t{i} * perTile);
    }
    storeOutput(arguments, part, (batch + tile) * kTileRows + offset % kTileRows,
                offset / kTileRows, value, valid);
  }
}

template <int32_t kType>
__device__ __forceinline__ void runPart(const ProductArguments& arguments,
                                        const PartArguments& part, char* shared,
                                        InputScratch& scratch) {
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
    if (line < arguments.columns) prefetchToL2(arguments.normWeights + line);
  }
  if (part.bias != nullptr) {
    const int row = work.tileBegin * kTileRows + static_cast<int>(threadIdx.x) * 32;
    if (row < min(work.tileEnd * kTileRows, part.source.rows)) prefetchToL2(part.bias + row);
  }
  waitForLaunchBefore();

  char* input = shared + arguments.inputOffset;
  const int firstColumn = blockBegin * Reader::kBlockColumns;
  const int endColumn = blockEnd * Reader::kBlockColumns;
  const auto stage = [&]<int kWarpsPerRow>() {
    stageInput<Operand, kWarpsPerRow>(arguments, firstColumn, endColumn, Reader::kScale, input,
                                      scratch);
  };
  if (arguments.rows == 1) {
    stage.template operator()<8>();
  } else if (arguments.rows == 2) {
    stage.template operator()<4>();
  } else if (arguments.rows <= 4) {
    stage.template operator()<2>();
  } else {
    stage.template operator()<1>();
  }
  __syncthreads();

  const int rows = arguments.rows;
  const int t = lane % 4;
  // Lanes beyond the rows read the last one; their sums are not stored.
  const int inputRow = min(lane / 4, rows - 1);
  const char* laneInput = input + inputRow * arguments.inputRowBytes;
  const int slotFloats = kTileRows * rows;
  float* sums = reinterpret_cast<float*>(shared + arguments.sumsOffset);
  float* nextSums = sums + (work.batchTiles + kProductWarps) * slotFloats;
  UnitCursor cursor(work, warp);
  int consumed = 0, filled = stages - 1;
  while (true) {
    const int tiles = cursor.tilesOfBatch(work);
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
      const int tile = cursor.tile;
      cursor.next(work);
      if (cursor.unit == 0 || cursor.left == 0) {
        float* slot = sums + (tile - cursor.batch + warp) * slotFloats + lane / 4;
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
    finishBatch(arguments, part, work, split, cursor.batch, tiles, sums, scratch);
    if (cursor.batch + work.batchTiles >= work.tileEnd) break;
    cursor.batch += work.batchTiles;
    cursor.startBatch(work, warp);
    float* used = sums;
    sums = nextSums;
    nextSums = used;
  }
}

__global__ __launch_bounds__(kProductThreads, 2) void multiplyFewRows(
    const __grid_constant__ ProductArguments arguments) {
  extern __shared__ __align__(128) char shared[];
  __shared__ InputScratch scratch;
  letNextLaunchBegin();
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
                               device.sharedBytes);
  if (error != cudaSuccess) return error;
  cudaLaunchAttribute overlap{};
  overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  overlap.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(plan.ctas));
  config.blockDim = dim3(kProductThreads);
  config.dynamicSmemBytes = static_cast<size_t>(plan.sharedBytes);
  config.stream = stream;
  config.attrs = &overlap;
  config.numAttrs = device.overlaps ? 1 : 0;
  return cudaLaunchKernelEx(&config, multiplyFewRows, arguments);
}

}  // namespace longsight::cuda
