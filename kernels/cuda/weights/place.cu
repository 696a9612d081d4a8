// Rows of a file into the device's layout, and random blocks for models without a file.
//
// Both give one thread one group of 32 weights. The way from the disk or the bus limits placing,
// not this.
#include <cuda_bf16.h>

#include "weights/groups.cuh"
#include "weights/matrix_layout.h"

namespace longsight::cuda {
namespace {

constexpr int kThreads = 256;

unsigned blocksFor(int64_t threads) { return static_cast<unsigned>(ceilDiv(threads, kThreads)); }

template <class T>
__device__ T loadBytes(const uint8_t* source) {
  static_assert(sizeof(T) % 2 == 0);
  T value;
  auto* halves = reinterpret_cast<uint16_t*>(&value);
#pragma unroll
  for (unsigned i = 0; i < sizeof(T) / 2; ++i) {
    halves[i] = reinterpret_cast<const uint16_t*>(source)[i];
  }
  return value;
}

// Codes of group `group` of a block, in the order of the columns.
template <int32_t kType>
__device__ void fileCodes(const uint8_t* block, int group, uint8_t (&codes)[kGroup]) {
  using F = BlockFormat<kType>;
  if constexpr (kType == kTypeQ8_0) {
#pragma unroll
    for (int i = 0; i < kGroup; ++i) codes[i] = block[2 + i];
  } else if constexpr (F::kScales == Scales::half || F::kScales == Scales::halfPair) {
    const uint8_t* nibbles = block + F::kBlockBytes - 16;
    const uint32_t upper =
        F::kUpperBits == 1 ? loadBytes<uint32_t>(block + F::kScaleBytes) : uint32_t{0};
#pragma unroll
    for (int i = 0; i < kGroup; ++i) {
      codes[i] = (nibbles[i % 16] >> (i / 16 * 4) & 15) | (upper >> i & 1) << 4;
    }
  } else if constexpr (kType == kTypeIQ4_XS) {
    const uint8_t* nibbles = block + 8 + 16 * group;
#pragma unroll
    for (int i = 0; i < kGroup; ++i) codes[i] = nibbles[i % 16] >> (i / 16 * 4) & 15;
  } else if constexpr (F::kScales == Scales::sixBit) {
    const uint8_t* nibbles = block + F::kBlockBytes - 128 + group / 2 * 32;
#pragma unroll
    for (int i = 0; i < kGroup; ++i) {
      codes[i] = nibbles[i] >> (group % 2 * 4) & 15;
      if constexpr (F::kUpperBits == 1) codes[i] |= (block[16 + i] >> group & 1) << 4;
    }
  } else {
    static_assert(kType == kTypeQ6_K);
    const int quarter = group % 4;
    const uint8_t* lower = block + group / 4 * 64 + quarter % 2 * 32;
    const uint8_t* upper = block + 128 + group / 4 * 32;
#pragma unroll
    for (int i = 0; i < kGroup; ++i) {
      codes[i] = (lower[i] >> (quarter / 2 * 4) & 15) | (upper[i] >> (2 * quarter) & 3) << 4;
    }
  }
}

// The group's scales; where 256 weights share them their first group writes them.
template <int32_t kType>
__device__ void placeScales(const uint8_t* block, int group, char* unit, int row) {
  using F = BlockFormat<kType>;
  char* target = unit + scalesOffset<F>(groupPlace(row, group), row);
  if constexpr (F::kScales == Scales::eightBit) {
    *reinterpret_cast<uint16_t*>(target) = loadBytes<uint16_t>(block + 192 + 2 * group);
    if (group == 0) {
      *reinterpret_cast<uint16_t*>(unit + rowFactorOffset<F>(row)) =
          loadBytes<uint16_t>(block + 208);
    }
  } else if (!F::kSuper || group == 0) {
#pragma unroll
    for (int i = 0; i < F::kScaleBytes; i += 2) {
      *reinterpret_cast<uint16_t*>(target + i) = loadBytes<uint16_t>(block + i);
    }
  }
}

// The group of a thread, in rows firstRow, firstRow + rowStep, ... of the matrix.
template <class F>
struct Target {
  int64_t sourceRow;
  int row;  // of the tile
  int64_t unit;
  int group;  // of the unit
  char* data;
};

template <class F>
__device__ Target<F> targetOf(const DeviceMatrix& matrix, int64_t index, int64_t firstRow,
                              int64_t rowStep) {
  const int64_t groupsPerRow = unitsPerTile<F>(matrix.columns) * F::kGroups;
  const int64_t sourceRow = index / groupsPerRow;
  const int64_t groupInRow = index % groupsPerRow;
  const int64_t row = firstRow + sourceRow * rowStep;
  const int64_t unit = groupInRow / F::kGroups;
  char* base = static_cast<char*>(const_cast<void*>(matrix.data));
  return {sourceRow, static_cast<int>(row % kTileRows), unit,
          static_cast<int>(groupInRow % F::kGroups),
          base + unitOffset<F>(matrix.columns, row / kTileRows, unit)};
}

template <int32_t kType>
__global__ __launch_bounds__(kThreads) void placeBlocks(const uint8_t* fileRows, int64_t groups,
                                                        const DeviceMatrix matrix, int64_t firstRow,
                                                        int64_t rowStep) {
  using F = BlockFormat<kType>;
  const int64_t index = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (index >= groups) return;
  const Target<F> target = targetOf<F>(matrix, index, firstRow, rowStep);
  const int64_t blocksPerRow = matrix.columns / F::kBlockColumns;
  const int64_t block = (target.unit * F::kUnitColumns + target.group * kGroup) / F::kBlockColumns;
  const GroupPlace place = groupPlace(target.row, target.group);
  uint8_t codes[kGroup] = {};
  if (block < blocksPerRow) {
    const uint8_t* source = fileRows + (target.sourceRow * blocksPerRow + block) * F::kBlockBytes;
    fileCodes<kType>(source, F::kSuper ? target.group : 0, codes);
    placeScales<kType>(source, target.group, target.data, target.row);
  } else {
    // Columns that only fill up the unit: factors of 0.
    char* scales = target.data + scalesOffset<F>(place, target.row);
    for (int i = 0; i < F::kScaleBytes; i += 2) *reinterpret_cast<uint16_t*>(scales + i) = 0;
  }
  writeCodes<F>(target.data, place, codes);
}

// Rows of whole 16 bytes, as they are.
__global__ __launch_bounds__(kThreads) void placePlain(const uint8_t* fileRows, int64_t rowCount,
                                                       int64_t rowBytes, char* target,
                                                       int64_t firstRow, int64_t rowStep) {
  const int64_t piecesPerRow = rowBytes / 16;
  const int64_t index = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (index >= rowCount * piecesPerRow) return;
  const int64_t row = index / piecesPerRow;
  const int64_t offset = index % piecesPerRow * 16;
  *reinterpret_cast<uint4*>(target + (firstRow + row * rowStep) * rowBytes + offset) =
      *reinterpret_cast<const uint4*>(fileRows + row * rowBytes + offset);
}

// splitmix64 (Steele, Lea, Flood 2014).
__device__ uint64_t mix(uint64_t value) {
  value += 0x9E3779B97F4A7C15u;
  value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9u;
  value = (value ^ value >> 27) * 0x94D049BB133111EBu;
  return value ^ value >> 31;
}

__device__ uint16_t halfOf(float value) { return __half_as_ushort(__float2half_rn(value)); }

// Deviation of codes that are evenly distributed, about their middle: sqrt((n^2 - 1) / 12). The
// table's own for Scales::fourBitTable.
template <class F>
__device__ constexpr float codeDeviation() {
  return F::kScales == Scales::fourBitTable ? 73.5f
         : F::kCodeBits == 4                ? 4.61f
         : F::kCodeBits == 5                ? 9.23f
         : F::kCodeBits == 6                ? 18.47f
                                            : 73.9f;
}

// Scales of the group, such that the weights have the deviation; `bits` differ by group, `rowBits`
// by 256 weights. Factors have either sign where codes are not about 0, so that the mean is 0.
template <int32_t kType>
__device__ void randomScales(char* unit, int row, int group, float deviation, uint64_t bits,
                             uint64_t rowBits) {
  using F = BlockFormat<kType>;
  const float factor = deviation / codeDeviation<F>();
  const float sign = bits & 1 ? -1.0f : 1.0f;
  const float spread = 0.8f + 0.4f * static_cast<float>(bits >> 40 & 1023) / 1023.0f;
  constexpr float kMiddle = ((1 << F::kCodeBits) - 1) * 0.5f;
  char* target = unit + scalesOffset<F>(groupPlace(row, group), row);
  auto* halves = reinterpret_cast<uint16_t*>(target);
  if constexpr (F::kScales == Scales::half) {
    halves[0] = halfOf(sign * factor * spread);
  } else if constexpr (F::kScales == Scales::halfPair) {
    halves[0] = halfOf(factor * spread);
    halves[1] = halfOf(-kMiddle * factor * spread);
  } else if constexpr (F::kScales == Scales::sixBit) {
    if (group != 0) return;
    // s and m are equal, 32 to 63: the upper two bits of the last four pairs are in the first
    // bytes. dmin = d * kMiddle moves the middle of the codes to 0.
    halves[0] = halfOf(factor / 48.0f);
    halves[1] = halfOf(factor / 48.0f * kMiddle);
    auto* packed = reinterpret_cast<uint8_t*>(target + 4);
    for (int j = 0; j < 4; ++j) {
      const auto first = static_cast<uint32_t>(32 + (rowBits >> (5 * j) & 31));
      const auto second = static_cast<uint32_t>(32 + (rowBits >> (20 + 5 * j) & 31));
      packed[j] = packed[j + 4] = static_cast<uint8_t>(first | second >> 4 << 6);
      packed[j + 8] = static_cast<uint8_t>((second & 15) * 17);
    }
  } else if constexpr (F::kScales == Scales::eightBit) {
    auto* bytes = reinterpret_cast<int8_t*>(target);
    for (int j = 0; j < 2; ++j) {
      const auto size = static_cast<int>(64 + (bits >> (8 + 6 * j) & 63));
      bytes[j] = static_cast<int8_t>(bits >> j & 1 ? -size : size);
    }
    if (group == 0) {
      *reinterpret_cast<uint16_t*>(unit + rowFactorOffset<F>(row)) = halfOf(factor / 96.0f);
    }
  } else {
    if (group != 0) return;
    // Any 6-bit numbers: less 32 they have a deviation of 18.5.
    halves[0] = halfOf(factor / 18.5f);
    halves[1] = static_cast<uint16_t>(rowBits);
    halves[2] = static_cast<uint16_t>(rowBits >> 16);
    halves[3] = static_cast<uint16_t>(rowBits >> 32);
  }
}

template <int32_t kType>
__global__ __launch_bounds__(kThreads) void fillBlocks(const DeviceMatrix matrix, int64_t groups,
                                                       float deviation, uint64_t seed) {
  using F = BlockFormat<kType>;
  const int64_t index = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (index >= groups) return;
  const Target<F> target = targetOf<F>(matrix, index, 0, 1);
  const GroupPlace place = groupPlace(target.row, target.group);
  const uint64_t base = mix(seed) + static_cast<uint64_t>(index) * 8;
  uint8_t codes[kGroup];
#pragma unroll
  for (int word = 0; word < 4; ++word) {
    const uint64_t bits = mix(base + word);
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      codes[8 * word + i] = static_cast<uint8_t>(bits >> (8 * i) & ((1 << F::kCodeBits) - 1));
    }
  }
  // Columns beyond the matrix count as 0.
  const bool inside = target.unit * F::kUnitColumns + target.group * kGroup < matrix.columns;
  const uint64_t rowBase = base - static_cast<uint64_t>(target.group) * 8;
  randomScales<kType>(target.data, target.row, target.group, inside ? deviation : 0.0f,
                      mix(base + 4), mix(rowBase + 5));
  writeCodes<F>(target.data, place, codes);
}

// An even number in [-1, 1].
__device__ float evenly(uint64_t bits) {
  return static_cast<float>(static_cast<int32_t>(bits >> 32)) * 0x1p-31f;
}

constexpr float kSqrt3 = 1.7320508f;

__global__ __launch_bounds__(kThreads) void fillPlain(void* target, int32_t type, int64_t count,
                                                      float mean, float deviation, uint64_t seed) {
  const int64_t index = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (index >= count) return;
  const float value =
      mean + deviation * kSqrt3 * evenly(mix(mix(seed) + static_cast<uint64_t>(index)));
  if (type == kTypeF32) {
    static_cast<float*>(target)[index] = value;
  } else if (type == kTypeF16) {
    static_cast<__half*>(target)[index] = __float2half_rn(value);
  } else {
    static_cast<__nv_bfloat16*>(target)[index] = __float2bfloat16_rn(value);
  }
}

}  // namespace

