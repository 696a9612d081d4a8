#include "kernels/cpu/linear/linear.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <new>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "kernels/cpu/linear/few_rows.h"
#include "kernels/cpu/linear/kernels.h"

namespace longsight {
namespace {

constexpr size_t kAlignment = 64;
// Zeros between two packed rows of activations, so that their addresses are not equal modulo the
// size of a cache way when the number of columns is a power of two.
constexpr int64_t kRowGapElements = 32;
// Times of tiles do not have the rounding of activations, which costs integers more.
constexpr double kClearlyFaster = 0.85;

int64_t roundUp(int64_t value, int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

int64_t ceilDivide(int64_t value, int64_t divisor) { return (value + divisor - 1) / divisor; }

ExpandRow expanderFor(const LinearKernels& kernels, ggml_type type) {
  if (ExpandRow own = kernels.expander(type)) return own;
  return ggml_get_type_traits(type)->to_float;
}

// Seconds per row of a tile whose operands are in the caches.
double tileSeconds(const LinearKernels& kernels) {
  constexpr int64_t kDepth = 512;
  constexpr int kBursts = 5, kRows = 128;
  struct alignas(kAlignment) Line {
    float values[kAlignment / sizeof(float)];
  };
  constexpr int64_t kLineFloats = kAlignment / sizeof(float);
  std::vector<Line> a(kDepth * kMaxTileRows / kLineFloats),
      panel(kDepth * kPanelRows / kLineFloats), c(kPanelRows * kMaxTileRows / kLineFloats);
  double best = 1.0;
  for (int burst = 0; burst < kBursts; ++burst) {
    const auto start = std::chrono::steady_clock::now();
    for (int i = 0; i < kRows; i += kernels.tileRows) {
      kernels.multiplyTile(a.data(), kDepth, kernels.tileRows, panel.data(), kDepth,
                           c.front().values, kPanelRows, false);
    }
    const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - start;
    best = std::min(best, taken.count());
  }
  return best / kRows;
}

}  // namespace

LinearSets::LinearSets(InstructionSet set) : general(set), integers(set) {
  const LinearKernels* kernels = linearKernels(set);
  if (kernels != nullptr) general = kernels->set;
  if (integerLinearKernels(set) == nullptr) integers = general;
}

LinearSets chooseLinearSets() {
  if (isInstructionSetForced()) return chooseInstructionSet();
  static const LinearSets fastest = [] {
    LinearSets sets = fastestInstructionSet([](InstructionSet set) -> std::optional<double> {
      const LinearKernels* kernels = linearKernels(set);
      if (kernels == nullptr || kernels->set != set) return std::nullopt;
      return tileSeconds(*kernels);
    });
    double least = tileSeconds(*linearKernels(sets.general)) * kClearlyFaster;
    for (const InstructionSet set : kInstructionSets) {
      const LinearKernels* kernels = integerLinearKernels(set);
      if (kernels == nullptr) continue;
      const double seconds = tileSeconds(*kernels);
      if (seconds >= least) continue;
      sets.integers = set;
      least = seconds;
    }
    return sets;
  }();
  return fastest;
}

std::string linearSetsName(const LinearSets& sets) {
  const std::string name = instructionSetName(sets.general);
  if (sets.integers == sets.general) return name;
  return name + ", integers " + instructionSetName(sets.integers);
}

const LinearKernels* linearKernels(InstructionSet set) {
  if (!instructionSetRuns(set)) return nullptr;
#if defined(__x86_64__)
  if (set == InstructionSet::amx) return amxLinearKernels();
  if (set == InstructionSet::avx512bf16) return avx512bf16LinearKernels();
  if (set >= InstructionSet::avx512) return avx512LinearKernels();
  if (set == InstructionSet::avx2) return avx2LinearKernels();
#endif
  return portableLinearKernels();
}

const LinearKernels* integerLinearKernels(InstructionSet set) {
#if defined(__x86_64__)
  if (set == InstructionSet::avx512vnni && instructionSetRuns(set))
    return avx512vnniLinearKernels();
#endif
  return nullptr;
}

const FewRowKernels* chooseFewRowKernels() {
#if defined(__x86_64__)
  const bool runs = isInstructionSetForced() ? chooseInstructionSet() == InstructionSet::avx512vnni
                                             : instructionSetRuns(InstructionSet::avx512vnni);
  if (runs) return avx512vnniFewRowKernels();
#endif
  return nullptr;
}

bool isLinearType(ggml_type type) {
  if (type < 0 || type >= GGML_TYPE_COUNT) return false;
  const ggml_type_traits* traits = ggml_get_type_traits(type);
  return type == GGML_TYPE_F32 || (traits->blck_size > 0 && traits->to_float != nullptr &&
                                   kGroupColumns % traits->blck_size == 0);
}

// Offsets in bytes: packed activations, then for each thread its panel, group and edge tile.
struct LinearScratch::Layout {
  Layout(const LinearSets& chosen, const LinearKernels* forAll, const LinearKernels* forIntegers)
      : sets(chosen), general(forAll), integers(forIntegers) {}

