#include "session/ledger_codec.h"

#include <cmath>
#include <cstring>
#include <type_traits>

#include "session/checked_stream.h"

namespace longsight {
namespace {

constexpr uint32_t kMostAuditRows = 256;

class Encoder {
 public:
  template <typename... Values>
  void put(const Values&... values) {
    (putOne(values), ...);
  }
  template <typename Value>
  void putAll(std::span<const Value> values) {
    const auto bytes = std::as_bytes(values);
    bytes_.insert(bytes_.end(), bytes.begin(), bytes.end());
  }
  std::vector<std::byte> take() { return std::move(bytes_); }

 private:
  template <typename Value>
  void putOne(const Value& value) {
    static_assert(std::is_arithmetic_v<Value> || std::is_enum_v<Value>);
    putAll(std::span<const Value>(&value, 1));
  }
  std::vector<std::byte> bytes_;
};

class Decoder {
 public:
  Decoder(std::span<const std::byte> bytes, const std::string& path) : left_(bytes), path_(path) {}

  template <typename... Values>
  void get(Values&... values) {
    (getAll(std::span<Values>(&values, 1)), ...);
  }
  template <typename Value>
  void getAll(std::span<Value> values) {
    require(values.size_bytes() <= left_.size());
    std::memcpy(values.data(), left_.data(), values.size_bytes());
    left_ = left_.subspan(values.size_bytes());
  }
  // A number of things that take at least `bytesEach`, so that no more is allocated than is there.
  template <typename Count>
  size_t count(uint64_t bytesEach) {
    Count value;
    get(value);
    require(value <= left_.size() / bytesEach);
    return static_cast<size_t>(value);
  }
  bool flag() {
    uint8_t value;
    get(value);
    require(value <= 1);
    return value == 1;
  }
  void require(bool right) const {
    if (!right) throwDamaged(path_, "what it says about its rows does not fit together");
  }
  void requireEnd() const { require(left_.empty()); }

