// Linear layers of prefill: out = activations x weight^T, with weights in their GGUF type.
//
// A blocked matrix product in the manner of BLIS (Van Zee, van de Geijn 2015): panels of 64 weight
// rows are expanded once a call into a buffer that stays in the second-level cache, and multiplied
// with all rows of the call. bf16 products and f32 sums with AVX512_BF16, f32 throughout elsewhere;
// with AVX512_VNNI weights that a file holds as integers of up to 8 bits stay such, and activations
// become such as rounded_block.h has it.
//
// Every output element is one chain of additions in the order of the columns, so its bits depend on
// its row of activations and its row of weights alone: not on the number of threads, nor on which
// other rows or weights are in the call.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "cpu/cancel_flag.h"
#include "cpu/thread_pool.h"
#include "ggml.h"
#include "kernels/cpu/instruction_set.h"

namespace longsight {

struct LinearKernels;

// A weight as it lies in a GGUF file: `rows` rows (outputs) of ggml_row_size(type, columns) bytes.
struct WeightView {
  const void* data = nullptr;
  ggml_type type = GGML_TYPE_F32;
  int64_t rows = 0;
  // Inputs, a multiple of the type's block size.
  int64_t columns = 0;
};

struct LinearOutput {
  WeightView weight;
  // f32 [row][weight.rows], `stride` floats between rows.
  float* out = nullptr;
  int64_t stride = 0;
};

// Whether multiply() takes weights of this type: F32 and all that ggml can expand.
bool isLinearType(ggml_type type);

struct LinearSets {
  // What one set has for both.
  LinearSets(InstructionSet set);  // NOLINT(google-explicit-constructor)
  LinearSets(InstructionSet forAll, InstructionSet forIntegers)
      : general(forAll), integers(forIntegers) {}

  InstructionSet general;
  // Of weights that files hold as integers; `general` where the set has nothing for these alone.
  InstructionSet integers;

  bool operator==(const LinearSets&) const = default;
};

// What the set that LONGSIGHT_CPU names has, else the fastest ones here, measured once a process in
// a few milliseconds: which these are differs between processors (vdpbf16ps does twice the work of
// an f32 multiply-add in a cycle on AMD Zen 4, half of it on Intel Emerald Rapids). Throws like
// chooseInstructionSet().
LinearSets chooseLinearSets();
// "avx512bf16" or "avx512bf16, integers avx512vnni".
std::string linearSetsName(const LinearSets& sets);

// The buffers of multiply(). One object serves one call at a time.
class LinearScratch {
 public:
  // For weights of up to maxColumns columns and a pool of up to `threads` threads. Calls with more
  // than maxRows rows are worked off in blocks; below about 512 rows a block, the expansion of
  // weights begins to cost. The sets must run here.
  LinearScratch(int64_t maxRows, int64_t maxColumns, int32_t threads,
                const LinearSets& sets = chooseLinearSets());
  ~LinearScratch();
  LinearScratch(const LinearScratch&) = delete;
  LinearScratch& operator=(const LinearScratch&) = delete;

  // What an object with these arguments allocates.
  static size_t bytes(int64_t maxRows, int64_t maxColumns, int32_t threads,
                      const LinearSets& sets = chooseLinearSets());

  const LinearSets& sets() const;

  // Tests fill the buffers to show that nothing stale is read.
  void fillForTest(uint8_t byte);

 private:
  friend class LinearCall;
  friend bool multiply(const float*, int64_t, int64_t, std::span<const LinearOutput>,
                       LinearScratch&, ThreadPool&, const CancelFlag&);
  struct Layout;
  static Layout layoutFor(int64_t maxRows, int64_t maxColumns, int32_t threads,
                          const LinearSets& sets);
  std::unique_ptr<Layout> layout_;
  std::byte* buffer_ = nullptr;
};

// Computes every output for the same f32 activations [rows][columns], aStride floats between rows.
// All weights have the same number of columns; nothing may overlap an output. The layers that read
// the same input (query, key and value; gate and up) belong into one call: activations are rounded
// once and the threads are better filled. Allocates nothing.
// False when cancelled: the outputs are then undefined. Throws std::invalid_argument, before
// anything is written, for types, shapes or pools that do not fit the scratch.
bool multiply(const float* activations, int64_t rows, int64_t aStride,
              std::span<const LinearOutput> outputs, LinearScratch& scratch, ThreadPool& pool,
              const CancelFlag& cancel);

// The same for one weight.
bool multiply(const float* activations, int64_t rows, int64_t aStride, const WeightView& weight,
              float* out, int64_t outStride, LinearScratch& scratch, ThreadPool& pool,
              const CancelFlag& cancel);

}  // namespace longsight
