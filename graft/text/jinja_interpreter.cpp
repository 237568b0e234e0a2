#include "graft/text/jinja_interpreter.h"

#include <algorithm>
#include <ctime>

#include <fmt/format.h>

#include "graft/text/jinja_text.h"

namespace graft::text::jinja {

// A macro or the body of a call block: parameters, body and the scope they were written in.
struct MacroObject : CallableObject {
  const Statement* statement = nullptr;
  ScopePtr closure;

  Value call(Interpreter& interpreter, const Arguments& arguments) override {
    return interpreter.call_macro(*statement, closure, arguments);
  }
  std::string type_name() const override { return "Macro"; }
  std::optional<Value> attribute(const Value&, const std::string& wanted) override {
    if (wanted == "name") {
      return Value::string(name);
    }
    if (wanted != "arguments") {
      return std::nullopt;
    }
    std::vector<Value> names;
    for (const Parameter& parameter : statement->parameters) {
      names.push_back(Value::string(parameter.name));
    }
    return Value::tuple(std::move(names));
  }
};

namespace {

ScopePtr make_scope(const ScopePtr& parent) {
  auto scope = std::make_shared<Scope>();
  scope->parent = parent;
  return scope;
}

}  // namespace

class Interpreter::Level {
 public:
  Level(Interpreter& interpreter, Position at) : interpreter_(interpreter) {
    if (++interpreter_.steps_ > interpreter_.limits_.max_steps) {
      throw Fault{"budget",
                  fmt::format("expected at most {} steps", interpreter_.limits_.max_steps),
                  {},
                  at,
                  {}};
    }
    if (interpreter_.depth_ >= interpreter_.limits_.max_depth) {
      throw Fault{
          "budget",
          fmt::format("recursion: expected at most {} levels", interpreter_.limits_.max_depth),
          {},
          at,
          {}};
    }
    ++interpreter_.depth_;
  }
  ~Level() { --interpreter_.depth_; }
  Level(const Level&) = delete;
  Level& operator=(const Level&) = delete;

