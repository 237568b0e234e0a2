// Global functions: jinja2's own, and those that transformers adds.
#include <array>
#include <ctime>

#include <fmt/format.h>

#include "graft/text/jinja_filters.h"
#include "graft/text/jinja_interpreter.h"
#include "graft/text/jinja_text.h"

namespace graft::text::jinja {

namespace {

constexpr int64_t kMaxRange = 100'000;  // the sandbox's MAX_RANGE

Value range(Interpreter& interpreter, const Value&, const Arguments& arguments) {
  const Bound bound("range", arguments, {"start", "stop", "step"}, 1);
  int64_t start = bound.integer(0, 0);
  int64_t stop = bound.integer(1, 0);
  if (!bound.has(1)) {
    stop = std::exchange(start, 0);
  }
  const int64_t step = bound.integer(2, 1);
  if (step == 0) {
    fail_type("range() arg 3 must not be zero");
  }
  __extension__ typedef __int128 Wide;
  const Wide distance = step > 0 ? Wide(stop) - start : Wide(start) - stop;
  const Wide stride = step > 0 ? Wide(step) : -Wide(step);
  if (distance > 0 && (distance + stride - 1) / stride > kMaxRange) {
    throw Fault{"budget", fmt::format("range: expected at most {} items", kMaxRange), {}, {}, {}};
  }
  Value result = make_range(start, stop, step);
  interpreter.charge(static_cast<uint64_t>(*length_of(result)) * sizeof(Value));
  return result;
}

// Pairs of one positional mapping (or pairs) and the named arguments, as Python's dict().
std::shared_ptr<DictObject> build_dict(Interpreter& interpreter, const Arguments& arguments) {
  auto dict = std::make_shared<DictObject>();
  if (arguments.positional.size() > 1) {
    fail_type(fmt::format("dict expected at most 1 argument, got {}", arguments.positional.size()));
  }
  for (const Value& source : arguments.positional) {
    if (source.is(Kind::kDict)) {
      interpreter.charge(source.as_dict().entries.size() * 128);
      for (const auto& [key, value] : source.as_dict().entries) {
        dict->insert(key, value);
      }
      continue;
    }
    for (const Value& pair : interpreter.items(source)) {
      const std::vector<Value> parts = interpreter.items(pair);
      if (parts.size() != 2) {
        fail_type(fmt::format("dictionary update sequence element has length {}; 2 is required",
                              parts.size()));
      }
      dict->insert(parts[0], parts[1]);
    }
  }
  for (const auto& [name, value] : arguments.named) {
    dict->insert(Value::string(name), value);
  }
  return dict;
}

Value dict(Interpreter& interpreter, const Value&, const Arguments& arguments) {
  return make_dict(build_dict(interpreter, arguments));
}

Value make_namespace(Interpreter& interpreter, const Value&, const Arguments& arguments) {
  auto object = std::make_shared<NamespaceObject>();
  const auto dict = build_dict(interpreter, arguments);
  for (const auto& [key, value] : dict->entries) {
    if (!key.is(Kind::kString)) {
      fail_type("namespace: expected names as keys");
    }
    object->set(key.as_string(), value);
  }
  return interpreter.make_namespace(std::move(object));
}

Value raise_exception(Interpreter&, const Value&, const Arguments& arguments) {
  const Bound bound("raise_exception", arguments, {"message"}, 1);
  throw Fault{"raised", to_text(bound[0]), {}, {}, Fault::Kind::kRaised};
}

Value strftime_now(Interpreter& interpreter, const Value&, const Arguments& arguments) {
  const Bound bound("strftime_now", arguments, {"format"}, 1);
  constexpr size_t kMaxFormat = 1024;
  const std::string& format = bound.text(0);
  if (format.size() > kMaxFormat || format.find('\0') != std::string::npos) {
    fail_type(fmt::format("strftime_now: expected a format of at most {} bytes", kMaxFormat));
  }
  const std::tm now = interpreter.local_time();
  // One character more, so that an empty result differs from a buffer that was too small.
  const std::string guarded = format + "|";
  std::string text(kMaxFormat * 32, '\0');
  const size_t size = std::strftime(text.data(), text.size(), guarded.c_str(), &now);
  if (size == 0) {
    fail_type("strftime_now: the result is too long");
  }
  text.resize(size - 1);
  return interpreter.make_string(std::move(text));
}

struct Cycler : CallableObject {
  std::vector<Value> items;
  size_t position = 0;

  Value call(Interpreter&, const Arguments&) override {
    fail_type("'Cycler' object is not callable");
  }
  std::string type_name() const override { return "Cycler"; }
  std::optional<Value> attribute(const Value& self, const std::string& wanted) override;
};

struct Joiner : CallableObject {
  Value separator;
  bool used = false;

  Value call(Interpreter&, const Arguments& arguments) override {
    const Bound bound("joiner", arguments, {});
    return std::exchange(used, true) ? separator : Value::string("");
  }
  std::string type_name() const override { return "Joiner"; }
};

// `next` and `reset` share the cycler, which the method keeps alive.
template <bool kReset>
Value step_cycler(Interpreter&, const Value& self, const Arguments& arguments) {
  const Bound bound("cycler", arguments, {});
  auto& cycler = static_cast<Cycler&>(self.as_callable());
  if (kReset) {
    cycler.position = 0;
    return Value();
  }
  const Value item = cycler.items[cycler.position];
  cycler.position = (cycler.position + 1) % cycler.items.size();
  return item;
}

std::optional<Value> Cycler::attribute(const Value& self, const std::string& wanted) {
  if (wanted == "current") {
    return items[position];
  }
  if (wanted != "next" && wanted != "reset") {
    return std::nullopt;
  }
  return make_method(wanted, self, wanted == "next" ? step_cycler<false> : step_cycler<true>);
}

Value cycler(Interpreter& interpreter, const Value&, const Arguments& arguments) {
  if (arguments.positional.empty() || !arguments.named.empty()) {
    fail_type("cycler: expected at least one item");
  }
  auto object = std::make_shared<Cycler>();
  for (const Value& item : arguments.positional) {
    adopt(*object, item);
  }
  interpreter.charge(arguments.positional.size() * sizeof(Value));
  object->items = arguments.positional;
  return Value::object(Kind::kCallable, std::move(object));
}

Value joiner(Interpreter&, const Value&, const Arguments& arguments) {
  const Bound bound("joiner", arguments, {"sep"});
  auto object = std::make_shared<Joiner>();
  object->separator = bound.has(0) ? bound[0] : Value::string(", ");
  adopt(*object, object->separator);
  return Value::object(Kind::kCallable, std::move(object));
}

constexpr std::array kFunctions = {
    NamedNative{"cycler", cycler},
    NamedNative{"dict", dict},
    NamedNative{"joiner", joiner},
    NamedNative{"namespace", make_namespace},
    NamedNative{"raise_exception", raise_exception},
    NamedNative{"range", range},
    NamedNative{"strftime_now", strftime_now},
};

}  // namespace

Native find_function(std::string_view name) { return find_native(kFunctions, name); }

}  // namespace graft::text::jinja
