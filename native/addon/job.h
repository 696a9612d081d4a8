// Long work on a thread of its own, with events and a promise on the JavaScript thread.
#pragma once

#include <napi.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

namespace longsight {

// Makes a JavaScript value; runs on the JavaScript thread.
using MakeValue = std::function<Napi::Value(Napi::Env)>;
// Hands an event to the JavaScript thread without waiting. Any thread of the job.
using EmitEvent = std::function<void(MakeValue)>;

// Starts `work` on a new thread and returns the promise of what it makes. What it throws rejects
// the promise with an Error that has `code` and `action`. Events call `listener` (may be empty)
// with one argument, or with the elements when the value is an array. `cancel` is called when the
// environment goes away while the work runs; it must make the work end soon.
Napi::Promise startJob(Napi::Env env, Napi::Function listener, std::function<void()> cancel,
                       std::function<MakeValue(const EmitEvent&)> work);

// Progress of a job that counts bytes: calls its listener with (doneBytes, totalBytes), each time
// another hundredth is done, since JavaScript need not hear of every block. For one thread.
std::function<void(uint64_t, uint64_t)> byteProgressTo(const EmitEvent& emit);

// A JavaScript Error with `code` and `action` for what is being handled in a catch block.
Napi::Error currentError(Napi::Env env);

// Runs `body` and turns what it throws into a thrown JavaScript Error.
template <typename Body>
auto guarded(Napi::Env env, const Body& body) -> decltype(body()) {
  try {
    return body();
  } catch (const Napi::Error&) {
    throw;
  } catch (...) {
    throw currentError(env);
  }
}

}  // namespace longsight
