#include "cuda/engine/model.h"

#include <algorithm>
#include <cstring>
#include <string>

namespace longsight::cuda {
namespace {

constexpr uint64_t kStagingBytes = uint64_t{16} << 20;

DeviceBlock takeWeights(uint64_t bytes) {
  const DeviceBytes device = deviceBytes();
  if (bytes > device.free)
    throw Failure{
        LS_OUT_OF_MEMORY,
        "The weights need " + std::to_string(bytes) + " bytes of GPU memory, but " +
            std::to_string(device.free) + " of " + std::to_string(device.total) + " are free.",
        "Use a smaller model or quantization, or close other programs that use the GPU.", 0};
  return DeviceBlock(bytes);
}

ModelPlan planOn(const LsModelDesc& desc) {
  open(desc.device);
  return planModel(desc);
}

}  // namespace

Model::Model(const LsModelDesc& desc)
    : plan_(planOn(desc)), use_(desc.device), weights_(takeWeights(plan_.bytes)) {
  // Biases that only a part of a product has are zero elsewhere.
  check(cudaMemsetAsync(weights_.data(), 0, weights_.bytes(), stream_), "Clearing the weights");
}

Model::~Model() {
  cudaSetDevice(device());
  cudaStreamSynchronize(stream_);
}

template <class Place>
void Model::stage(const void* data, uint64_t bytes, const Place& place) {
  Staging& staging = staging_[nextStaging_];
  nextStaging_ ^= 1;
  if (staging.host.bytes() < bytes) {
    check(cudaStreamSynchronize(stream_), "Uploading weights");
    staging.host = PinnedBlock(std::max(bytes, kStagingBytes));
    staging.device = DeviceBlock(std::max(bytes, kStagingBytes));
  }
  check(cudaEventSynchronize(staging.free), "Uploading weights");
  std::memcpy(staging.host.data(), data, bytes);
  check(cudaMemcpyAsync(staging.device.data(), staging.host.data(), bytes, cudaMemcpyHostToDevice,
                        stream_),
        "Uploading weights");
  place(staging.device.data());
  check(cudaEventRecord(staging.free, stream_), "Uploading weights");
}

void Model::upload(int32_t tensor, int64_t firstRow, int64_t rows, const void* data) {
  if (tensor < 0 || tensor >= static_cast<int32_t>(plan_.targets.size()))
    throw invalid("There is no tensor " + std::to_string(tensor) + ".");
  const TensorTarget& target = plan_.targets[static_cast<size_t>(tensor)];
  if (firstRow < 0 || rows < 0 || firstRow + rows > target.rows || (rows > 0 && data == nullptr))
    throw invalid("Rows [" + std::to_string(firstRow) + ", " + std::to_string(firstRow + rows) +
                  ") are outside tensor " + std::to_string(tensor) + " with " +
                  std::to_string(target.rows) + ", or there is no data.");
  use(device());
  if (rows == 0) return;
  if (target.vector != kAbsent) return uploadVector(target, data);
  const auto rowBytes = static_cast<uint64_t>(fileRowBytes(target.type, target.columns));
  const auto most = static_cast<int64_t>(std::max<uint64_t>(1, kStagingBytes / rowBytes));
  for (int64_t row = 0; row < rows; row += most) {
    uploadRows(target, firstRow + row, std::min(most, rows - row),
               static_cast<const char*>(data) + static_cast<uint64_t>(row) * rowBytes);
  }
}

void Model::uploadVector(const TensorTarget& target, const void* data) {
  auto* to = reinterpret_cast<float*>(weights_.data() + target.vector) + target.firstRow;
  const auto count = static_cast<uint64_t>(target.columns);
  stage(data, count * 4, [&](const char* from) {
    // Rows that take turns are runs of one number, every second one.
    const uint64_t run = target.takesTurns ? 1 : count;
    check(cudaMemcpy2DAsync(to, run * target.rowStep() * 4, from, run * 4, run * 4, count / run,
                            cudaMemcpyDeviceToDevice, stream_),
          "Placing a vector");
  });
}

void Model::uploadRows(const TensorTarget& target, int64_t firstRow, int64_t rows,
                       const void* data) {
  const auto bytes = static_cast<uint64_t>(rows * fileRowBytes(target.type, target.columns));
  const int64_t to = target.firstRow + firstRow * target.rowStep();
  const DeviceMatrix whole = matrix(target.matrix);
  stage(data, bytes, [&](const char* from) {
    if (!target.expands) {
      check(launchPlace(from, rows, whole, to, target.rowStep(), stream_), "Placing weights");
      return;
    }
    // Seldom, so it may wait: in its own type, as bf16, then to its place.
    const auto held = static_cast<uint64_t>(deviceMatrixBytes(target.type, rows, target.columns));
    const DeviceBlock own(held), bf16(static_cast<uint64_t>(rows * target.columns) * 2);
    const DeviceMatrix part{own.data(), target.type, rows, target.columns};
    check(launchPlace(from, rows, part, 0, 1, stream_), "Placing weights");
    check(launchExpand(part, 0, rows, bf16.data(), target.columns, stream_), "Expanding weights");
    check(launchPlace(bf16.data(), rows, whole, to, target.rowStep(), stream_), "Placing weights");
    check(cudaStreamSynchronize(stream_), "Placing weights");
  });
}

void Model::finishUploads() {
  check(cudaStreamSynchronize(stream_), "Uploading weights");
  for (Staging& staging : staging_) staging = Staging{};
}

void Model::fillRandom(uint64_t seed) {
  use(device());
  const auto fill = [&](const PlannedMatrix& planned) {
    check(launchFillRandom(matrix(planned), ++seed, stream_), "Filling weights");
  };
  const auto fillVector = [&](ArenaOffset offset, int64_t count, float value) {
    if (offset == kAbsent) return;
    check(launchFillRandomVector(const_cast<float*>(vector(offset)), count, value, 0.0f, ++seed,
                                 stream_),
          "Filling norms");
  };
  const ModelShape& shape = plan_.shape;
  fill(plan_.tokenEmbedding);
  if (!plan_.tied()) fill(plan_.output);
  fillVector(plan_.outputNorm, shape.embedding, 1.0f);
  fillVector(plan_.outputBias, shape.vocabulary, 0.0f);
  for (const PlannedLayer& layer : plan_.layers) {
    for (const PlannedProduct& product : layer.products) {
      for (const PlannedMatrix& planned : product.matrices) fill(planned);
      fillVector(product.bias, product.rows, 0.0f);
    }
    for (size_t norm = 0; norm < kNorms; ++norm) {
      const bool ofHead = norm == LS_NORM_QUERY || norm == LS_NORM_KEY;
      fillVector(layer.norms[norm], ofHead ? shape.headDim : shape.embedding, 1.0f);
    }
  }
  finishUploads();
}

}  // namespace longsight::cuda
