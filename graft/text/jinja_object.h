// Objects with behaviour: callables, loops, and how native functions see their arguments.
// Internal to graft/text.
#pragma once

#include <initializer_list>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "graft/text/jinja_value.h"

namespace graft::text::jinja {

class Interpreter;
struct Statement;
struct Scope;

// Arguments of one call, matched to parameter names by `bind`.
struct Arguments {
  std::vector<Value> positional;
  std::vector<std::pair<std::string, Value>> named;

  const Value* find(std::string_view name) const;
};

// One value per parameter; absent ones were not passed.
class Bound {
 public:
  // Throws   Fault when an argument is missing, unknown, doubled or one too many.
  Bound(std::string_view callee, const Arguments& arguments,
        std::initializer_list<std::string_view> names, size_t num_required = 0);

  bool has(size_t i) const { return values_[i].has_value(); }
  const Value& operator[](size_t i) const { return *values_[i]; }
  bool flag(size_t i, bool fallback) const { return has(i) ? truthy(*values_[i]) : fallback; }
  int64_t integer(size_t i, int64_t fallback) const;
  const std::string& text(size_t i) const;
  bool has_value(size_t i) const { return has(i) && !values_[i]->is(Kind::kNone); }

 private:
  std::string callee_;
  std::vector<std::optional<Value>> values_;
};

// The one signature of filters, methods and global functions; `self` is what stands before `|` or
// `.`, None for a function.
using Native = Value (*)(Interpreter&, const Value& self, const Arguments&);

struct CallableObject : Object {
  std::string name;

  virtual Value call(Interpreter& interpreter, const Arguments& arguments) = 0;
  virtual std::string type_name() const { return "function"; }
  // Attribute of the object (`self` is the value that holds it), none if it has no such attribute.
  virtual std::optional<Value> attribute(const Value&, const std::string&) { return std::nullopt; }
};

struct NativeCallable : CallableObject {
  Value self;
  Native function = nullptr;

  Value call(Interpreter& interpreter, const Arguments& arguments) override {
    return function(interpreter, self, arguments);
  }
  std::string type_name() const override {
    return self.is(Kind::kNone) ? "function" : "builtin_function_or_method";
  }
};

Value make_method(std::string name, const Value& self, Native function);

// `loop` inside a for statement.
struct LoopObject : Object {
  std::vector<Value> items;
  int64_t index0 = 0;
  int64_t depth0 = 0;
  std::optional<Value> last_changed;
  const Statement* statement = nullptr;  // set for a recursive loop
  std::weak_ptr<Scope> scope;            // where its body's scopes hang
};

// Methods of str, list, tuple, dict and loop: none if the type has no such attribute.
struct Method {
  std::string_view name;
  Native function;  // null: Python has it, the sandbox or this interpreter refuses it
};
const Method* find_string_method(std::string_view name);
const Method* find_container_method(Kind kind, std::string_view name);
// Whether a method changes its container, which the immutable sandbox forbids.
bool is_mutator(Kind kind, std::string_view name);

// Filters, tests (which answer with a bool) and global functions; null if unknown.
Native find_filter(std::string_view name);
Native find_test(std::string_view name);
Native find_function(std::string_view name);

}  // namespace graft::text::jinja
