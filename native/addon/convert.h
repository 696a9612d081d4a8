// JavaScript objects <-> the structs of native/session, field by field as extension/engine/addon.ts
// types them. Wrong types throw a JavaScript Error with code invalidParams.
#pragma once

#include <napi.h>

#include <string>
#include <vector>

#include "cuda/library.h"
#include "session/session.h"

namespace longsight {

Napi::Object objectArgument(const Napi::CallbackInfo& info, size_t index, const char* name);
Napi::Function functionArgument(const Napi::CallbackInfo& info, size_t index, const char* name);

std::string stringArgument(const Napi::CallbackInfo& info, size_t index, const char* name);
int64_t integerArgument(const Napi::CallbackInfo& info, size_t index, const char* name);

double numberField(const Napi::Object& object, const char* name);
int64_t integerField(const Napi::Object& object, const char* name);
bool booleanField(const Napi::Object& object, const char* name);
std::string stringField(const Napi::Object& object, const char* name);

// Bytes of a string (UTF-8) or a Uint8Array.
std::string bytesOf(const Napi::Value& value, const char* name);
std::vector<int32_t> tokensOf(const Napi::Value& value, const char* name);
// Field `kvCache`: bf16 when there is none.
KvType kvCacheOf(const Napi::Object& object);
// Where a session computes, and what size: all but the options that the memory estimate needs not.
SessionOptions placeOf(const Napi::Object& object);
SessionOptions sessionOptionsOf(const Napi::Object& object);
SampleAttentionParams paramsOf(const Napi::Object& object);
Prompt promptOf(const Napi::Object& object);
GenerateOptions generateOptionsOf(const Napi::Object& object);
Calibration calibrationOf(const Napi::Object& object);
CalibrationTarget calibrationTargetOf(const Napi::Object& object);
std::vector<std::vector<int32_t>> textsOf(const Napi::Value& value);

Napi::Value toJs(Napi::Env env, const AttentionStats& stats);
Napi::Value toJs(Napi::Env env, const MemoryUse& memory);
Napi::Value toJs(Napi::Env env, const MemoryEstimate& estimate);
Napi::Value toJs(Napi::Env env, const PrefillPlan& plan);
Napi::Value toJs(Napi::Env env, const PrefillProgress& progress);
Napi::Value toJs(Napi::Env env, const ForwardTimes& times);
Napi::Value toJs(Napi::Env env, const CudaDevices& devices);
Napi::Value toJs(Napi::Env env, const GenerateResult& result);
Napi::Value toJs(Napi::Env env, const ScoreOutcome& outcome);
Napi::Value toJs(Napi::Env env, const SavedRows& saved);
Napi::Value toJs(Napi::Env env, const CalibrationOutcome& outcome);

}  // namespace longsight
