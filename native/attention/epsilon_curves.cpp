#include "attention/epsilon_curves.h"

#include <algorithm>
#include <cmath>

namespace longsight {
namespace {

// Prices between which bisection looks; errors are at most about 1.
constexpr double kLowestLogPrice = -40;
constexpr double kHighestLogPrice = 10;
constexpr int kBisections = 60;

struct Point {
  double logEpsilon;
  double density;
  double error;
  double missed;
};

Point pointAt(const HeadCurve& curve, int step) {
  const auto i = static_cast<size_t>(step);
  const auto rows = static_cast<double>(curve.rows);
  return {HeadCurve::kFirstLog + HeadCurve::kLogStep * step, curve.keptPairs[i] / curve.causalPairs,
          curve.error[i] / rows, curve.missed[i] / rows};
}

bool isMeasured(const HeadCurve& curve) { return curve.rows > 0 && curve.causalPairs > 0; }

// Means over the measured heads; `pick` gives the point of a curve.
template <typename Pick>
EpsilonChoice choose(const std::vector<HeadCurve>& curves, double fallbackEpsilon,
                     const Pick& pick) {
  EpsilonChoice choice;
  double density = 0, missed = 0;
  int64_t measured = 0;
  for (const HeadCurve& curve : curves) {
    if (!isMeasured(curve)) {
      choice.epsilons.push_back(static_cast<float>(fallbackEpsilon));
      continue;
    }
    const Point point = pick(curve);
    choice.epsilons.push_back(static_cast<float>(std::exp(point.logEpsilon)));
    choice.error += point.error;
    density += point.density;
    missed += point.missed;
    ++measured;
  }
  if (measured == 0) return choice;
  choice.density = density / static_cast<double>(measured);
  choice.coverage = 1 - missed / static_cast<double>(measured);
  return choice;
}

}  // namespace

bool EpsilonCurves::isEmpty() const {
  return std::none_of(curves_.begin(), curves_.end(), isMeasured);
}

EpsilonChoice EpsilonCurves::uniform(double epsilon) const {
  const double position =
      std::clamp((std::log(epsilon) - HeadCurve::kFirstLog) / HeadCurve::kLogStep, 0.0,
                 HeadCurve::kSteps - 1.0);
  const int step = std::min(static_cast<int>(position), HeadCurve::kSteps - 2);
  const double share = position - step;
  const auto between = [share](double a, double b) { return a + share * (b - a); };
  return choose(curves_, epsilon, [&](const HeadCurve& curve) {
    const Point a = pointAt(curve, step);
    const Point b = pointAt(curve, step + 1);
    return Point{std::log(epsilon), between(a.density, b.density), between(a.error, b.error),
                 between(a.missed, b.missed)};
  });
}

EpsilonChoice EpsilonCurves::atPrice(double price, double fallbackEpsilon) const {
  return choose(curves_, fallbackEpsilon, [&](const HeadCurve& curve) {
    Point best = pointAt(curve, 0);
    for (int step = 1; step < HeadCurve::kSteps; ++step) {
      const Point point = pointAt(curve, step);
      if (point.error + price * point.density <= best.error + price * best.density) best = point;
    }
    return best;
  });
}

// Density falls and error grows with the price: the prices just before and just after `isPast`
// turns true.
template <typename IsPast>
EpsilonCurves::Prices EpsilonCurves::pricesAround(const IsPast& isPast) const {
  double low = kLowestLogPrice, high = kHighestLogPrice;
  for (int i = 0; i < kBisections; ++i) {
    const double middle = (low + high) / 2;
    (isPast(atPrice(std::exp(middle), 0)) ? high : low) = middle;
  }
  return {std::exp(low), std::exp(high)};
}

EpsilonChoice EpsilonCurves::atDensity(double density, double fallbackEpsilon) const {
  const Prices prices =
      pricesAround([&](const EpsilonChoice& choice) { return choice.density <= density; });
  return atPrice(prices.after, fallbackEpsilon);
}

EpsilonChoice EpsilonCurves::atCoverage(double coverage, double fallbackEpsilon) const {
  const Prices prices =
      pricesAround([&](const EpsilonChoice& choice) { return choice.coverage < coverage; });
  return atPrice(prices.before, fallbackEpsilon);
}

}  // namespace longsight
