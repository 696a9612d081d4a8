#include "addon/native_session.h"

#include <sys/syscall.h>
#include <unistd.h>

#include "addon/convert.h"
#include "addon/instance.h"
#include "addon/job.h"
#include "error.h"

namespace longsight {
namespace {

Napi::Value typed(Napi::Env env, const char* type) {
  Napi::Object object = Napi::Object::New(env);
  object.Set("type", type);
  return object;
}

SessionEvents eventsTo(const EmitEvent& emit) {
  SessionEvents events;
  events.onPrefill = [emit](const PrefillProgress& progress) {
    emit([progress](Napi::Env env) { return toJs(env, progress); });
  };
  events.onPrefilled = [emit] { emit([](Napi::Env env) { return typed(env, "prefilled"); }); };
  events.onText = [emit](const std::string& text) {
    emit([text](Napi::Env env) -> Napi::Value {
      Napi::Object object = typed(env, "text").As<Napi::Object>();
      object.Set("text", text);
      return object;
    });
  };
  return events;
}

// While it lives, what this thread reads and writes waits for everybody else's.
class IdleDiskPriority {
 public:
  IdleDiskPriority() { set(kIdleClass); }
  ~IdleDiskPriority() { set(0); }
  IdleDiskPriority(const IdleDiskPriority&) = delete;
  IdleDiskPriority& operator=(const IdleDiskPriority&) = delete;

 private:
  // ioprio_set(2), which has no header: class 3 in the upper bits, this thread.
  static constexpr int kIdleClass = 3 << 13, kProcess = 1;
  static void set(int priority) { syscall(SYS_ioprio_set, kProcess, 0, priority); }
};

template <typename Result>
MakeValue makeJs(Result result) {
  return [result = std::move(result)](Napi::Env env) { return toJs(env, result); };
}

}  // namespace

Napi::Function NativeSession::define(Napi::Env env) {
  return DefineClass(
      env, "NativeSession",
      {InstanceAccessor<&NativeSession::contextTokens>("contextTokens"),
       InstanceMethod<&NativeSession::plan>("plan"),
       InstanceMethod<&NativeSession::generate>("generate"),
       InstanceMethod<&NativeSession::score>("score"),
       InstanceMethod<&NativeSession::calibrate>("calibrate"),
       InstanceMethod<&NativeSession::use>("use"), InstanceMethod<&NativeSession::save>("save"),
       InstanceMethod<&NativeSession::savedBytes>("savedBytes"),
       InstanceMethod<&NativeSession::restore>("restore"),
       InstanceMethod<&NativeSession::cancel>("cancel"),
       InstanceMethod<&NativeSession::reset>("reset"),
       InstanceMethod<&NativeSession::dispose>("dispose")});
}

Napi::Object NativeSession::create(Napi::Env env, std::shared_ptr<Session> session) {
  Napi::Object object = instanceOf(env).sessionClass.New({});
  Unwrap(object)->session_ = std::move(session);
  return object;
}

NativeSession::NativeSession(const Napi::CallbackInfo& info)
    : Napi::ObjectWrap<NativeSession>(info) {}

NativeSession::~NativeSession() {
  if (session_) session_->cancel();
}

std::shared_ptr<void> NativeSession::occupy() {
  if (!session_)
    throw Error(ErrorCode::internal, "The session was disposed of.", "Create a new session.");
  if (busy_->exchange(true))
    throw Error(ErrorCode::internal, "The session is still busy with another operation.",
                "Wait until it has ended, or cancel it.");
  session_->arm();
  return std::shared_ptr<void>(nullptr, [busy = busy_](void*) { busy->store(false); });
}

Napi::Value NativeSession::contextTokens(const Napi::CallbackInfo& info) {
  return Napi::Number::New(info.Env(),
                           session_ ? static_cast<double>(session_->contextTokens()) : 0);
}

Napi::Value NativeSession::plan(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    Prompt prompt = promptOf(objectArgument(info, 0, "prompt"));
    std::shared_ptr<void> hold = occupy();
    return startJob(
        info.Env(), Napi::Function(), [session = session_] { session->cancel(); },
        [session = session_, prompt = std::move(prompt),
         hold = std::move(hold)](const EmitEvent&) mutable -> MakeValue {
          const std::shared_ptr<void> held = std::move(hold);
          return makeJs(session->plan(prompt));
        });
  });
}

