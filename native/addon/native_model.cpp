#include "addon/native_model.h"

#include <cstring>

#include "addon/convert.h"
#include "addon/instance.h"
#include "addon/job.h"
#include "addon/native_session.h"
#include "error.h"

namespace longsight {
namespace {

Napi::Value toInt32Array(Napi::Env env, const std::vector<int32_t>& values) {
  Napi::Int32Array array = Napi::Int32Array::New(env, values.size());
  if (!values.empty()) std::memcpy(array.Data(), values.data(), values.size() * sizeof(int32_t));
  return array;
}

}  // namespace

Napi::Function NativeModel::define(Napi::Env env) {
  return DefineClass(env, "NativeModel",
                     {InstanceAccessor<&NativeModel::spec>("spec"),
                      InstanceMethod<&NativeModel::tokenize>("tokenize"),
                      InstanceMethod<&NativeModel::detokenize>("detokenize"),
                      InstanceMethod<&NativeModel::estimateMemory>("estimateMemory"),
                      InstanceMethod<&NativeModel::createSession>("createSession"),
                      InstanceMethod<&NativeModel::dispose>("dispose")});
}

Napi::Object NativeModel::create(Napi::Env env, std::shared_ptr<Model> model) {
  Napi::Object object = instanceOf(env).modelClass.New({});
  Unwrap(object)->model_ = std::move(model);
  return object;
}

NativeModel::NativeModel(const Napi::CallbackInfo& info) : Napi::ObjectWrap<NativeModel>(info) {}

NativeModel::~NativeModel() { disposed_->set(); }

std::shared_ptr<Model> NativeModel::open() const {
  if (!model_)
    throw Error(ErrorCode::internal, "The model was disposed of.", "Open the model again.");
  return model_;
}

Napi::Value NativeModel::spec(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  return guarded(env, [&]() -> Napi::Value {
    const std::shared_ptr<Model> model = open();
    const ModelSpec& spec = model->spec();
    Napi::Object object = Napi::Object::New(env);
    object.Set("path", spec.path);
    object.Set("name", spec.name);
    object.Set("architecture", spec.architecture);
    object.Set("layers", spec.layers);
    object.Set("heads", spec.heads);
    object.Set("kvHeads", spec.kvHeads);
    object.Set("headDim", spec.headDim);
    object.Set("contextTokens", static_cast<double>(spec.contextTokens));
    object.Set("fileType", spec.fileType);
    object.Set("chatTemplate", spec.chatTemplate);
    const Tokenizer* tokenizer = model->hasTokenizer() ? &model->tokenizer() : nullptr;
    object.Set("bosText", tokenizer ? tokenizer->bosText() : "");
    object.Set("eosText", tokenizer ? tokenizer->eosText() : "");
    object.Set("addBos", tokenizer && tokenizer->addsBos());
    object.Set("weightBytes", static_cast<double>(spec.weightBytes));
    object.Set("vocabulary", spec.vocabulary);
    return object;
  });
}

Napi::Value NativeModel::tokenize(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  return guarded(env, [&]() -> Napi::Value {
    const std::shared_ptr<Model> model = open();
    if (!info[0].IsArray())
      throw Error(ErrorCode::invalidParams, "pieces is not an array.", "Pass an array of pieces.");
    const auto array = info[0].As<Napi::Array>();
    struct Piece {
      std::string text;
      bool special;
    };
    std::vector<Piece> pieces;
    for (uint32_t i = 0; i < array.Length(); ++i) {
      const Napi::Value value = array.Get(i);
      if (!value.IsObject())
        throw Error(ErrorCode::invalidParams, "A piece is not an object.", "Pass {text, special}.");
      const auto object = value.As<Napi::Object>();
      pieces.push_back({bytesOf(object.Get("text"), "text"), booleanField(object, "special")});
    }
    return startJob(
        env, Napi::Function(), [] {},
        [model, pieces](const EmitEvent&) -> MakeValue {
          std::vector<std::vector<int32_t>> lists(pieces.size());
          for (size_t i = 0; i < pieces.size(); ++i)
            model->tokenizer().tokenize(pieces[i].text, pieces[i].special, lists[i]);
          return [lists = std::move(lists)](Napi::Env callEnv) -> Napi::Value {
            Napi::Array result = Napi::Array::New(callEnv, lists.size());
            for (uint32_t i = 0; i < lists.size(); ++i)
              result.Set(i, toInt32Array(callEnv, lists[i]));
            return result;
          };
        });
  });
}

Napi::Value NativeModel::detokenize(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  return guarded(env, [&]() -> Napi::Value {
    const std::shared_ptr<Model> model = open();
    return startJob(
        env, Napi::Function(), [] {},
        [model, tokens = tokensOf(info[0], "tokens")](const EmitEvent&) -> MakeValue {
          std::string bytes;
          for (int32_t token : tokens) bytes += model->tokenizer().piece(token, true);
          return [bytes = std::move(bytes)](Napi::Env callEnv) -> Napi::Value {
            Napi::Uint8Array array = Napi::Uint8Array::New(callEnv, bytes.size());
            if (!bytes.empty()) std::memcpy(array.Data(), bytes.data(), bytes.size());
            return array;
          };
        });
  });
}

Napi::Value NativeModel::estimateMemory(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  return guarded(env, [&]() -> Napi::Value {
    const Napi::Object options = objectArgument(info, 0, "options");
    const Napi::Value params = options.Get("params");
    if (!params.IsObject())
      throw Error(ErrorCode::invalidParams, "params is not an object.", "Pass all parameters.");
    return toJs(env, open()->estimate(placeOf(options), paramsOf(params.As<Napi::Object>())));
  });
}

Napi::Value NativeModel::createSession(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  return guarded(env, [&]() -> Napi::Value {
    const std::shared_ptr<Model> model = open();
    const Napi::Object options = objectArgument(info, 0, "options");
    const Napi::Function listener = functionArgument(info, 1, "onProgress");
    const SessionOptions chosen = sessionOptionsOf(options);
    const std::shared_ptr<CancelFlag> cancel = disposed_;
    return startJob(
        env, listener, [cancel] { cancel->set(); },
        [=](const EmitEvent& emit) -> MakeValue {
          const auto onProgress = byteProgressTo(emit);
          auto session = std::make_shared<Session>(model, chosen, *cancel, onProgress);
          return [session](Napi::Env callEnv) -> Napi::Value {
            return NativeSession::create(callEnv, session);
          };
        });
  });
}

void NativeModel::dispose(const Napi::CallbackInfo&) {
  disposed_->set();
  model_.reset();
}

}  // namespace longsight
