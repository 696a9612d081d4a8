// How the benchmarks take times.
#pragma once

#include <algorithm>
#include <cstdio>
#include <functional>
#include <string>
#include <vector>

#include "device_memory.h"

namespace longsight::cuda::test {

class Clock {
 public:
  Clock() : flush_(int64_t{128} << 20) {
    require(cudaEventCreate(&begin_), "event");
    require(cudaEventCreate(&end_), "event");
  }
  // Median of `runs` after one warm-up, milliseconds.
  double median(int runs, const std::function<cudaError_t()>& work) {
    return medians(runs, {work})[0];
  }
  // The same of several works in turns, so that they meet the same clocks: the card lowers them
  // after long work.
  std::vector<double> medians(int runs, const std::vector<std::function<cudaError_t()>>& works) {
    std::vector<std::vector<float>> times(works.size());
    for (int i = 0; i <= runs; ++i) {
      for (size_t w = 0; w < works.size(); ++w) {
        const float ms = once(works[w]);
        if (i > 0) times[w].push_back(ms);
      }
    }
    std::vector<double> result;
    for (std::vector<float>& t : times) {
      std::sort(t.begin(), t.end());
      result.push_back(t[t.size() / 2]);
    }
    return result;
  }

 private:
  float once(const std::function<cudaError_t()>& work) {
    flush_.poison();
    require(cudaEventRecord(begin_), "record");
    require(work(), "launch");
    require(cudaEventRecord(end_), "record");
    require(cudaEventSynchronize(end_), "run");
    float ms = 0;
    require(cudaEventElapsedTime(&ms, begin_, end_), "time");
    return ms;
  }

  DeviceBuffer flush_;
  cudaEvent_t begin_, end_;
};

// A stream captured into a graph: what `enqueue` puts there runs without the host.
class Graph {
 public:
  explicit Graph(const std::function<cudaError_t(cudaStream_t)>& enqueue) {
    cudaStream_t stream;
    cudaGraph_t graph;
    require(cudaStreamCreate(&stream), "stream");
    require(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "capture");
    require(enqueue(stream), "launch");
    require(cudaStreamEndCapture(stream, &graph), "end of capture");
    require(cudaGraphInstantiate(&executable_, graph, 0), "instantiate");
    cudaGraphDestroy(graph);
    cudaStreamDestroy(stream);
  }
  ~Graph() { cudaGraphExecDestroy(executable_); }
  Graph(const Graph&) = delete;
  Graph& operator=(const Graph&) = delete;
  cudaError_t launch() const { return cudaGraphLaunch(executable_, nullptr); }

 private:
  cudaGraphExec_t executable_;
};

inline void print(const std::string& name, double ms, double flop) {
  std::printf("%-66s %10.3f ms %8.1f TFLOP/s\n", name.c_str(), ms, flop / ms / 1e9);
  std::fflush(stdout);
}

inline void printBytes(const std::string& name, double ms, double bytes) {
  std::printf("%-66s %10.4f ms %8.1f GB/s\n", name.c_str(), ms, bytes / ms / 1e6);
  std::fflush(stdout);
}

}  // namespace longsight::cuda::test
