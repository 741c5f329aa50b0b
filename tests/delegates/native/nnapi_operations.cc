// Operations by NNAPI's specification, in the plainest way: an operation on quantised tensors is that on real
// numbers, rounded once at its end. Sums are exact for quantised inputs.
#include "nnapi_operations.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <map>
#include <numeric>

#include "tensorflow/lite/nnapi/NeuralNetworksTypes.h"

namespace {

constexpr int kFloat = ANEURALNETWORKS_TENSOR_FLOAT32;
constexpr int kUnsigned = ANEURALNETWORKS_TENSOR_QUANT8_ASYMM;
constexpr int kSigned = ANEURALNETWORKS_TENSOR_QUANT8_ASYMM_SIGNED;
constexpr int kPerChannel = ANEURALNETWORKS_TENSOR_QUANT8_SYMM_PER_CHANNEL;

void Check(bool holds, const std::string& otherwise) {
  if (!holds) throw Refused(otherwise);
}

size_t Count(const Shape& shape) {
  return std::accumulate(shape.begin(), shape.end(), size_t{1}, std::multiplies<size_t>());
}

bool IsQuantised(const Operand& o) { return o.type == kUnsigned || o.type == kSigned; }
double Unit(const Operand& o) { return IsQuantised(o) ? o.scale : 1.0; }
bool SameNumbers(const Operand& a, const Operand& b) {
  return a.type == b.type && (!IsQuantised(a) || (a.scale == b.scale && a.zero_point == b.zero_point));
}

// `real` as `o` holds it.
double Held(const Operand& o, double real) {
  if (o.type == kFloat) return static_cast<float>(real);
  if (std::isnan(real)) throw Refused("not a number is to be quantised");
  const double low = o.type == kSigned ? -128 : 0;
  return std::clamp(std::round(real / o.scale) + o.zero_point, low, low + 255) - o.zero_point;
}

// An operation's operands, each asked for as what it must be.
class Node {
 public:
  Node(const Model& model, const Operation& operation) : model_(model), operation_(operation) {
    Check(operation.outputs.size() == 1, "it has not one output");
    const Operand& out = output();
    Check(out.type == kFloat || IsQuantised(out), "its output has type " + std::to_string(out.type));
    Check(!IsQuantised(out) || out.scale > 0, "its output has no scale");
    Check(!out.shape.empty() && Count(out.shape) > 0, "its output's shape is not known");
  }
  size_t inputs() const { return operation_.inputs.size(); }
  void Takes(size_t least, size_t most) const {
    Check(least <= inputs() && inputs() <= most, "it has " + std::to_string(inputs()) + " inputs");
  }
  uint32_t id(size_t i) const { return operation_.inputs.at(i); }
  uint32_t output_id() const { return operation_.outputs[0]; }
  const Operand& input(size_t i) const { return model_.operands[id(i)]; }
  const Operand& output() const { return model_.operands[output_id()]; }

  // An input of numbers: of the type that the first has.
  const Operand& data(size_t i) const {
    const Operand& o = input(i);
    Check(o.type == kFloat || IsQuantised(o), Named(i) + " has type " + std::to_string(o.type));
    Check(o.type == input(0).type, Named(i) + " has another type than input 0");
    Check(!IsQuantised(o) || o.scale > 0, Named(i) + " has no scale");
    Check(!o.shape.empty() && Count(o.shape) > 0, Named(i) + "'s shape is not known");
    return o;
  }
  // The output, which must have these.
  const Operand& output(int type, const Shape& shape) const {
    Check(output().type == type, "its output has type " + std::to_string(output().type));
    Check(output().shape == shape, "its output has another shape than its inputs make");
    return output();
  }
  int32_t integer(size_t i) const { return Scalar<int32_t>(i, ANEURALNETWORKS_INT32); }
  float number(size_t i) const { return Scalar<float>(i, ANEURALNETWORKS_FLOAT32); }
  bool flag(size_t i) const { return Scalar<uint8_t>(i, ANEURALNETWORKS_BOOL) != 0; }
  std::vector<int32_t> integers(size_t i) const {
    const Operand& o = input(i);
    Check(o.type == ANEURALNETWORKS_TENSOR_INT32 && o.is_constant, Named(i) + " is no constant TENSOR_INT32");
    std::vector<int32_t> found(Count(o.shape));
    std::memcpy(found.data(), o.bytes.data(), o.bytes.size());
    return found;
  }
  // Smallest and largest result of the fused activation that input i names.
  std::pair<double, double> activation(size_t i) const {
    const double none = std::numeric_limits<double>::infinity();
    switch (integer(i)) {
      case ANEURALNETWORKS_FUSED_NONE: return {-none, none};
      case ANEURALNETWORKS_FUSED_RELU: return {0, none};
      case ANEURALNETWORKS_FUSED_RELU1: return {-1, 1};
      case ANEURALNETWORKS_FUSED_RELU6: return {0, 6};
    }
    throw Refused(Named(i) + " names no activation");
  }

