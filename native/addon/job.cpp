#include "addon/job.h"

#include <mutex>
#include <set>
#include <thread>

#include "error.h"

namespace longsight {
namespace {

struct Failure {
  std::string code, message, action;
};

Failure describeCurrent() {
  try {
    throw;
  } catch (const Error& error) {
    return {codeName(error.code()), error.message(), error.action()};
  } catch (const std::bad_alloc&) {
    return {"notEnoughMemory", "The system gave no more memory.",
            "Close other programs, use a smaller context or a smaller model."};
  } catch (const std::exception& error) {
    return {"internal", std::string("The engine failed: ") + error.what(),
            "Try again; if it happens again, report it with the log."};
  } catch (...) {
    return {"internal", "The engine failed for an unknown reason.",
            "Try again; if it happens again, report it with the log."};
  }
}

Napi::Error makeError(Napi::Env env, const Failure& failure) {
  Napi::Error error = Napi::Error::New(env, failure.message);
  error.Set("code", failure.code);
  error.Set("action", failure.action);
  return error;
}

struct Job {
  Job(Napi::Env environment, Napi::Function function, std::function<void()> cancelWork)
      : env(environment),
        deferred(Napi::Promise::Deferred::New(environment)),
        cancel(std::move(cancelWork)) {
    if (!function.IsEmpty()) listener = Napi::Persistent(function);
  }

  Napi::Env env;
  Napi::Promise::Deferred deferred;
  Napi::FunctionReference listener;
  std::function<void()> cancel;
  std::thread thread;
  Napi::ThreadSafeFunction calls;
};

void callListener(Job& job, Napi::Env env, const MakeValue& make) {
  if (job.listener.IsEmpty()) return;
  const Napi::HandleScope scope(env);
  try {
    const Napi::Value value = make(env);
    if (value.IsArray()) {
      const auto array = value.As<Napi::Array>();
      std::vector<napi_value> arguments;
      for (uint32_t i = 0; i < array.Length(); ++i) arguments.push_back(array.Get(i));
      job.listener.Call(arguments);
    } else {
      job.listener.Call({value});
    }
  } catch (const Napi::Error& error) {
    // As for any callback: an exception of the listener is the process's uncaught exception.
    napi_fatal_exception(env, error.Value());
  }
}

void stopJob(void* data) {
  Job* job = static_cast<Job*>(data);
  job->cancel();
  if (job->thread.joinable()) job->thread.join();
}

}  // namespace

Napi::Error currentError(Napi::Env env) { return makeError(env, describeCurrent()); }

Napi::Promise startJob(Napi::Env env, Napi::Function listener, std::function<void()> cancel,
                       std::function<MakeValue(const EmitEvent&)> work) {
  // Owned by the finalizer of the thread-safe function.
  auto* job = new Job(env, listener, std::move(cancel));
  job->calls = Napi::ThreadSafeFunction::New(env, Napi::Function(), "longsight", /*maxQueueSize=*/0,
                                             /*initialThreadCount=*/1, [job](Napi::Env finalEnv) {
                                               napi_remove_env_cleanup_hook(finalEnv, stopJob, job);
                                               if (job->thread.joinable()) job->thread.join();
                                               delete job;
                                             });
  napi_add_env_cleanup_hook(env, stopJob, job);
  const Napi::Promise promise = job->deferred.Promise();

  job->thread = std::thread([job, work = std::move(work)] {
    const EmitEvent emit = [job](MakeValue make) {
      job->calls.BlockingCall([job, make = std::move(make)](Napi::Env callEnv, Napi::Function) {
        callListener(*job, callEnv, make);
      });
    };
    std::function<void(Napi::Env)> settle;
    try {
      MakeValue make = work(emit);
      settle = [job, make = std::move(make)](Napi::Env callEnv) {
        job->deferred.Resolve(guarded(callEnv, [&] { return make(callEnv); }));
      };
    } catch (...) {
      settle = [job, failure = describeCurrent()](Napi::Env callEnv) {
        job->deferred.Reject(makeError(callEnv, failure).Value());
      };
    }
    job->calls.BlockingCall([settle = std::move(settle)](Napi::Env callEnv, Napi::Function) {
      const Napi::HandleScope scope(callEnv);
      settle(callEnv);
    });
    job->calls.Release();
  });
  return promise;
}

std::function<void(uint64_t, uint64_t)> byteProgressTo(const EmitEvent& emit) {
  constexpr uint64_t kSteps = 100;
  return [emit, lastStep = kSteps + 1](uint64_t doneBytes, uint64_t totalBytes) mutable {
    const uint64_t step = totalBytes ? doneBytes * kSteps / totalBytes : kSteps;
    if (step == lastStep) return;
    lastStep = step;
    emit([doneBytes, totalBytes](Napi::Env env) -> Napi::Value {
      Napi::Array arguments = Napi::Array::New(env, 2);
      arguments.Set(0u, static_cast<double>(doneBytes));
      arguments.Set(1u, static_cast<double>(totalBytes));
      return arguments;
    });
  };
}

}  // namespace longsight
