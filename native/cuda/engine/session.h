// One session on a GPU: cache, scratch, streams, and what runs on them.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>

#include "cuda/engine/memory.h"
#include "cuda/engine/model.h"
#include "cuda/engine/pass_clock.h"
#include "cuda/engine/session_plan.h"
#include "cuda/engine/transfer.h"
#include "pointwise/pointwise.h"
#include "sample_attention.h"

namespace longsight::cuda {

// The error of a session that does not fit.
Failure outOfMemory(const ModelPlan& model, const LsSessionDesc& desc, const SessionPlan& plan,
                    const DeviceBytes& device);

class Session {
 public:
  // Takes the memory. Throws Failure. The model must outlive the session.
  Session(Model& model, const LsSessionDesc& desc);
  ~Session();

  // As the functions of LsCudaApi.
  void forward(const LsForward& request);
  void step(int64_t firstRow, const int32_t* tokens, int32_t count, float* logits);
  void logits(const float* states, int64_t rows, float* out, Progress& progress);
  LsSpeed probe();

  int64_t rows() const { return rows_; }
  void truncate(int64_t rows) { rows_ = std::min(rows_, std::max<int64_t>(rows, 0)); }
  void restored(int64_t rows);

  int32_t planes() const;
  int64_t planeRowBytes(int32_t plane) const;
  void readRows(int32_t plane, int64_t firstRow, int64_t rows, void* data);
  void writeRows(int32_t plane, int64_t firstRow, int64_t rows, const void* data);

  LsTimes times() const;
  LsMemory memory() const;
  Model& model() const { return model_; }

 private:
  friend class ForwardPass;

  // The cache of one layer.
  struct Layer {
    char* keys;
    char* values;
    char* keyScales;
    char* valueScales;
  };
  Layer layer(int32_t index) const;
  RopeTable ropeTable() const;
  // First byte of a plane.
  char* plane(int32_t index) const;
  void checkPlane(int32_t plane, int64_t firstRow, int64_t rows, const void* data,
                  int64_t filledRows) const;

  template <class T>
  T* scratch(uint64_t offset) const {
    return reinterpret_cast<T*>(scratch_.data() + offset);
  }
  template <class T>
  T* stepPart(uint64_t offset) const {
    return reinterpret_cast<T*>(step_.data() + offset);
  }
  // Runs a small pass and a step, so that the first real ones find their kernels loaded.
  void warmUp(const LsAttentionParams& params);
  // Makes scratch for passes of `rows` rows with segments that need this much workspace.
  void reserveScratch(int64_t rows, uint64_t attentionWorkspaceBytes);
  // Enqueues a step of so many rows, whose inputs are in stepHost_.
  void enqueueStep(int32_t count);
  // Product of `rows` rows with a layer's matrices, or with the output head.
  ProductTask productOf(int32_t layer, Product which, int32_t rows) const;
  ProductTask headProduct(int32_t rows) const;
  void launchStepProduct(const ProductTask& task);
  // residual += product, through a norm where the architecture has one.
  void addStepProduct(int32_t layer, Product which, ProductTask task);
  // Of up to kLogitRows rows.
  void logitsOfBlock(const float* states, int64_t rows, float* out);

  Model& model_;
  // Rows of the cache that may be used.
  int64_t capacityRows_;
  LsRope rope_;
  SessionPlan plan_;
  Stream stream_;
  DeviceBlock kv_, scratch_, step_;
  Transfer transfer_;
  PassClock clock_;
  // Statistics, tokens and epsilons on their way; logits and inputs of a step.
  PinnedBlock passHost_, stepHost_;
  // By rows of a step; made when first wanted.
  std::array<cudaGraphExec_t, LS_MOST_STEP_ROWS> graphs_{};
  Event stepBegin_, stepEnd_;
  int64_t rows_ = 0;
  double stepMs_ = 0;
  double logitsMs_ = 0;
};

}  // namespace longsight::cuda
