#include "cuda/engine/model_plan.h"

#include <algorithm>
#include <string>

#include "cuda/engine/failure.h"
#include "cuda/engine/memory.h"
#include "pointwise/pointwise.h"
#include "weights/weights.h"

namespace longsight::cuda {
namespace {

constexpr int32_t kTypeF32 = 0;
constexpr int32_t kTypeBf16 = 30;
constexpr int64_t kMostRows = int64_t{1} << 30;

constexpr std::array kMatrixNames = {"query", "key", "value", "attention output",
                                     "gate",  "up",  "down"};
constexpr std::array kNormNames = {"attention norm",    "query norm",
                                   "key norm",          "attention output norm",
                                   "feed-forward norm", "feed-forward output norm"};

// The product that a matrix is a part of.
Product productOf(int32_t matrix) {
  switch (matrix) {
    case LS_QUERY:
    case LS_KEY:
    case LS_VALUE:
      return Product::queryKeyValue;
    case LS_ATTENTION_OUTPUT:
      return Product::attentionOutput;
    case LS_GATE:
    case LS_UP:
      return Product::gateUp;
    default:
      return Product::down;
  }
}

struct Size {
  int64_t rows;
  int64_t columns;
};

Size matrixSize(const ModelShape& shape, int32_t matrix) {
  switch (matrix) {
    case LS_QUERY:
      return {shape.queryWidth(), shape.embedding};
    case LS_KEY:
    case LS_VALUE:
      return {shape.keyWidth(), shape.embedding};
    case LS_ATTENTION_OUTPUT:
      return {shape.embedding, shape.queryWidth()};
    case LS_GATE:
    case LS_UP:
      return {shape.feedForward, shape.embedding};
    default:
      return {shape.embedding, shape.feedForward};
  }
}

// Where the rows of a matrix begin among those of its product.
int64_t firstRowOf(const ModelShape& shape, int32_t matrix) {
  switch (matrix) {
    case LS_KEY:
      return shape.queryWidth();
    case LS_VALUE:
      return shape.queryWidth() + shape.keyWidth();
    case LS_UP:
      return 1;
    default:
      return 0;
  }
}

bool takesTurns(int32_t matrix) { return matrix == LS_GATE || matrix == LS_UP; }

class Planner {
 public:
  explicit Planner(const LsModelDesc& desc) : desc_(desc), tensors_(desc.tensors) {}

  ModelPlan plan() {
    readShape();
    index();
    placeWhole();
    for (int32_t layer = 0; layer < plan_.shape.layers; ++layer) placeLayer(layer);
    plan_.bytes = layout_.bytes();
    return std::move(plan_);
  }

 private:
  void readShape() {
    ModelShape& shape = plan_.shape;
    shape = {desc_.layers,     desc_.heads,       desc_.kvHeads,
             desc_.headDim,    desc_.embedding,   desc_.feedForward,
             desc_.vocabulary, desc_.normEpsilon, desc_.attentionScale};
    for (const auto& [value, name] :
         {std::pair{desc_.layers, "layers"}, std::pair{desc_.embedding, "embedding"},
          std::pair{desc_.feedForward, "feedForward"}, std::pair{desc_.vocabulary, "vocabulary"}}) {
      if (value < 1 || value > kMostRows)
        throw invalid(std::string(name) + " is " + std::to_string(value) + ", expected 1 to 2^30.");
    }
    if (!(desc_.normEpsilon >= 0) || !(desc_.attentionScale > 0))
      throw invalid("The norm epsilon is negative or the attention scale not above 0.");
    // The rules of attention: of a decode, since those of a prefill are the same.
    DecodeTask attention;
    attention.shape = {desc_.heads, desc_.kvHeads, desc_.headDim};
    attention.rows = 1;
    if (std::string fault = validate(attention); !fault.empty()) throw unsupported(fault + ".");
    if (desc_.embedding % 8 != 0 || desc_.embedding > kMaxNormWidth)
      throw unsupported("An embedding of " + std::to_string(desc_.embedding) +
                        " is no multiple of 8 up to " + std::to_string(kMaxNormWidth) + ".");
    if (desc_.feedForward % 8 != 0)
      throw unsupported("A feed-forward width of " + std::to_string(desc_.feedForward) +
                        " is no multiple of 8.");
    if (desc_.tensorCount < 1 || desc_.tensors == nullptr) throw invalid("There are no tensors.");
  }

  // Finds each tensor's place by role; indices into desc_.tensors, -1 where absent.
  void index() {
    const auto layers = static_cast<size_t>(desc_.layers);
    norms_.assign(layers * kNorms, -1);
    matrices_.assign(layers * kMatrices, -1);
    biases_.assign(layers * kMatrices, -1);
    plan_.targets.resize(static_cast<size_t>(desc_.tensorCount));
    for (int32_t i = 0; i < desc_.tensorCount; ++i) {
      const LsTensorDesc& tensor = tensors_[i];
      int32_t& slot = slotOf(i);
      if (slot >= 0)
        throw invalid("Tensors " + std::to_string(slot) + " and " + std::to_string(i) +
                      " are the same.");
      slot = i;
      TensorTarget& target = plan_.targets[static_cast<size_t>(i)];
      target.type = tensor.type;
      target.rows = tensor.rows;
      target.columns = tensor.columns;
    }
  }

