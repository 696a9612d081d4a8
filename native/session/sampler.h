// Picks the next token from logits.
//
// The steps, in the order in which llama.cpp has them by default:
//   1. logitBias: added to the logits of the tokens that are named; -infinity bans a token.
//   2. repetitionPenalty: tokens among the last kRepetitionTokens of prompt and answer together get
//      their logit divided by it when positive and multiplied by it otherwise (Keskar et al. 2019,
//      arXiv 1909.05858), once, however often they occurred.
//   3. temperature 0: the largest logit wins, the smallest id among equals. What follows is
//   skipped.
//   4. topK: the k largest logits stay; among equals the smaller ids.
//   5. topP: the smallest set of the likeliest of them stays whose share of their probability
//      reaches topP (Holtzman et al. 2019, arXiv 1904.09751).
//   6. minP: those stay that are at least minP times as likely as the likeliest (Nguyen et al.
//   2024,
//      arXiv 2407.01082).
//   7. temperature: the logits of what stayed are divided by it, so that it changes how the rest is
//      drawn, not what the rest is.
//   8. One draw of 53 bits walks over the rest in the order of the ids.
// The same seed, logits and history give the same token on every machine: random numbers are
// mt19937_64's, and exponentials are computed here, since those of C libraries differ.
#pragma once

#include <cstdint>
#include <random>
#include <span>
#include <string>
#include <utility>
#include <vector>

namespace longsight {

// Ranges: see validate().
struct Sampling {
  double temperature = 0;
  // 1 = off.
  double topP = 1;
  // 0 = off.
  int32_t topK = 0;
  // 0 = off.
  double minP = 0;
  // 1 = off.
  double repetitionPenalty = 1;
  // Token and what is added to its logit.
  std::vector<std::pair<int32_t, double>> logitBias;
  uint64_t seed = 0;
  // Texts that end the answer; they are not part of it.
  std::vector<std::string> stop;
};

// Empty when every value is in its range; otherwise one sentence that names the field, its value
// and the range. `vocabulary` is the number of tokens.
std::string validate(const Sampling& sampling, int32_t vocabulary);

class Sampler {
 public:
  static constexpr size_t kRepetitionTokens = 64;

  // `prompt`: the tokens that the answer follows. The sampling must be valid.
  Sampler(const Sampling& sampling, std::span<const int32_t> prompt);

  // The next token; it is part of the history of the following ones. Throws Error internal when a
  // logit is NaN or +infinity, invalidParams when the bias leaves no token.
  int32_t pick(std::span<const float> logits);

 private:
  struct Candidate {
    double logit;
    int32_t token;
  };
  void adjust(std::span<const float> logits);
  int32_t draw(double best);
  void keepTopK();
  void keepTopP(double best);
  void keepMinP(double best);
  // Weights of the candidates: e^((logit - best) / temperature).
  void weigh(double best, double temperature);
  void sortTo(size_t count);
  void remember(int32_t token);

  Sampling sampling_;
  std::mt19937_64 random_;
  // The last tokens of prompt and answer, a ring once it is full.
  std::vector<int32_t> recent_;
  size_t oldest_ = 0;
  // Logits after steps 1 and 2.
  std::vector<double> adjusted_;
  // What is still in the race. The first sorted_ are the likeliest, in order.
  std::vector<Candidate> candidates_;
  size_t sorted_ = 0;
  std::vector<double> weights_;
};

}  // namespace longsight
