// Picks the next token from logits.
#pragma once

#include <cstdint>
#include <random>
#include <span>
#include <string>
#include <vector>

namespace longsight {

struct Sampling {
  // 0 = greedy (the first of equal logits).
  double temperature = 0;
  // Smallest set of most likely tokens whose probability reaches this, in (0, 1]; 1 = all.
  double topP = 1;
  uint64_t seed = 0;
  // Texts that end the answer; they are not part of it.
  std::vector<std::string> stop;
};

class Sampler {
 public:
  explicit Sampler(const Sampling& sampling);
  // The same seed and logits give the same token on every machine.
  int32_t pick(std::span<const float> logits);

 private:
  double temperature_;
  double topP_;
  std::mt19937_64 random_;
  std::vector<std::pair<double, int32_t>> candidates_;
};

}  // namespace longsight
