// Steps of a few rows as one CUDA graph, and logits.
#include <algorithm>
#include <cstring>
#include <string>

#include "cuda/engine/session.h"

namespace longsight::cuda {
namespace {

// Ends a capture that was not finished, so that the stream can go on.
class Capture {
 public:
  explicit Capture(cudaStream_t stream) : stream_(stream) {
    check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "Beginning a graph");
  }
  ~Capture() {
    if (!open_) return;
    cudaGraph_t graph = nullptr;
    cudaStreamEndCapture(stream_, &graph);
    if (graph != nullptr) cudaGraphDestroy(graph);
    cudaGetLastError();
  }
  Capture(const Capture&) = delete;
  Capture& operator=(const Capture&) = delete;

  cudaGraphExec_t finish() {
    cudaGraph_t graph = nullptr;
    open_ = false;
    check(cudaStreamEndCapture(stream_, &graph), "Ending a graph");
    cudaGraphExec_t ready = nullptr;
    const cudaError_t error = cudaGraphInstantiate(&ready, graph, 0);
    cudaGraphDestroy(graph);
    check(error, "Making a graph");
    return ready;
  }

 private:
  cudaStream_t stream_;
  bool open_ = true;
};

}  // namespace

ProductTask Session::productOf(int32_t layer, Product which, int32_t rows) const {
  const PlannedProduct& product = model_.plan().product(layer, which);
  const float* bias = model_.vector(product.bias);
  ProductTask task;
  task.rows = rows;
  task.inputStride = product.columns;
  for (const PlannedMatrix& matrix : product.matrices) {
    ProductPart& part = task.parts[task.partCount++];
    part.matrix = model_.matrix(matrix);
    part.bias = bias == nullptr ? nullptr : bias + matrix.firstRow;
    part.outStride = product.rows;
  }
  return task;
}

ProductTask Session::headProduct(int32_t rows) const {
  ProductTask task;
  task.rows = rows;
  task.inputStride = model_.shape().embedding;
  task.partCount = 1;
  ProductPart& part = task.parts[0];
  part.matrix = model_.matrix(model_.plan().output);
  part.bias = model_.vector(model_.plan().outputBias);
  part.out = stepPart<float>(plan_.step.logits);
  part.outStride = model_.shape().vocabulary;
  return task;
}

void Session::launchStepProduct(const ProductTask& task) {
  check(launchProduct(task, step_.data() + plan_.step.productWorkspace, stream_),
        "A product of a step");
}

void Session::addStepProduct(int32_t layer, Product which, ProductTask task) {
  const ModelShape& shape = model_.shape();
  float* residual = stepPart<float>(plan_.step.residual);
  const float* blockNorm =
      model_.norm(layer, which == Product::attentionOutput ? LS_NORM_ATTENTION_OUTPUT
                                                           : LS_NORM_FEED_FORWARD_OUTPUT);
  float* output = blockNorm == nullptr ? residual : stepPart<float>(plan_.step.blockOutput);
  task.epilogue = blockNorm == nullptr ? ProductEpilogue::addF32 : ProductEpilogue::storeF32;
  for (int32_t i = 0; i < task.partCount; ++i)
    task.parts[i].out =
        output + model_.plan().product(layer, which).matrices[static_cast<size_t>(i)].firstRow;
  launchStepProduct(task);
  if (blockNorm == nullptr) return;
  AddBlockTask add;
  add.residual = residual;
  add.block = output;
  add.blockNumber = Number::f32;
  add.blockNorm = blockNorm;
  add.rows = task.rows;
  add.width = shape.embedding;
  add.epsilon = shape.normEpsilon;
  check(launchAddBlock(add, stream_), "The norm of a block's output");
}

