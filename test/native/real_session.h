// Sessions with the real model of the tests, and what tests ask of any session.
#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <memory>
#include <vector>

#include "error.h"
#include "session/session.h"

namespace longsight::test {

// Opened once for all tests.
std::shared_ptr<Model> realModel();

std::unique_ptr<Session> newSession(int64_t contextTokens = 4096, KvType kvCache = KvType::bf16);

// Logits of the prompt's last row.
std::vector<float> lastLogits(Session& session, const Prompt& prompt);

// Of the difference between two lists of the real model's logits.
double rms(const std::vector<float>& a, const std::vector<float>& b);

// The Error that body() throws; the test fails when it throws none.
template <typename Body>
Error errorOf(const Body& body) {
  try {
    body();
  } catch (const Error& error) {
    return error;
  }
  ADD_FAILURE() << "no error";
  return Error(ErrorCode::internal, "", "");
}

}  // namespace longsight::test
