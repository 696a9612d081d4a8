#include "addon/convert.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "error.h"

namespace longsight {
namespace {

Error wrongType(const char* name, const char* expected) {
  return Error(ErrorCode::invalidParams, std::string(name) + " is not " + expected + ".",
               "Correct the value and try again.");
}

Napi::Value number(Napi::Env env, double value) { return Napi::Number::New(env, value); }

Napi::Value number(Napi::Env env, const std::optional<double>& value) {
  return value ? number(env, *value) : env.Null();
}

Napi::Value number(Napi::Env env, uint64_t value) {
  return number(env, static_cast<double>(value));
}
Napi::Value number(Napi::Env env, int64_t value) { return number(env, static_cast<double>(value)); }

const char* stopReasonName(StopReason reason) {
  switch (reason) {
    case StopReason::end:
      return "end";
    case StopReason::stop:
      return "stop";
    case StopReason::length:
      break;
  }
  return "length";
}

int64_t wholeNumber(double value, const char* name) {
  if (!(std::abs(value) <= 0x1p53) || value != std::floor(value))
    throw wrongType(name, "a whole number");
  return static_cast<int64_t>(value);
}

int32_t int32Of(double value, const char* name) {
  if (!(value >= INT32_MIN && value <= INT32_MAX) || value != std::floor(value))
    throw wrongType(name, "a 32-bit whole number");
  return static_cast<int32_t>(value);
}

int32_t int32Field(const Napi::Object& object, const char* name) {
  return int32Of(numberField(object, name), name);
}

constexpr const char* kBiasType = "an array of pairs [token, bias]";

std::pair<int32_t, double> biasOf(const Napi::Value& value) {
  if (!value.IsArray()) throw wrongType("logitBias", kBiasType);
  const auto pair = value.As<Napi::Array>();
  const Napi::Value token = pair.Get(0u), bias = pair.Get(1u);
  if (pair.Length() != 2 || !token.IsNumber() || !bias.IsNumber())
    throw wrongType("logitBias", kBiasType);
  return {int32Of(token.As<Napi::Number>().DoubleValue(), "A token of logitBias"),
          bias.As<Napi::Number>().DoubleValue()};
}

template <typename Value>
Value choiceField(const Napi::Object& object, const char* name,
                  std::initializer_list<std::pair<const char*, Value>> choices) {
  const std::string text = stringField(object, name);
  std::string list;
  for (const auto& [label, value] : choices) {
    if (text == label) return value;
    list += (list.empty() ? "" : ", ") + std::string(label);
  }
  throw Error(ErrorCode::invalidParams,
              std::string(name) + " is \"" + text + "\", expected one of " + list + ".",
              "Correct the value and try again.");
}

}  // namespace

Napi::Object objectArgument(const Napi::CallbackInfo& info, size_t index, const char* name) {
  if (!info[index].IsObject()) throw wrongType(name, "an object");
  return info[index].As<Napi::Object>();
}

Napi::Function functionArgument(const Napi::CallbackInfo& info, size_t index, const char* name) {
  if (!info[index].IsFunction()) throw wrongType(name, "a function");
  return info[index].As<Napi::Function>();
}

std::string stringArgument(const Napi::CallbackInfo& info, size_t index, const char* name) {
  if (!info[index].IsString()) throw wrongType(name, "a string");
  return info[index].As<Napi::String>().Utf8Value();
}

int64_t integerArgument(const Napi::CallbackInfo& info, size_t index, const char* name) {
  if (!info[index].IsNumber()) throw wrongType(name, "a number");
  return wholeNumber(info[index].As<Napi::Number>().DoubleValue(), name);
}

double numberField(const Napi::Object& object, const char* name) {
  const Napi::Value value = object.Get(name);
  if (!value.IsNumber()) throw wrongType(name, "a number");
  return value.As<Napi::Number>().DoubleValue();
}

int64_t integerField(const Napi::Object& object, const char* name) {
  return wholeNumber(numberField(object, name), name);
}

bool booleanField(const Napi::Object& object, const char* name) {
  const Napi::Value value = object.Get(name);
  if (!value.IsBoolean()) throw wrongType(name, "true or false");
  return value.As<Napi::Boolean>().Value();
}

std::string stringField(const Napi::Object& object, const char* name) {
  const Napi::Value value = object.Get(name);
  if (!value.IsString()) throw wrongType(name, "a string");
  return value.As<Napi::String>().Utf8Value();
}

std::string bytesOf(const Napi::Value& value, const char* name) {
  if (value.IsString()) return value.As<Napi::String>().Utf8Value();
  if (!value.IsTypedArray() || value.As<Napi::TypedArray>().TypedArrayType() != napi_uint8_array)
    throw wrongType(name, "a string or a Uint8Array");
  const auto array = value.As<Napi::Uint8Array>();
  return std::string(reinterpret_cast<const char*>(array.Data()), array.ByteLength());
}

std::vector<int32_t> tokensOf(const Napi::Value& value, const char* name) {
  if (!value.IsTypedArray() || value.As<Napi::TypedArray>().TypedArrayType() != napi_int32_array)
    throw wrongType(name, "an Int32Array");
  const auto array = value.As<Napi::Int32Array>();
  return std::vector<int32_t>(array.Data(), array.Data() + array.ElementLength());
}

KvType kvCacheOf(const Napi::Object& object) {
  if (object.Get("kvCache").IsUndefined()) return KvType::bf16;
  return choiceField<KvType>(object, "kvCache", {{"bf16", KvType::bf16}, {"q8", KvType::q8}});
}

SessionOptions placeOf(const Napi::Object& object) {
  SessionOptions options;
  options.contextTokens = integerField(object, "contextTokens");
  options.kvCache = kvCacheOf(object);
  if (!object.Get("backend").IsUndefined())
    options.backend = choiceField<BackendKind>(
        object, "backend", {{"cpu", BackendKind::cpu}, {"cuda", BackendKind::cuda}});
  if (!object.Get("device").IsUndefined()) options.device = int32Field(object, "device");
  if (!object.Get("chunkRows").IsUndefined()) options.chunkRows = integerField(object, "chunkRows");
  return options;
}

SessionOptions sessionOptionsOf(const Napi::Object& object) {
  SessionOptions options = placeOf(object);
  options.threads = int32Field(object, "threads");
  options.ropeBaseScale = numberField(object, "ropeBaseScale");
  return options;
}

SampleAttentionParams paramsOf(const Napi::Object& object) {
  SampleAttentionParams params;
  params.policy = choiceField<Policy>(
      object, "policy", {{"dense", Policy::dense}, {"peak", Policy::peak}, {"mass", Policy::mass}});
  params.alpha = numberField(object, "alpha");
  params.epsilon = numberField(object, "epsilon");
  params.scoreDims = choiceField<ScoreDims>(
      object, "scoreDims", {{"slowHalf", ScoreDims::slowHalf}, {"all", ScoreDims::all}});
  params.sampleStride = int32Field(object, "sampleStride");
  params.segmentRows = int32Field(object, "segmentRows");
  params.windowTokens = int32Field(object, "windowTokens");
  params.windowFraction = numberField(object, "windowFraction");
  params.sinkTokens = int32Field(object, "sinkTokens");
  params.denseBelowTokens = int32Field(object, "denseBelowTokens");
  params.maxListShare = numberField(object, "maxListShare");
  params.auditRows = int32Field(object, "auditRows");
  return params;
}

Calibration calibrationOf(const Napi::Object& object) {
  const Napi::Value params = object.Get("params");
  if (!params.IsObject()) throw wrongType("params", "an object");
  const Napi::Value epsilons = object.Get("headEpsilons");
  if (!epsilons.IsArray()) throw wrongType("headEpsilons", "an array of numbers");
  Calibration calibration{paramsOf(params.As<Napi::Object>()), {}};
  const auto array = epsilons.As<Napi::Array>();
  for (uint32_t i = 0; i < array.Length(); ++i) {
    const Napi::Value epsilon = array.Get(i);
    if (!epsilon.IsNumber()) throw wrongType("headEpsilons", "an array of numbers");
    calibration.headEpsilons.push_back(epsilon.As<Napi::Number>().FloatValue());
  }
  return calibration;
}

std::vector<std::vector<int32_t>> textsOf(const Napi::Value& value) {
  if (!value.IsArray()) throw wrongType("texts", "an array of Int32Arrays");
  std::vector<std::vector<int32_t>> texts;
  const auto array = value.As<Napi::Array>();
  for (uint32_t i = 0; i < array.Length(); ++i) texts.push_back(tokensOf(array.Get(i), "texts"));
  return texts;
}

CalibrationTarget calibrationTargetOf(const Napi::Object& object) {
  CalibrationTarget target;
  if (object.Get("coverage").IsNumber()) target.coverage = numberField(object, "coverage");
  if (object.Get("kl").IsNumber()) target.kl = numberField(object, "kl");
  return target;
}

Prompt promptOf(const Napi::Object& object) {
  Prompt prompt;
  prompt.tokens = tokensOf(object.Get("tokens"), "tokens");
  const Napi::Value borders = object.Get("borders");
  if (!borders.IsArray()) throw wrongType("borders", "an array of numbers");
  const auto array = borders.As<Napi::Array>();
  for (uint32_t i = 0; i < array.Length(); ++i) {
    const Napi::Value border = array.Get(i);
    if (!border.IsNumber()) throw wrongType("borders", "an array of numbers");
    prompt.borders.push_back(border.As<Napi::Number>().Int64Value());
  }
  prompt.denseFrom = integerField(object, "denseFrom");
  const Napi::Value params = object.Get("params");
  if (!params.IsObject()) throw wrongType("params", "an object");
  prompt.params = paramsOf(params.As<Napi::Object>());
  return prompt;
}

Sampling samplingOf(const Napi::Object& object) {
  Sampling sampling;
  sampling.temperature = numberField(object, "temperature");
  sampling.topP = numberField(object, "topP");
  sampling.topK = int32Field(object, "topK");
  sampling.minP = numberField(object, "minP");
  sampling.repetitionPenalty = numberField(object, "repetitionPenalty");
  sampling.seed = static_cast<uint64_t>(integerField(object, "seed"));
  const Napi::Value bias = object.Get("logitBias");
  if (!bias.IsArray()) throw wrongType("logitBias", kBiasType);
  const auto biases = bias.As<Napi::Array>();
  for (uint32_t i = 0; i < biases.Length(); ++i)
    sampling.logitBias.push_back(biasOf(biases.Get(i)));
  const Napi::Value stop = object.Get("stop");
  if (!stop.IsArray()) throw wrongType("stop", "an array of strings");
  const auto stops = stop.As<Napi::Array>();
  for (uint32_t i = 0; i < stops.Length(); ++i) {
    const Napi::Value text = stops.Get(i);
    if (!text.IsString()) throw wrongType("stop", "an array of strings");
    sampling.stop.push_back(text.As<Napi::String>().Utf8Value());
  }
  return sampling;
}

GenerateOptions generateOptionsOf(const Napi::Object& object) {
  GenerateOptions options;
  options.maxTokens = integerField(object, "maxTokens");
  options.ignoreEnd = booleanField(object, "ignoreEnd");
  if (!object.Get("speculate").IsUndefined()) options.speculate = booleanField(object, "speculate");
  const Napi::Value value = object.Get("sampling");
  if (!value.IsObject()) throw wrongType("sampling", "an object");
  options.sampling = samplingOf(value.As<Napi::Object>());
  return options;
}

Napi::Value toJs(Napi::Env env, const AttentionStats& stats) {
  Napi::Object object = Napi::Object::New(env);
  object.Set("density", number(env, stats.density));
  object.Set("sparseDensity", number(env, stats.sparseDensity));
  object.Set("coverageMean", number(env, stats.coverageMean));
  object.Set("coverageP5", number(env, stats.coverageP5));
  Napi::Array layers = Napi::Array::New(env, stats.layers.size());
  for (uint32_t i = 0; i < stats.layers.size(); ++i) {
    const LayerDensity& layer = stats.layers[i];
    Napi::Array heads = Napi::Array::New(env, layer.heads.size());
    for (uint32_t j = 0; j < layer.heads.size(); ++j) heads.Set(j, number(env, layer.heads[j]));
    Napi::Object made = Napi::Object::New(env);
    made.Set("density", number(env, layer.density));
    made.Set("heads", heads);
    layers.Set(i, made);
  }
  object.Set("layers", layers);
  if (stats.calibrated) object.Set("calibrated", Napi::Boolean::New(env, true));
  return object;
}

namespace {

Napi::Object epsilonsToJs(Napi::Env env, const EpsilonChoice& choice) {
  Napi::Object object = Napi::Object::New(env);
  object.Set("density", number(env, choice.density));
  object.Set("coverage", number(env, choice.coverage));
  Napi::Array epsilons = Napi::Array::New(env, choice.epsilons.size());
  for (uint32_t i = 0; i < choice.epsilons.size(); ++i)
    epsilons.Set(i, number(env, double{choice.epsilons[i]}));
  object.Set("headEpsilons", epsilons);
  return object;
}

}  // namespace

Napi::Value toJs(Napi::Env env, const CalibrationOutcome& outcome) {
  Napi::Object object = Napi::Object::New(env);
  object.Set("chosen", epsilonsToJs(env, outcome.chosen));
  object.Set("plain", epsilonsToJs(env, outcome.plain));
  object.Set("kl", number(env, outcome.kl));
  return object;
}

Napi::Value toJs(Napi::Env env, const MemoryUse& memory) {
  Napi::Object object = Napi::Object::New(env);
  object.Set("weightBytes", number(env, memory.weightBytes));
  object.Set("kvBytes", number(env, memory.kvBytes));
  object.Set("scratchBytes", number(env, memory.scratchBytes));
  object.Set("fixedBytes", number(env, memory.fixedBytes));
  return object;
}

Napi::Value toJs(Napi::Env env, const MemoryEstimate& estimate) {
  Napi::Object object = Napi::Object::New(env);
  object.Set("weightBytes", number(env, estimate.weightBytes));
  object.Set("kvBytes", number(env, estimate.kvBytes));
  object.Set("scratchBytes", number(env, estimate.scratchBytes));
  object.Set("fixedBytes", number(env, estimate.fixedBytes));
  object.Set("contextTokens", number(env, estimate.contextTokens));
  object.Set("availableBytes", number(env, estimate.availableBytes));
  object.Set("fits", Napi::Boolean::New(env, estimate.fits));
  object.Set("largestContextTokens", number(env, estimate.largestContextTokens));
  return object;
}

Napi::Value toJs(Napi::Env env, const PrefillPlan& plan) {
  Napi::Object object = Napi::Object::New(env);
  object.Set("promptTokens", number(env, plan.promptTokens));
  object.Set("reusedTokens", number(env, plan.reusedTokens));
  object.Set("computedTokens", number(env, plan.computedTokens));
  object.Set("predictedPrefillMs", number(env, plan.predictedPrefillMs));
  return object;
}

Napi::Value toJs(Napi::Env env, const PrefillProgress& progress) {
  Napi::Object object = Napi::Object::New(env);
  object.Set("type", "prefill");
  object.Set("done", number(env, progress.done));
  object.Set("total", number(env, progress.total));
  object.Set("tokensPerSecond", number(env, progress.tokensPerSecond));
  object.Set("etaMs", number(env, progress.etaMs));
  return object;
}

namespace {

Napi::Value speculationToJs(Napi::Env env, const GenerateResult& result) {
  if (result.draftedTokens == 0) return env.Null();
  Napi::Object object = Napi::Object::New(env);
  object.Set("draftedTokens", number(env, result.draftedTokens));
  object.Set("acceptedTokens", number(env, result.acceptedTokens));
  return object;
}

}  // namespace

Napi::Value toJs(Napi::Env env, const ForwardTimes& times) {
  Napi::Object object = Napi::Object::New(env);
  object.Set("linearMs", number(env, times.linearMs));
  object.Set("expandMs", number(env, times.expandMs));
  object.Set("stage1Ms", number(env, times.sampleMs));
  object.Set("stage2Ms", number(env, times.listMs));
  object.Set("stage3Ms", number(env, times.attendMs));
  object.Set("auditMs", number(env, times.auditMs));
  object.Set("restMs", number(env, times.restMs));
  return object;
}

Napi::Value toJs(Napi::Env env, const CudaDevices& devices) {
  Napi::Object object = Napi::Object::New(env);
  Napi::Array usable = Napi::Array::New(env), refused = Napi::Array::New(env);
  int32_t driver = 0;
  for (const CudaDevices::Device& device : devices.all) {
    const LsDevice& facts = device.facts;
    driver = std::max(driver, facts.driverVersion);
    Napi::Object made = Napi::Object::New(env);
    made.Set("index", facts.ordinal);
    made.Set("name", std::string(facts.name));
    if (!device.refusal.empty()) {
      made.Set("reason", device.refusal);
      refused.Set(refused.Length(), made);
      continue;
    }
    made.Set("computeCapability", std::to_string(facts.computeCapability / 10) + "." +
                                      std::to_string(facts.computeCapability % 10));
    made.Set("totalBytes", number(env, facts.totalBytes));
    made.Set("freeBytes", number(env, facts.freeBytes));
    usable.Set(usable.Length(), made);
  }
  object.Set("usable", usable);
  object.Set("refused", refused);
  object.Set("driverCuda", driver == 0 ? std::string()
                                       : std::to_string(driver / 1000) + "." +
                                             std::to_string(driver % 1000 / 10));
  return object;
}

Napi::Value toJs(Napi::Env env, const GenerateResult& result) {
  Napi::Object object = Napi::Object::New(env);
  object.Set("promptTokens", number(env, result.prefill.promptTokens));
  object.Set("reusedTokens", number(env, result.prefill.reusedTokens));
  object.Set("computedTokens", number(env, result.prefill.computedTokens));
  object.Set("generatedTokens", number(env, result.generatedTokens));
  object.Set("prefillMs", number(env, result.prefillMs));
  object.Set("decodeMs", number(env, result.decodeMs));
  object.Set("prefillTokensPerSecond", number(env, result.prefillTokensPerSecond));
  object.Set("decodeTokensPerSecond", number(env, result.decodeTokensPerSecond));
  object.Set("stopReason", stopReasonName(result.stopReason));
  object.Set("attention", toJs(env, result.attention));
  object.Set("memory", toJs(env, result.memory));
  object.Set("speculation", speculationToJs(env, result));
  // The CPU backend does not tell the parts apart.
  object.Set("times", result.backend == BackendKind::cuda ? toJs(env, result.times) : env.Null());
  object.Set("devicePeakBytes", number(env, result.memory.peakBytes));
  return object;
}

Napi::Value toJs(Napi::Env env, const ScoreOutcome& outcome) {
  Napi::Object object = Napi::Object::New(env);
  object.Set("nll", number(env, outcome.nll));
  object.Set("accuracy", number(env, outcome.accuracy));
  object.Set("computedTokens", number(env, outcome.computedTokens));
  object.Set("prefillMs", number(env, outcome.prefillMs));
  object.Set("attention", toJs(env, outcome.attention));
  if (outcome.kl) object.Set("kl", number(env, *outcome.kl));
  if (outcome.top1Agreement) object.Set("top1Agreement", number(env, *outcome.top1Agreement));
  return object;
}

Napi::Value toJs(Napi::Env env, const SavedRows& saved) {
  Napi::Object object = Napi::Object::New(env);
  object.Set("tokens", number(env, saved.rows));
  object.Set("bytes", number(env, saved.bytes));
  return object;
}

}  // namespace longsight
