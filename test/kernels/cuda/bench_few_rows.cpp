#include <cmath>
#include <memory>
#include <vector>

#include "bench_data.h"
#include "bench_parts.h"
#include "kernels/cuda/sample_attention.h"

namespace longsight::cuda::test {
namespace {

// The cache of some layers, [layer][kvHead][row][dim], and queries and output of some rows.
class Cache {
 public:
  Cache(HeadShape shape, int64_t rows, int32_t layers, int64_t queryRows, uint64_t seed)
      : shape_(shape),
        rows_(rows),
        layerBytes_(rows * shape.kvHeads * shape.headDim *
                    (shape.storage == KvStorage::q8 ? 1 : 2)),
        scaleBytes_(shape.storage == KvStorage::q8
                        ? rows * shape.kvHeads * q8Blocks(shape.headDim) * 2
                        : 0),
        keys_(layers * layerBytes_),
        values_(layers * layerBytes_),
        keyScales_(layers * scaleBytes_ + 16),
        valueScales_(layers * scaleBytes_ + 16),
        queries_(queryRows * shape.heads * shape.headDim * 2),
        output_(queries_.bytes()),
        logSums_(queryRows * shape.heads * 4) {
    const int32_t dim = shape.headDim;
    fillQueries(queries_.data(), queries_.bytes() / 2, dim, seed);
    if (shape.storage == KvStorage::q8) {
      // Any integers and scales do for time.
      fillExact(keys_.data(), keys_.bytes() / 2, seed, 0);
      fillExact(values_.data(), values_.bytes() / 2, seed + 1, 0);
      fillExact(keyScales_.data(), keyScales_.bytes() / 2, seed + 2, 0);
      fillExact(valueScales_.data(), valueScales_.bytes() / 2, seed + 3, 0);
    } else {
      fillKeys(keys_.data(), keys_.bytes() / 2, dim, rows, seed + 1);
      fillValues(values_.data(), values_.bytes() / 2, dim, seed + 2);
    }
    require(cudaDeviceSynchronize(), "cache");
  }

  Tensors tensors(int32_t layer) const {
    Tensors t;
    const auto at = [&](const DeviceBuffer& side, int64_t bytes) {
      return static_cast<char*>(side.data()) + layer * bytes;
    };
    t.queries = queries_.data();
    t.output = output_.data();
    t.keys = at(keys_, layerBytes_);
    t.values = at(values_, layerBytes_);
    t.keyScales = at(keyScales_, scaleBytes_);
    t.valueScales = at(valueScales_, scaleBytes_);
    t.capacityRows = rows_;
    t.scale = 1.0f / std::sqrt(static_cast<float>(shape_.headDim));
    t.logSumExp = static_cast<float*>(logSums_.data());
    return t;
  }
  int64_t bytesPerLayer() const { return 2 * (layerBytes_ + scaleBytes_); }

