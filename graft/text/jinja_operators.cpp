// Operators of Python on our values: arithmetic, membership, slices.
#include <algorithm>
#include <cmath>

#include <fmt/format.h>

#include "graft/core/markup.h"
#include "graft/text/jinja_interpreter.h"
#include "graft/text/jinja_text.h"
#include "graft/text/jinja_unicode.h"

namespace graft::text::jinja {

namespace {

[[noreturn]] void fail_overflow() {
  throw Fault{"overflow", "integer: expected a result of at most 64 bits", {}, {}, {}};
}

[[noreturn]] void fail_zero() { fail_type("division by zero"); }

[[noreturn]] void fail_operands(const std::string& symbol, const Value& left, const Value& right) {
  if (symbol == "+" && left.is(Kind::kString)) {
    fail_type(fmt::format("can only concatenate str (not \"{}\") to str", type_name(right)));
  }
  fail_type(fmt::format("unsupported operand type(s) for {}: '{}' and '{}'", symbol,
                        type_name(left), type_name(right)));
}

int64_t floor_divide(int64_t a, int64_t b) {
  if (b == 0) {
    fail_zero();
  }
  if (b == -1) {
    int64_t result = 0;
    if (__builtin_sub_overflow(int64_t{0}, a, &result)) {
      fail_overflow();
    }
    return result;
  }
  const int64_t quotient = a / b;
  return quotient - (a % b != 0 && (a < 0) != (b < 0) ? 1 : 0);
}

int64_t floor_modulo(int64_t a, int64_t b) {
  if (b == 0) {
    fail_zero();
  }
  if (b == -1) {
    return 0;
  }
  const int64_t rest = a % b;
  return rest != 0 && (rest < 0) != (b < 0) ? rest + b : rest;
}

int64_t power(int64_t base, int64_t exponent) {
  int64_t result = 1;
  while (exponent > 0) {
    if ((exponent & 1) != 0 && __builtin_mul_overflow(result, base, &result)) {
      fail_overflow();
    }
    exponent >>= 1;
    if (exponent > 0 && __builtin_mul_overflow(base, base, &base)) {
      fail_overflow();
    }
  }
  return result;
}

Value integer_arithmetic(const std::string& symbol, int64_t a, int64_t b) {
  int64_t result = 0;
  bool overflow = false;
  if (symbol == "+") {
    overflow = __builtin_add_overflow(a, b, &result);
  } else if (symbol == "-") {
    overflow = __builtin_sub_overflow(a, b, &result);
  } else if (symbol == "*") {
    overflow = __builtin_mul_overflow(a, b, &result);
  } else if (symbol == "//") {
    result = floor_divide(a, b);
  } else if (symbol == "%") {
    result = floor_modulo(a, b);
  } else if (symbol == "**" && b >= 0) {
    result = power(a, b);
  } else if (symbol == "**") {
    if (a == 0) {
      fail_type("0.0 cannot be raised to a negative power");
    }
    return Value::real(std::pow(static_cast<double>(a), static_cast<double>(b)));
  } else {
    if (b == 0) {
      fail_zero();
    }
    return Value::real(static_cast<double>(static_cast<long double>(a) / b));
  }
  if (overflow) {
    fail_overflow();
  }
  return Value::integer(result);
}

// Python's float floor division and remainder: the remainder has the divisor's sign.
double float_modulo(double a, double b) {
  const double rest = std::fmod(a, b);
  if (rest != 0) {
    return (b < 0) != (rest < 0) ? rest + b : rest;
  }
  return std::copysign(0.0, b);
}

double float_floor_divide(double a, double b) {
  const double quotient = (a - float_modulo(a, b)) / b;
  if (quotient == 0) {
    return std::copysign(0.0, a / b);
  }
  const double down = std::floor(quotient);
  return quotient - down > 0.5 ? down + 1 : down;
}

Value float_arithmetic(const std::string& symbol, double a, double b) {
  if ((symbol == "/" || symbol == "//" || symbol == "%") && b == 0) {
    fail_zero();
  }
  if (symbol == "+") {
    return Value::real(a + b);
  }
  if (symbol == "-") {
    return Value::real(a - b);
  }
  if (symbol == "*") {
    return Value::real(a * b);
  }
  if (symbol == "/") {
    return Value::real(a / b);
  }
  if (symbol == "//") {
    return Value::real(float_floor_divide(a, b));
  }
  if (symbol == "%") {
    return Value::real(float_modulo(a, b));
  }
  if ((a == 0 && b < 0) || (a < 0 && std::nearbyint(b) != b)) {
    fail_type("power: expected a real result");
  }
  return Value::real(std::pow(a, b));
}

Value repeat(Interpreter& interpreter, const Value& value, int64_t count) {
  const auto times = static_cast<uint64_t>(std::max<int64_t>(count, 0));
  if (value.is(Kind::kString)) {
    const std::string& text = value.as_string();
    if (text.empty() || times == 0) {
      return Value::string("", value.is_markup());
    }
    if (times > UINT64_MAX / text.size()) {
      interpreter.charge(UINT64_MAX);
    }
    interpreter.charge(times * text.size());
    std::string out;
    out.reserve(times * text.size());
    for (uint64_t i = 0; i < times; ++i) {
      out += text;
    }
    return Value::string(std::move(out), value.is_markup());
  }
  const auto& items = value.as_sequence().items;
  if (!items.empty() && times > UINT64_MAX / sizeof(Value) / items.size()) {
    interpreter.charge(UINT64_MAX);
  }
  interpreter.charge(times * items.size() * sizeof(Value));
  std::vector<Value> out;
  for (uint64_t i = 0; i < times && !items.empty(); ++i) {
    out.insert(out.end(), items.begin(), items.end());
  }
  return value.is(Kind::kList) ? Value::list(std::move(out)) : Value::tuple(std::move(out));
}

Value add_strings(Interpreter& interpreter, const Value& left, const Value& right) {
  const bool markup = left.is_markup() || right.is_markup();
  auto part = [&](const Value& value) {
    return markup && !value.is_markup() ? escape_html(value.as_string()) : value.as_string();
  };
  interpreter.charge(left.as_string().size() + right.as_string().size());
  return Value::string(part(left) + part(right), markup);
}

Value add_sequences(Interpreter& interpreter, const Value& left, const Value& right) {
  std::vector<Value> items = interpreter.items(left);
  for (Value& value : interpreter.items(right)) {
    items.push_back(std::move(value));
  }
  return left.is(Kind::kList) ? Value::list(std::move(items)) : Value::tuple(std::move(items));
}

bool is_repeatable(const Value& value) {
  return value.is(Kind::kString) || value.is(Kind::kList) || value.is(Kind::kTuple);
}

}  // namespace

Value arithmetic(Interpreter& interpreter, const std::string& symbol, const Value& left,
                 const Value& right) {
  if (left.is_number() && right.is_number()) {
    if (left.is_integral() && right.is_integral()) {
      return integer_arithmetic(symbol, left.as_int(), right.as_int());
    }
    return float_arithmetic(symbol, left.as_double(), right.as_double());
  }
  if (symbol == "%" && left.is(Kind::kString)) {
    return interpreter.make_string(format_percent(interpreter, left.as_string(), right),
                                   left.is_markup());
  }
  if (symbol == "+" && left.kind() == right.kind()) {
    if (left.is(Kind::kString)) {
      return add_strings(interpreter, left, right);
    }
    if (left.is(Kind::kList) || left.is(Kind::kTuple)) {
      return add_sequences(interpreter, left, right);
    }
  }
  if (symbol == "*" && is_repeatable(left) && right.is_integral()) {
    return repeat(interpreter, left, right.as_int());
  }
  if (symbol == "*" && is_repeatable(right) && left.is_integral()) {
    return repeat(interpreter, right, left.as_int());
  }
  fail_operands(symbol, left, right);
}

bool contains(const Value& haystack, const Value& needle) {
  switch (haystack.kind()) {
    case Kind::kString:
      if (!needle.is(Kind::kString)) {
        fail_type(fmt::format("'in <string>' requires string as left operand, not {}",
                              type_name(needle)));
      }
      return haystack.as_string().find(needle.as_string()) != std::string::npos;
    case Kind::kDict:
      return haystack.as_dict().find(needle) != nullptr;
    case Kind::kUndefined:
      return false;
    case Kind::kList:
    case Kind::kTuple:
    case Kind::kRange:
    case Kind::kDictView: {
      const auto& items = haystack.as_sequence().items;
      return std::any_of(items.begin(), items.end(),
                         [&](const Value& item) { return equal(item, needle); });
    }
    default:
      fail_type(fmt::format("argument of type '{}' is not iterable", type_name(haystack)));
  }
}

Value slice(const Value& value, const SliceBounds& bounds) {
  const int64_t step = bounds.step.value_or(1);
  if (step == 0) {
    fail_type("slice step cannot be zero");
  }
  const int64_t length = *length_of(value);
  // As PySlice_AdjustIndices: a backwards slice may stand before the first item.
  const int64_t low = step < 0 ? -1 : 0;
  const int64_t high = step < 0 ? length - 1 : length;
  auto place = [&](int64_t index) {
    index = index < 0 ? (index < -length ? -length - 1 : index) + length : index;
    return std::clamp(index, low, std::max(low, high));
  };
  const int64_t start = bounds.start ? place(*bounds.start) : (step < 0 ? high : low);
  const int64_t stop = bounds.stop ? place(*bounds.stop) : (step < 0 ? low : high);
  if (value.is(Kind::kString) && step == 1) {
    const std::string& text = value.as_string();
    const size_t begin = byte_offset(text, start);
    const auto rest = std::string_view(text).substr(begin);
    const size_t size = byte_offset(rest, std::max<int64_t>(stop - start, 0));
    return Value::string(std::string(rest.substr(0, size)), value.is_markup());
  }
  const std::u32string codes =
      value.is(Kind::kString) ? decode_utf8(value.as_string()) : std::u32string();
  std::u32string text;
  std::vector<Value> items;
  for (int64_t i = start; step > 0 ? i < stop : i > stop;) {
    if (value.is(Kind::kString)) {
      text += codes[static_cast<size_t>(i)];
    } else {
      items.push_back(value.as_sequence().items[static_cast<size_t>(i)]);
    }
    if (__builtin_add_overflow(i, step, &i)) {
      break;
    }
  }
  if (value.is(Kind::kString)) {
    return Value::string(encode_utf8(text), value.is_markup());
  }
  if (value.is(Kind::kRange)) {
    const SequenceObject& range = value.as_sequence();
    int64_t wide_step = 0;
    if (__builtin_mul_overflow(range.step, step, &wide_step)) {
      wide_step = (range.step < 0) == (step < 0) ? INT64_MAX : -INT64_MAX;
    }
    return make_range(range.start + start * range.step, range.start + stop * range.step, wide_step);
  }
  return value.is(Kind::kList) ? Value::list(std::move(items)) : Value::tuple(std::move(items));
}

}  // namespace graft::text::jinja
