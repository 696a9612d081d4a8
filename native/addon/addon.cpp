// Entry of longsight.node: the functions of `Addon` in extension/engine/addon.ts.
#include <napi.h>

#include "addon/convert.h"
#include "addon/instance.h"
#include "addon/job.h"
#include "addon/native_model.h"
#include "addon/native_session.h"
#include "cpu/ggml_runtime.h"
#include "error.h"
#include "kernels/cpu/attention/kernels.h"
#include "kernels/cpu/instruction_set.h"
#include "kernels/cpu/linear/few_rows.h"
#include "kernels/cpu/linear/linear.h"
#include "model/synthetic.h"
#include "session/machine.h"

namespace longsight {
namespace {

Napi::Value machine(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  return guarded(env, [&]() -> Napi::Value {
    Napi::Object object = Napi::Object::New(env);
    const std::vector<std::string> features = cpuFeatures();
    Napi::Array list = Napi::Array::New(env, features.size());
    for (uint32_t i = 0; i < features.size(); ++i) list.Set(i, features[i]);
    object.Set("cpuFeatures", list);
    Napi::Object kernels = Napi::Object::New(env);
    kernels.Set("attention", instructionSetName(chooseAttentionKernels().set));
    kernels.Set("linear", linearSetsName(chooseLinearSets()) + ", decoding " +
                              (chooseFewRowKernels() ? "avx512vnni, ggml " : "ggml ") +
                              cpuVariant());
    object.Set("kernels", kernels);
    object.Set("totalMemoryBytes", static_cast<double>(totalMemoryBytes()));
    object.Set("availableMemoryBytes", static_cast<double>(availableMemoryBytes()));
    object.Set("physicalCores", physicalCores());
    return object;
  });
}

Napi::Value openModel(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  return guarded(env, [&]() -> Napi::Value {
    if (!info[0].IsString())
      throw Error(ErrorCode::invalidParams, "path is not a string.",
                  "Pass the path of a GGUF file.");
    return startJob(
        env, Napi::Function(), [] {},
        [path = info[0].As<Napi::String>().Utf8Value()](const EmitEvent&) -> MakeValue {
          auto model = std::make_shared<Model>(path);
          return [model](Napi::Env callEnv) -> Napi::Value {
            return NativeModel::create(callEnv, model);
          };
        });
  });
}

Napi::Value findCudaDevices(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  return guarded(env, [&] { return toJs(env, cudaDevices(CudaLibrary::get())); });
}

Napi::Value openSynthetic(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  return guarded(env, [&]() -> Napi::Value {
    const std::string name = stringArgument(info, 0, "name");
    const Napi::Object options = objectArgument(info, 1, "options");
    return NativeModel::create(
        env, std::make_shared<Model>(syntheticSpec(name, stringField(options, "weights")),
                                     static_cast<uint64_t>(integerField(options, "seed"))));
  });
}

Napi::Object initialize(Napi::Env env, Napi::Object exports) {
  auto* instance = new Instance();
  instance->modelClass = Napi::Persistent(NativeModel::define(env));
  instance->sessionClass = Napi::Persistent(NativeSession::define(env));
  env.SetInstanceData(instance);
  exports.Set("machine", Napi::Function::New<machine>(env, "machine"));
  exports.Set("openModel", Napi::Function::New<openModel>(env, "openModel"));
  exports.Set("cudaDevices", Napi::Function::New<findCudaDevices>(env, "cudaDevices"));
  exports.Set("openSynthetic", Napi::Function::New<openSynthetic>(env, "openSynthetic"));
  return exports;
}

}  // namespace
}  // namespace longsight

static Napi::Object initializeAddon(Napi::Env env, Napi::Object exports) {
  return longsight::initialize(env, exports);
}
NODE_API_MODULE(longsight, initializeAddon)