 private:
  HeadShape shape_;
  int64_t rows_, layerBytes_, scaleBytes_;
  DeviceBuffer keys_, values_, keyScales_, valueScales_, queries_, output_, logSums_;
};

std::string nameOf(const HeadShape& shape) {
  return std::to_string(shape.heads) + "/" + std::to_string(shape.kvHeads) + " d" +
         std::to_string(shape.headDim) + (shape.storage == KvStorage::q8 ? " q8" : "");
}

// A layer of decode in a graph of several, whose position is on the device and whose grid is for
// 131,072 rows.
void benchDecodeDepth(Clock& clock, const HeadShape& shape, int64_t depth, uint64_t seed) {
  const int32_t layers = depth > 16384 ? 4 : 32;
  const Cache cache(shape, depth, layers, 8, seed);
  const DeviceBuffer position(4);
  for (const int32_t rows : {1, 8}) {
    DecodeTask task;
    task.shape = shape;
    task.rows = rows;
    task.firstRow = 131072 - rows;
    position.write(0, std::vector<int32_t>{static_cast<int32_t>(depth) - rows});
    task.firstRowOnDevice = static_cast<const int32_t*>(position.data());
    const DeviceBuffer workspace(decodeWorkspaceBytes(task));
    const Graph graph([&](cudaStream_t stream) {
      cudaError_t error = cudaSuccess;
      for (int32_t layer = 0; layer < layers && error == cudaSuccess; ++layer) {
        task.tensors = cache.tensors(layer);
        task.tensors.logSumExp = nullptr;
        error = launchDecode(task, workspace.data(), stream);
      }
      return error;
    });
    const double ms = clock.median(9, [&] { return graph.launch(); }) / layers;
    printBytes("decode in a graph, " + nameOf(shape) + ", depth " + std::to_string(depth) +
                   ", rows " + std::to_string(rows),
               ms, static_cast<double>(cache.bytesPerLayer()));
  }
}

void benchDecode(Clock& clock, const HeadShape& shape, uint64_t seed) {
  constexpr int64_t kRows = 131072;
  const Cache cache(shape, kRows, 1, 16, seed);
  for (const int32_t rows : {1, 4, 16}) {
    DecodeTask task;
    task.shape = shape;
    task.rows = rows;
    task.firstRow = kRows - rows;
    task.tensors = cache.tensors(0);
    task.tensors.logSumExp = nullptr;
    const DeviceBuffer workspace(decodeWorkspaceBytes(task));
    const double ms =
        clock.median(9, [&] { return launchDecode(task, workspace.data(), nullptr); });
    printBytes("decode " + nameOf(shape) + ", rows " + std::to_string(rows), ms,
               static_cast<double>(cache.bytesPerLayer()));
  }
}

// A question of some rows on a long prefix, dense.
void benchQuestion(Clock& clock, const HeadShape& shape, int64_t rows, int64_t columns,
                   uint64_t seed) {
  const Cache cache(shape, columns, 1, rows, seed);
  Segment segment;
  segment.begin = columns - rows;
  segment.end = columns;
  const Chunk chunk{std::span(&segment, 1), shape, {}};
  const DeviceBuffer workspace(workspaceBytes(chunk));
  const double pairs =
      static_cast<double>(causalPairCount(segment.begin, segment.end)) * shape.heads;
  for (const Path path : {Path::best, Path::mmaSync}) {
    require(launchColumnLists(chunk, workspace.data(), nullptr), "lists");
    const double ms = clock.median(
        5, [&] { return launchAttend(chunk, cache.tensors(0), workspace.data(), path, nullptr); });
    print(std::to_string(rows) + " rows on " + std::to_string(columns) + ", " + nameOf(shape) +
              (path == Path::best ? "" : ", mma.sync"),
          ms, pairs * 4 * shape.headDim);
  }
}

}  // namespace

void benchFewRows(Clock& clock, uint64_t seed) {
  {
    DeviceBuffer sink(256);
    const DeviceBuffer big(int64_t{2} << 30);
    const double read = clock.median(9, [&] {
      readThrough(big.data(), big.bytes(), sink.data());
      return cudaGetLastError();
    });
    printBytes("read bandwidth, 2 GiB", read, static_cast<double>(big.bytes()));
  }
  for (const HeadShape& shape :
       {HeadShape{32, 8, 128}, HeadShape{14, 2, 64}, HeadShape{16, 4, 256}}) {
    for (const KvStorage storage : {KvStorage::element, KvStorage::q8}) {
      HeadShape stored = shape;
      stored.storage = storage;
      benchDecode(clock, stored, seed);
      if (shape.headDim != 128) continue;
      for (const int64_t depth : {1024, 4096, 32768, 131072}) {
        benchDecodeDepth(clock, stored, depth, seed);
      }
    }
  }
  for (const int64_t rows : {24, 100, 200, 400, 1024, 2048}) {
    benchQuestion(clock, {32, 8, 128}, rows, 131072, seed);
  }
  benchQuestion(clock, {32, 8, 128}, 200, 8192, seed);
  benchQuestion(clock, {14, 2, 64}, 200, 131072, seed);
}

}  // namespace longsight::cuda::test