  LinearSets sets;
  const LinearKernels* general;
  const LinearKernels* integers;  // null where there are none of their own
  int64_t maxRows = 0;
  int64_t maxColumns = 0;
  int32_t threads = 0;
  int64_t rowElements = 0;  // a packed row of activations with its gap
  size_t panelBytes = 0;
  size_t groupBytes = 0;
  size_t threadBytes = 0;
  size_t threadsBegin = 0;
  size_t totalBytes = 0;
};

LinearScratch::Layout LinearScratch::layoutFor(int64_t maxRows, int64_t maxColumns, int32_t threads,
                                               const LinearSets& sets) {
  if (maxRows < 1 || maxColumns < 1 || threads < 1) {
    throw std::invalid_argument("linear layers: scratch for " + std::to_string(maxRows) +
                                " rows, " + std::to_string(maxColumns) + " columns, " +
                                std::to_string(threads) + " threads");
  }
  Layout layout{sets, linearKernels(sets.general), integerLinearKernels(sets.integers)};
  if (layout.general == nullptr || !instructionSetRuns(sets.integers)) {
    throw std::invalid_argument("linear layers: this machine does not run " + linearSetsName(sets));
  }
  layout.maxRows = maxRows;
  layout.maxColumns = maxColumns;
  layout.threads = threads;
  const int64_t columns = roundUp(maxColumns, kColumnMultiple);
  layout.rowElements = columns + kRowGapElements;
  // Calls of the two kinds take turns in the same memory.
  int64_t packedBytes = 0;
  for (const LinearKernels* kernels : {layout.general, layout.integers}) {
    if (kernels == nullptr) continue;
    if (kernels->packRow != nullptr)
      packedBytes = std::max(packedBytes, maxRows * layout.rowElements * kernels->elementBytes);
    const int64_t panelBytes = int64_t{kPanelRows} * kernels->elementBytes *
                               std::min<int64_t>(columns, kernels->panelDepth);
    layout.panelBytes = std::max(layout.panelBytes, static_cast<size_t>(panelBytes));
  }
  layout.groupBytes = sizeof(float) * kGroupRows * kGroupStride;
  const size_t edgeBytes = sizeof(float) * kMaxTileRows * kPanelRows;
  layout.threadBytes = layout.panelBytes + layout.groupBytes + edgeBytes;
  layout.threadsBegin = static_cast<size_t>(roundUp(packedBytes, kAlignment));
  layout.totalBytes = layout.threadsBegin + layout.threadBytes * static_cast<size_t>(threads);
  return layout;
}

LinearScratch::LinearScratch(int64_t maxRows, int64_t maxColumns, int32_t threads,
                             const LinearSets& sets)
    : layout_(std::make_unique<Layout>(layoutFor(maxRows, maxColumns, threads, sets))),
      buffer_(static_cast<std::byte*>(
          ::operator new(layout_->totalBytes, std::align_val_t(kAlignment)))) {}

LinearScratch::~LinearScratch() { ::operator delete(buffer_, std::align_val_t(kAlignment)); }

size_t LinearScratch::bytes(int64_t maxRows, int64_t maxColumns, int32_t threads,
                            const LinearSets& sets) {
  return layoutFor(maxRows, maxColumns, threads, sets).totalBytes;
}

const LinearSets& LinearScratch::sets() const { return layout_->sets; }

void LinearScratch::fillForTest(uint8_t byte) { std::memset(buffer_, byte, layout_->totalBytes); }

// The part of a call of multiply() that one set of kernels does: the outputs whose weights are
// theirs.
class LinearCall {
 public:
  LinearCall(LinearScratch& scratch, const LinearKernels& kernels,
             std::span<const LinearOutput> outputs, ThreadPool& pool, const CancelFlag& cancel)
      : layout_(*scratch.layout_),
        kernels_(kernels),
        buffer_(scratch.buffer_),
        outputs_(outputs),
        pool_(pool),
        cancel_(cancel),
        columns_(outputs.front().weight.columns) {
    for (const LinearOutput& output : outputs) panels_ += panelsOf(output);
  }

