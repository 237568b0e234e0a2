#include "graft/text/jinja_value.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include <fmt/format.h>

#include "graft/text/jinja_object.h"
#include "graft/text/jinja_unicode.h"

namespace graft::text::jinja {

namespace {

template <typename T>
T& object_as(const std::shared_ptr<Object>& object) {
  return static_cast<T&>(*object);
}

Value make_sequence(Kind kind, std::vector<Value> items) {
  auto object = std::make_shared<SequenceObject>();
  for (const Value& item : items) {
    adopt(*object, item);
  }
  object->items = std::move(items);
  return Value::object(kind, std::move(object));
}

bool equal_items(const std::vector<Value>& left, const std::vector<Value>& right) {
  return left.size() == right.size() &&
         std::equal(left.begin(), left.end(), right.begin(),
                    [](const Value& a, const Value& b) { return equal(a, b); });
}

bool equal_dicts(const DictObject& left, const DictObject& right) {
  if (left.entries.size() != right.entries.size()) {
    return false;
  }
  return std::all_of(left.entries.begin(), left.entries.end(), [&](const auto& entry) {
    const Value* other = right.find(entry.first);
    return other != nullptr && equal(entry.second, *other);
  });
}

std::vector<Value> characters(const std::string& text) {
  std::vector<Value> items;
  for (size_t offset = 0; offset < text.size();) {
    const size_t begin = offset;
    next_code_point(text, offset);
    items.push_back(Value::string(text.substr(begin, offset - begin)));
  }
  return items;
}

}  // namespace

void fail_type(std::string message) { throw Fault{"type", std::move(message), {}, {}, {}}; }

void adopt(Object& object, const Value& child) {
  object.depth = std::max(object.depth, child.depth() + 1);
  if (object.depth > kMaxValueDepth) {
    throw Fault{"budget",
                fmt::format("nesting of values: expected at most {} levels", kMaxValueDepth),
                {},
                {},
                {}};
  }
  object.weight += child.weight();
  if (object.weight > kMaxValueWeight) {
    throw Fault{"budget",
                fmt::format("size of a value: expected at most {} parts", kMaxValueWeight),
                {},
                {},
                {}};
  }
}

Value Value::boolean(bool value) {
  Value result;
  result.kind_ = Kind::kBool;
  result.int_ = value ? 1 : 0;
  return result;
}

Value Value::integer(int64_t value) {
  Value result;
  result.kind_ = Kind::kInt;
  result.int_ = value;
  return result;
}

Value Value::real(double value) {
  Value result;
  result.kind_ = Kind::kFloat;
  result.float_ = value;
  return result;
}

Value Value::string(std::string text, bool markup) {
  auto object = std::make_shared<StringObject>();
  object->text = std::move(text);
  object->markup = markup;
  object->weight = 1 + object->text.size() / 32;
  return Value::object(Kind::kString, std::move(object));
}

Value Value::list(std::vector<Value> items) { return make_sequence(Kind::kList, std::move(items)); }

Value Value::tuple(std::vector<Value> items) {
  return make_sequence(Kind::kTuple, std::move(items));
}

Value Value::undefined(std::string message) {
  auto object = std::make_shared<UndefinedObject>();
  object->message = std::move(message);
  return Value::object(Kind::kUndefined, std::move(object));
}

Value Value::object(Kind kind, std::shared_ptr<Object> object) {
  Value result;
  result.kind_ = kind;
  result.object_ = std::move(object);
  return result;
}

bool Value::is_markup() const {
  return is(Kind::kString) && object_as<StringObject>(object_).markup;
}

double Value::as_double() const { return is(Kind::kFloat) ? float_ : static_cast<double>(int_); }
const std::string& Value::as_string() const { return object_as<StringObject>(object_).text; }
const SequenceObject& Value::as_sequence() const { return object_as<SequenceObject>(object_); }
const DictObject& Value::as_dict() const { return object_as<DictObject>(object_); }
const UndefinedObject& Value::as_undefined() const { return object_as<UndefinedObject>(object_); }
GeneratorObject& Value::as_generator() const { return object_as<GeneratorObject>(object_); }
NamespaceObject& Value::as_namespace() const { return object_as<NamespaceObject>(object_); }
LoopObject& Value::as_loop() const { return object_as<LoopObject>(object_); }
CallableObject& Value::as_callable() const { return object_as<CallableObject>(object_); }

const Value* DictObject::find(std::string_view key) const {
  const auto found = index.find(std::string("s") + std::string(key));
  return found == index.end() ? nullptr : &entries[found->second].second;
}

const Value* DictObject::find(const Value& key) const {
  const auto found = index.find(hash_key(key));
  return found == index.end() ? nullptr : &entries[found->second].second;
}

void DictObject::insert(const Value& key, Value value) {
  adopt(*this, key);
  adopt(*this, value);
  const auto [found, added] = index.emplace(hash_key(key), entries.size());
  if (added) {
    entries.emplace_back(key, std::move(value));
  } else {
    entries[found->second].second = std::move(value);
  }
}

const Value* NamespaceObject::find(std::string_view name) const {
  for (const auto& [key, value] : attributes) {
    if (key == name) {
      return &value;
    }
  }
  return nullptr;
}

void NamespaceObject::set(const std::string& name, Value value) {
  for (auto& [key, old] : attributes) {
    if (key == name) {
      old = std::move(value);
      return;
    }
  }
  attributes.emplace_back(name, std::move(value));
}

Value make_dict(std::shared_ptr<DictObject> dict) {
  return Value::object(Kind::kDict, std::move(dict));
}

Value make_range(int64_t start, int64_t stop, int64_t step) {
  auto object = std::make_shared<SequenceObject>();
  object->start = start;
  object->stop = stop;
  object->step = step;
  __extension__ typedef __int128 Wide;  // start + step may leave 64 bits
  for (Wide i = start; step > 0 ? i < stop : i > stop; i += step) {
    object->items.push_back(Value::integer(static_cast<int64_t>(i)));
  }
  return Value::object(Kind::kRange, std::move(object));
}

Value make_dict_view(std::string type_name, std::vector<Value> items) {
  Value view = make_sequence(Kind::kDictView, std::move(items));
  const_cast<SequenceObject&>(view.as_sequence()).type_name = std::move(type_name);
  return view;
}

Value make_generator(uint32_t depth, std::function<std::optional<Value>()> next) {
  auto object = std::make_shared<GeneratorObject>();
  object->depth = depth + 1;
  if (object->depth > kMaxValueDepth) {
    throw Fault{"budget", "chain of generators: expected fewer filters in a row", {}, {}, {}};
  }
  object->next = std::move(next);
  return Value::object(Kind::kGenerator, std::move(object));
}

std::string hash_key(const Value& value) {
  switch (value.kind()) {
    case Kind::kString:
      return "s" + value.as_string();
    case Kind::kBool:
    case Kind::kInt:
      return fmt::format("i{}", value.as_int());
    case Kind::kFloat: {
      const double number = value.as_double();
      if (std::nearbyint(number) == number && std::abs(number) < 9.2e18) {
        return fmt::format("i{}", static_cast<int64_t>(number));
      }
      return fmt::format("f{}", number);
    }
    case Kind::kNone:
      return "n";
    case Kind::kUndefined:
      return "u";
    case Kind::kTuple: {
      std::string key = "t";
      for (const Value& item : value.as_sequence().items) {
        const std::string part = hash_key(item);
        key += fmt::format("{}:{}", part.size(), part);
      }
      return key;
    }
    case Kind::kList:
    case Kind::kDict:
    case Kind::kDictView:
      fail_type(fmt::format("unhashable type: '{}'", type_name(value)));
    default:
      return fmt::format("o{}", static_cast<const void*>(value.address()));
  }
}

bool truthy(const Value& value) {
  switch (value.kind()) {
    case Kind::kUndefined:
    case Kind::kNone:
      return false;
    case Kind::kBool:
    case Kind::kInt:
      return value.as_int() != 0;
    case Kind::kFloat:
      return value.as_double() != 0;
    case Kind::kString:
      return !value.as_string().empty();
    case Kind::kList:
    case Kind::kTuple:
    case Kind::kRange:
    case Kind::kDictView:
      return !value.as_sequence().items.empty();
    case Kind::kDict:
      return !value.as_dict().entries.empty();
    default:
      return true;
  }
}

bool same_object(const Value& left, const Value& right) {
  if (left.kind() != right.kind()) {
    return false;
  }
  if (left.address() != nullptr) {
    return left.address() == right.address();
  }
  return left.is(Kind::kNone) || equal(left, right);
}

bool equal(const Value& left, const Value& right) {
  if (left.is_number() && right.is_number()) {
    if (left.is_integral() && right.is_integral()) {
      return left.as_int() == right.as_int();
    }
    return left.as_double() == right.as_double();
  }
  if (left.kind() != right.kind()) {
    return false;
  }
  switch (left.kind()) {
    case Kind::kUndefined:
    case Kind::kNone:
      return true;
    case Kind::kString:
      return left.as_string() == right.as_string();
    case Kind::kList:
    case Kind::kTuple:
    case Kind::kRange:
      return equal_items(left.as_sequence().items, right.as_sequence().items);
    case Kind::kDict:
      return equal_dicts(left.as_dict(), right.as_dict());
    default:
      return left.address() == right.address();
  }
}

bool less(const Value& left, const Value& right) {
  if (left.is_number() && right.is_number()) {
    if (left.is_integral() && right.is_integral()) {
      return left.as_int() < right.as_int();
    }
    return left.as_double() < right.as_double();
  }
  if (left.is(Kind::kString) && right.is(Kind::kString)) {
    return left.as_string() < right.as_string();
  }
  const bool ordered = left.is(Kind::kList) || left.is(Kind::kTuple);
  if (ordered && left.kind() == right.kind()) {
    const auto& a = left.as_sequence().items;
    const auto& b = right.as_sequence().items;
    for (size_t i = 0; i < std::min(a.size(), b.size()); ++i) {
      if (!equal(a[i], b[i])) {
        return less(a[i], b[i]);
      }
    }
    return a.size() < b.size();
  }
  for (const Value* side : {&left, &right}) {
    if (side->is(Kind::kUndefined)) {
      throw Fault{"undefined", side->as_undefined().message, {}, {}, {}};
    }
  }
  fail_type(fmt::format("'<' not supported between instances of '{}' and '{}'", type_name(left),
                        type_name(right)));
}

std::string type_name(const Value& value) {
  switch (value.kind()) {
    case Kind::kUndefined:
      return "Undefined";
    case Kind::kNone:
      return "NoneType";
    case Kind::kBool:
      return "bool";
    case Kind::kInt:
      return "int";
    case Kind::kFloat:
      return "float";
    case Kind::kString:
      return value.is_markup() ? "Markup" : "str";
    case Kind::kList:
      return "list";
    case Kind::kTuple:
      return "tuple";
    case Kind::kDict:
      return "dict";
    case Kind::kRange:
      return "range";
    case Kind::kDictView:
      return value.as_sequence().type_name;
    case Kind::kGenerator:
      return "generator";
    case Kind::kNamespace:
      return "Namespace";
    case Kind::kLoop:
      return "LoopContext";
    case Kind::kCallable:
      return value.as_callable().type_name();
  }
  return "object";
}

std::optional<int64_t> length_of(const Value& value) {
  switch (value.kind()) {
    case Kind::kUndefined:
      return 0;
    case Kind::kString: {
      const auto& text = static_cast<const StringObject&>(*value.address());
      if (text.num_code_points < 0) {
        text.num_code_points = count_code_points(text.text);
      }
      return text.num_code_points;
    }
    case Kind::kList:
    case Kind::kTuple:
    case Kind::kRange:
    case Kind::kDictView:
      return static_cast<int64_t>(value.as_sequence().items.size());
    case Kind::kDict:
      return static_cast<int64_t>(value.as_dict().entries.size());
    case Kind::kLoop:
      return static_cast<int64_t>(value.as_loop().items.size());
    default:
      return std::nullopt;
  }
}

bool is_iterable(const Value& value) {
  return length_of(value).has_value() || value.is(Kind::kGenerator);
}

std::vector<Value> iterate(const Value& value) {
  switch (value.kind()) {
    case Kind::kUndefined:
      return {};
    case Kind::kString:
      return characters(value.as_string());
    case Kind::kList:
    case Kind::kTuple:
    case Kind::kRange:
    case Kind::kDictView:
      return value.as_sequence().items;
    case Kind::kDict: {
      std::vector<Value> keys;
      for (const auto& entry : value.as_dict().entries) {
        keys.push_back(entry.first);
      }
      return keys;
    }
    case Kind::kGenerator: {
      std::vector<Value> items;
      while (auto item = value.as_generator().next()) {
        items.push_back(std::move(*item));
      }
      return items;
    }
    default:
      fail_type(fmt::format("'{}' object is not iterable", type_name(value)));
  }
}

}  // namespace graft::text::jinja
