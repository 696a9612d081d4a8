// int8 operands of the score pass. A block of 128 keys shares a scale, so that the products of a
// step start from one limit a voter; a voter has a scale of its own, by which its threshold is
// divided.
#include "sample/quantized.cuh"
#include "sample/voters.cuh"

namespace longsight::cuda {
namespace {

constexpr int kThreads = 256;
constexpr float kLargest = 127.0f;

// Values become round(value * 127 / largest); a scale of 0 would divide by it.
__device__ __forceinline__ float scaleOf(float largest) {
  return largest > 0.0f ? largest / kLargest : 1.0f;
}
__device__ __forceinline__ uint32_t toByte(float value, float inverseScale) {
  return static_cast<uint32_t>(__float2int_rn(value * inverseScale)) & 0xFF;
}

// Eight elements from 16 bytes, zero where they are no score dims.
template <class T>
__device__ __forceinline__ void widen(const T* source, uint32_t scored, float (&values)[8]) {
  const uint4 raw = keepScored(*reinterpret_cast<const uint4*>(source), scored);
  const T* elements = reinterpret_cast<const T*>(&raw);
#pragma unroll
  for (int i = 0; i < 8; ++i) values[i] = float(elements[i]);
}

__device__ __forceinline__ uint2 toBytes(const float (&values)[8], float inverseScale) {
  uint2 bytes = {0, 0};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    bytes.x |= toByte(values[i], inverseScale) << (8 * i);
    bytes.y |= toByte(values[i + 4], inverseScale) << (8 * i);
  }
  return bytes;
}

// Block (128 keys, KV head).
template <class T, int kDims>
__global__ __launch_bounds__(kThreads) void quantizeKeys(const T* keys, int64_t capacityRows,
                                                         int headDim, ScoreDimsMap map,
                                                         int8_t* target, float* scales) {
  constexpr int kPieces = kDims / 8;
  constexpr int kPasses = int(kTileRows) * kPieces / kThreads;
  __shared__ float warpLargest[kThreads / 32];
  const int64_t firstRow = int64_t(blockIdx.x) * kTileRows;
  const T* rows = keys + (int64_t(blockIdx.y) * capacityRows + firstRow) * headDim;
  float values[kPasses][8];
  float largest = 0.0f;
#pragma unroll
  for (int pass = 0; pass < kPasses; ++pass) {
    const int i = pass * kThreads + threadIdx.x;
    widen(rows + int64_t(i / kPieces) * headDim + map.dimOf(i % kPieces), map.scored[i % kPieces],
          values[pass]);
#pragma unroll
    for (int k = 0; k < 8; ++k) largest = fmaxf(largest, fabsf(values[pass][k]));
  }
#pragma unroll
  for (int step = 16; step > 0; step /= 2) {
    largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, step));
  }
  if (threadIdx.x % 32 == 0) warpLargest[threadIdx.x / 32] = largest;
  __syncthreads();
#pragma unroll
  for (int i = 0; i < kThreads / 32; ++i) largest = fmaxf(largest, warpLargest[i]);
  const float scale = scaleOf(largest);
  if (threadIdx.x == 0) scales[blockIdx.y * gridDim.x + blockIdx.x] = scale;
  int8_t* block =
      target + (int64_t(blockIdx.y) * gridDim.x + blockIdx.x) * (int(kTileRows) * kDims);
#pragma unroll
  for (int pass = 0; pass < kPasses; ++pass) {
    const int i = pass * kThreads + threadIdx.x;
    *reinterpret_cast<uint2*>(block + i * 8) = toBytes(values[pass], 1.0f / scale);
  }
}

// A warp quantizes 32 / (kDims / 8) voters. Block (voters of one head, head, segment).
template <class T, int kDims>
__global__ __launch_bounds__(kThreads) void quantizeVoters(
    const __grid_constant__ ChunkLayout layout, const Workspace workspace, const T* queries,
    int headDim, ScoreDimsMap map) {
  constexpr int kPieces = kDims / 8;
  const SegmentLayout& segment = layout.segments[blockIdx.z];
  const int head = blockIdx.y;
  const int voter = (blockIdx.x * kThreads + threadIdx.x) / kPieces;
  const int piece = threadIdx.x % kPieces;
  const bool valid = segment.stride > 0 && voter < segment.voters;
  float values[8] = {};
  if (valid) {
    widen(voterQueries(layout, segment, queries, head, headDim, voter).first + map.dimOf(piece),
          map.scored[piece], values);
  }
  float largest = 0.0f;
#pragma unroll
  for (int k = 0; k < 8; ++k) largest = fmaxf(largest, fabsf(values[k]));
#pragma unroll
  for (int step = kPieces / 2; step > 0; step /= 2) {
    largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, step));
  }
  if (!valid) return;
  const float scale = scaleOf(largest);
  const int64_t at = voterValuesBegin(segment, head) + voter;
  *reinterpret_cast<uint2*>(workspace.quantizedVoters + at * kDims + piece * 8) =
      toBytes(values, 1.0f / scale);
  if (piece == 0) workspace.voterValues[at] /= scale;
}

template <class T, int kDims>
cudaError_t launch(const LaunchContext& context) {
  const ChunkLayout& layout = context.layout;
  const int headDim = context.chunk.shape.headDim;
  const ScoreDimsMap map = scoreDimsMap(context.chunk.options.scoreDims);
  const int blocks = mostRemoteBlocks(layout);
  if (blocks == 0) return cudaSuccess;
  int mostVoters = 0;
  for (int i = 0; i < layout.segmentCount; ++i) {
    mostVoters = max(mostVoters, layout.segments[i].voters);
  }
  quantizeKeys<T, kDims><<<dim3(blocks, layout.kvHeads), kThreads, 0, context.stream>>>(
      static_cast<const T*>(context.tensors.keys), context.tensors.capacityRows, headDim, map,
      context.workspace.quantizedKeys, context.workspace.keyScales);
  if (const cudaError_t error = cudaGetLastError(); error != cudaSuccess) return error;
  const int votersPerBlock = kThreads / (kDims / 8);
  quantizeVoters<T, kDims><<<dim3((mostVoters + votersPerBlock - 1) / votersPerBlock, layout.heads,
                                  layout.segmentCount),
                             kThreads, 0, context.stream>>>(
      layout, context.workspace, static_cast<const T*>(context.tensors.queries), headDim, map);
  return cudaGetLastError();
}

template <class T>
cudaError_t launchElement(const LaunchContext& context) {
  const int dims = scoreDimsMap(context.chunk.options.scoreDims).paddedDims();
  return dims == 32   ? launch<T, 32>(context)
         : dims == 64 ? launch<T, 64>(context)
                      : launch<T, 128>(context);
}

}  // namespace

cudaError_t launchQuantize(const LaunchContext& context) {
  return context.chunk.shape.element == Element::bf16 ? launchElement<Bf16>(context)
                                                      : launchElement<F16>(context);
}

}  // namespace longsight::cuda