cudaError_t launchPlace(const void* fileRows, int64_t rowCount, const DeviceMatrix& matrix,
                        int64_t firstRow, int64_t rowStep, cudaStream_t stream) {
  if (!validateMatrix(matrix.type, matrix.rows, matrix.columns).empty() || firstRow < 0 ||
      rowStep < 1 || rowCount < 0 || firstRow + (rowCount - 1) * rowStep >= matrix.rows) {
    return cudaErrorInvalidValue;
  }
  if (rowCount == 0) return cudaSuccess;
  const auto* source = static_cast<const uint8_t*>(fileRows);
  const bool blocks = dispatchBlocks(matrix.type, [&]<int32_t kType>() {
    using F = BlockFormat<kType>;
    const int64_t groups = rowCount * unitsPerTile<F>(matrix.columns) * F::kGroups;
    placeBlocks<kType>
        <<<blocksFor(groups), kThreads, 0, stream>>>(source, groups, matrix, firstRow, rowStep);
  });
  if (!blocks) {
    const int64_t rowBytes = fileRowBytes(matrix.type, matrix.columns);
    placePlain<<<blocksFor(rowCount * rowBytes / 16), kThreads, 0, stream>>>(
        source, rowCount, rowBytes, static_cast<char*>(const_cast<void*>(matrix.data)), firstRow,
        rowStep);
  }
  return cudaGetLastError();
}

