// NativeModel of extension/engine/addon.ts.
#pragma once

#include <napi.h>

#include <memory>

#include "session/model.h"

namespace longsight {

class NativeModel : public Napi::ObjectWrap<NativeModel> {
 public:
  static Napi::Function define(Napi::Env env);
  static Napi::Object create(Napi::Env env, std::shared_ptr<Model> model);
  explicit NativeModel(const Napi::CallbackInfo& info);
  ~NativeModel() override;

 private:
  Napi::Value spec(const Napi::CallbackInfo& info);
  Napi::Value tokenize(const Napi::CallbackInfo& info);
  Napi::Value detokenize(const Napi::CallbackInfo& info);
  Napi::Value estimateMemory(const Napi::CallbackInfo& info);
  Napi::Value createSession(const Napi::CallbackInfo& info);
  void dispose(const Napi::CallbackInfo& info);
  std::shared_ptr<Model> open() const;

  std::shared_ptr<Model> model_;
  // Shared with loads that are under way.
  std::shared_ptr<CancelFlag> disposed_ = std::make_shared<CancelFlag>();
};

}  // namespace longsight