  static void validate(const LinearScratch& scratch, int64_t rows, int64_t aStride,
                       std::span<const LinearOutput> outputs, const ThreadPool& pool);

  bool run(const float* activations, int64_t rows, int64_t aStride) {
    for (int64_t begin = 0; panels_ > 0 && begin < rows && !cancel_.isSet();
         begin += layout_.maxRows) {
      runBlock(activations + begin * aStride, begin, std::min(layout_.maxRows, rows - begin),
               aStride);
    }
    return !cancel_.isSet();
  }

 private:
  int64_t panelsOf(const LinearOutput& output) const {
    const LinearKernels* integers = layout_.integers;
    const bool isInteger = integers != nullptr && integers->takes(output.weight.type);
    if (&kernels_ != (isInteger ? integers : layout_.general)) return 0;
    return ceilDivide(output.weight.rows, kPanelRows);
  }
  void runBlock(const float* activations, int64_t begin, int64_t rows, int64_t aStride);
  void pack(const float* source, int64_t aStride);
  void splitPanels();
  void computePanel(int64_t panel, int64_t firstRow, int64_t endRow, int32_t thread);
  void multiplyRows(const void* panel, int64_t column, int64_t depth, const LinearOutput& output,
                    int64_t firstOutput, int64_t firstRow, int64_t endRow, float* edge);

  const LinearScratch::Layout& layout_;
  const LinearKernels& kernels_;
  std::byte* buffer_;
  std::span<const LinearOutput> outputs_;
  ThreadPool& pool_;
  const CancelFlag& cancel_;
  int64_t columns_;
  int64_t panels_ = 0;