cudaError_t launchFillRandom(const DeviceMatrix& matrix, uint64_t seed, cudaStream_t stream) {
  if (!validateMatrix(matrix.type, matrix.rows, matrix.columns).empty()) {
    return cudaErrorInvalidValue;
  }
  const float deviation = 1.0f / sqrtf(static_cast<float>(matrix.columns));
  void* data = const_cast<void*>(matrix.data);
  const bool blocks = dispatchBlocks(matrix.type, [&]<int32_t kType>() {
    using F = BlockFormat<kType>;
    // Also the rows that only fill up the last tile, so that every byte is defined.
    const int64_t groups =
        matrixTiles(matrix) * kTileRows * unitsPerTile<F>(matrix.columns) * F::kGroups;
    fillBlocks<kType><<<blocksFor(groups), kThreads, 0, stream>>>(matrix, groups, deviation, seed);
  });
  if (!blocks) {
    const int64_t count = matrix.rows * matrix.columns;
    fillPlain<<<blocksFor(count), kThreads, 0, stream>>>(data, matrix.type, count, 0.0f, deviation,
                                                         seed);
  }
  return cudaGetLastError();
}

cudaError_t launchFillRandomVector(float* values, int64_t count, float mean, float deviation,
                                   uint64_t seed, cudaStream_t stream) {
  if (count <= 0) return count == 0 ? cudaSuccess : cudaErrorInvalidValue;
  fillPlain<<<blocksFor(count), kThreads, 0, stream>>>(values, kTypeF32, count, mean, deviation,
                                                       seed);
  return cudaGetLastError();
}

}  // namespace longsight::cuda