void Session::enqueueStep(int32_t count) {
  const ModelShape& shape = model_.shape();
  const StepPlan& plan = plan_.step;
  auto* inputs = stepPart<int32_t>(plan.inputs);
  float* residual = stepPart<float>(plan.residual);
  check(cudaMemcpyAsync(inputs, stepHost_.data(), (1 + LS_MOST_STEP_ROWS) * sizeof(int32_t),
                        cudaMemcpyHostToDevice, stream_),
        "Copying tokens");
  check(launchEmbed(model_.matrix(model_.plan().tokenEmbedding), inputs + 1, count, residual,
                    stream_),
        "Reading embeddings");

  for (int32_t index = 0; index < shape.layers; ++index) {
    ProductTask project = productOf(index, Product::queryKeyValue, count);
    auto* projected = stepPart<float>(plan.projected);
    project.input = residual;
    project.normWeights = model_.norm(index, LS_NORM_ATTENTION);
    project.normEpsilon = shape.normEpsilon;
    for (int32_t i = 0; i < project.partCount; ++i)
      project.parts[i].out = projected + model_.plan()
                                             .product(index, Product::queryKeyValue)
                                             .matrices[static_cast<size_t>(i)]
                                             .firstRow;
    launchStepProduct(project);

    const Layer cache = layer(index);
    RopeStoreTask store;
    store.shape = plan_.kv.shape;
    store.projectedQueries = projected;
    store.projectedKeys = projected + shape.queryWidth();
    store.projectedValues = projected + shape.queryWidth() + shape.keyWidth();
    store.number = Number::f32;
    store.rowStride = shape.projectedWidth();
    store.queryNorm = model_.norm(index, LS_NORM_QUERY);
    store.keyNorm = model_.norm(index, LS_NORM_KEY);
    store.epsilon = shape.normEpsilon;
    store.rope = ropeTable();
    store.rows = count;
    store.firstRow = plan_.kv.capacityRows - count;
    store.firstRowOnDevice = inputs;
    store.queries = stepPart<char>(plan.queries);
    store.keys = cache.keys;
    store.values = cache.values;
    store.keyScales = cache.keyScales;
    store.valueScales = cache.valueScales;
    store.capacityRows = plan_.kv.capacityRows;
    check(launchRopeStore(store, stream_), "RoPE");

    DecodeTask attention;
    attention.shape = plan_.kv.shape;
    attention.firstRow = plan_.kv.capacityRows - count;
    attention.firstRowOnDevice = inputs;
    attention.rows = count;
    attention.tensors.queries = stepPart<char>(plan.queries);
    attention.tensors.keys = cache.keys;
    attention.tensors.values = cache.values;
    attention.tensors.keyScales = cache.keyScales;
    attention.tensors.valueScales = cache.valueScales;
    attention.tensors.capacityRows = plan_.kv.capacityRows;
    attention.tensors.output = stepPart<char>(plan.attention);
    attention.tensors.scale = shape.attentionScale;
    check(launchDecode(attention, step_.data() + plan.attentionWorkspace, stream_),
          "Attention of a step");

    ProductTask output = productOf(index, Product::attentionOutput, count);
    output.inputType = ProductInput::bf16;
    output.input = stepPart<char>(plan.attention);
    addStepProduct(index, Product::attentionOutput, output);

    ProductTask widen = productOf(index, Product::gateUp, count);
    widen.input = residual;
    widen.normWeights = model_.norm(index, LS_NORM_FEED_FORWARD);
    widen.normEpsilon = shape.normEpsilon;
    // The next product rounds its input anyway.
    widen.epilogue = ProductEpilogue::swigluBf16;
    widen.parts[0].out = stepPart<char>(plan.hidden);
    widen.parts[0].outStride = shape.feedForward;
    launchStepProduct(widen);

    ProductTask narrow = productOf(index, Product::down, count);
    narrow.inputType = ProductInput::bf16;
    narrow.input = stepPart<char>(plan.hidden);
    addStepProduct(index, Product::down, narrow);
  }

  ProductTask head = headProduct(count);
  head.input = residual;
  head.normWeights = model_.vector(model_.plan().outputNorm);
  head.normEpsilon = shape.normEpsilon;
  launchStepProduct(head);
  check(cudaMemcpyAsync(stepHost_.data() + kPartAlignment, stepPart<char>(plan.logits),
                        static_cast<size_t>(count) * static_cast<size_t>(shape.vocabulary) * 4,
                        cudaMemcpyDeviceToHost, stream_),
        "Copying logits");
}

void Session::step(int64_t firstRow, const int32_t* tokens, int32_t count, float* logits) {
  const ModelShape& shape = model_.shape();
  if (count < 1 || count > LS_MOST_STEP_ROWS || tokens == nullptr || logits == nullptr)
    throw invalid("A step of " + std::to_string(count) + " rows, expected 1 to " +
                  std::to_string(LS_MOST_STEP_ROWS) + ", or no tokens or no place for logits.");
  if (firstRow < 0 || firstRow > rows_ || firstRow + count > capacityRows_)
    throw invalid("A step of " + std::to_string(count) + " rows at " + std::to_string(firstRow) +
                  ", but the cache holds " + std::to_string(rows_) + " of " +
                  std::to_string(capacityRows_) + " rows.");
  for (int32_t i = 0; i < count; ++i) {
    if (tokens[i] < 0 || tokens[i] >= shape.vocabulary)
      throw invalid("Token " + std::to_string(tokens[i]) + " is not in the vocabulary of " +
                    std::to_string(shape.vocabulary) + ".");
  }
  use(model_.device());
  const auto logitBytes = static_cast<size_t>(shape.vocabulary) * sizeof(float);
  if (stepHost_.data() == nullptr)
    stepHost_ = PinnedBlock(kPartAlignment + LS_MOST_STEP_ROWS * logitBytes);
  auto* inputs = reinterpret_cast<int32_t*>(stepHost_.data());
  inputs[0] = static_cast<int32_t>(firstRow);
  std::copy_n(tokens, count, inputs + 1);
  std::fill(inputs + 1 + count, inputs + 1 + LS_MOST_STEP_ROWS, 0);

  rows_ = firstRow;
  cudaGraphExec_t& graph = graphs_[static_cast<size_t>(count - 1)];
  const bool captured = graph != nullptr;
  check(cudaEventRecord(stepBegin_, stream_), "Recording an event");
  if (captured) {
    check(cudaGraphLaunch(graph, stream_), "Starting a step");
  } else {
    enqueueStep(count);
  }
  check(cudaEventRecord(stepEnd_, stream_), "Recording an event");
  check(cudaStreamSynchronize(stream_), "A step");
  float ms = 0;
  check(cudaEventElapsedTime(&ms, stepBegin_, stepEnd_), "Reading the clock");
  stepMs_ += ms;
  std::memcpy(logits, stepHost_.data() + kPartAlignment, static_cast<size_t>(count) * logitBytes);
  rows_ = firstRow + count;
  // The first step of its kind has loaded the kernels, which cannot be done during a capture.
  if (!captured) {
    Capture capture(stream_);
    enqueueStep(count);
    graph = capture.finish();
  }
}

