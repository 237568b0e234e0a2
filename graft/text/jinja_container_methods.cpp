// Methods of list, tuple, range, dict and loop; how calls match their parameters.
#include <algorithm>
#include <array>

#include <fmt/format.h>

#include "graft/text/jinja_interpreter.h"

namespace graft::text::jinja {

namespace {

Value count(Interpreter& interpreter, const Value& self, const Arguments& arguments) {
  const Bound bound("count", arguments, {"value"}, 1);
  interpreter.charge(self.weight());
  const auto& items = self.as_sequence().items;
  return Value::integer(std::count_if(items.begin(), items.end(),
                                      [&](const Value& item) { return equal(item, bound[0]); }));
}

Value index(Interpreter& interpreter, const Value& self, const Arguments& arguments) {
  const Bound bound("index", arguments, {"value", "start", "stop"}, 1);
  interpreter.charge(self.weight());
  const auto& items = self.as_sequence().items;
  const auto length = static_cast<int64_t>(items.size());
  auto place = [&](int64_t at) {
    return std::clamp<int64_t>(at < 0 ? at + length : at, 0, length);
  };
  const int64_t stop = place(bound.integer(2, length));
  for (int64_t i = place(bound.integer(1, 0)); i < stop; ++i) {
    if (equal(items[static_cast<size_t>(i)], bound[0])) {
      return Value::integer(i);
    }
  }
  fail_type("value is not in the list");
}

Value copy(Interpreter&, const Value& self, const Arguments& arguments) {
  const Bound bound("copy", arguments, {});
  return self;  // values never change
}

Value get(Interpreter&, const Value& self, const Arguments& arguments) {
  const Bound bound("get", arguments, {"key", "default"}, 1);
  const Value* found = self.as_dict().find(bound[0]);
  return found != nullptr ? *found : bound.has(1) ? bound[1] : Value();
}

Value items(Interpreter& interpreter, const Value& self, const Arguments& arguments) {
  const Bound bound("items", arguments, {});
  std::vector<Value> pairs;
  interpreter.charge(self.as_dict().entries.size() * 128);
  for (const auto& [key, value] : self.as_dict().entries) {
    pairs.push_back(Value::tuple({key, value}));
  }
  return make_dict_view("dict_items", std::move(pairs));
}

Value keys(Interpreter& interpreter, const Value& self, const Arguments& arguments) {
  const Bound bound("keys", arguments, {});
  return make_dict_view("dict_keys", interpreter.items(self));
}

Value values(Interpreter& interpreter, const Value& self, const Arguments& arguments) {
  const Bound bound("values", arguments, {});
  std::vector<Value> all;
  interpreter.charge(self.as_dict().entries.size() * 64);
  for (const auto& entry : self.as_dict().entries) {
    all.push_back(entry.second);
  }
  return make_dict_view("dict_values", std::move(all));
}

Value cycle(Interpreter&, const Value& self, const Arguments& arguments) {
  if (arguments.positional.empty()) {
    fail_type("no items for cycling given");
  }
  const auto size = static_cast<int64_t>(arguments.positional.size());
  return arguments.positional[static_cast<size_t>(self.as_loop().index0 % size)];
}

Value changed(Interpreter& interpreter, const Value& self, const Arguments& arguments) {
  LoopObject& loop = self.as_loop();
  const Value now = Value::tuple(arguments.positional);
  interpreter.charge(now.weight());
  if (loop.last_changed && equal(*loop.last_changed, now)) {
    return Value::boolean(false);
  }
  adopt(loop, now);
  loop.last_changed = now;
  return Value::boolean(true);
}

constexpr std::array kListMethods = {Method{"count", count}, Method{"index", index},
                                     Method{"copy", copy}};
constexpr std::array kTupleMethods = {Method{"count", count}, Method{"index", index}};
constexpr std::array kDictMethods = {Method{"get", get},   Method{"items", items},
                                     Method{"keys", keys}, Method{"values", values},
                                     Method{"copy", copy}, Method{"fromkeys", nullptr}};
constexpr std::array kLoopMethods = {Method{"cycle", cycle}, Method{"changed", changed}};

template <size_t N>
const Method* find_in(const std::array<Method, N>& methods, std::string_view name) {
  const auto found = std::find_if(methods.begin(), methods.end(),
                                  [&](const Method& method) { return method.name == name; });
  return found == methods.end() ? nullptr : &*found;
}

template <size_t N>
bool is_one_of(const std::array<std::string_view, N>& names, std::string_view name) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

}  // namespace

const Method* find_container_method(Kind kind, std::string_view name) {
  switch (kind) {
    case Kind::kList:
      return find_in(kListMethods, name);
    case Kind::kTuple:
    case Kind::kRange:
      return find_in(kTupleMethods, name);
    case Kind::kDict:
      return find_in(kDictMethods, name);
    case Kind::kLoop:
      return find_in(kLoopMethods, name);
    default:
      return nullptr;
  }
}

bool is_mutator(Kind kind, std::string_view name) {
  static constexpr std::array<std::string_view, 8> kList = {"append", "clear", "pop",    "reverse",
                                                            "insert", "sort",  "extend", "remove"};
  static constexpr std::array<std::string_view, 5> kDict = {"clear", "pop", "popitem", "setdefault",
                                                            "update"};
  return (kind == Kind::kList && is_one_of(kList, name)) ||
         (kind == Kind::kDict && is_one_of(kDict, name));
}

Value make_method(std::string name, const Value& self, Native function) {
  auto object = std::make_shared<NativeCallable>();
  object->name = std::move(name);
  adopt(*object, self);
  object->self = self;
  object->function = function;
  return Value::object(Kind::kCallable, std::move(object));
}

const Value* Arguments::find(std::string_view name) const {
  for (const auto& [key, value] : named) {
    if (key == name) {
      return &value;
    }
  }
  return nullptr;
}

Bound::Bound(std::string_view callee, const Arguments& arguments,
             std::initializer_list<std::string_view> names, size_t num_required)
    : callee_(callee), values_(names.size()) {
  if (arguments.positional.size() > names.size()) {
    fail_type(fmt::format("{}() takes at most {} argument(s), got {}", callee, names.size(),
                          arguments.positional.size()));
  }
  std::copy(arguments.positional.begin(), arguments.positional.end(), values_.begin());
  for (const auto& [name, value] : arguments.named) {
    const auto found = std::find(names.begin(), names.end(), name);
    if (found == names.end()) {
      fail_type(fmt::format("{}() got an unexpected keyword argument '{}'", callee, name));
    }
    auto& slot = values_[static_cast<size_t>(found - names.begin())];
    if (slot) {
      fail_type(fmt::format("{}() got multiple values for argument '{}'", callee, name));
    }
    slot = value;
  }
  for (size_t i = 0; i < num_required; ++i) {
    if (!values_[i]) {
      fail_type(fmt::format("{}() is missing the argument '{}'", callee, *(names.begin() + i)));
    }
  }
}

int64_t Bound::integer(size_t i, int64_t fallback) const {
  if (!has_value(i)) {
    return fallback;
  }
  if (!values_[i]->is_integral()) {
    fail_type(fmt::format("{}(): expected an integer, got {}", callee_, type_name(*values_[i])));
  }
  return values_[i]->as_int();
}

const std::string& Bound::text(size_t i) const {
  if (!values_[i]->is(Kind::kString)) {
    fail_type(fmt::format("{}(): expected a string, got {}", callee_, type_name(*values_[i])));
  }
  return values_[i]->as_string();
}

}  // namespace graft::text::jinja
