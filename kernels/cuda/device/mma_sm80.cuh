// PTX of sm_80 and later: asynchronous copies, matrix loads, mma.sync, and the swizzle they share.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

namespace longsight::cuda {

using Bf16 = __nv_bfloat16;
using F16 = __half;

__device__ __forceinline__ uint32_t sharedAddress(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// Copies 16 bytes to shared memory; zeros when not valid (the source is then not read).
__device__ __forceinline__ void copyAsync16(uint32_t target, const void* source, bool valid) {
  const int bytes = valid ? 16 : 0;
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(target), "l"(source),
               "r"(bytes)
               : "memory");
}

// The same for the first `bytes` of the 16; the others become zeros.
__device__ __forceinline__ void copyAsyncPart(uint32_t target, const void* source, int bytes) {
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(target), "l"(source),
               "r"(bytes)
               : "memory");
}

__device__ __forceinline__ void storeShared16(uint32_t target, uint4 value) {
  asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(target), "r"(value.x), "r"(value.y),
               "r"(value.z), "r"(value.w)
               : "memory");
}

__device__ __forceinline__ void copyAsyncCommit() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}

// Waits until at most kPending of this thread's committed groups are under way.
template <int kPending>
__device__ __forceinline__ void copyAsyncWait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

__device__ __forceinline__ void loadMatrix4(uint32_t (&r)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}

__device__ __forceinline__ void loadMatrix4Transposed(uint32_t (&r)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}

// d += a (16 x 16, row) * b (16 x 8, column), fp32 accumulation.
template <class T>
__device__ __forceinline__ void mma16x8x16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0,
                                           uint32_t b1) {
  if constexpr (sizeof(T) == 2 && __is_same(T, Bf16)) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, "
        "{%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  } else {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, "
        "{%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  }
}

// Two floats as two elements, `low` in the lower half.
template <class T>
__device__ __forceinline__ uint32_t packPair(float low, float high) {
  if constexpr (__is_same(T, Bf16)) {
    const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
    return reinterpret_cast<const uint32_t&>(pair);
  } else {
    const __half2 pair = __floats2half2_rn(low, high);
    return reinterpret_cast<const uint32_t&>(pair);
  }
}

// The same for int8, sums in int32: d += a (16 x 32, row) * b (32 x 8, column). Fragments have the
// bytes where 16-bit elements have them.
__device__ __forceinline__ void mma16x8x32(int32_t (&d)[4], const uint32_t (&a)[4], uint32_t b0,
                                           uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, "
      "{%8,%9}, {%0,%1,%2,%3};"
      : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Byte offset of 16-byte piece `piece` of row `row` in a tile whose rows are kRowBytes long (32, 64
// or 128), with the pieces permuted so that neither ldmatrix nor wgmma meets a bank conflict. It is
// the 32-, 64- and 128-byte swizzle of TMA and wgmma; tiles start at multiples of 1024 bytes.
template <int kRowBytes>
__device__ __forceinline__ uint32_t swizzledOffset(int row, int piece) {
  static_assert(kRowBytes == 32 || kRowBytes == 64 || kRowBytes == 128);
  const int permuted = kRowBytes == 128  ? piece ^ (row & 7)
                       : kRowBytes == 64 ? piece ^ ((row >> 1) & 3)
                                         : piece ^ ((row >> 2) & 1);
  return static_cast<uint32_t>(row * kRowBytes + permuted * 16);
}

// Elements that a row of a tile takes up: whole blocks of 64, of which the last may be used in
// part.
template <int kDim>
inline constexpr int kTileDim = kDim == 32 ? 32 : (kDim + 63) / 64 * 64;

// Tiles of more than 128 bytes a row are split into blocks of 128, each of kRows rows.
template <int kRowBytes, int kRows>
__device__ __forceinline__ uint32_t tileByteOffset(int row, int piece) {
  if constexpr (kRowBytes < 128) {
    return swizzledOffset<kRowBytes>(row, piece);
  } else {
    return (piece >> 3) * (kRows * 128) + swizzledOffset<128>(row, piece & 7);
  }
}

// The same for 16-bit elements.
template <int kDim, int kRows>
__device__ __forceinline__ uint32_t tileOffset(int row, int piece) {
  return tileByteOffset<kDim * 2, kRows>(row, piece);
}

__device__ __forceinline__ float exp2Fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

inline constexpr float kLog2E = 1.4426950408889634f;
inline constexpr float kLn2 = 0.6931471805599453f;

}  // namespace longsight::cuda
