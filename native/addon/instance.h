// What the addon keeps for each JavaScript environment.
#pragma once

#include <napi.h>

namespace longsight {

struct Instance {
  Napi::FunctionReference modelClass;
  Napi::FunctionReference sessionClass;
};

inline Instance& instanceOf(Napi::Env env) { return *env.GetInstanceData<Instance>(); }

}  // namespace longsight
