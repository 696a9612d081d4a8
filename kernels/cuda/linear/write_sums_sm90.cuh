// From the sums of wgmma to the output of a linear layer: scaled, with the bias, through SwiGLU,
// and copied or added to global memory by TMA while the next tile is multiplied.
#pragma once

#include "device/cluster.cuh"
#include "device/mbarrier.cuh"
#include "linear/swiglu.cuh"
#include "linear/tile_sm90.cuh"

namespace longsight::cuda {
namespace {

// What a consumer warpgroup needs to write its sums.
struct Writer {
  uint32_t chunks;
  int group;
  int thread;  // of the warpgroup
  int written = 0;

  __device__ int lane() const { return thread % 32; }
  __device__ int warp() const { return thread / 32; }

  // Has `fill` write a chunk to shared memory, then `send` copy it, called by one thread.
  template <class Fill, class Send>
  __device__ void write(Fill fill, Send send) {
    const uint32_t chunk = chunks + (written++ & 1) * kChunkBytes;
    if (thread == 0) storeWaitRead<1>();
    namedBarrierSync(1 + group, kGroupThreads);
    fill(chunk);
    fenceAsyncProxy();
    namedBarrierSync(1 + group, kGroupThreads);
    if (thread == 0) {
      send(chunk);
      storeCommit();
    }
  }
};

// Stores values[0], values[4], ... at `address` and every 1024 bytes from there.
template <int kCount>
__device__ __forceinline__ void storeColumn(uint32_t address, const float* values) {
  static_assert(kCount == 4);
  asm volatile(
      "st.shared.f32 [%0], %1;\n"
      "st.shared.f32 [%0 + 1024], %2;\n"
      "st.shared.f32 [%0 + 2048], %3;\n"
      "st.shared.f32 [%0 + 3072], %4;" ::"r"(address),
      "f"(values[0]), "f"(values[4]), "f"(values[8]), "f"(values[12])
      : "memory");
}

// Writes the sums of `count` rows from row0 on (a multiple of kBoxRows) and 64 outputs from output0
// on; sums as wgmma leaves them, outputs being its rows.
template <class Number, int kSums>
__device__ void writeSums(Writer& writer, const LinearWork& work, const CUtensorMap& outputMap,
                          float (&sums)[kSums], int32_t output0, int32_t row0, int32_t count) {
  const int lane = writer.lane();
  const int warp = writer.warp();
  const bool swiglu = work.epilogue == LinearEpilogue::swigluBf16;
  // With SwiGLU the rows of the weight came as 8 of the gate, then 8 of the up projection.
  const int32_t firstOutput = output0 + warp * 16 + (swiglu ? lane / 4 * 2 : lane / 4);
  const int32_t outputs[2] = {firstOutput, firstOutput + (swiglu ? 1 : 8)};
  float bias[2] = {0.0f, 0.0f};
  float weightScales[2] = {0.0f, 0.0f};
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    if (outputs[half] >= work.outputs) continue;
    if (work.bias != nullptr) bias[half] = work.bias[outputs[half]];
    if constexpr (std::is_same_v<Number, E4m3>)
      weightScales[half] = work.weightScales[outputs[half]];
  }
  count = min(count, work.rows - row0);
#pragma unroll
  for (int base = 0; base < kSums; base += kChunkRows / 2) {
    const int32_t chunkRow = base * 2;
    if (chunkRow >= count) break;
    float(&part)[kChunkRows / 2] = reinterpret_cast<float(&)[kChunkRows / 2]>(sums[base]);
    if constexpr (std::is_same_v<Number, E4m3>) {
#pragma unroll
      for (int i = 0; i < kChunkRows / 4; ++i) {
        const int32_t row = row0 + chunkRow + i / 2 * 8 + lane % 4 * 2 + i % 2;
        const float scale = work.inputScales[min(row, work.rows - 1)];
        part[i / 2 * 4 + i % 2] *= weightScales[0] * scale;
        part[i / 2 * 4 + i % 2 + 2] *= weightScales[1] * scale;
      }
    }
#pragma unroll
    for (int i = 0; i < kChunkRows / 2; ++i) part[i] += bias[i % 4 / 2];
    const auto eachBox = [&](auto send) {
#pragma unroll
      for (int box = 0; box < kChunkRows; box += kBoxRows) {
        if (chunkRow + box < count) send(box, row0 + chunkRow + box);
      }
    };
    if (swiglu) {
      writer.write(
          [&](uint32_t chunk) {
            uint32_t packed[kChunkRows / 8];
#pragma unroll
            for (int j = 0; j < kChunkRows / 8; ++j) {
              packed[j] = packPair<Bf16>(swiglu1(part[4 * j], part[4 * j + 2]),
                                         swiglu1(part[4 * j + 1], part[4 * j + 3]));
            }
            storeMatrix4Transposed(chunk + swizzledOffset<64>(lane, warp), packed[0], packed[1],
                                   packed[2], packed[3]);
          },
          [&](uint32_t chunk) {
            eachBox([&](int box, int32_t row) {
              storeBox(&outputMap, chunk + box * 64, output0 / 2, row);
            });
          });
    } else if (work.epilogue == LinearEpilogue::storeBf16) {
      writer.write(
          [&](uint32_t chunk) {
#pragma unroll
            for (int j = 0; j < kChunkRows / 8; j += 2) {
              const int row = (j + lane / 16) * 8 + lane % 8;
              storeMatrix4Transposed(chunk + swizzledOffset<128>(row, warp * 2 + lane / 8 % 2),
                                     packPair<Bf16>(part[4 * j], part[4 * j + 1]),
                                     packPair<Bf16>(part[4 * j + 2], part[4 * j + 3]),
                                     packPair<Bf16>(part[4 * j + 4], part[4 * j + 5]),
                                     packPair<Bf16>(part[4 * j + 6], part[4 * j + 7]));
            }
          },
          [&](uint32_t chunk) {
            eachBox([&](int box, int32_t row) {
              storeBox(&outputMap, chunk + box * 128, output0, row);
            });
          });
    } else {
      // Two boxes of 32 outputs beside each other.
      writer.write(
          [&](uint32_t chunk) {
            // Neither 8 outputs nor a row further change more than bits 5 and 4 of the swizzle.
            const int output = warp % 2 * 16 + lane / 4;
            const uint32_t place = chunk + warp / 2 * (kChunkRows * 128) + output % 4 * 4 +
                                   swizzledOffset<128>(lane % 4 * 2, output / 4);
#pragma unroll
            for (int corner = 0; corner < 4; ++corner) {
              storeColumn<kChunkRows / 8>(
                  (place ^ (corner / 2 * 32 + corner % 2 * 16)) + corner % 2 * 128, part + corner);
            }
          },
          [&](uint32_t chunk) {
            eachBox([&](int box, int32_t row) {
#pragma unroll
              for (int side = 0; side < 2; ++side) {
                const uint32_t source = chunk + side * (kChunkRows * 128) + box * 128;
                if (work.epilogue == LinearEpilogue::addToF32) {
                  addBox(&outputMap, source, output0 + side * 32, row);
                } else {
                  storeBox(&outputMap, source, output0 + side * 32, row);
                }
              }
            });
          });
    }
  }
}

}  // namespace
}  // namespace longsight::cuda
