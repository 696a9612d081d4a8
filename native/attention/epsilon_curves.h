// How density and error of each head move with its epsilon, and the epsilons that are worth most.
//
// A head's error is what its missing columns change in the residual stream, as a share of that: the
// next norm divides by the length of the stream, so that errors of different layers can be added.
// Independent errors add up by their squares, and so does KL for small ones. The least error at a
// density is where every head gains the same error for the same pairs (Lagrange).
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace longsight {

// Sums over what was measured of one head.
struct HeadCurve {
  // Epsilons are measured on a grid of logarithms.
  static constexpr int kSteps = 28;
  static constexpr double kFirstLog = -10.5;
  static constexpr double kLogStep = 0.375;

  double causalPairs = 0;
  int64_t rows = 0;
  // By step: kept pairs; squared relative error and missed probability of the audit rows.
  std::array<double, kSteps> keptPairs{};
  std::array<double, kSteps> error{};
  std::array<double, kSteps> missed{};
};

// Epsilons by head, and what they do on the texts that were measured.
struct EpsilonChoice {
  // [layer][head]. A head without measurements has the epsilon of the parameters.
  std::vector<float> epsilons;
  double density = 1;
  double coverage = 1;
  // Sum of the heads' mean squared relative errors.
  double error = 0;
};

class EpsilonCurves {
 public:
  EpsilonCurves(int32_t layers, int32_t heads)
      : heads_(heads), curves_(static_cast<size_t>(layers * heads)) {}

  HeadCurve& head(int32_t layer, int32_t head) {
    return curves_[static_cast<size_t>(layer * heads_ + head)];
  }
  bool isEmpty() const;

  // The same epsilon, above 0, for every head.
  EpsilonChoice uniform(double epsilon) const;
  // Least error at this density at most, or the least density there is.
  EpsilonChoice atDensity(double density, double fallbackEpsilon) const;
  // Least density at this coverage at least, or the most coverage there is.
  EpsilonChoice atCoverage(double coverage, double fallbackEpsilon) const;

 private:
  // Each head where error + price * density is least.
  EpsilonChoice atPrice(double price, double fallbackEpsilon) const;
  struct Prices {
    double before;
    double after;
  };
  template <typename IsPast>
  Prices pricesAround(const IsPast& isPast) const;

  int32_t heads_;
  std::vector<HeadCurve> curves_;
};

}  // namespace longsight
