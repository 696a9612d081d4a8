// NativeSession of extension/engine/addon.ts.
#pragma once

#include <napi.h>

#include <atomic>
#include <memory>

#include "session/session.h"

namespace longsight {

class NativeSession : public Napi::ObjectWrap<NativeSession> {
 public:
  static Napi::Function define(Napi::Env env);
  static Napi::Object create(Napi::Env env, std::shared_ptr<Session> session);
  explicit NativeSession(const Napi::CallbackInfo& info);
  ~NativeSession() override;

 private:
  Napi::Value contextTokens(const Napi::CallbackInfo& info);
  Napi::Value plan(const Napi::CallbackInfo& info);
  Napi::Value generate(const Napi::CallbackInfo& info);
  Napi::Value score(const Napi::CallbackInfo& info);
  Napi::Value save(const Napi::CallbackInfo& info);
  Napi::Value savedBytes(const Napi::CallbackInfo& info);
  Napi::Value restore(const Napi::CallbackInfo& info);
  Napi::Value calibrate(const Napi::CallbackInfo& info);
  void use(const Napi::CallbackInfo& info);
  void cancel(const Napi::CallbackInfo& info);
  void reset(const Napi::CallbackInfo& info);
  void dispose(const Napi::CallbackInfo& info);

  using FileWork = std::function<SavedRows(Session&, const FileProgress&)>;
  Napi::Value withFile(const Napi::CallbackInfo& info, size_t listenerIndex, FileWork work);

  // Marks the session as in use until the returned object is gone; throws when it is in use.
  std::shared_ptr<void> occupy();

  std::shared_ptr<Session> session_;
  std::shared_ptr<std::atomic<bool>> busy_ = std::make_shared<std::atomic<bool>>(false);
};

}  // namespace longsight
