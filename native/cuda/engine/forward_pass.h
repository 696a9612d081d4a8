// One forward pass of a session: rows of some segments through all layers.
//
// Residual stream, queries and attention output exist for all rows of the pass, since all rows of a
// segment vote for its lists. Linear layers go over them in blocks: what ends one layer and begins
// the next is done to a block at once. Attention goes over groups of segments. A group or a block
// is admitted when the device has not too much before it, so that a cancel ends soon; nothing waits
// for the device inside.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "attention/plan.h"
#include "cuda/engine/session.h"

namespace longsight::cuda {

class ForwardPass {
 public:
  // Throws Failure when the request does not fit the session.
  ForwardPass(Session& session, const LsForward& request);
  // Only the first `layers` layers are run, for probing; no states then.
  void run(int32_t layers);

  // Most workspace that a group of one segment takes, and rows of the pass.
  uint64_t leastWorkspaceBytes() const;
  int64_t rows() const { return end_ - begin_; }
  int64_t begin() const { return begin_; }
  int64_t end() const { return end_; }

 private:
  // Rows of the pass, counted from its begin.
  struct Block {
    int64_t begin;
    int64_t end;
    int64_t rows() const { return end - begin; }
  };
  void checkRequest() const;
  void uploadInputs();
  void embed();

  // Weights of a product as bf16, expanded where they are not so already.
  void expand(int32_t layer, Product which);
  const char* bf16Weights(int32_t layer, Product which) const;
  void linear(int32_t layer, Product which, const void* input, int64_t rows,
              LinearEpilogue epilogue, void* output, int64_t firstOutput = 0);
  void norm(const Block& block, const float* weights, Number number, void* output);
  // Norm, queries, keys and values of a layer.
  void front(const Block& block, int32_t layer);
  // `normed` begins with the block.
  void project(const Block& block, int32_t layer, const char* normed, bool withQueries);
  // Output projection and feed-forward network of a layer.
  void back(const Block& block, int32_t layer);
  // residual += product of `which`, through a norm where the architecture has one.
  void addProduct(const Block& block, int32_t layer, Product which, const void* input);
  template <class Body>
  void forBlocks(int64_t begin, const Body& body);

  // Those of the last layer: from its first query on.
  std::vector<Segment> lastSegments() const;
  void attend(int32_t layer);
  // How many of the segments go together: by workspace and predicted time.
  size_t groupSize(std::span<const Segment> segments) const;
  // `firstSegment`: which of segments_ the first of the group is.
  void attendGroup(int32_t layer, std::span<const Segment> segments, size_t firstSegment);
  Chunk chunkOf(std::span<const Segment> segments, int32_t layer) const;
  Tensors tensorsOf(int32_t layer, int64_t firstRow) const;
  // Pairs of all heads; sparse ones count less, since most of them are not computed.
  double pairWork(std::span<const Segment> segments) const;
  double predictAttention(std::span<const Segment> segments) const;

  void fetchStats(const Chunk& chunk, const void* workspace, int32_t layer, size_t firstSegment);
  void normStates();
  // Hands over what was fetched, and the states where they were wanted.
  void deliver(bool states);

  Session& session_;
  const Model& model_;
  const ModelShape& shape_;
  const LsForward& request_;
  Progress progress_;
  PassClock& clock_;
  cudaStream_t stream_;
  std::vector<Segment> segments_;
  int64_t begin_ = 0;
  int64_t end_ = 0;
  int32_t layers_ = 0;
  // First row whose last layer is wanted, and whose queries in the last layer are; from begin_.
  int64_t wanted_ = 0;
  int64_t lastQueries_ = 0;
  // Shares of the whole pass: linear layers a row and layer, attention a unit of pairWork().
  double linearShare_ = 0;
  double attentionShare_ = 0;

  // In Session::passHost_: f32 epsilons and tokens to the device, statistics from it.
  struct HostParts {
    uint64_t tokens = 0, epsilons = 0, stats = 0, coverage = 0, bytes = 0;
  } host_;
};

}  // namespace longsight::cuda
