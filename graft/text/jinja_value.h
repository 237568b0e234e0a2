// Values of the template language: Python's None, bool, int, float, str, list, tuple, dict and the
// few objects that templates meet (undefined, namespace, loop, generator, callable). Values are
// immutable except namespaces and loops. Internal to graft/text.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

namespace graft::text::jinja {

struct Position {
  uint32_t line = 0;
  uint32_t column = 0;
};

// What went wrong while a template was read or rendered; becomes a graft::Error at the border.
struct Fault {
  enum class Kind { kTemplate, kRaised };

  std::string reason;  // kebab-case part of the error's code
  std::string message;
  std::string hint;
  Position at = {};  // line 0 until the node that failed is known
  Kind kind = Kind::kTemplate;
};

[[noreturn]] void fail_type(std::string message);

// Nesting of containers beyond this is refused: printing and freeing recurse.
inline constexpr uint32_t kMaxValueDepth = 128;
// Shared containers can describe exponentially many values; beyond this they are refused.
inline constexpr uint64_t kMaxValueWeight = 4'000'000;

enum class Kind : uint8_t {
  kUndefined,
  kNone,
  kBool,
  kInt,
  kFloat,
  kString,
  kList,
  kTuple,
  kDict,
  kRange,
  kDictView,
  kGenerator,
  kNamespace,
  kLoop,
  kCallable,
};

// weight: number of values when shared parts are counted every time they appear; what printing or
// comparing costs.
struct Object {
  virtual ~Object() = default;
  uint32_t depth = 0;
  uint64_t weight = 1;
};

struct StringObject;
struct SequenceObject;
struct DictObject;
struct UndefinedObject;
struct GeneratorObject;
struct NamespaceObject;
struct LoopObject;
struct CallableObject;

class Value {
 public:
  Value() = default;
  static Value boolean(bool value);
  static Value integer(int64_t value);
  static Value real(double value);
  static Value string(std::string text, bool markup = false);
  static Value list(std::vector<Value> items);
  static Value tuple(std::vector<Value> items);
  static Value undefined(std::string message);
  static Value object(Kind kind, std::shared_ptr<Object> object);

  Kind kind() const { return kind_; }
  bool is(Kind kind) const { return kind_ == kind; }
  bool is_number() const { return is(Kind::kBool) || is(Kind::kInt) || is(Kind::kFloat); }
  bool is_integral() const { return is(Kind::kBool) || is(Kind::kInt); }
  bool is_sequence() const { return is(Kind::kList) || is(Kind::kTuple) || is(Kind::kRange); }
  bool is_markup() const;

  int64_t as_int() const { return int_; }
  double as_double() const;
  const std::string& as_string() const;
  const SequenceObject& as_sequence() const;
  const DictObject& as_dict() const;
  const UndefinedObject& as_undefined() const;
  GeneratorObject& as_generator() const;
  NamespaceObject& as_namespace() const;
  LoopObject& as_loop() const;
  CallableObject& as_callable() const;
  const Object* address() const { return object_.get(); }
  uint32_t depth() const { return object_ ? object_->depth : 0; }
  uint64_t weight() const { return object_ ? object_->weight : 1; }

 private:
  Kind kind_ = Kind::kNone;
  union {
    int64_t int_ = 0;
    double float_;
  };
  std::shared_ptr<Object> object_;
};

// Number of code points, counted once.
struct StringObject : Object {
  std::string text;
  bool markup = false;
  mutable int64_t num_code_points = -1;
};

// A list, tuple, range (start, stop, step kept for printing) or dict view (its type's name kept).
struct SequenceObject : Object {
  std::vector<Value> items;
  int64_t start = 0;
  int64_t stop = 0;
  int64_t step = 1;
  std::string type_name;
};

// Keeps the order of insertion; keys compare as in Python (1 == 1.0 == True).
struct DictObject : Object {
  std::vector<std::pair<Value, Value>> entries;
  std::unordered_map<std::string, size_t> index;

  const Value* find(std::string_view key) const;
  const Value* find(const Value& key) const;
  void insert(const Value& key, Value value);
};

struct UndefinedObject : Object {
  std::string message;
  bool unsafe = false;  // the sandbox refused this attribute
};

struct GeneratorObject : Object {
  std::function<std::optional<Value>()> next;
};

struct NamespaceObject : Object {
  std::vector<std::pair<std::string, Value>> attributes;

  const Value* find(std::string_view name) const;
  void set(const std::string& name, Value value);
};

Value make_dict(std::shared_ptr<DictObject> dict);
Value make_range(int64_t start, int64_t stop, int64_t step);
Value make_dict_view(std::string type_name, std::vector<Value> items);
Value make_generator(uint32_t depth, std::function<std::optional<Value>()> next);

// Counts `child` into the depth and weight of the object that holds it.
// Throws   Fault when one of them passes its limit.
void adopt(Object& object, const Value& child);

// Canonical text of a hashable value, equal for equal keys.
// Throws   Fault for a list or dict.
std::string hash_key(const Value& value);

bool truthy(const Value& value);
bool equal(const Value& left, const Value& right);
// Python's `<`.
// Throws   Fault when the types have no order.
bool less(const Value& left, const Value& right);
bool same_object(const Value& left, const Value& right);

// Python's name of the value's type, as its error messages show it.
std::string type_name(const Value& value);

// Number of items or code points; nothing when the type has no length.
std::optional<int64_t> length_of(const Value& value);

// Everything that iterating over the value yields.
// Throws   Fault when it is not iterable.
std::vector<Value> iterate(const Value& value);
bool is_iterable(const Value& value);

}  // namespace graft::text::jinja