Napi::Value NativeSession::generate(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    Prompt prompt = promptOf(objectArgument(info, 0, "prompt"));
    const Napi::Object chosen = objectArgument(info, 1, "options");
    GenerateOptions options = generateOptionsOf(chosen);
    if (!chosen.Get("forcedDensity").IsUndefined())
      prompt.forcedDensity = numberField(chosen, "forcedDensity");
    const Napi::Function listener = functionArgument(info, 2, "onEvent");
    std::shared_ptr<void> hold = occupy();
    return startJob(
        info.Env(), listener, [session = session_] { session->cancel(); },
        [session = session_, prompt = std::move(prompt), options = std::move(options),
         hold = std::move(hold)](const EmitEvent& emit) mutable -> MakeValue {
          const std::shared_ptr<void> held = std::move(hold);
          return makeJs(session->generate(prompt, options, eventsTo(emit)));
        });
  });
}

Napi::Value NativeSession::score(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    Prompt prompt = promptOf(objectArgument(info, 0, "prompt"));
    const Napi::Object options = objectArgument(info, 1, "options");
    const int64_t tail = integerField(options, "tail");
    const bool againstDense = booleanField(options, "againstDense");
    const Napi::Function listener = functionArgument(info, 2, "onEvent");
    std::shared_ptr<void> hold = occupy();
    return startJob(
        info.Env(), listener, [session = session_] { session->cancel(); },
        [session = session_, prompt = std::move(prompt), tail, againstDense,
         hold = std::move(hold)](const EmitEvent& emit) mutable -> MakeValue {
          const std::shared_ptr<void> held = std::move(hold);
          return makeJs(session->score(prompt, tail, againstDense, eventsTo(emit)));
        });
  });
}

Napi::Value NativeSession::save(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    const std::string path = stringArgument(info, 0, "path");
    const int64_t rows = integerArgument(info, 1, "rows");
    return withFile(info, 2, [path, rows](Session& session, const FileProgress& onProgress) {
      // Whoever waits for the disk goes first.
      const IdleDiskPriority idle;
      return session.save(path, rows, onProgress);
    });
  });
}

Napi::Value NativeSession::savedBytes(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    const std::shared_ptr<void> held = occupy();
    return Napi::Number::New(
        info.Env(), static_cast<double>(session_->savedBytes(integerArgument(info, 0, "rows"))));
  });
}

Napi::Value NativeSession::restore(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    const std::string path = stringArgument(info, 0, "path");
    return withFile(info, 1, [path](Session& session, const FileProgress& onProgress) {
      return session.restore(path, onProgress);
    });
  });
}

Napi::Value NativeSession::withFile(const Napi::CallbackInfo& info, size_t listenerIndex,
                                    FileWork work) {
  const Napi::Function listener = functionArgument(info, listenerIndex, "onProgress");
  std::shared_ptr<void> hold = occupy();
  return startJob(
      info.Env(), listener, [session = session_] { session->cancel(); },
      [session = session_, work = std::move(work),
       hold = std::move(hold)](const EmitEvent& emit) mutable -> MakeValue {
        const std::shared_ptr<void> held = std::move(hold);
        return makeJs(work(*session, byteProgressTo(emit)));
      });
}

Napi::Value NativeSession::calibrate(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    std::vector<std::vector<int32_t>> texts = textsOf(info[0]);
    const SampleAttentionParams params = paramsOf(objectArgument(info, 1, "params"));
    const CalibrationTarget target = calibrationTargetOf(objectArgument(info, 2, "target"));
    const Napi::Function listener = functionArgument(info, 3, "onEvent");
    std::shared_ptr<void> hold = occupy();
    return startJob(
        info.Env(), listener, [session = session_] { session->cancel(); },
        [session = session_, texts = std::move(texts), params, target,
         hold = std::move(hold)](const EmitEvent& emit) mutable -> MakeValue {
          const std::shared_ptr<void> held = std::move(hold);
          return makeJs(session->calibrate(texts, params, target, eventsTo(emit)));
        });
  });
}

void NativeSession::use(const Napi::CallbackInfo& info) {
  guarded(info.Env(), [&] {
    Calibration calibration = calibrationOf(objectArgument(info, 0, "calibration"));
    const std::shared_ptr<void> held = occupy();
    session_->use(std::move(calibration));
  });
}

void NativeSession::cancel(const Napi::CallbackInfo&) {
  if (session_) session_->cancel();
}

void NativeSession::reset(const Napi::CallbackInfo& info) {
  guarded(info.Env(), [&] {
    const std::shared_ptr<void> held = occupy();
    session_->reset();
  });
}

void NativeSession::dispose(const Napi::CallbackInfo&) {
  if (session_) session_->cancel();
  session_.reset();
}

}  // namespace longsight
