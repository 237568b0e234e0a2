// Expressions: names, attributes under the sandbox's rules, operators, calls.
#include <algorithm>

#include <fmt/format.h>

#include "graft/text/jinja_interpreter.h"
#include "graft/text/jinja_text.h"

namespace graft::text::jinja {

namespace {

// How jinja2 names an object in the message of an undefined value.
std::string describe_owner(const Value& value) {
  return value.is(Kind::kNone) ? "None" : fmt::format("{} object", type_name(value));
}

Value undefined_attribute(const Value& owner, const Value& key) {
  const std::string name = describe_owner(owner);
  return Value::undefined(key.is(Kind::kString)
                              ? fmt::format("'{}' has no attribute {}", name, repr(key))
                              : fmt::format("{} has no element {}", name, repr(key)));
}

Value unsafe_attribute(const Value& owner, const std::string& name) {
  auto object = std::make_shared<UndefinedObject>();
  object->unsafe = true;
  object->message =
      fmt::format("access to attribute '{}' of '{}' object is unsafe", name, type_name(owner));
  return Value::object(Kind::kUndefined, std::move(object));
}

[[noreturn]] void fail_undefined(const Value& value) {
  const UndefinedObject& object = value.as_undefined();
  throw Fault{object.unsafe ? "security" : "undefined", object.message, {}, {}, {}};
}

void refuse_dunder(const Value& owner, const std::string& name) {
  if (name.size() > 4 && name.starts_with("__") && name.ends_with("__")) {
    throw Fault{
        "security",
        fmt::format("access to attribute '{}' of '{}' object is unsafe", name, type_name(owner)),
        {},
        {},
        {}};
  }
}

Value bind_method(const Value& owner, const Method& method) {
  if (method.function == nullptr) {
    throw Fault{"unsupported",
                fmt::format("method `{}` of {} is not available in a chat template", method.name,
                            type_name(owner)),
                {},
                {},
                {}};
  }
  return make_method(std::string(method.name), owner, method.function);
}

// What getattr finds on the object itself, before its items are asked.
std::optional<Value> own_attribute(const Value& value, const std::string& name) {
  switch (value.kind()) {
    case Kind::kString: {
      const Method* method = find_string_method(name);
      return method != nullptr ? std::optional(bind_method(value, *method)) : std::nullopt;
    }
    case Kind::kNamespace: {
      const Value* found = value.as_namespace().find(name);
      return found != nullptr ? std::optional(*found) : std::nullopt;
    }
    case Kind::kCallable:
      return value.as_callable().attribute(value, name);
    case Kind::kRange:
      if (name == "start" || name == "stop" || name == "step") {
        const SequenceObject& range = value.as_sequence();
        return Value::integer(name == "start"  ? range.start
                              : name == "stop" ? range.stop
                                               : range.step);
      }
      break;
    default:
      break;
  }
  if (is_mutator(value.kind(), name)) {
    return unsafe_attribute(value, name);
  }
  const Method* method = find_container_method(value.kind(), name);
  return method != nullptr ? std::optional(bind_method(value, *method)) : std::nullopt;
}

// What value[key] finds, none for Python's TypeError and LookupError.
std::optional<Value> own_item(const Value& value, const Value& key) {
  if (value.is(Kind::kDict)) {
    const bool hashable = !key.is(Kind::kList) && !key.is(Kind::kDict);
    const Value* found = hashable ? value.as_dict().find(key) : nullptr;
    return found != nullptr ? std::optional(*found) : std::nullopt;
  }
  if (!key.is_integral() || !(value.is_sequence() || value.is(Kind::kString))) {
    return std::nullopt;
  }
  const int64_t length = *length_of(value);
  const int64_t index = key.as_int() < 0 ? key.as_int() + length : key.as_int();
  if (index < 0 || index >= length) {
    return std::nullopt;
  }
  if (value.is(Kind::kString)) {
    return slice(value, {index, index + 1, std::nullopt});
  }
  return value.as_sequence().items[static_cast<size_t>(index)];
}

std::optional<int64_t> slice_bound(const Value& value) {
  if (value.is(Kind::kNone)) {
    return std::nullopt;
  }
  if (!value.is_integral()) {
    fail_type("slice indices must be integers or None or have an __index__ method");
  }
  return value.as_int();
}

}  // namespace

Value Interpreter::evaluate_kind(const Expression& node, const ScopePtr& scope) {
  switch (node.kind) {
    case ExpressionKind::kConstant:
      return node.constant;
    case ExpressionKind::kName:
      return evaluate_name(node, scope);
    case ExpressionKind::kAttributeOf:
      return attribute(evaluate(*node.items[0], scope), node.name);
    case ExpressionKind::kItemOf:
      return evaluate_item(node, scope);
    case ExpressionKind::kCall:
      return evaluate_call(node, scope, nullptr);
    case ExpressionKind::kFilter:
      return evaluate_filter(node, evaluate(*node.items[0], scope), scope);
    case ExpressionKind::kTest:
      return Value::boolean(apply_test(node.name, evaluate(*node.items[0], scope),
                                       evaluate_arguments(node.arguments.get(), scope)));
    case ExpressionKind::kUnary:
      return evaluate_unary(node, scope);
    case ExpressionKind::kBinary: {
      const Value left = evaluate(*node.items[0], scope);
      return binary(node.name, left, evaluate(*node.items[1], scope));
    }
    case ExpressionKind::kAnd:
    case ExpressionKind::kOr: {
      Value left = evaluate(*node.items[0], scope);
      const bool decided = truthy(left) == (node.kind == ExpressionKind::kOr);
      return decided ? left : evaluate(*node.items[1], scope);
    }
    case ExpressionKind::kConcat: {
      std::string text;
      for (const Value& part : evaluate_all(node, scope)) {
        text += to_text(part);
      }
      return make_string(std::move(text));
    }
    case ExpressionKind::kCompare:
      return evaluate_compare(node, scope);
    case ExpressionKind::kConditional:
      return evaluate_conditional(node, scope);
    case ExpressionKind::kList:
      return Value::list(evaluate_all(node, scope));
    case ExpressionKind::kTuple:
      return Value::tuple(evaluate_all(node, scope));
    case ExpressionKind::kDict: {
      auto dict = std::make_shared<DictObject>();
      for (size_t i = 0; i < node.items.size(); i += 2) {
        const Value key = evaluate(*node.items[i], scope);
        dict->insert(key, evaluate(*node.items[i + 1], scope));
      }
      return make_dict(std::move(dict));
    }
    case ExpressionKind::kSlice:
    case ExpressionKind::kNamespaceRef:
      break;
  }
  throw Fault{"syntax", "expected an expression here, got a slice", {}, {}, {}};
}

Value Interpreter::evaluate_name(const Expression& node, const ScopePtr& scope) {
  if (const Value* found = scope->find(node.name)) {
    return *found;
  }
  if (const Native function = find_function(node.name)) {
    return make_method(node.name, Value(), function);
  }
  return Value::undefined(fmt::format("'{}' is undefined", node.name));
}

std::vector<Value> Interpreter::evaluate_all(const Expression& node, const ScopePtr& scope) {
  std::vector<Value> values;
  values.reserve(node.items.size());
  charge(node.items.size() * sizeof(Value));
  for (const auto& item : node.items) {
    values.push_back(evaluate(*item, scope));
  }
  return values;
}

Value Interpreter::attribute(const Value& value, const std::string& name) {
  if (value.is(Kind::kUndefined)) {
    fail_undefined(value);
  }
  refuse_dunder(value, name);
  if (value.is(Kind::kLoop)) {
    return loop_attribute(value, name);
  }
  if (auto found = own_attribute(value, name)) {
    return std::move(*found);
  }
  const Value key = Value::string(name);
  if (auto found = own_item(value, key)) {
    return std::move(*found);
  }
  return undefined_attribute(value, key);
}

Value Interpreter::item(const Value& value, const Value& key) {
  if (value.is(Kind::kUndefined)) {
    fail_undefined(value);
  }
  if (auto found = own_item(value, key)) {
    return std::move(*found);
  }
  if (key.is(Kind::kString)) {
    refuse_dunder(value, key.as_string());
    if (value.is(Kind::kLoop)) {
      return loop_attribute(value, key.as_string());
    }
    if (auto found = own_attribute(value, key.as_string())) {
      return std::move(*found);
    }
  }
  return undefined_attribute(value, key);
}

Value Interpreter::loop_attribute(const Value& value, const std::string& name) {
  const LoopObject& loop = value.as_loop();
  const auto length = static_cast<int64_t>(loop.items.size());
  const auto index0 = static_cast<size_t>(loop.index0);
  if (name == "index" || name == "index0") {
    return Value::integer(loop.index0 + (name == "index" ? 1 : 0));
  }
  if (name == "revindex" || name == "revindex0") {
    return Value::integer(length - loop.index0 - (name == "revindex" ? 0 : 1));
  }
  if (name == "depth" || name == "depth0") {
    return Value::integer(loop.depth0 + (name == "depth" ? 1 : 0));
  }
  if (name == "first" || name == "last") {
    return Value::boolean(name == "first" ? loop.index0 == 0 : loop.index0 + 1 == length);
  }
  if (name == "length") {
    return Value::integer(length);
  }
  if (name == "previtem") {
    return index0 == 0 ? Value::undefined("there is no previous item") : loop.items[index0 - 1];
  }
  if (name == "nextitem") {
    return index0 + 1 >= loop.items.size() ? Value::undefined("there is no next item")
                                           : loop.items[index0 + 1];
  }
  if (const Method* method = find_container_method(Kind::kLoop, name)) {
    return bind_method(value, *method);
  }
  return undefined_attribute(value, Value::string(name));
}

Value Interpreter::evaluate_item(const Expression& node, const ScopePtr& scope) {
  const Value value = evaluate(*node.items[0], scope);
  const Expression& key = *node.items[1];
  if (key.kind == ExpressionKind::kSlice) {
    return evaluate_slice(value, key, scope);
  }
  if (value.is(Kind::kString)) {
    charge(value.as_string().size() / 16);  // a position is found by walking
  }
  return item(value, evaluate(key, scope));
}

Value Interpreter::evaluate_slice(const Value& value, const Expression& node,
                                  const ScopePtr& scope) {
  std::optional<int64_t> bounds[3];
  for (size_t i = 0; i < 3; ++i) {
    if (node.items[i]) {
      bounds[i] = slice_bound(evaluate(*node.items[i], scope));
    }
  }
  if (value.is(Kind::kUndefined)) {
    fail_undefined(value);
  }
  if (value.is(Kind::kDict)) {
    fail_type("unhashable type: 'slice'");
  }
  if (!value.is_sequence() && !value.is(Kind::kString)) {
    fail_type(fmt::format("'{}' object is not subscriptable", type_name(value)));
  }
  charge(static_cast<uint64_t>(*length_of(value)));
  return slice(value, {bounds[0], bounds[1], bounds[2]});
}

Arguments Interpreter::evaluate_arguments(const CallArguments* arguments, const ScopePtr& scope) {
  Arguments result;
  if (arguments == nullptr) {
    return result;
  }
  for (const auto& argument : arguments->positional) {
    result.positional.push_back(evaluate(*argument, scope));
  }
  if (arguments->star) {
    for (Value& value : items(evaluate(*arguments->star, scope))) {
      result.positional.push_back(std::move(value));
    }
  }
  auto add = [&](const std::string& name, Value value) {
    if (result.find(name) != nullptr) {
      fail_type(fmt::format("got multiple values for keyword argument '{}'", name));
    }
    result.named.emplace_back(name, std::move(value));
  };
  for (const auto& [name, argument] : arguments->named) {
    add(name, evaluate(*argument, scope));
  }
  if (arguments->double_star) {
    const Value mapping = evaluate(*arguments->double_star, scope);
    if (!mapping.is(Kind::kDict)) {
      fail_type(fmt::format("argument after ** must be a mapping, not {}", type_name(mapping)));
    }
    for (const auto& [key, value] : mapping.as_dict().entries) {
      if (!key.is(Kind::kString)) {
        fail_type("keywords must be strings");
      }
      add(key.as_string(), value);
    }
  }
  return result;
}

Value Interpreter::evaluate_call(const Expression& node, const ScopePtr& scope,
                                 const Value* caller) {
  const Value callee = evaluate(*node.items[0], scope);
  Arguments arguments = evaluate_arguments(node.arguments.get(), scope);
  if (caller != nullptr) {
    arguments.named.emplace_back("caller", *caller);
  }
  return call(callee, arguments);
}

Value Interpreter::call(const Value& callee, const Arguments& arguments) {
  switch (callee.kind()) {
    case Kind::kUndefined:
      fail_undefined(callee);
    case Kind::kCallable:
      return callee.as_callable().call(*this, arguments);
    case Kind::kLoop: {
      const Bound bound("loop", arguments, {"iterable"}, 1);
      return call_loop(callee.as_loop(), bound[0]);
    }
    default:
      fail_type(fmt::format("'{}' object is not callable", type_name(callee)));
  }
}

Value Interpreter::apply_filter(std::string_view name, const Value& subject,
                                const Arguments& arguments) {
  const Native filter = find_filter(name);
  if (filter == nullptr) {
    throw Fault{"unsupported", fmt::format("no filter named `{}`", name), {}, {}, {}};
  }
  return filter(*this, subject, arguments);
}

bool Interpreter::apply_test(std::string_view name, const Value& subject,
                             const Arguments& arguments) {
  const Native test = find_test(name);
  if (test == nullptr) {
    throw Fault{"unsupported", fmt::format("no test named `{}`", name), {}, {}, {}};
  }
  return truthy(test(*this, subject, arguments));
}

Value Interpreter::evaluate_filter(const Expression& node, const Value& subject,
                                   const ScopePtr& scope) {
  return apply_filter(node.name, subject, evaluate_arguments(node.arguments.get(), scope));
}

// A chain whose innermost subject is the text of a block.
Value Interpreter::evaluate_filter_chain(const Expression& node, const Value& innermost,
                                         const ScopePtr& scope) {
  const Value subject =
      node.items[0] ? evaluate_filter_chain(*node.items[0], innermost, scope) : innermost;
  try {
    return evaluate_filter(node, subject, scope);
  } catch (Fault& fault) {
    if (fault.at.line == 0) {
      fault.at = node.at;
    }
    throw;
  }
}

Value Interpreter::evaluate_unary(const Expression& node, const ScopePtr& scope) {
  const Value value = evaluate(*node.items[0], scope);
  if (node.name == "not") {
    return Value::boolean(!truthy(value));
  }
  if (value.is(Kind::kUndefined)) {
    fail_undefined(value);
  }
  if (!value.is_number()) {
    fail_type(fmt::format("bad operand type for unary {}: '{}'", node.name, type_name(value)));
  }
  if (value.is(Kind::kFloat)) {
    return Value::real(node.name == "-" ? -value.as_double() : value.as_double());
  }
  return binary(node.name, Value::integer(0), value);
}

Value Interpreter::evaluate_conditional(const Expression& node, const ScopePtr& scope) {
  if (truthy(evaluate(*node.items[0], scope))) {
    return evaluate(*node.items[1], scope);
  }
  if (node.items[2]) {
    return evaluate(*node.items[2], scope);
  }
  return Value::undefined(
      fmt::format("the inline if-expression on line {} evaluated to false and no else section was "
                  "defined",
                  node.at.line));
}

Value Interpreter::evaluate_compare(const Expression& node, const ScopePtr& scope) {
  Value left = evaluate(*node.items[0], scope);
  for (size_t i = 0; i < node.operators.size(); ++i) {
    Value right = evaluate(*node.items[i + 1], scope);
    if (!compare(node.operators[i], left, right)) {
      return Value::boolean(false);
    }
    left = std::move(right);
  }
  return Value::boolean(true);
}

bool Interpreter::compare(const std::string& symbol, const Value& left, const Value& right) {
  const bool membership = symbol == "in" || symbol == "not in";
  charge(membership ? right.weight() : std::min(left.weight(), right.weight()));
  if (membership) {
    bool found = false;
    if (right.is(Kind::kGenerator)) {
      for (const Value& value : items(right)) {
        found = found || equal(value, left);
      }
    } else {
      found = contains(right, left);
    }
    return found == (symbol == "in");
  }
  if (symbol == "==" || symbol == "!=") {
    return equal(left, right) == (symbol == "==");
  }
  const bool ordered = symbol == "<" || symbol == ">=";
  const bool before = ordered ? less(left, right) : less(right, left);
  if (symbol == "<" || symbol == ">") {
    return before;
  }
  // Only numbers can be unordered; `nan >= 1` is false although `nan < 1` is false too.
  const bool nan = left.is_number() && right.is_number() &&
                   (left.as_double() != left.as_double() || right.as_double() != right.as_double());
  return !before && !nan;
}

Value Interpreter::binary(const std::string& symbol, const Value& left, const Value& right) {
  for (const Value* side : {&left, &right}) {
    if (side->is(Kind::kUndefined)) {
      fail_undefined(*side);
    }
  }
  return arithmetic(*this, symbol, left, right);
}

}  // namespace graft::text::jinja
