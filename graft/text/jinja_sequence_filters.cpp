// Filters on lists, dicts and other iterables. Like jinja2's, `map`, `select` and their kin are
// lazy: what they yield is computed when something reads it.
#include <algorithm>
#include <array>
#include <charconv>
#include <unordered_set>

#include <fmt/format.h>

#include "graft/text/jinja_filters.h"
#include "graft/text/jinja_interpreter.h"
#include "graft/text/jinja_text.h"
#include "graft/text/jinja_unicode.h"

namespace graft::text::jinja {

namespace {

Value lower_case(const Value& value) {
  return value.is(Kind::kString) ? Value::string(to_lower(value.as_string())) : value;
}

// Reads `a.b.0` from an item, part by part.
class AttributePath {
 public:
  explicit AttributePath(const Value& path) {
    if (!path.is(Kind::kString)) {
      if (!path.is(Kind::kNone)) {
        parts_.push_back(path);
      }
      return;
    }
    std::string_view rest = path.as_string();
    while (true) {
      const size_t dot = rest.find('.');
      parts_.push_back(part(rest.substr(0, dot)));
      if (dot == rest.npos) {
        return;
      }
      rest = rest.substr(dot + 1);
    }
  }

  Value read(Interpreter& interpreter, Value value, const std::optional<Value>& fallback) const {
    for (const Value& part : parts_) {
      value = interpreter.item(value, part);
      if (fallback && value.is(Kind::kUndefined)) {
        value = *fallback;
      }
    }
    return value;
  }

 private:
  static Value part(std::string_view text) {
    int64_t index = 0;
    const auto parsed = std::from_chars(text.data(), text.data() + text.size(), index);
    const bool number =
        parsed.ec == std::errc() && parsed.ptr == text.data() + text.size() && text[0] != '-';
    return number ? Value::integer(index) : Value::string(std::string(text));
  }

  std::vector<Value> parts_;
};

std::optional<AttributePath> path_of(const Bound& bound, size_t i) {
  return bound.has_value(i) ? std::optional<AttributePath>(bound[i]) : std::nullopt;
}

Value read_key(Interpreter& interpreter, const std::optional<AttributePath>& path,
               const Value& item, bool case_sensitive) {
  const Value value = path ? path->read(interpreter, item, std::nullopt) : item;
  return case_sensitive ? value : lower_case(value);
}

// Yields the items of any iterable; a falsy value, even None, yields nothing (jinja2's map and
// select ask `if value` first).
class Source {
 public:
  Source(Interpreter& interpreter, Value value)
      : interpreter_(interpreter), value_(std::move(value)) {}

  std::optional<Value> next() {
    if (value_.is(Kind::kGenerator)) {
      interpreter_.charge(64);
      return value_.as_generator().next();
    }
    if (!started_) {
      started_ = true;
      items_ = truthy(value_) ? interpreter_.items(value_) : std::vector<Value>();
    }
    return index_ < items_.size() ? std::optional(items_[index_++]) : std::nullopt;
  }