 private:
  std::span<const std::byte> left_;
  const std::string& path_;
};

void putParams(Encoder& to, const SampleAttentionParams& params) {
  // All fields: one more in the struct does not compile here.
  const auto& [policy, alpha, epsilon, scoreDims, sampleStride, segmentRows, windowTokens,
               windowFraction, sinkTokens, denseBelowTokens, maxListShare, auditRows,
               headEpsilons] = params;
  to.put(static_cast<int32_t>(policy), alpha, epsilon, static_cast<int32_t>(scoreDims),
         sampleStride, segmentRows, windowTokens, windowFraction, sinkTokens, denseBelowTokens,
         maxListShare, auditRows, static_cast<uint32_t>(headEpsilons.size()));
  to.putAll(std::span<const float>(headEpsilons));
}

SampleAttentionParams getParams(Decoder& from) {
  SampleAttentionParams params;
  auto& [policy, alpha, epsilon, scoreDims, sampleStride, segmentRows, windowTokens, windowFraction,
         sinkTokens, denseBelowTokens, maxListShare, auditRows, headEpsilons] = params;
  int32_t policyNumber, dimsNumber;
  from.get(policyNumber, alpha, epsilon, dimsNumber, sampleStride, segmentRows, windowTokens,
           windowFraction, sinkTokens, denseBelowTokens, maxListShare, auditRows);
  headEpsilons.resize(from.count<uint32_t>(sizeof(float)));
  from.getAll(std::span(headEpsilons));
  from.require(policyNumber >= 0 && policyNumber <= static_cast<int32_t>(Policy::peak));
  from.require(dimsNumber >= 0 && dimsNumber <= static_cast<int32_t>(ScoreDims::all));
  policy = static_cast<Policy>(policyNumber);
  scoreDims = static_cast<ScoreDims>(dimsNumber);
  from.require(validate(params).empty());
  return params;
}

void putAttention(Encoder& to, const SegmentAttention& attention) {
  to.put(static_cast<uint32_t>(attention.size()));
  for (const std::vector<HeadAttention>& heads : attention) {
    to.put(static_cast<uint32_t>(heads.size()));
    for (const auto& [keptPairs, causalPairs, listLength, denseFallback, coverage] : heads) {
      to.put(keptPairs, causalPairs, listLength, static_cast<uint8_t>(denseFallback),
             static_cast<uint32_t>(coverage.size()));
      to.putAll(std::span<const float>(coverage));
    }
  }
}

SegmentAttention getAttention(Decoder& from, const Segment& segment, const LedgerLimits& limits) {
  SegmentAttention attention(from.count<uint32_t>(sizeof(uint32_t)));
  from.require(attention.size() == (segment.dense ? 0 : static_cast<size_t>(limits.layers)));
  for (std::vector<HeadAttention>& heads : attention) {
    const size_t count = from.count<uint32_t>(3 * sizeof(int64_t) + 1 + sizeof(uint32_t));
    // The last layer of rows without logits computes no attention.
    from.require(count == 0 || count == static_cast<size_t>(limits.heads));
    heads.resize(count);
    for (HeadAttention& head : heads) {
      from.get(head.keptPairs, head.causalPairs, head.listLength);
      head.denseFallback = from.flag();
      from.require(head.keptPairs >= 0 && head.keptPairs <= head.causalPairs);
      from.require(head.listLength >= 0 && head.listLength <= segment.end);
      head.coverage.resize(from.count<uint32_t>(sizeof(float)));
      from.require(head.coverage.size() <= kMostAuditRows);
      from.getAll(std::span(head.coverage));
      for (float share : head.coverage) from.require(share >= 0 && share <= 1.01f);
    }
  }
  return attention;
}

}  // namespace

std::vector<std::byte> encodeLedger(const CacheLedger& ledger) {
  Encoder to;
  to.put(static_cast<uint64_t>(ledger.tokens().size()));
  to.putAll(ledger.tokens());
  to.put(static_cast<uint64_t>(ledger.runs().size()));
  for (const auto& [segment, params, lastLayerBegin, attention] : ledger.runs()) {
    to.put(segment.begin, segment.end, static_cast<uint8_t>(segment.dense), segment.stride,
           segment.windowTokens, lastLayerBegin);
    putParams(to, params);
    putAttention(to, attention);
  }
  return to.take();
}

CacheLedger decodeLedger(std::span<const std::byte> bytes, const LedgerLimits& limits,
                         const std::string& path) {
  Decoder from(bytes, path);
  std::vector<int32_t> tokens(from.count<uint64_t>(sizeof(int32_t)));
  from.getAll(std::span(tokens));
  for (int32_t token : tokens) from.require(token >= 0 && token < limits.vocabulary);
  const auto rows = static_cast<int64_t>(tokens.size());

  CacheLedger ledger;
  const size_t runs = from.count<uint64_t>(3 * sizeof(int64_t));
  for (size_t i = 0; i < runs; ++i) {
    Segment segment;
    int64_t lastLayerBegin;
    from.get(segment.begin, segment.end);
    segment.dense = from.flag();
    from.get(segment.stride, segment.windowTokens, lastLayerBegin);
    from.require(segment.begin == ledger.rows() && segment.begin < segment.end &&
                 segment.end <= rows);
    from.require(segment.stride >= 0 && segment.windowTokens >= 0);
    from.require(lastLayerBegin >= 0 && lastLayerBegin <= segment.end);
    const SampleAttentionParams params = getParams(from);
    ledger.append(segment,
                  std::span(tokens).subspan(static_cast<size_t>(segment.begin),
                                            static_cast<size_t>(segment.end - segment.begin)),
                  params, lastLayerBegin, getAttention(from, segment, limits));
  }
  from.require(ledger.rows() == rows);
  from.requireEnd();
  return ledger;
}

}  // namespace longsight
