// The table of functions that the addon gets.
#include "cuda/api.h"

#include <algorithm>
#include <memory>
#include <string>

#include "cuda/engine/devices.h"
#include "cuda/engine/failure.h"
#include "cuda/engine/model.h"
#include "cuda/engine/session.h"

// The handles of the boundary.
struct LsModel {
  explicit LsModel(const LsModelDesc& desc) : model(desc) {}
  longsight::cuda::Model model;
};
struct LsSession {
  LsSession(longsight::cuda::Model& model, const LsSessionDesc& desc) : session(model, desc) {}
  longsight::cuda::Session session;
};

namespace longsight::cuda {
namespace {

template <class T>
T& given(T* pointer, const char* name) {
  if (pointer == nullptr) throw invalid(std::string(name) + " is null.");
  return *pointer;
}

LsStatus devices(LsDevice* out, int32_t capacity, int32_t* count, LsError* error) {
  return guarded(error, [&] { listDevices(out, capacity, count); });
}

// `extraBytes`: what is not there yet but will be, besides the session.
LsMemory estimate(const ModelPlan& model, const LsSessionDesc& desc, uint64_t extraBytes) {
  checkSession(model, desc);
  const DeviceBytes device = deviceBytes();
  const uint64_t left = device.free - std::min(device.free, extraBytes);
  const SessionPlan plan = planSession(model, desc, left);
  LsMemory memory{};
  memory.weightBytes = model.bytes;
  memory.kvBytes = plan.kv.bytes;
  memory.scratchBytes = plan.scratchBytes();
  memory.fixedBytes = kKernelBytes;
  memory.freeBytes = device.free;
  memory.totalBytes = device.total;
  memory.chunkRows = plan.scratch.rows;
  memory.largestContextRows = largestContextRows(model, desc, left);
  memory.fits = plan.bytes() + kKernelBytes <= left ? 1 : 0;
  return memory;
}

LsStatus estimateMemory(const LsModelDesc* model, const LsSessionDesc* session, LsMemory* out,
                        LsError* error) {
  return guarded(error, [&] {
    open(given(model, "model").device);
    const ModelPlan plan = planModel(*model);
    given(out, "out") = estimate(plan, given(session, "session"), plan.bytes);
  });
}

LsStatus modelCreate(const LsModelDesc* desc, LsModel** out, LsError* error) {
  return guarded(error, [&] {
    given(out, "out") = nullptr;
    *out = std::make_unique<LsModel>(given(desc, "desc")).release();
  });
}

LsStatus modelUpload(LsModel* model, int32_t tensor, int64_t firstRow, int64_t rows,
                     const void* data, LsError* error) {
  return guarded(error, [&] { given(model, "model").model.upload(tensor, firstRow, rows, data); });
}

LsStatus modelFillRandom(LsModel* model, uint64_t seed, LsError* error) {
  return guarded(error, [&] { given(model, "model").model.fillRandom(seed); });
}

uint64_t modelWeightBytes(const LsModel* model) {
  return model == nullptr ? 0 : model->model.weightBytes();
}

void modelDestroy(LsModel* model) { delete model; }

LsStatus sessionEstimate(LsModel* model, const LsSessionDesc* desc, LsMemory* out, LsError* error) {
  return guarded(error, [&] {
    const Model& loaded = given(model, "model").model;
    use(loaded.device());
    given(out, "out") = estimate(loaded.plan(), given(desc, "desc"), 0);
  });
}

LsStatus sessionCreate(LsModel* model, const LsSessionDesc* desc, LsSession** out, LsError* error) {
  return guarded(error, [&] {
    given(out, "out") = nullptr;
    *out = std::make_unique<LsSession>(given(model, "model").model, given(desc, "desc")).release();
  });
}

void sessionDestroy(LsSession* session) { delete session; }

LsStatus sessionForward(LsSession* session, const LsForward* forward, LsError* error) {
  return guarded(error,
                 [&] { given(session, "session").session.forward(given(forward, "forward")); });
}

LsStatus sessionStep(LsSession* session, int64_t firstRow, const int32_t* tokens, int32_t count,
                     float* logits, LsError* error) {
  return guarded(error,
                 [&] { given(session, "session").session.step(firstRow, tokens, count, logits); });
}

LsStatus sessionLogits(LsSession* session, const float* states, int64_t rows, float* logits,
                       LsProceed proceed, void* context, LsError* error) {
  return guarded(error, [&] {
    Progress progress(proceed, context);
    given(session, "session").session.logits(states, rows, logits, progress);
  });
}

int64_t sessionRows(const LsSession* session) {
  return session == nullptr ? 0 : session->session.rows();
}

void sessionTruncate(LsSession* session, int64_t rows) {
  if (session != nullptr) session->session.truncate(rows);
}

int32_t sessionPlanes(const LsSession* session, int64_t* rowBytes, int32_t capacity) {
  if (session == nullptr) return 0;
  const int32_t count = session->session.planes();
  for (int32_t plane = 0; rowBytes != nullptr && plane < std::min(count, capacity); ++plane)
    rowBytes[plane] = session->session.planeRowBytes(plane);
  return count;
}

LsStatus sessionReadRows(LsSession* session, int32_t plane, int64_t firstRow, int64_t rows,
                         void* data, LsError* error) {
  return guarded(error,
                 [&] { given(session, "session").session.readRows(plane, firstRow, rows, data); });
}

LsStatus sessionWriteRows(LsSession* session, int32_t plane, int64_t firstRow, int64_t rows,
                          const void* data, LsError* error) {
  return guarded(error,
                 [&] { given(session, "session").session.writeRows(plane, firstRow, rows, data); });
}

LsStatus sessionRestored(LsSession* session, int64_t rows, LsError* error) {
  return guarded(error, [&] { given(session, "session").session.restored(rows); });
}

LsStatus sessionProbe(LsSession* session, LsSpeed* out, LsError* error) {
  return guarded(error, [&] { given(out, "out") = given(session, "session").session.probe(); });
}

void sessionTimes(const LsSession* session, LsTimes* out) {
  if (out != nullptr) *out = session == nullptr ? LsTimes{} : session->session.times();
}

LsStatus sessionMemory(LsSession* session, LsMemory* out, LsError* error) {
  return guarded(error, [&] { given(out, "out") = given(session, "session").session.memory(); });
}

constexpr LsCudaApi kApi = {LS_CUDA_API_VERSION, devices,         estimateMemory,   modelCreate,
                            modelUpload,         modelFillRandom, modelWeightBytes, modelDestroy,
                            sessionEstimate,     sessionCreate,   sessionDestroy,   sessionForward,
                            sessionStep,         sessionLogits,   sessionRows,      sessionTruncate,
                            sessionPlanes,       sessionReadRows, sessionWriteRows, sessionRestored,
                            sessionProbe,        sessionTimes,    sessionMemory};

}  // namespace
}  // namespace longsight::cuda

extern "C" __attribute__((visibility("default"))) const LsCudaApi* longsightCudaApi(
    int32_t version) {
  return version == LS_CUDA_API_VERSION ? &longsight::cuda::kApi : nullptr;
}
