// Tests: what may stand behind `is`.
#include <array>

#include <fmt/format.h>

#include "graft/text/jinja_filters.h"
#include "graft/text/jinja_interpreter.h"
#include "graft/text/jinja_text.h"
#include "graft/text/jinja_unicode.h"

namespace graft::text::jinja {

namespace {

template <bool (*kTest)(const Value&)>
Value simple(Interpreter&, const Value& self, const Arguments& arguments) {
  const Bound bound("test", arguments, {});
  return Value::boolean(kTest(self));
}

template <Kind... kKinds>
bool has_kind(const Value& value) {
  return (value.is(kKinds) || ...);
}

bool is_defined(const Value& value) { return !value.is(Kind::kUndefined); }
bool is_true(const Value& value) { return value.is(Kind::kBool) && value.as_int() != 0; }
bool is_false(const Value& value) { return value.is(Kind::kBool) && value.as_int() == 0; }
bool is_number(const Value& value) { return value.is_number(); }
bool is_markup(const Value& value) { return value.is_markup(); }
bool is_callable(const Value& value) {
  return has_kind<Kind::kCallable, Kind::kLoop, Kind::kUndefined>(value);
}

// jinja2 asks whether there is a length and an operator []; an undefined value has both.
bool is_sequence(const Value& value) {
  return has_kind<Kind::kUndefined, Kind::kString, Kind::kList, Kind::kTuple, Kind::kDict,
                  Kind::kRange>(value);
}

template <bool kUpper>
Value is_case(Interpreter& interpreter, const Value& self, const Arguments& arguments) {
  const Value text = Value::string(to_text(self));
  return interpreter.call(interpreter.attribute(text, kUpper ? "isupper" : "islower"), arguments);
}

template <int64_t kRest>
Value has_parity(Interpreter& interpreter, const Value& self, const Arguments& arguments) {
  const Bound bound("test", arguments, {});
  return Value::boolean(
      equal(interpreter.binary("%", self, Value::integer(2)), Value::integer(kRest)));
}

Value divisible_by(Interpreter& interpreter, const Value& self, const Arguments& arguments) {
  const Bound bound("divisibleby", arguments, {"num"}, 1);
  return Value::boolean(equal(interpreter.binary("%", self, bound[0]), Value::integer(0)));
}

Value same_as(Interpreter&, const Value& self, const Arguments& arguments) {
  const Bound bound("sameas", arguments, {"other"}, 1);
  return Value::boolean(same_object(self, bound[0]));
}

Value is_in(Interpreter& interpreter, const Value& self, const Arguments& arguments) {
  const Bound bound("in", arguments, {"seq"}, 1);
  interpreter.charge(bound[0].weight());
  if (bound[0].is(Kind::kGenerator)) {
    return Value::boolean(contains(Value::list(interpreter.items(bound[0])), self));
  }
  return Value::boolean(contains(bound[0], self));
}

enum class Order { kEqual, kUnequal, kLess, kLessEqual, kGreater, kGreaterEqual };

template <Order kOrder>
Value compare(Interpreter& interpreter, const Value& self, const Arguments& arguments) {
  const Bound bound("test", arguments, {"other"}, 1);
  const Value& other = bound[0];
  interpreter.charge(std::min(self.weight(), other.weight()));
  switch (kOrder) {
    case Order::kEqual:
      return Value::boolean(equal(self, other));
    case Order::kUnequal:
      return Value::boolean(!equal(self, other));
    case Order::kLess:
      return Value::boolean(less(self, other));
    case Order::kLessEqual:
      return Value::boolean(less(self, other) || equal(self, other));
    case Order::kGreater:
      return Value::boolean(less(other, self));
    case Order::kGreaterEqual:
      return Value::boolean(less(other, self) || equal(self, other));
  }
  return Value::boolean(false);
}

// `is filter` and `is test`: whether this interpreter knows the name.
template <Native (*kFind)(std::string_view)>
Value is_known(Interpreter&, const Value& self, const Arguments& arguments) {
  const Bound bound("test", arguments, {});
  return Value::boolean(self.is(Kind::kString) && kFind(self.as_string()) != nullptr);
}

constexpr std::array kTests = {
    NamedNative{"!=", compare<Order::kUnequal>},
    NamedNative{"<", compare<Order::kLess>},
    NamedNative{"<=", compare<Order::kLessEqual>},
    NamedNative{"==", compare<Order::kEqual>},
    NamedNative{">", compare<Order::kGreater>},
    NamedNative{">=", compare<Order::kGreaterEqual>},
    NamedNative{"boolean", simple<has_kind<Kind::kBool>>},
    NamedNative{"callable", simple<is_callable>},
    NamedNative{"defined", simple<is_defined>},
    NamedNative{"divisibleby", divisible_by},
    NamedNative{"eq", compare<Order::kEqual>},
    NamedNative{"equalto", compare<Order::kEqual>},
    NamedNative{"escaped", simple<is_markup>},
    NamedNative{"even", has_parity<0>},
    NamedNative{"false", simple<is_false>},
    NamedNative{"filter", is_known<find_filter>},
    NamedNative{"float", simple<has_kind<Kind::kFloat>>},
    NamedNative{"ge", compare<Order::kGreaterEqual>},
    NamedNative{"greaterthan", compare<Order::kGreater>},
    NamedNative{"gt", compare<Order::kGreater>},
    NamedNative{"in", is_in},
    NamedNative{"integer", simple<has_kind<Kind::kInt>>},
    NamedNative{"iterable", simple<is_iterable>},
    NamedNative{"le", compare<Order::kLessEqual>},
    NamedNative{"lessthan", compare<Order::kLess>},
    NamedNative{"lower", is_case<false>},
    NamedNative{"lt", compare<Order::kLess>},
    NamedNative{"mapping", simple<has_kind<Kind::kDict>>},
    NamedNative{"ne", compare<Order::kUnequal>},
    NamedNative{"none", simple<has_kind<Kind::kNone>>},
    NamedNative{"number", simple<is_number>},
    NamedNative{"odd", has_parity<1>},
    NamedNative{"sameas", same_as},
    NamedNative{"sequence", simple<is_sequence>},
    NamedNative{"string", simple<has_kind<Kind::kString>>},
    NamedNative{"test", is_known<find_test>},
    NamedNative{"true", simple<is_true>},
    NamedNative{"undefined", simple<has_kind<Kind::kUndefined>>},
    NamedNative{"upper", is_case<true>},
};

}  // namespace

Native find_test(std::string_view name) { return find_native(kTests, name); }

}  // namespace graft::text::jinja