void Session::logits(const float* states, int64_t rows, float* out, Progress& progress) {
  if (rows < 0 || (rows > 0 && (states == nullptr || out == nullptr)))
    throw invalid("Logits of " + std::to_string(rows) + " rows, or no states or no place.");
  use(model_.device());
  const int64_t most = rows <= LS_MOST_STEP_ROWS ? LS_MOST_STEP_ROWS : kLogitRows;
  for (int64_t row = 0; row < rows; row += most) {
    const int64_t count = std::min(most, rows - row);
    progress.poll(static_cast<double>(row) / static_cast<double>(rows));
    check(cudaEventRecord(stepBegin_, stream_), "Recording an event");
    logitsOfBlock(states + row * model_.shape().embedding, count,
                  out + row * model_.shape().vocabulary);
    check(cudaEventRecord(stepEnd_, stream_), "Recording an event");
    check(cudaEventSynchronize(stepEnd_), "Computing logits");
    float ms = 0;
    check(cudaEventElapsedTime(&ms, stepBegin_, stepEnd_), "Reading the clock");
    logitsMs_ += ms;
  }
}

void Session::logitsOfBlock(const float* states, int64_t rows, float* out) {
  const ModelShape& shape = model_.shape();
  const int64_t width = shape.embedding;
  const auto stateBytes = static_cast<uint64_t>(rows * width) * sizeof(float);
  if (rows <= LS_MOST_STEP_ROWS) {
    transfer_.toDevice(stepPart<char>(plan_.step.normed), states, stateBytes);
    ProductTask head = headProduct(static_cast<int32_t>(rows));
    head.input = stepPart<float>(plan_.step.normed);
    launchStepProduct(head);
    transfer_.toHost(out, stepPart<char>(plan_.step.logits),
                     static_cast<uint64_t>(rows * shape.vocabulary) * sizeof(float));
    return;
  }
  const ScratchPlan& plan = plan_.scratch;
  constexpr int32_t kTypeF32 = 0, kTypeBf16 = 30;
  transfer_.toDevice(scratch<char>(plan.states), states, stateBytes);
  // Rounded like any f32 matrix.
  check(launchExpand({scratch<char>(plan.states), kTypeF32, rows, width}, 0, rows,
                     scratch<char>(plan.statesBf16), width, stream_),
        "Rounding states");
  const DeviceMatrix head = model_.matrix(model_.plan().output);
  const float* bias = model_.vector(model_.plan().outputBias);
  for (int64_t first = 0; first < shape.vocabulary; first += kLogitTokens) {
    const int64_t count = std::min<int64_t>(kLogitTokens, shape.vocabulary - first);
    // Products come in eights; what is behind the last token is not copied.
    const int64_t computed = (count + 7) / 8 * 8;
    LinearTask task;
    if (head.type == kTypeBf16 && computed == count) {
      task.weight = static_cast<const char*>(head.data) + first * width * 2;
    } else {
      check(launchExpand(head, first, count, scratch<char>(plan.head), width, stream_),
            "Expanding the output head");
      task.weight = scratch<char>(plan.head);
    }
    task.input = scratch<char>(plan.statesBf16);
    task.bias = bias == nullptr ? nullptr : bias + first;
    task.output = scratch<char>(plan.logits);
    task.rows = rows;
    task.outputs = static_cast<int32_t>(computed);
    task.inner = static_cast<int32_t>(width);
    task.epilogue = LinearEpilogue::storeF32;
    check(launchLinear(task, scratch<char>(plan.logitsWorkspace), Path::best, stream_),
          "A matrix product");
    transfer_.toHost(
        out + first, scratch<char>(plan.logits),
        {static_cast<uint64_t>(rows), static_cast<uint64_t>(count) * 4,
         static_cast<uint64_t>(computed) * 4, static_cast<uint64_t>(shape.vocabulary) * 4});
  }
}

}  // namespace longsight::cuda
