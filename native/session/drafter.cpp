#include "session/drafter.h"

#include <algorithm>

namespace longsight {
namespace {

// Runs that are looked for, long ones first.
constexpr size_t kLongRun = 4;
constexpr size_t kShortRun = 2;
// Earlier runs that are compared, and how far back.
constexpr int kMostCandidates = 24;
constexpr size_t kMostAgreement = 32;

// Before anything was seen.
constexpr double kFirstChance[] = {0.7, 0.4};
// Weight of what is seen, by token.
constexpr double kLearning = 0.1;
// Each step without a draft moves the chance this far back to the first one, so that it is tried
// again now and then after it did not pay.
constexpr double kForgetting = 0.01;
// What a further row is believed to add to a step, as a share of one row, until it was measured.
constexpr double kAssumedRowCost = 0.05;
// Weight of a step that took longer than believed.
constexpr double kSlowingDown = 0.05;
// A draft must promise this much more than a plain step.
constexpr double kLeastGain = 1.02;

}  // namespace

size_t NgramIndex::slotOf(std::span<const int32_t> text, size_t end) const {
  uint64_t hash = 0;
  for (size_t i = end - length_; i < end; ++i)
    hash = (hash ^ static_cast<uint32_t>(text[i])) * 0x9E3779B97F4A7C15u;
  return static_cast<size_t>(hash >> 20) & (lastEnd_.size() - 1);
}

// Half of the slots stay empty at most.
void NgramIndex::grow(std::span<const int32_t> text) {
  size_t slots = 1024;
  while (slots < 2 * text.size()) slots *= 2;
  lastEnd_.assign(slots, 0);
  previousEnd_.reserve(slots / 2 + 1);
  for (size_t end = length_; end < text.size(); ++end) {
    uint32_t& last = lastEnd_[slotOf(text, end)];
    previousEnd_[end] = last;
    last = static_cast<uint32_t>(end);
  }
}

void NgramIndex::append(std::span<const int32_t> text) {
  const size_t end = text.size();
  previousEnd_.resize(end + 1, 0);
  if (end < length_) return;
  if (2 * end > lastEnd_.size()) grow(text);
  uint32_t& last = lastEnd_[slotOf(text, end)];
  previousEnd_[end] = last;
  last = static_cast<uint32_t>(end);
}

size_t NgramIndex::findLast(std::span<const int32_t> text) const {
  const size_t end = text.size();
  if (end < length_) return 0;
  size_t best = 0, bestAgreement = length_ - 1;
  size_t candidate = previousEnd_[end];
  for (int tries = 0; candidate > 0 && tries < kMostCandidates; ++tries) {
    size_t agreement = 0;
    while (agreement < kMostAgreement && agreement < candidate &&
           text[candidate - 1 - agreement] == text[end - 1 - agreement])
      ++agreement;
    if (agreement > bestAgreement) {
      best = candidate;
      bestAgreement = agreement;
      if (agreement == kMostAgreement) break;
    }
    candidate = previousEnd_[candidate];
  }
  return best;
}

Drafter::Drafter(std::span<const int32_t> text)
    : indexes_{NgramIndex(kLongRun), NgramIndex(kShortRun)},
      chance_{kFirstChance[0], kFirstChance[1]} {
  text_.assign(text.begin(), text.end());
  // An index that has to grow takes in everything before the new token.
  for (NgramIndex& index : indexes_) index.append(text_);
}

void Drafter::append(int32_t token) {
  text_.push_back(token);
  for (NgramIndex& index : indexes_) index.append(text_);
}

double Drafter::costOf(size_t rows) const {
  // The nearest below that is known, and the believed rest.
  for (size_t known = rows; known > 0; --known)
    if (stepMs_[known - 1] > 0)
      return stepMs_[known - 1] * (1 + kAssumedRowCost * static_cast<double>(rows - known));
  return 1 + kAssumedRowCost * static_cast<double>(rows - 1);
}

size_t Drafter::lengthThatPays(double chance, size_t most) const {
  const double plain = 1 / costOf(1);
  double best = plain * kLeastGain, expected = 1, all = 1;
  size_t length = 0;
  for (size_t drafted = 1; drafted <= most; ++drafted) {
    // Tokens of a step: the first, and each guess that is right together with all before it.
    all *= chance;
    expected += all;
    if (const double speed = expected / costOf(drafted + 1); speed > best) {
      best = speed;
      length = drafted;
    }
  }
  return length;
}

std::vector<int32_t> Drafter::draft(size_t most) {
  most = std::min(most, kMostDraft);
  for (size_t kind = 0; kind < kKinds; ++kind) {
    const size_t end = indexes_[kind].findLast(text_);
    if (end == 0) continue;
    lastKind_ = kind;
    const size_t length = std::min(lengthThatPays(chance_[kind], most), text_.size() - end);
    const auto begin = text_.begin() + static_cast<std::ptrdiff_t>(end);
    return {begin, begin + static_cast<std::ptrdiff_t>(length)};
  }
  return {};
}

void Drafter::observe(size_t drafted, size_t accepted, double stepMs) {
  // The first step of a size also prepares it. Later ones are slow when other programs want the
  // machine: what a step can do counts for more.
  double& cost = stepMs_[drafted];
  if (++seen_[drafted] == 2 || stepMs < cost)
    cost = stepMs;
  else if (seen_[drafted] > 2)
    cost += kSlowingDown * (stepMs - cost);
  if (drafted == 0) {
    for (size_t kind = 0; kind < kKinds; ++kind)
      chance_[kind] += kForgetting * (kFirstChance[kind] - chance_[kind]);
    return;
  }
  double& chance = chance_[lastKind_];
  for (size_t i = 0; i < accepted; ++i) chance += kLearning * (1 - chance);
  if (accepted < drafted) chance -= kLearning * chance;
}

}  // namespace longsight