  int32_t& slotOf(int32_t i) {
    const LsTensorDesc& tensor = tensors_[i];
    const bool ofLayer = tensor.role >= LS_LAYER_NORM;
    const int32_t parts = tensor.role == LS_LAYER_NORM ? int32_t{kNorms} : int32_t{kMatrices};
    if (tensor.role < LS_TOKEN_EMBEDDING || tensor.role > LS_LAYER_BIAS ||
        (ofLayer && (tensor.layer < 0 || tensor.layer >= desc_.layers || tensor.part < 0 ||
                     tensor.part >= parts)))
      throw invalid("Tensor " + std::to_string(i) + " has role " + std::to_string(tensor.role) +
                    ", layer " + std::to_string(tensor.layer) + ", part " +
                    std::to_string(tensor.part) + ".");
    if (!ofLayer) return single_[static_cast<size_t>(tensor.role)];
    const size_t at = static_cast<size_t>(tensor.layer) * static_cast<size_t>(parts) +
                      static_cast<size_t>(tensor.part);
    if (tensor.role == LS_LAYER_NORM) return norms_[at];
    return tensor.role == LS_LAYER_MATRIX ? matrices_[at] : biases_[at];
  }

  void placeWhole() {
    const ModelShape& shape = plan_.shape;
    const auto placeMatrix = [&](LsTensorRole role, const char* name, bool required) {
      const int32_t i = single_[role];
      if (i < 0) {
        if (required) throw invalid(std::string("There is no ") + name + ".");
        return plan_.tokenEmbedding;
      }
      requireMatrix(i, name, {shape.vocabulary, shape.embedding});
      PlannedMatrix matrix{tensors_[i].type, shape.vocabulary, shape.embedding, kAbsent, 0};
      place(matrix);
      target(i).matrix = matrix;
      return matrix;
    };
    plan_.tokenEmbedding = placeMatrix(LS_TOKEN_EMBEDDING, "token embedding", true);
    plan_.output = placeMatrix(LS_OUTPUT, "output head", false);
    plan_.outputNorm = placeVector(single_[LS_OUTPUT_NORM], "output norm", shape.embedding, true);
    plan_.outputBias = placeVector(single_[LS_OUTPUT_BIAS], "output bias", shape.vocabulary, false);
  }

  void placeLayer(int32_t layer) {
    const ModelShape& shape = plan_.shape;
    PlannedLayer planned;
    const auto layerAt = static_cast<size_t>(layer);
    for (size_t norm = 0; norm < kNorms; ++norm) {
      const bool ofHead = norm == LS_NORM_QUERY || norm == LS_NORM_KEY;
      const bool required = norm == LS_NORM_ATTENTION || norm == LS_NORM_FEED_FORWARD;
      planned.norms[norm] = placeVector(norms_[layerAt * kNorms + norm], kNormNames[norm],
                                        ofHead ? shape.headDim : shape.embedding, required);
    }
    requireBoth(planned, LS_NORM_QUERY, LS_NORM_KEY);
    requireBoth(planned, LS_NORM_ATTENTION_OUTPUT, LS_NORM_FEED_FORWARD_OUTPUT);

    for (const int32_t matrix : {LS_QUERY, LS_KEY, LS_VALUE, LS_ATTENTION_OUTPUT, LS_DOWN})
      addMatrix(planned, layerAt, matrix);
    addGateUp(planned, layerAt);
    for (PlannedProduct& product : planned.products)
      for (PlannedMatrix& matrix : product.matrices) place(matrix);
    // Only now are the places of matrices that grew by their neighbours known.
    for (int32_t matrix = 0; matrix < static_cast<int32_t>(kMatrices); ++matrix)
      aim(planned, layerAt, matrix);
    plan_.layers.push_back(std::move(planned));
  }

  int32_t matrixIndex(size_t layer, int32_t matrix) const {
    return matrices_[layer * kMatrices + static_cast<size_t>(matrix)];
  }

  void checkMatrix(size_t layer, int32_t matrix) const {
    const int32_t i = matrixIndex(layer, matrix);
    const char* name = kMatrixNames[static_cast<size_t>(matrix)];
    if (i < 0) throw invalid("Layer " + std::to_string(layer) + " has no " + name + " matrix.");
    requireMatrix(i, name, matrixSize(plan_.shape, matrix));
  }

  void addMatrix(PlannedLayer& planned, size_t layer, int32_t matrix) {
    checkMatrix(layer, matrix);
    PlannedProduct& product = planned.products[static_cast<size_t>(productOf(matrix))];
    const int32_t type = tensors_[matrixIndex(layer, matrix)].type;
    const Size size = matrixSize(plan_.shape, matrix);
    product.columns = size.columns;
    if (!product.matrices.empty() && product.matrices.back().type == type) {
      product.matrices.back().rows += size.rows;
    } else {
      product.matrices.push_back({type, size.rows, size.columns, kAbsent, product.rows});
    }
    product.rows += size.rows;
  }

