// CudaCase::checkDecode: the last rows of the prompt, dense, over the whole cache.
#include <algorithm>

#include "cuda_case.h"
#include "numbers.h"

namespace longsight::cuda::test {

void CudaCase::checkDecodeGraph(const DecodeTask& byValue, const std::vector<uint16_t>& expected,
                                CaseResult& result) {
  DeviceBuffer output(static_cast<int64_t>(expected.size()) * 2);
  const DeviceBuffer position(4);
  DecodeTask task = byValue;
  task.tensors.output = output.data();
  task.firstRow += 5000;
  task.firstRowOnDevice = static_cast<const int32_t*>(position.data());
  const DeviceBuffer workspace(decodeWorkspaceBytes(task));
  cudaStream_t stream;
  cudaGraph_t graph;
  cudaGraphExec_t executable;
  require(cudaStreamCreate(&stream), "stream");
  require(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "capture");
  require(launchDecode(task, workspace.data(), stream), "launchDecode");
  require(cudaStreamEndCapture(stream, &graph), "end of capture");
  require(cudaGraphInstantiate(&executable, graph, 0), "instantiate");
  // The first run is elsewhere.
  for (const int64_t firstRow : {byValue.firstRow / 2, byValue.firstRow}) {
    position.write(0, std::vector<int32_t>{static_cast<int32_t>(firstRow)});
    output.poison();
    require(cudaDeviceSynchronize(), "poison");
    require(cudaGraphLaunch(executable, stream), "graph");
    require(cudaStreamSynchronize(stream), "graph");
  }
  if (output.read<uint16_t>(0, output.bytes() / 2) != expected) {
    fail(result, "decode in a graph gives other bits");
  }
  if (!output.guardsIntact() || !workspace.guardsIntact()) {
    fail(result, "guard words of decode in a graph changed");
  }
  cudaGraphExecDestroy(executable);
  cudaGraphDestroy(graph);
  cudaStreamDestroy(stream);
}

CaseResult CudaCase::checkDecode(int32_t rows) {
  CaseResult result;
  DecodeTask task;
  task.shape = options_.shape;
  task.rows = rows;
  task.firstRow = options_.tokens - rows;
  task.tensors = tensorsOf(task.firstRow);
  DeviceBuffer output(int64_t{rows} * options_.shape.heads * options_.shape.headDim * 2);
  DeviceBuffer logSums(int64_t{rows} * options_.shape.heads * 4);
  DeviceBuffer workspace(decodeWorkspaceBytes(task));
  task.tensors.output = output.data();
  task.tensors.logSumExp = static_cast<float*>(logSums.data());
  const auto run = [&] {
    output.poison();
    require(launchDecode(task, workspace.data(), nullptr), "launchDecode");
    require(cudaDeviceSynchronize(), "decode");
    return output.read<uint16_t>(0, output.bytes() / 2);
  };
  const std::vector<uint16_t> first = run();
  workspace.poison();
  if (run() != first) fail(result, "a second decode gives other bits");
  if (!output.guardsIntact() || !workspace.guardsIntact() || !logSums.guardsIntact()) {
    fail(result, "guard words of decode changed");
  }
  checkDecodeGraph(task, first, result);
  Segment all;
  all.begin = 0;
  all.end = options_.tokens;
  const AttentionTask reference = taskOf(all);
  const std::vector<float> gotSums = logSums.read<float>(0, logSums.bytes() / 4);
  std::vector<double> errors(static_cast<size_t>(rows) * static_cast<size_t>(options_.shape.heads));
  std::vector<double> sumErrors(errors.size());
  parallelFor(static_cast<int64_t>(errors.size()), [&](int64_t i) {
    const int64_t row = task.firstRow + i / options_.shape.heads;
    const auto head = static_cast<int32_t>(i % options_.shape.heads);
    errors[static_cast<size_t>(i)] =
        outputError(reference::attendRow(reference, head, row, reference::Kept{true, {}}), row,
                    head, first, task.firstRow);
    const double expected = reference::logSum(reference, head, row);
    const float got = gotSums[static_cast<size_t>(head * rows + i / options_.shape.heads)];
    sumErrors[static_cast<size_t>(i)] =
        std::abs(got - expected) / std::max(1.0, std::abs(expected));
  });
  for (const double error : sumErrors) {
    result.worstLogSum = std::max(result.worstLogSum, error);
    if (!(error <= 1e-3)) fail(result, "decode log sum off by " + std::to_string(error));
  }
  for (const double error : errors) {
    result.worstOutput = std::max(result.worstOutput, error);
    if (!(error <= 8e-3)) fail(result, "decode output off by " + std::to_string(error));
  }
  return result;
}

}  // namespace longsight::cuda::test
