// Speculative decoding by prompt lookup: what followed the last tokens where they stood before is
// guessed to follow again, since answers about code copy from it. The guess is verified by the
// model in one step of several rows, so it changes how fast a text comes, never which.
//
// Source of the idea: Saxena, "Prompt Lookup Decoding" (2023,
// https://github.com/apoorvumang/prompt-lookup-decoding); of verifying several tokens at once:
// Leviathan et al., "Fast Inference from Transformers via Speculative Decoding" (arXiv 2211.17192).
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <vector>

namespace longsight {

// Where runs of `length` tokens ended in a text that only grows. 8 to 12 bytes a token.
class NgramIndex {
 public:
  explicit NgramIndex(size_t length) : length_(length) {}

  // The last token of `text` is new; the first call takes any text.
  void append(std::span<const int32_t> text);
  // Number of tokens up to and with the earlier run that equals the last `length` tokens of `text`:
  // of the most recent ones, the one before which most tokens agree as well. 0 = none. `text` must
  // have been appended.
  size_t findLast(std::span<const int32_t> text) const;

 private:
  size_t slotOf(std::span<const int32_t> text, size_t end) const;
  void grow(std::span<const int32_t> text);

  size_t length_;
  // Hash of a run -> end of its last occurrence, 0 = none; a power of two.
  std::vector<uint32_t> lastEnd_;
  // [end of a run] -> end of the previous run with the same hash.
  std::vector<uint32_t> previousEnd_;
};

class Drafter {
 public:
  // Tokens that are guessed at a time at most, so that a step has 8 rows.
  static constexpr size_t kMostDraft = 7;

  // `text`: what stands before the token that comes next.
  explicit Drafter(std::span<const int32_t> text);

  // A token was chosen.
  void append(int32_t token);

  // Tokens that may follow, `most` at most, as many as are expected to pay; often none.
  std::vector<int32_t> draft(size_t most);

  // What came of the last draft: a step with it took so long, and its first `accepted` tokens were
  // right. Steps without a draft are told as well.
  void observe(size_t drafted, size_t accepted, double stepMs);

 private:
  static constexpr size_t kKinds = 2;

  double costOf(size_t rows) const;
  size_t lengthThatPays(double chance, size_t most) const;

  std::vector<int32_t> text_;
  // Of long runs and of short ones, whose guesses are worse.
  std::array<NgramIndex, kKinds> indexes_;
  // Chance that a guessed token is right when those before it were.
  std::array<double, kKinds> chance_;
  size_t lastKind_ = 0;
  // [rows - 1]: milliseconds of a step, 0 = not known; and how often it was seen.
  std::array<double, kMostDraft + 1> stepMs_{};
  std::array<uint32_t, kMostDraft + 1> seen_{};
};

}  // namespace longsight
