// One layer of a prompt on the device, with the same numbers on the host for the reference.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "device_memory.h"
#include "kernels/cuda/sample_attention.h"
#include "kernels/reference/reference.h"

namespace longsight::cuda::test {

// What the queries and keys look like.
enum class Data {
  normal,   // independent, unit variance
  planted,  // stripes of columns that all rows like, needles that a few rows like
  huge,     // logits of some hundreds
  tiny,     // logits near zero
  ties,     // every key the same
};

struct CaseOptions {
  std::string name;
  int64_t tokens = 1;
  HeadShape shape;
  SampleAttentionParams params;
  RopeStyle ropeStyle = RopeStyle::interleaved;
  Data data = Data::planted;
  ScoreNumbers scoreNumbers = ScoreNumbers::stored;
  // Rows from here on are dense; -1: none.
  int64_t denseFrom = -1;
  std::vector<int64_t> borders;
  // Rows of each head in the cache beyond the prompt, poisoned.
  int64_t spareRows = 77;
  int32_t segmentsPerChunk = kMaxChunkSegments;
  // Each remote column is kept with this probability and stage 1 does not run; below 0: it does.
  double drawnDensity = -1;
  // What is compared with the reference.
  int32_t listHeads = 1 << 20;  // heads whose lists are checked
  int32_t outputRows = 256;     // random rows for each layer, besides the edges of tiles
};

struct CaseResult {
  int failures = 0;
  int64_t listColumns = 0;
  int64_t borderline =
      0;                 // columns whose reference peak or mass is within the tolerance of the cut
  double worstMass = 0;  // relative, policy `mass`
  double worstOutput = 0;  // |output - reference| / |reference| of a row
  double worstLogSum = 0;
  double worstCoverage = 0;
};

class CudaCase {
 public:
  CudaCase(const CaseOptions& options, uint64_t seed);

  // Runs all chunks on `path`, checks everything, prints what is wrong.
  CaseResult check(Path path);
  // Checks launchDecode for the last `rows` rows of the prompt.
  CaseResult checkDecode(int32_t rows);
  // A q8 cache alone: checks launchQuantizeRows against the rows that the case made itself.
  CaseResult checkQuantize();

 private:
  struct ChunkRun {
    std::vector<Segment> segments;
    std::unique_ptr<DeviceBuffer> workspace;
  };
  Chunk chunkOf(const ChunkRun& run) const;
  Tensors tensorsOf(int64_t firstRow) const;
  AttentionTask taskOf(const Segment& segment) const;
  // Uploads keys or values. With q8 `source` becomes what the device will multiply.
  void uploadCache(std::vector<uint16_t>& source, DeviceBuffer& target);
  void uploadQ8(std::vector<uint16_t>& source, DeviceBuffer& integers, DeviceBuffer& scales);
  void drawVotes(const ChunkRun& run);
  int64_t capacityRows() const;
  void runChunks(Path path);
  void checkLists(CaseResult& result);
  void checkOutputs(CaseResult& result);
  void checkCoverage(CaseResult& result);
  // What the device kept for (segment, head), from its list.
  reference::Kept keptOf(const ChunkRun& run, int32_t segment, int32_t head) const;
  double outputError(const std::vector<double>& expected, int64_t row, int32_t head,
                     const std::vector<uint16_t>& outputs, int64_t firstRow) const;
  // The same task captured into a graph that reads the position on the device.
  void checkDecodeGraph(const DecodeTask& byValue, const std::vector<uint16_t>& expected,
                        CaseResult& result);
  double epsilonOf(int32_t head) const;
  void fail(CaseResult& result, const std::string& what) const;

  CaseOptions options_;
  std::vector<float> queries_;
  // bf16, as the device multiplies them.
  std::vector<uint16_t> keys_, values_;
  std::unique_ptr<DeviceBuffer> deviceQueries_, deviceKeys_, deviceValues_, deviceOutput_;
  std::unique_ptr<DeviceBuffer> deviceKeyScales_, deviceValueScales_;
  std::unique_ptr<DeviceBuffer> headEpsilons_;  // of params.headEpsilons, if there are some
  std::vector<uint16_t> unroundedKeys_;         // before q8
  std::vector<std::unique_ptr<DeviceBuffer>> logSums_;
  std::vector<ChunkRun> chunks_;
};

}  // namespace longsight::cuda::test
