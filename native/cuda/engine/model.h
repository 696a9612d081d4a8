// The weights of a model on a GPU.
#pragma once

#include <cstdint>

#include "cuda/engine/devices.h"
#include "cuda/engine/memory.h"
#include "cuda/engine/model_plan.h"
#include "linear/linear.h"
#include "weights/weights.h"

namespace longsight::cuda {

class Model {
 public:
  // Takes the memory. Throws Failure.
  explicit Model(const LsModelDesc& desc);
  ~Model();

  // As LsCudaApi::modelUpload.
  void upload(int32_t tensor, int64_t firstRow, int64_t rows, const void* data);
  void fillRandom(uint64_t seed);
  // Waits until what was uploaded is in place.
  void finishUploads();

  const ModelPlan& plan() const { return plan_; }
  const ModelShape& shape() const { return plan_.shape; }
  int32_t device() const { return use_.device(); }
  uint64_t weightBytes() const { return weights_.bytes(); }

  DeviceMatrix matrix(const PlannedMatrix& planned) const {
    return {weights_.data() + planned.offset, planned.type, planned.rows, planned.columns};
  }
  // Null when the model has none.
  const float* vector(ArenaOffset offset) const {
    return offset == kAbsent ? nullptr : reinterpret_cast<const float*>(weights_.data() + offset);
  }
  const float* norm(int32_t layer, LsNorm which) const {
    return vector(plan_.layers[static_cast<size_t>(layer)].norms[which]);
  }

 private:
  // Copies from the host through pinned memory to memory on the device, in the file's layout;
  // `place` enqueues what takes it from there.
  template <class Place>
  void stage(const void* data, uint64_t bytes, const Place& place);
  void uploadVector(const TensorTarget& target, const void* data);
  void uploadRows(const TensorTarget& target, int64_t firstRow, int64_t rows, const void* data);

  // One half of the double buffer.
  struct Staging {
    PinnedBlock host;
    DeviceBlock device;
    Event free{cudaEventDisableTiming};
  };

  ModelPlan plan_;
  DeviceUse use_;
  DeviceBlock weights_;
  Stream stream_;
  // While tensors are uploaded.
  Staging staging_[2];
  int nextStaging_ = 0;
};

}  // namespace longsight::cuda