  int64_t begin_ = 0;
  int64_t rows_ = 0;
  const void* a_ = nullptr;
  int64_t aStride_ = 0;  // elements
  int64_t wholePanels_ = 0;
  int64_t pieces_ = 1;
  int64_t pieceRows_ = 0;
};

void LinearCall::validate(const LinearScratch& scratch, int64_t rows, int64_t aStride,
                          std::span<const LinearOutput> outputs, const ThreadPool& pool) {
  const auto require = [](bool condition, const std::string& what) {
    if (!condition) throw std::invalid_argument("linear layers: " + what);
  };
  const LinearScratch::Layout& layout = *scratch.layout_;
  require(!outputs.empty(), "no weights");
  const int64_t columns = outputs.front().weight.columns;
  require(rows >= 0, std::to_string(rows) + " rows");
  require(columns >= 1 && columns <= layout.maxColumns, std::to_string(columns) +
                                                            " columns, scratch is for 1 to " +
                                                            std::to_string(layout.maxColumns));
  require(aStride >= columns, "activation stride " + std::to_string(aStride) + " is less than " +
                                  std::to_string(columns) + " columns");
  require(pool.threads() <= layout.threads, std::to_string(pool.threads()) +
                                                " threads, scratch is for " +
                                                std::to_string(layout.threads));
  for (const LinearOutput& output : outputs) {
    const WeightView& weight = output.weight;
    require(isLinearType(weight.type),
            "weights of type " + std::to_string(weight.type) + " cannot be expanded");
    const ggml_type_traits* traits = ggml_get_type_traits(weight.type);
    require(weight.columns == columns, "weights of " + std::to_string(weight.columns) + " and " +
                                           std::to_string(columns) + " columns in one call");
    require(columns % traits->blck_size == 0,
            std::to_string(columns) + " columns are no multiple of the block of " +
                traits->type_name + ", " + std::to_string(traits->blck_size));
    require(weight.rows >= 0 && output.stride >= weight.rows,
            "output stride " + std::to_string(output.stride) + " is less than " +
                std::to_string(weight.rows) + " outputs");
  }
}

void LinearCall::runBlock(const float* activations, int64_t begin, int64_t rows, int64_t aStride) {
  begin_ = begin;
  rows_ = rows;
  a_ = activations;
  aStride_ = aStride;
  if (kernels_.packRow != nullptr) pack(activations, aStride);
  splitPanels();
  const int64_t items = wholePanels_ + (panels_ - wholePanels_) * pieces_;
  pool_.forEach(items, [this](int64_t item, int32_t thread) {
    if (item < wholePanels_) {
      computePanel(item, 0, rows_, thread);
      return;
    }
    const int64_t piece = (item - wholePanels_) % pieces_;
    const int64_t first = std::min(rows_, piece * pieceRows_);
    const int64_t end = std::min(rows_, first + pieceRows_);
    if (first == end) return;
    computePanel(wholePanels_ + (item - wholePanels_) / pieces_, first, end, thread);
  });
}

void LinearCall::pack(const float* source, int64_t aStride) {
  const int64_t rowBytes = layout_.rowElements * kernels_.elementBytes;
  const int64_t padded = roundUp(columns_, kColumnMultiple);
  constexpr int64_t kRowsPerItem = 16;
  pool_.forEach(ceilDivide(rows_, kRowsPerItem), [&](int64_t item, int32_t) {
    const int64_t end = std::min(rows_, (item + 1) * kRowsPerItem);
    for (int64_t row = item * kRowsPerItem; row < end; ++row) {
      kernels_.packRow(source + row * aStride, columns_, buffer_ + row * rowBytes, padded);
    }
  });
  a_ = buffer_;
  aStride_ = layout_.rowElements;
}

// Panels that do not fill all threads a last time are split by rows, each piece expanding its panel
// again, into as many pieces as end soonest.
void LinearCall::splitPanels() {
  // Rows whose multiplication takes about as long as the expansion of the panel.
  constexpr int64_t kExpansionRows = 24;
  const int64_t threads = pool_.threads();
  wholePanels_ = panels_ / threads * threads;
  const int64_t rest = panels_ - wholePanels_;
  const auto cost = [&](int64_t pieces) {
    return ceilDivide(rest * pieces, threads) * (ceilDivide(rows_, pieces) + kExpansionRows);
  };
  pieces_ = 1;
  for (int64_t pieces = 2; pieces <= threads; ++pieces) {
    if (cost(pieces) < cost(pieces_)) pieces_ = pieces;
  }
  pieceRows_ = roundUp(ceilDivide(rows_, pieces_), kernels_.tileRows);
}

void LinearCall::computePanel(int64_t panel, int64_t firstRow, int64_t endRow, int32_t thread) {
  const LinearOutput* output = outputs_.data();
  while (panel >= panelsOf(*output)) panel -= panelsOf(*output++);
  const WeightView& weight = output->weight;
  const ggml_type_traits* traits = ggml_get_type_traits(weight.type);
  const int64_t firstOutput = panel * kPanelRows;

  std::byte* own =
      buffer_ + layout_.threadsBegin + static_cast<size_t>(thread) * layout_.threadBytes;
  std::byte* panelBuffer = own;
  float* group = reinterpret_cast<float*>(own + layout_.panelBytes);
  float* edge = reinterpret_cast<float*>(own + layout_.panelBytes + layout_.groupBytes);

  PanelSource source{};
  source.blockColumns = traits->blck_size;
  source.blockBytes = static_cast<int64_t>(traits->type_size);
  source.rowBytes = columns_ / source.blockColumns * source.blockBytes;
  source.rows = static_cast<int32_t>(std::min<int64_t>(kPanelRows, weight.rows - firstOutput));
  source.ggmlType = weight.type;
  source.expand = expanderFor(kernels_, weight.type);
  for (int64_t column = 0; column < columns_; column += kernels_.panelDepth) {
    if (cancel_.isSet()) return;
    source.data = static_cast<const std::byte*>(weight.data) + firstOutput * source.rowBytes +
                  column / source.blockColumns * source.blockBytes;
    source.columns = std::min<int64_t>(kernels_.panelDepth, columns_ - column);
    kernels_.expandPanel(source, group, panelBuffer);
    multiplyRows(panelBuffer, column, source.columns, *output, firstOutput, firstRow, endRow, edge);
  }
}

void LinearCall::multiplyRows(const void* panel, int64_t column, int64_t depth,
                              const LinearOutput& output, int64_t firstOutput, int64_t firstRow,
                              int64_t endRow, float* edge) {
  const int64_t width = std::min<int64_t>(kPanelRows, output.weight.rows - firstOutput);
  // Where activations are packed, both sides hold zeros up to the multiple.
  const int64_t tileDepth = kernels_.packRow == nullptr ? depth : roundUp(depth, kColumnMultiple);
  const size_t elementBytes = static_cast<size_t>(kernels_.elementBytes);
  for (int64_t row = firstRow; row < endRow; row += kernels_.tileRows) {
    if (cancel_.isSet()) return;
    const int32_t tileRows =
        static_cast<int32_t>(std::min<int64_t>(kernels_.tileRows, endRow - row));
    const std::byte* a = static_cast<const std::byte*>(a_) +
                         static_cast<size_t>(row * aStride_ + column) * elementBytes;
    float* out = output.out + (begin_ + row) * output.stride + firstOutput;
    if (width == kPanelRows) {
      kernels_.multiplyTile(a, aStride_, tileRows, panel, tileDepth, out, output.stride,
                            column > 0);
      continue;
    }
    for (int32_t r = 0; column > 0 && r < tileRows; ++r) {
      std::copy_n(out + r * output.stride, width, edge + r * kPanelRows);
    }
    kernels_.multiplyTile(a, aStride_, tileRows, panel, tileDepth, edge, kPanelRows, column > 0);
    for (int32_t r = 0; r < tileRows; ++r) {
      std::copy_n(edge + r * kPanelRows, width, out + r * output.stride);
    }
  }
}

bool multiply(const float* activations, int64_t rows, int64_t aStride,
              std::span<const LinearOutput> outputs, LinearScratch& scratch, ThreadPool& pool,
              const CancelFlag& cancel) {
  LinearCall::validate(scratch, rows, aStride, outputs, pool);
  for (const LinearKernels* kernels : {scratch.layout_->general, scratch.layout_->integers}) {
    if (kernels == nullptr) continue;
    if (!LinearCall(scratch, *kernels, outputs, pool, cancel).run(activations, rows, aStride))
      return false;
  }
  return true;
}

bool multiply(const float* activations, int64_t rows, int64_t aStride, const WeightView& weight,
              float* out, int64_t outStride, LinearScratch& scratch, ThreadPool& pool,
              const CancelFlag& cancel) {
  const LinearOutput output{weight, out, outStride};
  return multiply(activations, rows, aStride, {&output, 1}, scratch, pool, cancel);
}

}  // namespace longsight