 private:
  Interpreter& interpreter_;
  Value value_;
  std::vector<Value> items_;
  size_t index_ = 0;
  bool started_ = false;
};

using Transform = std::function<Value(const Value&)>;

Arguments without_first(const Arguments& arguments, size_t count) {
  Arguments rest = arguments;
  rest.positional.erase(rest.positional.begin(),
                        rest.positional.begin() + static_cast<std::ptrdiff_t>(count));
  return rest;
}

std::string name_argument(const Arguments& arguments, size_t i, std::string_view what) {
  if (i >= arguments.positional.size() || !arguments.positional[i].is(Kind::kString)) {
    fail_type(fmt::format("expected the name of {}", what));
  }
  return arguments.positional[i].as_string();
}

uint32_t depth_of(const Value& self, const Arguments& arguments) {
  uint32_t depth = self.depth();
  for (const Value& value : arguments.positional) {
    depth = std::max(depth, value.depth());
  }
  for (const auto& [name, value] : arguments.named) {
    depth = std::max(depth, value.depth());
  }
  return depth;
}

Transform prepare_map(Interpreter& interpreter, const Arguments& arguments) {
  if (arguments.positional.empty() && arguments.find("attribute") != nullptr) {
    const Bound bound("map", arguments, {"attribute", "default"}, 1);
    const AttributePath path(bound[0]);
    const std::optional<Value> fallback =
        bound.has_value(1) ? std::optional(bound[1]) : std::nullopt;
    return [&interpreter, path, fallback](const Value& item) {
      return path.read(interpreter, item, fallback);
    };
  }
  const std::string name = name_argument(arguments, 0, "a filter");
  return [&interpreter, name, rest = without_first(arguments, 1)](const Value& item) {
    return interpreter.apply_filter(name, item, rest);
  };
}

Value map(Interpreter& interpreter, const Value& self, const Arguments& arguments) {
  Transform transform;
  auto source = std::make_shared<Source>(interpreter, self);
  return make_generator(
      depth_of(self, arguments),
      [&interpreter, arguments, transform, source]() mutable -> std::optional<Value> {
        const auto item = source->next();
        if (!item) {
          return std::nullopt;
        }
        if (!transform) {
          transform = prepare_map(interpreter, arguments);
        }
        return transform(*item);
      });
}

// select, reject, selectattr and rejectattr: keep what passes a test (or is true), or what fails.
template <bool kAttribute, bool kKeep>
Value select(Interpreter& interpreter, const Value& self, const Arguments& arguments) {
  auto source = std::make_shared<Source>(interpreter, self);
  auto passes = [&interpreter, arguments](const Value& item) {
    Value subject = item;
    if (kAttribute) {
      if (arguments.positional.empty()) {
        fail_type("expected the name of an attribute");
      }
      subject = AttributePath(arguments.positional[0]).read(interpreter, item, std::nullopt);
    }
    constexpr size_t kOffset = kAttribute ? 1 : 0;
    if (arguments.positional.size() <= kOffset) {
      return truthy(subject);
    }
    return interpreter.apply_test(name_argument(arguments, kOffset, "a test"), subject,
                                  without_first(arguments, kOffset + 1));
  };
  return make_generator(depth_of(self, arguments), [source, passes]() -> std::optional<Value> {
    while (auto item = source->next()) {
      if (passes(*item) == kKeep) {
        return item;
      }
    }
    return std::nullopt;
  });
}

Value items(Interpreter& interpreter, const Value& self, const Arguments& arguments) {
  const Bound bound("items", arguments, {});
  if (!self.is(Kind::kDict) && !self.is(Kind::kUndefined)) {
    fail_type("can only get item pairs from a mapping");
  }
  const Value view = self.is(Kind::kUndefined)
                         ? Value::list({})
                         : interpreter.call(interpreter.attribute(self, "items"), {});
  auto source = std::make_shared<Source>(interpreter, view);
  return make_generator(view.depth(), [source] { return source->next(); });
}

Value length(Interpreter&, const Value& self, const Arguments& arguments) {
  const Bound bound("length", arguments, {});
  const auto size = length_of(self);
  if (!size) {
    fail_type(fmt::format("object of type '{}' has no len()", type_name(self)));
  }
  return Value::integer(*size);
}

Value list(Interpreter& interpreter, const Value& self, const Arguments& arguments) {
  const Bound bound("list", arguments, {});
  return Value::list(interpreter.items(self));
}

Value join(Interpreter& interpreter, const Value& self, const Arguments& arguments) {
  const Bound bound("join", arguments, {"d", "attribute"});
  const std::string separator = bound.has(0) ? to_text(bound[0]) : "";
  const auto path = path_of(bound, 1);
  std::string out;
  bool first = true;
  for (const Value& item : interpreter.items(self)) {
    const std::string part = to_text(read_key(interpreter, path, item, true));
    interpreter.charge(part.size() + separator.size());
    out += (first ? "" : separator) + part;
    first = false;
  }
  return Value::string(std::move(out));
}

Value first(Interpreter& interpreter, const Value& self, const Arguments& arguments) {
  const Bound bound("first", arguments, {});
  if (self.is(Kind::kGenerator)) {
    return self.as_generator().next().value_or(
        Value::undefined("No first item, sequence was empty."));
  }
  const std::vector<Value> all = interpreter.items(self);
  return all.empty() ? Value::undefined("No first item, sequence was empty.") : all.front();
}

Value last(Interpreter& interpreter, const Value& self, const Arguments& arguments) {
  const Bound bound("last", arguments, {});
  if (self.is(Kind::kGenerator)) {
    throw Fault{
        "type", "'generator' object is not reversible", "add `| list` before `| last`", {}, {}};
  }
  const std::vector<Value> all = interpreter.items(self);
  return all.empty() ? Value::undefined("No last item, sequence was empty.") : all.back();
}

Value reverse(Interpreter& interpreter, const Value& self, const Arguments& arguments) {
  const Bound bound("reverse", arguments, {});
  if (self.is(Kind::kString)) {
    interpreter.charge(self.as_string().size() * 4);
    return slice(self, {std::nullopt, std::nullopt, -1});
  }
  std::vector<Value> all = interpreter.items(self);
  std::reverse(all.begin(), all.end());
  auto source = std::make_shared<Source>(interpreter, Value::list(std::move(all)));
  return make_generator(self.depth() + 1, [source] { return source->next(); });
}

// Stable, as Python's sorted; reverse keeps the order of equal items.
Value sort_by(std::vector<std::pair<Value, Value>> keyed, bool reversed) {
  auto before = [&](const auto& a, const auto& b) {
    return reversed ? less(b.first, a.first) : less(a.first, b.first);
  };
  std::stable_sort(keyed.begin(), keyed.end(), before);
  std::vector<Value> sorted;
  for (auto& [key, value] : keyed) {
    sorted.push_back(std::move(value));
  }
  return Value::list(std::move(sorted));
}

Value sort(Interpreter& interpreter, const Value& self, const Arguments& arguments) {
  const Bound bound("sort", arguments, {"reverse", "case_sensitive", "attribute"});
  std::vector<AttributePath> paths;
  if (bound.has_value(2)) {
    std::string_view rest = bound[2].is(Kind::kString) ? bound.text(2) : std::string_view();
    while (bound[2].is(Kind::kString)) {
      const size_t comma = rest.find(',');
      paths.emplace_back(Value::string(std::string(rest.substr(0, comma))));
      if (comma == rest.npos) {
        break;
      }
      rest = rest.substr(comma + 1);
    }
    if (paths.empty()) {
      paths.emplace_back(bound[2]);
    }
  }
  std::vector<std::pair<Value, Value>> keyed;
  interpreter.charge(self.weight() * 16);
  for (Value& item : interpreter.items(self)) {
    std::vector<Value> key;
    for (const AttributePath& path : paths) {
      key.push_back(path.read(interpreter, item, std::nullopt));
    }
    if (paths.empty()) {
      key.push_back(item);
    }
    if (!bound.flag(1, false)) {
      std::transform(key.begin(), key.end(), key.begin(), lower_case);
    }
    keyed.emplace_back(Value::list(std::move(key)), std::move(item));
  }
  return sort_by(std::move(keyed), bound.flag(0, false));
}

Value dict_sort(Interpreter& interpreter, const Value& self, const Arguments& arguments) {
  const Bound bound("dictsort", arguments, {"case_sensitive", "by", "reverse"});
  const std::string by = bound.has(1) ? bound.text(1) : "key";
  if (by != "key" && by != "value") {
    fail_type("dictsort: expected by to be \"key\" or \"value\"");
  }
  if (!self.is(Kind::kDict)) {
    fail_type(fmt::format("dictsort: expected a mapping, got {}", type_name(self)));
  }
  interpreter.charge(self.weight() * 16);
  std::vector<std::pair<Value, Value>> keyed;
  for (const auto& [key, value] : self.as_dict().entries) {
    const Value& wanted = by == "key" ? key : value;
    keyed.emplace_back(bound.flag(0, false) ? wanted : lower_case(wanted),
                       Value::tuple({key, value}));
  }
  return sort_by(std::move(keyed), bound.flag(2, false));
}

Value unique(Interpreter& interpreter, const Value& self, const Arguments& arguments) {
  const Bound bound("unique", arguments, {"case_sensitive", "attribute"});
  auto source = std::make_shared<Source>(interpreter, self);
  auto seen = std::make_shared<std::unordered_set<std::string>>();
  return make_generator(depth_of(self, arguments),
                        [&interpreter, source, seen, path = path_of(bound, 1),
                         case_sensitive = bound.flag(0, false)]() -> std::optional<Value> {
                          while (auto item = source->next()) {
                            std::string key =
                                hash_key(read_key(interpreter, path, *item, case_sensitive));
                            interpreter.charge(key.size());
                            if (seen->insert(std::move(key)).second) {
                              return item;
                            }
                          }
                          return std::nullopt;
                        });
}

template <bool kMax>
Value extreme(Interpreter& interpreter, const Value& self, const Arguments& arguments) {
  const Bound bound("min", arguments, {"case_sensitive", "attribute"});
  const auto path = path_of(bound, 1);
  const bool case_sensitive = bound.flag(0, false);
  std::optional<Value> best;
  Value best_key;
  interpreter.charge(self.weight());
  for (const Value& item : interpreter.items(self)) {
    const Value key = read_key(interpreter, path, item, case_sensitive);
    if (!best || (kMax ? less(best_key, key) : less(key, best_key))) {
      best = item;
      best_key = key;
    }
  }
  return best.value_or(Value::undefined("No aggregated item, sequence was empty."));
}

Value sum(Interpreter& interpreter, const Value& self, const Arguments& arguments) {
  const Bound bound("sum", arguments, {"attribute", "start"});
  const auto path = path_of(bound, 0);
  Value total = bound.has(1) ? bound[1] : Value::integer(0);
  if (total.is(Kind::kString)) {
    fail_type("sum() can't sum strings [use ''.join(seq) instead]");
  }
  for (const Value& item : interpreter.items(self)) {
    total = interpreter.binary("+", total, read_key(interpreter, path, item, true));
  }
  return total;
}

Value batch(Interpreter& interpreter, const Value& self, const Arguments& arguments) {
  const Bound bound("batch", arguments, {"linecount", "fill_with"}, 1);
  const int64_t size = bound.integer(0, 0);
  std::vector<Value> rows;
  std::vector<Value> row;
  for (Value& item : interpreter.items(self)) {
    if (static_cast<int64_t>(row.size()) == size) {
      rows.push_back(Value::list(std::move(row)));
      row.clear();
    }
    row.push_back(std::move(item));
  }
  if (!row.empty()) {
    while (bound.has_value(1) && static_cast<int64_t>(row.size()) < size) {
      interpreter.charge(sizeof(Value));
      row.push_back(bound[1]);
    }
    rows.push_back(Value::list(std::move(row)));
  }
  auto source = std::make_shared<Source>(interpreter, Value::list(std::move(rows)));
  return make_generator(self.depth() + 2, [source] { return source->next(); });
}

Value slices(Interpreter& interpreter, const Value& self, const Arguments& arguments) {
  const Bound bound("slice", arguments, {"slices", "fill_with"}, 1);
  const int64_t num_slices = bound.integer(0, 0);
  if (num_slices == 0) {
    fail_type("integer division or modulo by zero");
  }
  const std::vector<Value> all = interpreter.items(self);
  interpreter.charge(static_cast<uint64_t>(std::max<int64_t>(num_slices, 0)) * 64);
  const int64_t size = static_cast<int64_t>(all.size()) / num_slices;
  const int64_t extra = static_cast<int64_t>(all.size()) % num_slices;
  std::vector<Value> rows;
  auto at = all.begin();
  for (int64_t i = 0; i < num_slices; ++i) {
    const auto end = at + size + (i < extra ? 1 : 0);
    std::vector<Value> row(at, end);
    if (bound.has_value(1) && i >= extra) {
      row.push_back(bound[1]);
    }
    rows.push_back(Value::list(std::move(row)));
    at = end;
  }
  auto source = std::make_shared<Source>(interpreter, Value::list(std::move(rows)));
  return make_generator(self.depth() + 2, [source] { return source->next(); });
}

constexpr std::array kFilters = {
    NamedNative{"batch", batch},
    NamedNative{"count", length},
    NamedNative{"dictsort", dict_sort},
    NamedNative{"first", first},
    NamedNative{"items", items},
    NamedNative{"join", join},
    NamedNative{"last", last},
    NamedNative{"length", length},
    NamedNative{"list", list},
    NamedNative{"map", map},
    NamedNative{"max", extreme<true>},
    NamedNative{"min", extreme<false>},
    NamedNative{"reject", select<false, false>},
    NamedNative{"rejectattr", select<true, false>},
    NamedNative{"reverse", reverse},
    NamedNative{"select", select<false, true>},
    NamedNative{"selectattr", select<true, true>},
    NamedNative{"slice", slices},
    NamedNative{"sort", sort},
    NamedNative{"sum", sum},
    NamedNative{"unique", unique},
};

}  // namespace

Native find_sequence_filter(std::string_view name) { return find_native(kFilters, name); }

}  // namespace graft::text::jinja