  // Gate and up take turns in one matrix. Where a file has them in two types, both are held as
  // BF16.
  void addGateUp(PlannedLayer& planned, size_t layer) {
    checkMatrix(layer, LS_GATE);
    checkMatrix(layer, LS_UP);
    const int32_t gate = tensors_[matrixIndex(layer, LS_GATE)].type;
    const int32_t up = tensors_[matrixIndex(layer, LS_UP)].type;
    PlannedProduct& product = planned.products[static_cast<size_t>(Product::gateUp)];
    product.rows = 2 * int64_t{plan_.shape.feedForward};
    product.columns = plan_.shape.embedding;
    product.matrices.push_back(
        {gate == up ? gate : kTypeBf16, product.rows, product.columns, kAbsent, 0});
  }

  // Where the tensors of a matrix and its bias are uploaded to.
  void aim(PlannedLayer& planned, size_t layer, int32_t matrix) {
    PlannedProduct& product = planned.products[static_cast<size_t>(productOf(matrix))];
    const int64_t row = firstRowOf(plan_.shape, matrix);
    const int32_t i = matrixIndex(layer, matrix);
    const auto holder =
        std::find_if(product.matrices.rbegin(), product.matrices.rend(),
                     [&](const PlannedMatrix& candidate) { return candidate.firstRow <= row; });
    TensorTarget& weights = target(i);
    weights.matrix = *holder;
    weights.firstRow = row - holder->firstRow;
    weights.takesTurns = takesTurns(matrix);
    weights.expands = holder->type != weights.type;

    const int32_t bias = biases_[layer * kMatrices + static_cast<size_t>(matrix)];
    if (bias < 0) return;
    requireVector(bias, kMatrixNames[static_cast<size_t>(matrix)],
                  matrixSize(plan_.shape, matrix).rows);
    if (product.bias == kAbsent)
      product.bias =
          static_cast<ArenaOffset>(layout_.place(static_cast<uint64_t>(product.rows) * 4));
    target(bias).vector = product.bias;
    target(bias).firstRow = row;
    target(bias).takesTurns = takesTurns(matrix);
  }

  TensorTarget& target(int32_t i) { return plan_.targets[static_cast<size_t>(i)]; }

  void place(PlannedMatrix& matrix) {
    matrix.offset = static_cast<ArenaOffset>(layout_.place(
        static_cast<uint64_t>(deviceMatrixBytes(matrix.type, matrix.rows, matrix.columns))));
  }

  ArenaOffset placeVector(int32_t i, const char* name, int64_t length, bool required) {
    if (i < 0) {
      if (required) throw invalid(std::string("There is no ") + name + ".");
      return kAbsent;
    }
    requireVector(i, name, length);
    target(i).vector = static_cast<ArenaOffset>(layout_.place(static_cast<uint64_t>(length) * 4));
    return target(i).vector;
  }

  void requireVector(int32_t i, const char* name, int64_t length) const {
    const LsTensorDesc& tensor = tensors_[i];
    if (tensor.type != kTypeF32 || tensor.rows != 1 || tensor.columns != length)
      throw invalid("Tensor " + std::to_string(i) + " (" + name + ") has type " +
                    std::to_string(tensor.type) + " and shape [" + std::to_string(tensor.rows) +
                    "][" + std::to_string(tensor.columns) + "], expected f32 [1][" +
                    std::to_string(length) + "].");
  }

  void requireMatrix(int32_t i, const char* name, Size size) const {
    const LsTensorDesc& tensor = tensors_[i];
    if (tensor.rows != size.rows || tensor.columns != size.columns)
      throw invalid("Tensor " + std::to_string(i) + " (" + name + ") has shape [" +
                    std::to_string(tensor.rows) + "][" + std::to_string(tensor.columns) +
                    "], expected [" + std::to_string(size.rows) + "][" +
                    std::to_string(size.columns) + "].");
    if (std::string fault = validateMatrix(tensor.type, tensor.rows, tensor.columns);
        !fault.empty())
      throw unsupported(std::string("The ") + name + " weights: " + fault + ".");
  }

  static void requireBoth(const PlannedLayer& planned, LsNorm one, LsNorm other) {
    if ((planned.norms[one] == kAbsent) != (planned.norms[other] == kAbsent))
      throw invalid(std::string("A layer has only one of ") + kNormNames[one] + " and " +
                    kNormNames[other] + ".");
  }

  static constexpr size_t kMatrices = kMatrixNames.size();

  const LsModelDesc& desc_;
  const LsTensorDesc* tensors_;
  std::array<int32_t, LS_OUTPUT_BIAS + 1> single_ = {-1, -1, -1, -1};
  std::vector<int32_t> norms_, matrices_, biases_;
  Layout layout_;
  ModelPlan plan_;
};

}  // namespace

bool PlannedProduct::isPlainBf16() const {
  return matrices.size() == 1 && matrices.front().type == kTypeBf16;
}

ModelPlan planModel(const LsModelDesc& desc) { return Planner(desc).plan(); }

}  // namespace longsight::cuda
