#include "fake_cuda.h"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <thread>

#include "cuda/api.h"
#include "ggml.h"

using longsight::test::fakeNext;
using longsight::test::fakeRow;
using longsight::test::FakeState;
using longsight::test::FakeTensor;

struct LsModel {
  LsModelDesc desc;
  std::vector<FakeTensor> tensors;
  int64_t bytes = 0;
};

struct LsSession {
  LsModel* model;
  LsSessionDesc desc;
  std::vector<uint64_t> hashes;
  int64_t rows = 0;
  int64_t bytes = 0;
  double milliseconds = 0;
};

namespace {

FakeState state;
// LONGSIGHT_FAKE_CUDA sets it where the library is opened by a whole engine.
std::string behaviour = [] {
  const char* chosen = std::getenv("LONGSIGHT_FAKE_CUDA");
  return std::string(chosen ? chosen : "");
}();
int64_t totalBytes = int64_t{1} << 30;
constexpr int64_t kFixedBytes = 1000, kScratchBytes = 5000, kChunkRows = 1024;

LsStatus fail(LsError* error, LsStatus status, const std::string& message) {
  if (error) {
    *error = {};
    error->status = status;
    std::snprintf(error->message, sizeof(error->message), "%s", message.c_str());
  }
  return status;
}

int64_t freeBytes() { return totalBytes - state.bytes; }

LsStatus devices(LsDevice* out, int32_t capacity, int32_t* count, LsError* error) {
  *count = 0;
  if (behaviour == "crash") std::abort();
  if (behaviour == "noDriver") return fail(error, LS_NO_DRIVER, "There is no libcuda.so.1.");
  if (behaviour == "oldDriver") return fail(error, LS_DRIVER_TOO_OLD, "The driver is 550.1.");
  if (behaviour == "noDevice") return fail(error, LS_NO_DEVICE, "There is no GPU.");
  *count = 2;
  for (int32_t i = 0; i < std::min(capacity, 2); ++i) {
    LsDevice device{};
    std::snprintf(device.name, sizeof(device.name), "Fake %d", i);
    device.ordinal = i;
    device.driverVersion = 13000;
    device.totalBytes = static_cast<uint64_t>(totalBytes);
    device.freeBytes = static_cast<uint64_t>(i == 1 ? freeBytes() : freeBytes() / 2);
    const bool isOld = behaviour == "oldDevice" || (behaviour == "oneOld" && i == 1);
    device.computeCapability = isOld ? 75 : 90;
    device.status = isOld ? LS_DEVICE_TOO_OLD : LS_OK;
    out[i] = device;
  }
  if (behaviour == "oldDevice") return fail(error, LS_DEVICE_TOO_OLD, "All GPUs are too old.");
  return LS_OK;
}

int64_t weightBytes(const LsModelDesc* desc) {
  int64_t bytes = 0;
  for (int32_t i = 0; i < desc->tensorCount; ++i) {
    const LsTensorDesc& tensor = desc->tensors[i];
    bytes += tensor.rows * static_cast<int64_t>(
                               ggml_row_size(static_cast<ggml_type>(tensor.type), tensor.columns));
  }
  return bytes;
}

int64_t rowBytes(const LsModelDesc* desc) { return 1000 * desc->layers; }

void estimate(const LsModelDesc* model, int64_t weights, int64_t present,
              const LsSessionDesc* session, LsMemory* out) {
  *out = {};
  const int64_t scratch = std::max(kScratchBytes, 10 * session->chunkRows);
  out->weightBytes = static_cast<uint64_t>(weights);
  out->kvBytes = static_cast<uint64_t>(session->capacityRows * rowBytes(model));
  out->scratchBytes = static_cast<uint64_t>(scratch);
  out->fixedBytes = kFixedBytes;
  out->freeBytes = static_cast<uint64_t>(freeBytes());
  out->totalBytes = static_cast<uint64_t>(totalBytes);
  out->chunkRows = session->chunkRows > 0 ? session->chunkRows : kChunkRows;
  const int64_t room = freeBytes() + present - weights - scratch - kFixedBytes;
  out->largestContextRows = std::max<int64_t>(0, room / rowBytes(model));
  out->fits = session->capacityRows <= out->largestContextRows;
}

LsStatus estimateMemory(const LsModelDesc* model, const LsSessionDesc* session, LsMemory* out,
                        LsError*) {
  estimate(model, weightBytes(model), 0, session, out);
  return LS_OK;
}

LsStatus modelCreate(const LsModelDesc* desc, LsModel** out, LsError* error) {
  if (behaviour == "unsupported") return fail(error, LS_UNSUPPORTED, "No kernel for type q2_K.");
  if (weightBytes(desc) > freeBytes()) return fail(error, LS_OUT_OF_MEMORY, "Weights do not fit.");
  auto* model = new LsModel{*desc, {}, weightBytes(desc)};
  for (int32_t i = 0; i < desc->tensorCount; ++i) {
    const LsTensorDesc& tensor = desc->tensors[i];
    FakeTensor made{tensor.role, tensor.layer,   tensor.part, tensor.type,
                    tensor.rows, tensor.columns, {},          {}};
    made.bytes.resize(static_cast<size_t>(tensor.rows) *
                      ggml_row_size(static_cast<ggml_type>(tensor.type), tensor.columns));
    made.writes.resize(static_cast<size_t>(tensor.rows));
    model->tensors.push_back(std::move(made));
  }
  ++state.models;
  state.bytes += model->bytes;
  *out = model;
  return LS_OK;
}

LsStatus modelUpload(LsModel* model, int32_t index, int64_t firstRow, int64_t rows,
                     const void* data, LsError* error) {
  FakeTensor& tensor = model->tensors.at(static_cast<size_t>(index));
  if (firstRow < 0 || rows < 1 || firstRow + rows > tensor.rows)
    return fail(error, LS_INVALID_ARGUMENT, "Rows outside the tensor.");
  const size_t row = tensor.bytes.size() / static_cast<size_t>(tensor.rows);
  std::memcpy(tensor.bytes.data() + static_cast<size_t>(firstRow) * row, data,
              static_cast<size_t>(rows) * row);
  for (int64_t i = firstRow; i < firstRow + rows; ++i) ++tensor.writes[static_cast<size_t>(i)];
  return LS_OK;
}

LsStatus modelFillRandom(LsModel* model, uint64_t seed, LsError*) {
  for (FakeTensor& tensor : model->tensors) {
    std::fill(tensor.bytes.begin(), tensor.bytes.end(), static_cast<uint8_t>(seed));
    std::fill(tensor.writes.begin(), tensor.writes.end(), 1);
  }
  return LS_OK;
}

uint64_t modelWeightBytes(const LsModel* model) { return static_cast<uint64_t>(model->bytes); }

void modelDestroy(LsModel* model) {
  if (!model) return;
  --state.models;
  state.bytes -= model->bytes;
  delete model;
}

LsStatus sessionEstimate(LsModel* model, const LsSessionDesc* desc, LsMemory* out, LsError*) {
  estimate(&model->desc, model->bytes, model->bytes, desc, out);
  return LS_OK;
}

LsStatus sessionCreate(LsModel* model, const LsSessionDesc* desc, LsSession** out, LsError* error) {
  for (const FakeTensor& tensor : model->tensors)
    for (const int writes : tensor.writes)
      if (writes != 1) return fail(error, LS_INVALID_ARGUMENT, "A row was not written once.");
  const int64_t bytes = desc->capacityRows * rowBytes(&model->desc) + kScratchBytes;
  if (bytes > freeBytes()) {
    fail(error, LS_OUT_OF_MEMORY, "The cache does not fit.");
    error->largestContextRows = (freeBytes() - kScratchBytes) / rowBytes(&model->desc);
    return LS_OUT_OF_MEMORY;
  }
  auto* session = new LsSession{model, *desc, {}, 0, bytes, 0};
  session->hashes.resize(static_cast<size_t>(desc->capacityRows));
  state.tensors = model->tensors;
  state.frequencies.assign(desc->rope.frequencies,
                           desc->rope.frequencies + desc->rope.rotatedDims / 2);
  ++state.sessions;
  state.bytes += bytes;
  *out = session;
  return LS_OK;
}

void sessionDestroy(LsSession* session) {
  if (!session) return;
  --state.sessions;
  state.bytes -= session->bytes;
  delete session;
}

void fill(LsSession* session, int64_t row, int32_t token) {
  const auto place = static_cast<size_t>(row);
  session->hashes[place] = fakeRow(row > 0 ? session->hashes[place - 1] : 1, token, row);
}

// The hash and the position, in pieces that floats hold exactly.
void writeState(const LsSession* session, int64_t row, float* out) {
  const uint64_t hash = session->hashes[static_cast<size_t>(row)];
  for (int i = 0; i < 4; ++i) out[i] = static_cast<float>(hash >> (16 * i) & 0xFFFF);
  out[4] = static_cast<float>(row);
}

void writeLogits(const LsSession* session, uint64_t hash, int64_t row, float* out) {
  const int32_t vocabulary = session->model->desc.vocabulary;
  for (int32_t i = 0; i < vocabulary; ++i)
    out[i] = static_cast<float>((hash >> (i % 40)) & 0xFF) / 256;
  out[fakeNext(hash, row, vocabulary)] += 8;
}

LsStatus sessionForward(LsSession* session, const LsForward* forward, LsError* error) {
  if (behaviour == "lost") return fail(error, LS_DEVICE_LOST, "The GPU has fallen off the bus.");
  const LsModelDesc& desc = session->model->desc;
  const int64_t begin = forward->segments[0].begin;
  const int64_t end = forward->segments[forward->segmentCount - 1].end;
  if (begin > session->rows || end > session->desc.capacityRows)
    return fail(error, LS_INVALID_ARGUMENT, "Rows outside the cache.");
  for (int32_t i = 1; i < forward->segmentCount; ++i)
    if (forward->segments[i].begin != forward->segments[i - 1].end)
      return fail(error, LS_INVALID_ARGUMENT, "Segments with a gap.");
  session->rows = begin;
  for (int32_t layer = 0; layer < desc.layers; ++layer) {
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
    session->milliseconds += 2;
    if (!forward->proceed(forward->context, (layer + 0.5) / desc.layers))
      return fail(error, LS_CANCELLED, "");
  }
  for (int64_t row = begin; row < end; ++row) fill(session, row, forward->tokens[row - begin]);
  session->rows = end;
  for (int64_t row = forward->outputBegin; row < end && forward->states; ++row)
    writeState(session, row, forward->states + (row - forward->outputBegin) * desc.embedding);
  const int32_t auditRows = forward->params.auditRows;
  for (int32_t layer = 0; layer < desc.layers && forward->stats; ++layer)
    for (int32_t i = 0; i < forward->segmentCount; ++i)
      for (int32_t head = 0; head < desc.heads; ++head) {
        const int64_t place = (int64_t{layer} * forward->segmentCount + i) * desc.heads + head;
        const LsSegment& segment = forward->segments[i];
        const bool isComputed = layer + 1 < desc.layers || forward->outputBegin < segment.end;
        const int64_t causal = isComputed ? (segment.end - segment.begin) * 100 : 0;
        forward->stats[place] = {causal / 2, causal, 17, segment.dense};
        if (!forward->coverage || segment.dense || !isComputed) continue;
        for (int32_t row = 0; row < std::min(auditRows, 2); ++row)
          forward->coverage[((int64_t{layer} * forward->segmentCount + i) * auditRows + row) *
                                desc.heads +
                            head] = 0.5f + 0.25f * static_cast<float>(row);
      }
  state.forwardRows += end - begin;
  ++state.forwardCalls;
  state.forcedDensity = forward->forcedDensity;
  if (forward->params.headEpsilons)
    state.headEpsilons.assign(forward->params.headEpsilons,
                              forward->params.headEpsilons + desc.layers * desc.heads);
  return LS_OK;
}

LsStatus sessionStep(LsSession* session, int64_t firstRow, const int32_t* tokens, int32_t count,
                     float* logits, LsError* error) {
  if (firstRow > session->rows || firstRow + count > session->desc.capacityRows || count < 1 ||
      count > LS_MOST_STEP_ROWS)
    return fail(error, LS_INVALID_ARGUMENT, "Rows outside the cache.");
  // As long for several rows as for one.
  std::this_thread::sleep_for(std::chrono::microseconds(300));
  for (int32_t i = 0; i < count; ++i) {
    fill(session, firstRow + i, tokens[i]);
    writeLogits(session, session->hashes[static_cast<size_t>(firstRow + i)], firstRow + i,
                logits + int64_t{i} * session->model->desc.vocabulary);
  }
  session->rows = firstRow + count;
  ++state.steps;
  return LS_OK;
}

LsStatus sessionLogits(LsSession* session, const float* states, int64_t rows, float* logits,
                       LsProceed, void*, LsError*) {
  const LsModelDesc& desc = session->model->desc;
  for (int64_t row = 0; row < rows; ++row) {
    const float* from = states + row * desc.embedding;
    uint64_t hash = 0;
    for (int i = 0; i < 4; ++i) hash |= static_cast<uint64_t>(from[i]) << (16 * i);
    writeLogits(session, hash, static_cast<int64_t>(from[4]), logits + row * desc.vocabulary);
  }
  return LS_OK;
}

int64_t sessionRows(const LsSession* session) { return session->rows; }

void sessionTruncate(LsSession* session, int64_t rows) {
  session->rows = std::min(session->rows, rows);
}

// Whole hashes, then their first three bytes again.
int32_t sessionPlanes(const LsSession*, int64_t* bytes, int32_t capacity) {
  const int64_t all[] = {8, 3};
  std::copy_n(all, std::min(capacity, 2), bytes);
  return 2;
}

LsStatus sessionReadRows(LsSession* session, int32_t plane, int64_t firstRow, int64_t rows,
                         void* data, LsError* error) {
  if (firstRow + rows > session->rows)
    return fail(error, LS_INVALID_ARGUMENT, "Rows that are not filled.");
  for (int64_t i = 0; i < rows; ++i)
    std::memcpy(static_cast<char*>(data) + i * (plane == 0 ? 8 : 3),
                &session->hashes[static_cast<size_t>(firstRow + i)], plane == 0 ? 8 : 3);
  return LS_OK;
}

LsStatus sessionWriteRows(LsSession* session, int32_t plane, int64_t firstRow, int64_t rows,
                          const void* data, LsError* error) {
  if (firstRow + rows > session->desc.capacityRows)
    return fail(error, LS_INVALID_ARGUMENT, "Rows outside the cache.");
  for (int64_t i = 0; i < rows; ++i) {
    uint64_t& hash = session->hashes[static_cast<size_t>(firstRow + i)];
    if (plane == 0)
      std::memcpy(&hash, static_cast<const char*>(data) + i * 8, 8);
    else if (std::memcmp(&hash, static_cast<const char*>(data) + i * 3, 3) != 0)
      return fail(error, LS_INVALID_ARGUMENT, "Planes that do not belong together.");
  }
  return LS_OK;
}

LsStatus sessionRestored(LsSession* session, int64_t rows, LsError*) {
  session->rows = rows;
  return LS_OK;
}

LsStatus sessionProbe(LsSession*, LsSpeed* out, LsError*) {
  *out = {0.001, 1e-9};
  return LS_OK;
}

void sessionTimes(const LsSession* session, LsTimes* out) {
  *out = {};
  out->linearMs = session->milliseconds;
  out->stage3Ms = session->milliseconds / 2;
}

LsStatus sessionMemory(LsSession* session, LsMemory* out, LsError*) {
  estimate(&session->model->desc, session->model->bytes, 0, &session->desc, out);
  return LS_OK;
}

const LsCudaApi kApi = {LS_CUDA_API_VERSION, devices,         estimateMemory,   modelCreate,
                        modelUpload,         modelFillRandom, modelWeightBytes, modelDestroy,
                        sessionEstimate,     sessionCreate,   sessionDestroy,   sessionForward,
                        sessionStep,         sessionLogits,   sessionRows,      sessionTruncate,
                        sessionPlanes,       sessionReadRows, sessionWriteRows, sessionRestored,
                        sessionProbe,        sessionTimes,    sessionMemory};

}  // namespace

#define EXPORTED extern "C" __attribute__((visibility("default")))

EXPORTED const LsCudaApi* longsightCudaApi(int32_t version) {
  return version == LS_CUDA_API_VERSION ? &kApi : nullptr;
}
EXPORTED FakeState* fakeCudaState() { return &state; }
EXPORTED void fakeCudaBehave(const char* name, int64_t bytes) {
  behaviour = name;
  totalBytes = bytes > 0 ? bytes : int64_t{1} << 30;
}