 private:
  Interpreter& interpreter_;
};

const Value* Scope::find(std::string_view name) const {
  for (const Scope* scope = this; scope != nullptr; scope = scope->parent.get()) {
    for (const auto& [key, value] : scope->names) {
      if (key == name) {
        return &value;
      }
    }
  }
  return nullptr;
}

void Scope::set(const std::string& name, Value value) {
  for (auto& [key, old] : names) {
    if (key == name) {
      old = std::move(value);
      return;
    }
  }
  names.emplace_back(name, std::move(value));
}

// Scopes hold macros, which hold scopes; namespaces may hold themselves. Everything is taken out
// first and freed one by one, so that nothing leaks and no long chain is freed recursively.
Interpreter::~Interpreter() {
  std::vector<ScopePtr> scopes;
  std::vector<std::pair<std::string, Value>> values;
  for (const auto& macro : macros_) {
    scopes.push_back(std::move(macro->closure));
  }
  for (const auto& object : namespaces_) {
    std::move(object->attributes.begin(), object->attributes.end(), std::back_inserter(values));
    object->attributes.clear();
  }
}

std::string Interpreter::render(const Block& block, const ScopePtr& root) {
  std::string out;
  out_ = &out;
  run_block(block, root);
  out_ = nullptr;
  return out;
}

void Interpreter::charge(uint64_t bytes) {
  if (bytes > limits_.max_work_bytes || work_bytes_ > limits_.max_work_bytes - bytes) {
    throw Fault{"budget",
                fmt::format("values: expected at most {} bytes in all", limits_.max_work_bytes),
                {},
                {},
                {}};
  }
  work_bytes_ += bytes;
}

Value Interpreter::make_string(std::string text, bool markup) {
  charge(text.size());
  return Value::string(std::move(text), markup);
}

std::vector<Value> Interpreter::items(const Value& value) {
  constexpr uint64_t kItemBytes = 64;
  if (!value.is(Kind::kGenerator)) {
    charge(static_cast<uint64_t>(length_of(value).value_or(0)) * kItemBytes);
    return iterate(value);
  }
  std::vector<Value> items;
  while (auto item = value.as_generator().next()) {
    charge(kItemBytes);
    items.push_back(std::move(*item));
  }
  return items;
}

Value Interpreter::make_namespace(std::shared_ptr<NamespaceObject> object) {
  charge(sizeof(NamespaceObject));
  namespaces_.push_back(object);
  return Value::object(Kind::kNamespace, std::move(object));
}

std::tm Interpreter::local_time() const {
  if (now_) {
    return *now_;
  }
  const std::time_t seconds = std::time(nullptr);
  std::tm result = {};
  localtime_r(&seconds, &result);
  return result;
}

void Interpreter::write(std::string_view text) {
  if (out_->size() + text.size() > limits_.max_output_bytes) {
    throw Fault{"budget",
                fmt::format("output: expected at most {} bytes", limits_.max_output_bytes),
                {},
                {},
                {}};
  }
  charge(text.size());
  *out_ += text;
}

// Runs a block into a string; nothing when the block was left by break or continue.
std::optional<std::string> Interpreter::capture(const Block& block, const ScopePtr& scope,
                                                Flow& flow) {
  std::string text;
  std::string* const outer = std::exchange(out_, &text);
  try {
    flow = run_block(block, scope);
  } catch (...) {
    out_ = outer;
    throw;
  }
  out_ = outer;
  return flow == Flow::kNormal ? std::optional(std::move(text)) : std::nullopt;
}

Interpreter::Flow Interpreter::run_block(const Block& block, const ScopePtr& scope) {
  for (const auto& node : block) {
    const Flow flow = run(*node, scope);
    if (flow != Flow::kNormal) {
      return flow;
    }
  }
  return Flow::kNormal;
}

Interpreter::Flow Interpreter::run(const Statement& node, const ScopePtr& scope) {
  const Level level(*this, node.at);
  try {
    return run_kind(node, scope);
  } catch (Fault& fault) {
    if (fault.at.line == 0) {
      fault.at = node.at;
    }
    throw;
  }
}

Interpreter::Flow Interpreter::run_kind(const Statement& node, const ScopePtr& scope) {
  switch (node.kind) {
    case StatementKind::kData:
      write(node.text);
      return Flow::kNormal;
    case StatementKind::kPrint:
      for (const auto& expression : node.expressions) {
        write(to_text(evaluate(*expression, scope)));
      }
      return Flow::kNormal;
    case StatementKind::kSet:
      assign(*node.target, evaluate(*node.value, scope), scope);
      return Flow::kNormal;
    case StatementKind::kSetBlock:
      return run_set_block(node, scope);
    case StatementKind::kIf:
      return run_if(node, scope);
    case StatementKind::kFor:
      run_for(node, evaluate(*node.value, scope), scope, 0);
      return Flow::kNormal;
    case StatementKind::kMacro:
      scope->set(node.text, make_macro(node, scope));
      return Flow::kNormal;
    case StatementKind::kCallBlock:
      run_call_block(node, scope);
      return Flow::kNormal;
    case StatementKind::kFilterBlock:
      return run_filter_block(node, scope);
    case StatementKind::kWith:
      return run_with(node, scope);
    case StatementKind::kGeneration:
      return run_block(node.body, make_scope(scope));
    case StatementKind::kBreak:
      return Flow::kBreak;
    case StatementKind::kContinue:
      return Flow::kContinue;
  }
  return Flow::kNormal;
}

Interpreter::Flow Interpreter::run_if(const Statement& node, const ScopePtr& scope) {
  for (const Branch& branch : node.branches) {
    if (truthy(evaluate(*branch.condition, scope))) {
      return run_block(branch.body, scope);
    }
  }
  return run_block(node.otherwise, scope);
}

Interpreter::Flow Interpreter::run_set_block(const Statement& node, const ScopePtr& scope) {
  Flow flow = Flow::kNormal;
  auto text = capture(node.body, make_scope(scope), flow);
  if (text) {
    Value value = Value::string(std::move(*text));
    if (node.value) {
      value = evaluate_filter_chain(*node.value, value, scope);
    }
    assign(*node.target, value, scope);
  }
  return flow;
}

Interpreter::Flow Interpreter::run_filter_block(const Statement& node, const ScopePtr& scope) {
  Flow flow = Flow::kNormal;
  const ScopePtr inner = make_scope(scope);
  auto text = capture(node.body, inner, flow);
  if (text) {
    write(to_text(evaluate_filter_chain(*node.value, Value::string(std::move(*text)), inner)));
  }
  return flow;
}

Interpreter::Flow Interpreter::run_with(const Statement& node, const ScopePtr& scope) {
  const ScopePtr inner = make_scope(scope);
  for (const Parameter& parameter : node.parameters) {
    assign(*parameter.target, evaluate(*parameter.value, scope), inner);
  }
  return run_block(node.body, inner);
}

std::vector<Value> Interpreter::loop_items(const Statement& node, const Value& iterable,
                                           const ScopePtr& scope) {
  std::vector<Value> all = items(iterable);
  if (!node.test) {
    return all;
  }
  std::vector<Value> kept;
  for (Value& value : all) {
    const ScopePtr inner = make_scope(scope);
    assign(*node.target, value, inner);
    inner->set("loop", Value::undefined("loop filters cannot use `loop`"));
    if (truthy(evaluate(*node.test, inner))) {
      kept.push_back(std::move(value));
    }
  }
  return kept;
}

void Interpreter::run_for(const Statement& node, const Value& iterable, const ScopePtr& scope,
                          int64_t depth0) {
  auto loop = std::make_shared<LoopObject>();
  loop->items = loop_items(node, iterable, scope);
  for (const Value& value : loop->items) {
    adopt(*loop, value);
  }
  if (loop->items.empty()) {
    run_block(node.otherwise, make_scope(scope));
    return;
  }
  loop->depth0 = depth0;
  loop->statement = node.recursive ? &node : nullptr;
  loop->scope = scope;
  const Value self = Value::object(Kind::kLoop, loop);
  for (size_t i = 0; i < loop->items.size(); ++i) {
    const Level level(*this, node.at);
    loop->index0 = static_cast<int64_t>(i);
    const ScopePtr inner = make_scope(scope);
    inner->set("loop", self);
    assign(*node.target, loop->items[i], inner);
    if (run_block(node.body, inner) == Flow::kBreak) {
      break;
    }
  }
}

Value Interpreter::call_loop(LoopObject& loop, const Value& items) {
  const ScopePtr scope = loop.scope.lock();
  if (loop.statement == nullptr || !scope) {
    fail_type("the loop must have the `recursive` marker to be called recursively");
  }
  std::string text;
  std::string* const outer = std::exchange(out_, &text);
  try {
    run_for(*loop.statement, items, scope, loop.depth0 + 1);
  } catch (...) {
    out_ = outer;
    throw;
  }
  out_ = outer;
  return make_string(std::move(text));
}

Value Interpreter::make_macro(const Statement& node, const ScopePtr& scope) {
  charge(sizeof(MacroObject));
  auto macro = std::make_shared<MacroObject>();
  macro->name = node.text;
  macro->statement = &node;
  macro->closure = scope;
  macros_.push_back(macro);
  return Value::object(Kind::kCallable, macro);
}

void Interpreter::run_call_block(const Statement& node, const ScopePtr& scope) {
  const Value caller = make_macro(node, scope);
  write(to_text(evaluate_call(*node.value, scope, &caller)));
}

Value Interpreter::call_macro(const Statement& macro, const ScopePtr& closure,
                              const Arguments& arguments) {
  const ScopePtr scope = make_scope(closure);
  const size_t num_parameters = macro.parameters.size();
  const size_t num_positional = std::min(arguments.positional.size(), num_parameters);
  std::vector<std::pair<std::string, Value>> rest = arguments.named;
  auto take = [&](const std::string& name) -> std::optional<Value> {
    const auto found = std::find_if(rest.begin(), rest.end(),
                                    [&](const auto& entry) { return entry.first == name; });
    if (found == rest.end()) {
      return std::nullopt;
    }
    Value value = std::move(found->second);
    rest.erase(found);
    return value;
  };
  bool has_caller_parameter = false;
  for (size_t i = 0; i < num_parameters; ++i) {
    const Parameter& parameter = macro.parameters[i];
    has_caller_parameter |= parameter.name == "caller";
    if (i < num_positional) {
      scope->set(parameter.name, arguments.positional[i]);
    } else if (auto value = take(parameter.name)) {
      scope->set(parameter.name, std::move(*value));
    } else if (parameter.value) {
      scope->set(parameter.name, evaluate(*parameter.value, scope));
    } else {
      scope->set(parameter.name,
                 Value::undefined(fmt::format("parameter '{}' was not provided", parameter.name)));
    }
  }
  if (macro.reads_caller && !has_caller_parameter) {
    scope->set("caller", take("caller").value_or(Value::undefined("No caller defined")));
  }
  if (macro.reads_kwargs) {
    auto dict = std::make_shared<DictObject>();
    for (auto& [name, value] : rest) {
      dict->insert(Value::string(name), std::move(value));
    }
    scope->set("kwargs", make_dict(std::move(dict)));
  } else if (!rest.empty()) {
    fail_type(fmt::format("macro '{}' takes no keyword argument '{}'", macro.text, rest[0].first));
  }
  if (macro.reads_varargs) {
    scope->set("varargs", Value::tuple({arguments.positional.begin() + num_positional,
                                        arguments.positional.end()}));
  } else if (arguments.positional.size() > num_parameters) {
    fail_type(
        fmt::format("macro '{}' takes not more than {} argument(s)", macro.text, num_parameters));
  }
  Flow flow = Flow::kNormal;
  return Value::string(capture(macro.body, scope, flow).value_or(""));
}

void Interpreter::assign(const Expression& target, const Value& value, const ScopePtr& scope) {
  if (target.kind == ExpressionKind::kName) {
    scope->set(target.name, value);
    return;
  }
  if (target.kind == ExpressionKind::kNamespaceRef) {
    const Value* found = scope->find(target.name);
    if (found == nullptr || !found->is(Kind::kNamespace)) {
      throw Fault{"type",
                  "cannot assign attribute on non-namespace object",
                  fmt::format("begin with `{{% set {} = namespace(…) %}}`", target.name),
                  target.at,
                  {}};
    }
    charge(sizeof(Value));
    found->as_namespace().set(target.attribute, value);
    return;
  }
  const std::vector<Value> parts = items(value);
  if (parts.size() != target.items.size()) {
    fail_type(parts.size() < target.items.size()
                  ? fmt::format("not enough values to unpack (expected {}, got {})",
                                target.items.size(), parts.size())
                  : fmt::format("too many values to unpack (expected {})", target.items.size()));
  }
  for (size_t i = 0; i < parts.size(); ++i) {
    assign(*target.items[i], parts[i], scope);
  }
}

Value Interpreter::evaluate(const Expression& node, const ScopePtr& scope) {
  const Level level(*this, node.at);
  try {
    return evaluate_kind(node, scope);
  } catch (Fault& fault) {
    if (fault.at.line == 0) {
      fault.at = node.at;
    }
    throw;
  }
}

}  // namespace graft::text::jinja
