#include "real_session.h"

#include "llama_reference.h"
#include "temporary.h"

namespace longsight::test {

std::shared_ptr<Model> realModel() {
  static const auto model = std::make_shared<Model>(realModelPath());
  return model;
}

std::unique_ptr<Session> newSession(int64_t contextTokens, KvType kvCache) {
  const CancelFlag never;
  const SessionOptions options{.contextTokens = contextTokens, .threads = 2, .kvCache = kvCache};
  return std::make_unique<Session>(realModel(), options, never, nullptr);
}

std::vector<float> lastLogits(Session& session, const Prompt& prompt) {
  return session.logits(prompt, static_cast<int64_t>(prompt.tokens.size()) - 1);
}

double rms(const std::vector<float>& a, const std::vector<float>& b) {
  return compareLogits(a, b, realModel()->spec().vocabulary).rmsDifference;
}

}  // namespace longsight::test