 private:
  static std::string Named(size_t i) { return "input " + std::to_string(i); }
  template <typename T>
  T Scalar(size_t i, int type) const {
    const Operand& o = input(i);
    Check(o.type == type && o.is_constant, Named(i) + " is no constant scalar of type " + std::to_string(type));
    T found;
    std::memcpy(&found, o.bytes.data(), sizeof found);
    return found;
  }
  const Model& model_;
  const Operation& operation_;
};

// Elements between neighbours of each dimension.
std::vector<size_t> Strides(const Shape& shape) {
  std::vector<size_t> strides(shape.size(), 1);
  for (size_t i = shape.size(); i-- > 1;) strides[i - 1] = strides[i] * shape[i];
  return strides;
}

// Where each element of an array of `shape` lies in another, which has `strides` along the same dimensions.
std::vector<uint32_t> Places(const Shape& shape, const std::vector<size_t>& strides, size_t start = 0) {
  std::vector<uint32_t> places(Count(shape));
  Shape at(shape.size(), 0);
  size_t place = start;
  for (uint32_t& found : places) {
    found = place;
    for (size_t i = shape.size(); i-- > 0;) {
      place += strides[i];
      if (++at[i] < shape[i]) break;
      place -= strides[i] * shape[i];
      at[i] = 0;
    }
  }
  return places;
}

size_t Axis(int32_t given, size_t rank) {
  const int64_t axis = given < 0 ? given + static_cast<int64_t>(rank) : given;
  Check(axis >= 0 && axis < static_cast<int64_t>(rank), "it has no axis " + std::to_string(given));
  return axis;
}

Step Elementwise(const Node& n, double (*compute)(double, double), bool with_activation, bool quantised = true) {
  n.Takes(with_activation ? 3 : 2, with_activation ? 3 : 2);
  const Operand &a = n.data(0), &b = n.data(1);
  Check(quantised || a.type == kFloat, "it is quantised");
  Check(std::max(a.shape.size(), b.shape.size()) <= 4, "it has more than four dimensions");
  Shape shape(std::max(a.shape.size(), b.shape.size()));
  std::vector<size_t> strides[2];
  for (const size_t k : {0, 1}) {
    const Shape& own = n.data(k).shape;
    strides[k].assign(shape.size(), 0);
    for (size_t i = 1; i <= own.size(); i++) {
      const uint32_t length = own[own.size() - i];
      uint32_t& common = shape[shape.size() - i];
      Check(length == 1 || common <= 1 || common == length, "its inputs do not broadcast");
      common = std::max(common, length);
      if (length > 1) strides[k][shape.size() - i] = Strides(own)[own.size() - i];
    }
  }
  const Operand out = n.output(a.type, shape);
  const auto [low, high] = with_activation ? n.activation(2) : std::pair(-HUGE_VAL, HUGE_VAL);
  return [=, ai = n.id(0), bi = n.id(1), oi = n.output_id(), as = Unit(a), bs = Unit(b),
          ap = Places(shape, strides[0]), bp = Places(shape, strides[1]), low = low, high = high](Values& v) {
    v[oi].resize(ap.size());
    for (size_t i = 0; i < ap.size(); i++) {
      const double real = compute(v[ai][ap[i]] * as, v[bi][bp[i]] * bs);
      v[oi][i] = Held(out, std::clamp(real, low, high));
    }
  };
}

Step Mul(const Node& n) {
  n.Takes(3, 3);
  const bool quantised = IsQuantised(n.data(0));
  Check(!quantised || n.output().scale > n.data(0).scale * n.data(1).scale,
        "its output's scale is not greater than the product of its inputs'");
  return Elementwise(n, [](double a, double b) { return a * b; }, true);
}

Step Unary(const Node& n, double (*compute)(double)) {
  n.Takes(1, 1);
  const Operand& in = n.data(0);
  const Operand out = n.output(in.type, in.shape);
  return [=, i = n.id(0), oi = n.output_id(), unit = Unit(in)](Values& v) {
    v[oi].resize(v[i].size());
    for (size_t k = 0; k < v[i].size(); k++) v[oi][k] = Held(out, compute(v[i][k] * unit));
  };
}

Step FloatUnary(const Node& n, double (*compute)(double)) {
  Check(n.data(0).type == kFloat, "it is quantised");
  return Unary(n, compute);
}

// For results whose range is known, the specification fixes the quantisation.
void CheckRange(const Operand& out, float step, int zero_point) {
  Check(!IsQuantised(out) || (out.scale == step && out.zero_point == zero_point + (out.type == kUnsigned) * 128),
        "its output has another quantisation than is fixed for it");
}

Step Tanh(const Node& n) {
  CheckRange(n.output(), 1.f / 128, 0);
  return Unary(n, std::tanh);
}

Step Softmax(const Node& n) {
  n.Takes(2, 3);
  const Operand& in = n.data(0);
  const double beta = n.number(1);
  Check(beta > 0, "its beta is not positive");
  Check(n.inputs() == 2 || Axis(n.integer(2), in.shape.size()) == in.shape.size() - 1, "its axis is not the last");
  const Operand out = n.output(in.type, in.shape);
  CheckRange(out, 1.f / 256, -128);
  return [=, i = n.id(0), oi = n.output_id(), factor = Unit(in) * beta, row = in.shape.back()](Values& v) {
    v[oi].resize(v[i].size());
    Numbers powers(row);
    for (size_t start = 0; start < v[i].size(); start += row) {
      const double* x = &v[i][start];
      const double most = *std::max_element(x, x + row);
      for (size_t k = 0; k < row; k++) powers[k] = std::exp((x[k] - most) * factor);
      const double sum = std::accumulate(powers.begin(), powers.end(), 0.0);
      for (size_t k = 0; k < row; k++) v[oi][start + k] = Held(out, powers[k] / sum);
    }
  };
}

Step Reduce(const Node& n, bool keeps, bool mean) {
  n.Takes(3, 3);
  const Operand& in = n.data(0);
  Shape kept = in.shape;
  for (const int32_t axis : n.integers(1)) kept[Axis(axis, in.shape.size())] = 0;
  Shape shape, whole = kept;
  size_t reduced = 1;
  for (size_t i = 0; i < kept.size(); i++) {
    if (kept[i] == 0) {
      whole[i] = 1;
      reduced *= in.shape[i];
    }
    if (keeps || kept[i]) shape.push_back(whole[i]);
  }
  if (shape.empty()) shape = {1};
  const Operand out = n.output(in.type, shape);
  Check(SameNumbers(in, out), "its output has another quantisation than its input");
  auto strides = Strides(whole);
  for (size_t i = 0; i < kept.size(); i++) {
    if (kept[i] == 0) strides[i] = 0;
  }
  return [=, i = n.id(0), oi = n.output_id(), unit = Unit(in), places = Places(in.shape, strides)](Values& v) {
    v[oi].assign(Count(out.shape), mean ? 0 : -HUGE_VAL);
    for (size_t k = 0; k < places.size(); k++) {
      double& found = v[oi][places[k]];
      found = mean ? found + v[i][k] : std::max(found, v[i][k]);
    }
    for (double& found : v[oi]) found = Held(out, found * unit / (mean ? reduced : 1));
  };
}

// The output's element k is the input's element places[k].
Step Gather(const Node& n, const Shape& shape, std::vector<uint32_t> places) {
  Check(SameNumbers(n.data(0), n.output(n.data(0).type, shape)), "its output has another quantisation");
  return [i = n.id(0), oi = n.output_id(), places = std::move(places)](Values& v) {
    v[oi].resize(places.size());
    for (size_t k = 0; k < places.size(); k++) v[oi][k] = v[i][places[k]];
  };
}

Step Reshape(const Node& n) {
  n.Takes(2, 2);
  const Operand& in = n.data(0);
  const auto wanted = n.integers(1);
  const Shape& shape = n.output().shape;
  Check(wanted.size() == shape.size() && Count(shape) == Count(in.shape), "its sizes do not fit");
  for (size_t i = 0; i < shape.size(); i++) {
    Check(wanted[i] == -1 || wanted[i] == static_cast<int32_t>(shape[i]), "its sizes do not fit");
  }
  return Gather(n, shape, Places(in.shape, Strides(in.shape)));
}

Step Transpose(const Node& n) {
  n.Takes(2, 2);
  const Operand& in = n.data(0);
  const auto order = n.integers(1);
  const size_t rank = in.shape.size();
  Check(rank <= 4, "it has more than four dimensions");
  Check(order.size() == rank, "its order has another length than its input's shape");
  Shape shape;
  std::vector<size_t> strides;
  for (size_t i = 0; i < rank; i++) {
    Check(std::count(order.begin(), order.end(), static_cast<int32_t>(i)) == 1, "its order is no permutation");
    shape.push_back(in.shape[order[i] % rank]);
    strides.push_back(Strides(in.shape)[order[i] % rank]);
  }
  return Gather(n, shape, Places(shape, strides));
}

Step Slice(const Node& n) {
  n.Takes(3, 3);
  const Operand& in = n.data(0);
  const auto begin = n.integers(1), size = n.integers(2);
  Check(begin.size() == in.shape.size() && size.size() == in.shape.size(), "its range has another rank");
  const auto strides = Strides(in.shape);
  Shape shape;
  size_t start = 0;
  for (size_t i = 0; i < begin.size(); i++) {
    const int64_t length = size[i] == -1 ? static_cast<int64_t>(in.shape[i]) - begin[i] : size[i];
    Check(begin[i] >= 0 && length > 0 && begin[i] + length <= in.shape[i], "its range leaves the input");
    shape.push_back(length);
    start += begin[i] * strides[i];
  }
  return Gather(n, shape, Places(shape, strides, start));
}

Step Pad(const Node& n) {
  n.Takes(2, 2);
  const Operand& in = n.data(0);
  const auto around = n.integers(1);
  Check(in.shape.size() <= 4, "it has more than four dimensions");
  Check(around.size() == 2 * in.shape.size(), "its paddings have another rank");
  Shape shape = in.shape;
  for (size_t i = 0; i < shape.size(); i++) {
    Check(around[2 * i] >= 0 && around[2 * i + 1] >= 0, "a padding is negative");
    shape[i] += around[2 * i] + around[2 * i + 1];
  }
  const auto strides = Strides(shape);
  size_t start = 0;
  for (size_t i = 0; i < shape.size(); i++) start += around[2 * i] * strides[i];
  Check(SameNumbers(in, n.output(in.type, shape)), "its output has another quantisation");
  return [i = n.id(0), oi = n.output_id(), count = Count(shape), places = Places(in.shape, strides, start)](Values& v) {
    v[oi].assign(count, 0);
    for (size_t k = 0; k < places.size(); k++) v[oi][places[k]] = v[i][k];
  };
}

Step Concatenation(const Node& n) {
  n.Takes(2, SIZE_MAX);
  const size_t parts = n.inputs() - 1, rank = n.data(0).shape.size();
  Check(rank <= 4, "it has more than four dimensions");
  const size_t axis = Axis(n.integer(parts), rank);
  Shape shape = n.data(0).shape;
  shape[axis] = 0;
  for (size_t i = 0; i < parts; i++) {
    Shape part = n.data(i).shape;
    Check(part.size() == rank, "its inputs' ranks differ");
    shape[axis] += part[axis];
    part[axis] = shape[axis];
    Check(part == shape, "its inputs' shapes do not fit");
  }
  const Operand out = n.output(n.data(0).type, shape);
  const auto strides = Strides(shape);
  struct Part {
    uint32_t id;
    double unit;
    std::vector<uint32_t> places;
  };
  std::vector<Part> all;
  size_t start = 0;
  for (size_t i = 0; i < parts; i++) {
    all.push_back({n.id(i), Unit(n.data(i)), Places(n.data(i).shape, strides, start)});
    start += n.data(i).shape[axis] * strides[axis];
  }
  return [=, oi = n.output_id(), all = std::move(all)](Values& v) {
    v[oi].resize(Count(out.shape));
    for (const Part& part : all) {
      for (size_t k = 0; k < part.places.size(); k++) {
        v[oi][part.places[k]] = Held(out, v[part.id][k] * part.unit);
      }
    }
  };
}

Step Quantize(const Node& n) {
  n.Takes(1, 1);
  const Operand& in = n.data(0);
  Check(in.type == kFloat && IsQuantised(n.output()), "it is not from TENSOR_FLOAT32 to 8 bits");
  const Operand out = n.output(n.output().type, in.shape);
  return [=, i = n.id(0), oi = n.output_id()](Values& v) {
    v[oi].resize(v[i].size());
    for (size_t k = 0; k < v[i].size(); k++) v[oi][k] = Held(out, v[i][k]);
  };
}

Step Dequantize(const Node& n) {
  n.Takes(1, 1);
  const Operand& in = n.data(0);
  Check(IsQuantised(in), "its input is not quantised");
  const Operand out = n.output(kFloat, in.shape);
  return [=, i = n.id(0), oi = n.output_id(), unit = Unit(in)](Values& v) {
    v[oi].resize(v[i].size());
    for (size_t k = 0; k < v[i].size(); k++) v[oi][k] = Held(out, v[i][k] * unit);
  };
}

// What a sum of products counts in, for each channel; checks weights and bias. `axis`: of the weights' channels.
std::vector<double> ProductUnits(const Node& n, uint32_t channels, uint32_t axis, bool per_channel_allowed) {
  const Operand &in = n.data(0), &weights = n.input(1), &bias = n.input(2);
  Check(bias.shape == Shape{channels}, "its bias has another length than the output's channels");
  if (in.type == kFloat) {
    Check(weights.type == kFloat && bias.type == kFloat, "its weights or bias are not TENSOR_FLOAT32");
    return std::vector<double>(channels, 1.0);
  }
  Check(bias.type == ANEURALNETWORKS_TENSOR_INT32 && bias.zero_point == 0, "its bias is no TENSOR_INT32 around 0");
  std::vector<double> units(channels);
  if (weights.type == kPerChannel) {
    Check(per_channel_allowed, "its weights may not be quantised by channel");
    Check(weights.axis == axis && weights.scales.size() == channels, "its weights' scales are not one a channel");
    Check(bias.scale == 0, "its bias has a scale of its own");
    for (uint32_t c = 0; c < channels; c++) units[c] = static_cast<double>(in.scale) * weights.scales[c];
  } else {
    n.data(1);
    const double unit = static_cast<double>(in.scale) * weights.scale;
    Check(std::abs(unit - bias.scale) <= 1e-6 * unit, "its bias' scale is not the product of the other two");
    std::fill(units.begin(), units.end(), unit);
  }
  return units;
}

double Dot(const double* a, const double* b, size_t count) {
  double sums[4] = {0, 0, 0, 0};
  size_t i = 0;
  for (; i + 4 <= count; i += 4) {
    for (size_t k = 0; k < 4; k++) sums[k] += a[i + k] * b[i + k];
  }
  for (; i < count; i++) sums[0] += a[i] * b[i];
  return sums[0] + sums[1] + sums[2] + sums[3];
}

Step FullyConnected(const Node& n) {
  n.Takes(4, 4);
  const Operand &in = n.data(0), &weights = n.input(1);
  Check(in.shape.size() >= 2 && in.shape.size() <= 4, "its input has not two to four dimensions");
  Check(weights.shape.size() == 2, "its weights have not two dimensions");
  const uint32_t units = weights.shape[0], length = weights.shape[1];
  Check(length > 0 && Count(in.shape) % length == 0, "its weights do not fit its input");
  const uint32_t rows = Count(in.shape) / length;
  const auto product_units = ProductUnits(n, units, 0, false);
  const Operand out = n.output(in.type, {rows, units});
  const auto [low, high] = n.activation(3);
  return [=, i = n.id(0), wi = n.id(1), bi = n.id(2), oi = n.output_id(), low = low, high = high](Values& v) {
    v[oi].resize(size_t{rows} * units);
    for (size_t r = 0; r < rows; r++) {
      for (size_t u = 0; u < units; u++) {
        const double sum = v[bi][u] + Dot(&v[i][r * length], &v[wi][u * length], length);
        v[oi][r * units + u] = Held(out, std::clamp(sum * product_units[u], low, high));
      }
    }
  };
}

// One dimension of a convolution with a named padding.
struct Window {
  Window(int32_t scheme, int32_t stride, int32_t dilation, uint32_t in, uint32_t filter)
      : in(in), filter(filter), stride(stride), dilation(dilation) {
    Check(stride > 0 && dilation > 0, "a stride or dilation is not positive");
    const int64_t reach = int64_t{dilation} * (filter - 1) + 1;
    if (scheme == ANEURALNETWORKS_PADDING_SAME) {
      out = (in + stride - 1) / stride;
      before = std::max<int64_t>(0, (out - 1) * stride + reach - in) / 2;
    } else {
      Check(scheme == ANEURALNETWORKS_PADDING_VALID, "its padding has no such scheme");
      Check(in >= reach, "its filter is larger than its input");
      out = (in - reach + stride) / stride;
    }
  }
  // Where the filter's element `tap` lies for output `at`; outside of the input: negative.
  int64_t Source(int64_t at, int64_t tap) const {
    const int64_t found = at * stride - before + tap * dilation;
    return found < in ? found : -1;
  }
  int64_t in, filter, stride, dilation, out = 0, before = 0;
};

Step Convolution(const Node& n, bool depthwise) {
  const size_t last = depthwise ? 7 : 6;  // the activation, when the padding is named by its scheme
  n.Takes(last + 1, last + 4);
  Check(n.inputs() == last + 1 || n.input(last + 1).type == ANEURALNETWORKS_BOOL, "its padding is explicit");
  Check(n.inputs() == last + 1 || !n.flag(last + 1), "it is NCHW");
  const int32_t dilation_w = n.inputs() > last + 2 ? n.integer(last + 2) : 1;
  const int32_t dilation_h = n.inputs() > last + 3 ? n.integer(last + 3) : 1;
  const Operand &in = n.data(0), &weights = n.input(1);
  Check(in.shape.size() == 4 && weights.shape.size() == 4, "its input or weights have not four dimensions");
  const uint32_t depth = in.shape[3], channels = weights.shape[depthwise ? 3 : 0];
  const Window y(n.integer(3), n.integer(5), dilation_h, in.shape[1], weights.shape[1]);
  const Window x(n.integer(3), n.integer(4), dilation_w, in.shape[2], weights.shape[2]);
  const uint32_t multiplier = depthwise ? n.integer(6) : 1;
  if (depthwise) {
    Check(weights.shape[0] == 1 && channels == depth * multiplier, "its weights do not fit its input");
  } else {
    Check(weights.shape[3] == depth, "its weights do not fit its input");
  }
  const auto units = ProductUnits(n, channels, depthwise ? 3 : 0, true);
  const uint32_t height = y.out, width = x.out, batches = in.shape[0];
  const Operand out = n.output(in.type, {batches, height, width, channels});
  const auto [low, high] = n.activation(last);
  return [=, i = n.id(0), wi = n.id(1), bi = n.id(2), oi = n.output_id(), low = low, high = high](Values& v) {
    v[oi].resize(Count(out.shape));
    Numbers sums(channels);
    double* result = v[oi].data();
    for (int64_t pixel = 0; pixel < int64_t{batches} * y.out * x.out; pixel++, result += channels) {
      const int64_t batch = pixel / (y.out * x.out), at_y = pixel / x.out % y.out, at_x = pixel % x.out;
      sums = v[bi];
      for (int64_t tap = 0; tap < y.filter * x.filter; tap++) {
        const int64_t from_y = y.Source(at_y, tap / x.filter), from_x = x.Source(at_x, tap % x.filter);
        if (from_y < 0 || from_x < 0) continue;  // it lies in the padding, whose numbers are 0
        const double* from = &v[i][((batch * y.in + from_y) * x.in + from_x) * depth];
        if (depthwise) {
          const double* w = &v[wi][tap * channels];
          for (uint32_t c = 0; c < channels; c++) sums[c] += from[c / multiplier] * w[c];
        } else {
          for (uint32_t c = 0; c < channels; c++) {
            sums[c] += Dot(from, &v[wi][(c * y.filter * x.filter + tap) * depth], depth);
          }
        }
      }
      for (uint32_t c = 0; c < channels; c++) result[c] = Held(out, std::clamp(sums[c] * units[c], low, high));
    }
  };
}

const std::map<int, std::pair<const char*, Step (*)(const Node&)>> kOperations = {
    {ANEURALNETWORKS_ABS, {"ABS", [](const Node& n) { return FloatUnary(n, std::fabs); }}},
    {ANEURALNETWORKS_ADD,
     {"ADD", [](const Node& n) { return Elementwise(n, [](double a, double b) { return a + b; }, true); }}},
    {ANEURALNETWORKS_CONCATENATION, {"CONCATENATION", Concatenation}},
    {ANEURALNETWORKS_CONV_2D, {"CONV_2D", [](const Node& n) { return Convolution(n, false); }}},
    {ANEURALNETWORKS_DEPTHWISE_CONV_2D,
     {"DEPTHWISE_CONV_2D", [](const Node& n) { return Convolution(n, true); }}},
    {ANEURALNETWORKS_DEQUANTIZE, {"DEQUANTIZE", Dequantize}},
    {ANEURALNETWORKS_DIV,
     {"DIV", [](const Node& n) { return Elementwise(n, [](double a, double b) { return a / b; }, true, false); }}},
    {ANEURALNETWORKS_FULLY_CONNECTED, {"FULLY_CONNECTED", FullyConnected}},
    {ANEURALNETWORKS_MAXIMUM,
     {"MAXIMUM",
      [](const Node& n) { return Elementwise(n, [](double a, double b) { return std::max(a, b); }, false); }}},
    {ANEURALNETWORKS_MEAN, {"MEAN", [](const Node& n) { return Reduce(n, n.integer(2) > 0, true); }}},
    {ANEURALNETWORKS_MUL, {"MUL", Mul}},
    {ANEURALNETWORKS_PAD, {"PAD", Pad}},
    {ANEURALNETWORKS_QUANTIZE, {"QUANTIZE", Quantize}},
    {ANEURALNETWORKS_REDUCE_MAX, {"REDUCE_MAX", [](const Node& n) { return Reduce(n, n.flag(2), false); }}},
    {ANEURALNETWORKS_RESHAPE, {"RESHAPE", Reshape}},
    {ANEURALNETWORKS_RSQRT,
     {"RSQRT", [](const Node& n) { return FloatUnary(n, [](double a) { return 1 / std::sqrt(a); }); }}},
    {ANEURALNETWORKS_SLICE, {"SLICE", Slice}},
    {ANEURALNETWORKS_SOFTMAX, {"SOFTMAX", Softmax}},
    {ANEURALNETWORKS_SUB,
     {"SUB", [](const Node& n) { return Elementwise(n, [](double a, double b) { return a - b; }, true); }}},
    {ANEURALNETWORKS_TANH, {"TANH", Tanh}},
    {ANEURALNETWORKS_TRANSPOSE, {"TRANSPOSE", Transpose}},
};

size_t Width(int32_t type) {
  switch (type) {
    case kFloat:
    case ANEURALNETWORKS_TENSOR_INT32:
    case ANEURALNETWORKS_FLOAT32:
    case ANEURALNETWORKS_INT32: return 4;
    case ANEURALNETWORKS_BOOL:
    case kUnsigned:
    case kSigned:
    case kPerChannel: return 1;
  }
  throw Refused("there is an operand of type " + std::to_string(type));
}

}  // namespace

