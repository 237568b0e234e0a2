// Runs a syntax tree: scopes, budgets, the sandbox's rules. Internal to graft/text.
#pragma once

#include <ctime>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "graft/text/jinja_ast.h"
#include "graft/text/jinja_object.h"

namespace graft::text::jinja {

// Names of one block; look-ups go outwards through `parent`.
struct Scope {
  std::vector<std::pair<std::string, Value>> names;
  std::shared_ptr<Scope> parent;

  const Value* find(std::string_view name) const;
  void set(const std::string& name, Value value);
};
using ScopePtr = std::shared_ptr<Scope>;

struct Limits {
  uint64_t max_steps = 10'000'000;
  uint64_t max_output_bytes = 16 << 20;
  uint64_t max_work_bytes = 256 << 20;  // what all intermediate values may weigh together
  int max_depth = 800;                  // nested evaluations; a macro's call takes about four
};

class Interpreter {
 public:
  Interpreter(const Limits& limits, std::optional<std::tm> now) : limits_(limits), now_(now) {}
  ~Interpreter();
  Interpreter(const Interpreter&) = delete;
  Interpreter& operator=(const Interpreter&) = delete;

  // Renders the template with the names in `root`.
  // Throws   Fault with line and column.
  std::string render(const Block& block, const ScopePtr& root);

  // For native functions.
  void charge(uint64_t bytes);  // Throws   Fault `budget`.
  Value make_string(std::string text, bool markup = false);
  std::vector<Value> items(const Value& value);
  Value attribute(const Value& value, const std::string& name);
  Value item(const Value& value, const Value& key);
  Value call(const Value& callee, const Arguments& arguments);
  Value apply_filter(std::string_view name, const Value& subject, const Arguments& arguments);
  bool apply_test(std::string_view name, const Value& subject, const Arguments& arguments);
  Value binary(const std::string& symbol, const Value& left, const Value& right);
  Value make_namespace(std::shared_ptr<NamespaceObject> object);
  // The loop's body for other items; the caller is `loop(…)`.
  Value call_loop(LoopObject& loop, const Value& items);
  std::tm local_time() const;

  // For macros.
  Value call_macro(const Statement& macro, const ScopePtr& closure, const Arguments& arguments);

 private:
  enum class Flow { kNormal, kBreak, kContinue };
  class Level;  // counts nested evaluations

  void write(std::string_view text);
  std::optional<std::string> capture(const Block& block, const ScopePtr& scope, Flow& flow);
  Flow run_block(const Block& block, const ScopePtr& scope);
  Flow run(const Statement& node, const ScopePtr& scope);
  Flow run_kind(const Statement& node, const ScopePtr& scope);
  Flow run_if(const Statement& node, const ScopePtr& scope);
  Flow run_set_block(const Statement& node, const ScopePtr& scope);
  Flow run_filter_block(const Statement& node, const ScopePtr& scope);
  Flow run_with(const Statement& node, const ScopePtr& scope);
  void run_for(const Statement& node, const Value& iterable, const ScopePtr& scope, int64_t depth0);
  void run_call_block(const Statement& node, const ScopePtr& scope);
  std::vector<Value> loop_items(const Statement& node, const Value& iterable,
                                const ScopePtr& scope);
  void assign(const Expression& target, const Value& value, const ScopePtr& scope);
  Value make_macro(const Statement& node, const ScopePtr& scope);

  Value evaluate(const Expression& node, const ScopePtr& scope);
  Value evaluate_kind(const Expression& node, const ScopePtr& scope);
  Value evaluate_name(const Expression& node, const ScopePtr& scope);
  Value evaluate_item(const Expression& node, const ScopePtr& scope);
  Value evaluate_slice(const Value& value, const Expression& slice, const ScopePtr& scope);
  Value evaluate_call(const Expression& node, const ScopePtr& scope, const Value* caller);
  Value evaluate_filter(const Expression& node, const Value& subject, const ScopePtr& scope);
  Value evaluate_filter_chain(const Expression& node, const Value& innermost,
                              const ScopePtr& scope);
  Value evaluate_unary(const Expression& node, const ScopePtr& scope);
  Value evaluate_compare(const Expression& node, const ScopePtr& scope);
  Value evaluate_conditional(const Expression& node, const ScopePtr& scope);
  std::vector<Value> evaluate_all(const Expression& node, const ScopePtr& scope);
  Arguments evaluate_arguments(const CallArguments* arguments, const ScopePtr& scope);
  Value loop_attribute(const Value& value, const std::string& name);
  bool compare(const std::string& symbol, const Value& left, const Value& right);

  Limits limits_;
  std::optional<std::tm> now_;
  uint64_t steps_ = 0;
  uint64_t work_bytes_ = 0;
  int depth_ = 0;
  std::string* out_ = nullptr;
  // Kept to the end, so that cycles through them can be cut.
  std::vector<std::shared_ptr<NamespaceObject>> namespaces_;
  std::vector<std::shared_ptr<struct MacroObject>> macros_;
};

// Whether `needle in haystack` holds.
// Throws   Fault when the question has no meaning.
bool contains(const Value& haystack, const Value& needle);
// value[start:stop:step] on positions; an absent bound is Python's None.
struct SliceBounds {
  std::optional<int64_t> start, stop, step;
};
Value slice(const Value& value, const SliceBounds& bounds);
// Arithmetic of two values; charges what it builds.
Value arithmetic(Interpreter& interpreter, const std::string& symbol, const Value& left,
                 const Value& right);

}  // namespace graft::text::jinja
