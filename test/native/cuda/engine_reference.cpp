#include "engine_reference.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <tuple>

namespace longsight::cuda::test {
namespace {

using Rows = std::vector<double>;

uint16_t toBf16(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  return static_cast<uint16_t>((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}

float fromBf16(uint16_t value) {
  const uint32_t bits = uint32_t{value} << 16;
  float result;
  std::memcpy(&result, &bits, 4);
  return result;
}

template <class T>
void append(std::vector<uint8_t>& bytes, T value) {
  const auto* from = reinterpret_cast<const uint8_t*>(&value);
  bytes.insert(bytes.end(), from, from + sizeof value);
}

// Powers of two are exact in fp16: its bits without a mantissa.
uint16_t halfPowerOfTwo(int exponent) { return static_cast<uint16_t>((exponent + 15) << 10); }

TestTensor encode(const std::vector<float>& wanted, int32_t type) {
  TestTensor tensor;
  tensor.values = wanted;
  if (type == kQ8_0) {
    for (size_t block = 0; block < wanted.size(); block += 32) {
      float most = 0;
      for (size_t i = 0; i < 32; ++i) most = std::max(most, std::fabs(wanted[block + i]));
      const int exponent = std::max(-14, static_cast<int>(std::ceil(std::log2(most / 127))));
      const float scale = std::ldexp(1.0f, exponent);
      append(tensor.bytes, halfPowerOfTwo(exponent));
      for (size_t i = 0; i < 32; ++i) {
        const auto integer = static_cast<int8_t>(std::lround(wanted[block + i] / scale));
        append(tensor.bytes, integer);
        tensor.values[block + i] = static_cast<float>(integer) * scale;
      }
    }
    return tensor;
  }
  for (float& value : tensor.values) {
    if (type == kBf16) {
      append(tensor.bytes, toBf16(value));
      value = fromBf16(toBf16(value));
    } else {
      append(tensor.bytes, value);
    }
  }
  return tensor;
}

class Reference {
 public:
  Reference(const Recipe& recipe, const std::vector<TestTensor>& weights)
      : sizes_(recipe.sizes()), frequencies_(recipe.frequencies()) {
    for (int32_t i = 0; i < recipe.desc().tensorCount; ++i) {
      const LsTensorDesc& tensor = recipe.desc().tensors[i];
      found_[{tensor.role, tensor.layer, tensor.part}] = &weights[static_cast<size_t>(i)].values;
    }
  }

  ReferenceResult run(const std::vector<int32_t>& tokens) {
    count_ = static_cast<int64_t>(tokens.size());
    const int64_t width = sizes_.embedding;
    const std::vector<float>& embedding = *find(LS_TOKEN_EMBEDDING, 0, 0);
    Rows x;
    for (const int32_t token : tokens)
      x.insert(x.end(), embedding.begin() + token * width, embedding.begin() + (token + 1) * width);
    for (int32_t layer = 0; layer < sizes_.layers; ++layer) runLayer(layer, x);
    ReferenceResult result;
    result.states = normed(x, *find(LS_OUTPUT_NORM, 0, 0), width);
    const std::vector<float>* head = find(LS_OUTPUT, 0, 0);
    result.logits =
        product(result.states, head == nullptr ? embedding : *head, width, sizes_.vocabulary);
    return result;
  }

 private:
  const std::vector<float>* find(LsTensorRole role, int32_t layer, int32_t part) const {
    const auto at = found_.find({role, layer, part});
    return at == found_.end() ? nullptr : at->second;
  }

  static Rows normed(const Rows& x, const std::vector<float>& weights, int64_t width) {
    Rows out(x.size());
    for (size_t row = 0; row < x.size(); row += static_cast<size_t>(width)) {
      double squares = 0;
      for (int64_t i = 0; i < width; ++i) squares += x[row + i] * x[row + i];
      const double factor = 1 / std::sqrt(squares / static_cast<double>(width) + 1e-5);
      for (int64_t i = 0; i < width; ++i) out[row + i] = x[row + i] * factor * weights[i];
    }
    return out;
  }

  static Rows product(const Rows& input, const std::vector<float>& weights, int64_t inner,
                      int64_t outputs) {
    const int64_t rows = static_cast<int64_t>(input.size()) / inner;
    Rows out(static_cast<size_t>(rows * outputs));
    for (int64_t row = 0; row < rows; ++row) {
      for (int64_t o = 0; o < outputs; ++o) {
        double sum = 0;
        for (int64_t i = 0; i < inner; ++i)
          sum += input[static_cast<size_t>(row * inner + i)] *
                 weights[static_cast<size_t>(o * inner + i)];
        out[static_cast<size_t>(row * outputs + o)] = sum;
      }
    }
    return out;
  }

  Rows matrix(int32_t layer, LsMatrix which, const Rows& input, int64_t inner, int64_t outputs) {
    Rows out = product(input, *find(LS_LAYER_MATRIX, layer, which), inner, outputs);
    if (const auto* bias = find(LS_LAYER_BIAS, layer, which)) {
      for (size_t i = 0; i < out.size(); ++i) out[i] += (*bias)[i % bias->size()];
    }
    return out;
  }

  // Head norms, where there are any, and RoPE.
  void turn(Rows& x, int32_t layer, LsNorm norm) const {
    if (const auto* weights = find(LS_LAYER_NORM, layer, norm))
      x = normed(x, *weights, sizes_.headDim);
    const int64_t heads = static_cast<int64_t>(x.size()) / sizes_.headDim / count_;
    for (size_t head = 0; head < x.size() / static_cast<size_t>(sizes_.headDim); ++head) {
      const auto position = static_cast<double>(static_cast<int64_t>(head) / heads);
      double* values = x.data() + head * static_cast<size_t>(sizes_.headDim);
      const auto pairs = static_cast<int64_t>(frequencies_.size());
      for (int64_t i = 0; i < pairs; ++i) {
        const bool neox = sizes_.rope == LS_ROPE_NEOX;
        double& a = values[neox ? i : 2 * i];
        double& b = values[neox ? i + pairs : 2 * i + 1];
        const double angle = position * frequencies_[static_cast<size_t>(i)];
        const double c = std::cos(angle), s = std::sin(angle), first = a;
        a = first * c - b * s;
        b = first * s + b * c;
      }
    }
  }

  Rows attention(const Rows& q, const Rows& k, const Rows& v) const {
    const int64_t dim = sizes_.headDim, heads = sizes_.heads, kvHeads = sizes_.kvHeads;
    Rows out(q.size(), 0.0);
    std::vector<double> scores;
    for (int64_t row = 0; row < count_; ++row) {
      for (int64_t head = 0; head < heads; ++head) {
        const double* query = q.data() + (row * heads + head) * dim;
        const int64_t kvHead = head / (heads / kvHeads);
        scores.assign(static_cast<size_t>(row + 1), 0.0);
        double most = -1e300, sum = 0;
        for (int64_t column = 0; column <= row; ++column) {
          double& score = scores[static_cast<size_t>(column)];
          for (int64_t i = 0; i < dim; ++i)
            score += query[i] * k[static_cast<size_t>((column * kvHeads + kvHead) * dim + i)];
          score /= std::sqrt(static_cast<double>(dim));
          most = std::max(most, score);
        }
        for (double& score : scores) sum += score = std::exp(score - most);
        double* to = out.data() + (row * heads + head) * dim;
        for (int64_t column = 0; column <= row; ++column) {
          const double weight = scores[static_cast<size_t>(column)] / sum;
          for (int64_t i = 0; i < dim; ++i)
            to[i] += weight * v[static_cast<size_t>((column * kvHeads + kvHead) * dim + i)];
        }
      }
    }
    return out;
  }

  void add(Rows& x, Rows block, int32_t layer, LsNorm norm) const {
    if (const auto* weights = find(LS_LAYER_NORM, layer, norm))
      block = normed(block, *weights, sizes_.embedding);
    for (size_t i = 0; i < x.size(); ++i) x[i] += block[i];
  }

  void runLayer(int32_t layer, Rows& x) {
    const int64_t width = sizes_.embedding, inner = sizes_.feedForward;
    const int64_t queries = int64_t{sizes_.heads} * sizes_.headDim;
    const int64_t keys = int64_t{sizes_.kvHeads} * sizes_.headDim;
    const Rows input = normed(x, *find(LS_LAYER_NORM, layer, LS_NORM_ATTENTION), width);
    Rows q = matrix(layer, LS_QUERY, input, width, queries);
    Rows k = matrix(layer, LS_KEY, input, width, keys);
    const Rows v = matrix(layer, LS_VALUE, input, width, keys);
    turn(q, layer, LS_NORM_QUERY);
    turn(k, layer, LS_NORM_KEY);
    add(x, matrix(layer, LS_ATTENTION_OUTPUT, attention(q, k, v), queries, width), layer,
        LS_NORM_ATTENTION_OUTPUT);
    const Rows second = normed(x, *find(LS_LAYER_NORM, layer, LS_NORM_FEED_FORWARD), width);
    Rows gate = matrix(layer, LS_GATE, second, width, inner);
    const Rows up = matrix(layer, LS_UP, second, width, inner);
    for (size_t i = 0; i < gate.size(); ++i) gate[i] = gate[i] / (1 + std::exp(-gate[i])) * up[i];
    add(x, matrix(layer, LS_DOWN, gate, inner, width), layer, LS_NORM_FEED_FORWARD_OUTPUT);
  }

  const ModelSizes& sizes_;
  const std::vector<double>& frequencies_;
  int64_t count_ = 0;
  std::map<std::tuple<int32_t, int32_t, int32_t>, const std::vector<float>*> found_;
};

}  // namespace

std::vector<TestTensor> randomWeights(const Recipe& recipe, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::normal_distribution<float> normal;
  std::vector<TestTensor> weights;
  for (int32_t i = 0; i < recipe.desc().tensorCount; ++i) {
    const LsTensorDesc& tensor = recipe.desc().tensors[i];
    const bool norm = tensor.role == LS_OUTPUT_NORM || tensor.role == LS_LAYER_NORM;
    const bool bias = tensor.role == LS_LAYER_BIAS || tensor.role == LS_OUTPUT_BIAS;
    const float deviation =
        norm || bias ? 0.2f : 1.0f / std::sqrt(static_cast<float>(tensor.columns));
    std::vector<float> values(static_cast<size_t>(tensor.rows * tensor.columns));
    for (float& value : values) value = normal(random) * deviation + (norm ? 1.0f : 0.0f);
    weights.push_back(encode(values, tensor.type));
  }
  return weights;
}

ReferenceResult runReference(const Recipe& recipe, const std::vector<TestTensor>& weights,
                             const std::vector<int32_t>& tokens) {
  return Reference(recipe, weights).run(tokens);
}

}  // namespace longsight::cuda::test