Step Compile(const Model& model, const Operation& operation) {
  const auto found = kOperations.find(operation.type);
  Check(found != kOperations.end(), "operation " + std::to_string(operation.type) + " is not there");
  const auto& [name, compile] = found->second;
  try {
    return compile(Node(model, operation));
  } catch (const std::exception& why) {
    throw Refused(std::string(name) + ": " + why.what());
  }
}

size_t Bytes(const Operand& operand) { return Width(operand.type) * Count(operand.shape); }

Numbers Unpack(const Operand& operand, const uint8_t* bytes) {
  Numbers numbers(Count(operand.shape));
  for (size_t i = 0; i < numbers.size(); i++) {
    const uint8_t* at = bytes + i * Width(operand.type);
    float real;
    int32_t whole;
    switch (operand.type) {
      case kFloat: std::memcpy(&real, at, sizeof real); numbers[i] = real; break;
      case ANEURALNETWORKS_TENSOR_INT32: std::memcpy(&whole, at, sizeof whole); numbers[i] = whole; break;
      case kUnsigned: numbers[i] = *at - operand.zero_point; break;
      case kSigned:
      case kPerChannel: numbers[i] = static_cast<int8_t>(*at) - operand.zero_point; break;
    }
  }
  return numbers;
}

void Pack(const Operand& operand, const Numbers& numbers, uint8_t* bytes) {
  for (size_t i = 0; i < numbers.size(); i++) {
    const float real = numbers[i];
    if (operand.type == kFloat) {
      std::memcpy(bytes + i * sizeof real, &real, sizeof real);
    } else {
      bytes[i] = static_cast<int32_t>(numbers[i]) + operand.zero_point;
    }
  }
}
