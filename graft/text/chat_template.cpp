#include "graft/text/chat_template.h"

#include <fmt/format.h>

#include "graft/core/error.h"
#include "graft/text/jinja_interpreter.h"
#include "graft/text/jinja_parser.h"
#include "graft/text/jinja_unicode.h"

namespace graft::text {

namespace {

constexpr std::string_view kWhere = "text.chat_template";
constexpr size_t kMaxSourceBytes = 1 << 20;

using Json = nlohmann::ordered_json;
using jinja::Fault;
using jinja::Value;

[[noreturn]] void rethrow(const Fault& fault, const std::string& name) {
  const std::string message = fmt::format("`{}` line {}, column {}: {}", name, fault.at.line,
                                          fault.at.column, fault.message);
  if (fault.kind == Fault::Kind::kRaised) {
    throw InvalidArgument(kWhere, fault.reason, message, "the template refuses this conversation");
  }
  throw FormatError(kWhere, fault.reason, message, fault.hint);
}

[[noreturn]] void fail_argument(std::string_view what, std::string_view problem) {
  throw InvalidArgument(kWhere, "arguments", fmt::format("{}: {}", what, problem));
}

Value to_value(const Json& json, std::string_view what, uint32_t depth) {
  if (depth > jinja::kMaxValueDepth - 8) {
    fail_argument(what, "expected less nesting");
  }
  switch (json.type()) {
    case Json::value_t::null:
    case Json::value_t::discarded:
      return Value();
    case Json::value_t::boolean:
      return Value::boolean(json.get<bool>());
    case Json::value_t::number_integer:
      return Value::integer(json.get<int64_t>());
    case Json::value_t::number_unsigned:
      if (json.get<uint64_t>() > static_cast<uint64_t>(INT64_MAX)) {
        fail_argument(what, fmt::format("expected integers of 64 bits, got {}", json.dump()));
      }
      return Value::integer(json.get<int64_t>());
    case Json::value_t::number_float:
      return Value::real(json.get<double>());
    case Json::value_t::string: {
      const auto& text = json.get_ref<const std::string&>();
      if (!jinja::is_valid_utf8(text)) {
        fail_argument(what, "expected text in UTF-8, got other bytes");
      }
      return Value::string(text);
    }
    case Json::value_t::array: {
      std::vector<Value> items;
      for (const Json& item : json) {
        items.push_back(to_value(item, what, depth + 1));
      }
      return Value::list(std::move(items));
    }
    case Json::value_t::object: {
      auto dict = std::make_shared<jinja::DictObject>();
      for (const auto& [key, item] : json.items()) {
        dict->insert(to_value(Json(key), what, depth + 1), to_value(item, what, depth + 1));
      }
      return jinja::make_dict(std::move(dict));
    }
    case Json::value_t::binary:
      break;
  }
  fail_argument(what, "expected a JSON value, got bytes");
}

Value argument(const Json& json, std::string_view what) {
  try {
    return to_value(json, what, 0);
  } catch (const Fault& fault) {
    fail_argument(what, fault.message);
  }
}

jinja::ScopePtr make_root(const Json& messages, const ChatTemplateOptions& options) {
  if (!messages.is_array()) {
    fail_argument("messages", fmt::format("expected a list, got {}", messages.type_name()));
  }
  if (!options.variables.is_null() && !options.variables.is_object()) {
    fail_argument("variables",
                  fmt::format("expected an object, got {}", options.variables.type_name()));
  }
  auto root = std::make_shared<jinja::Scope>();
  root->set("messages", argument(messages, "messages"));
  root->set("tools", argument(options.tools, "tools"));
  root->set("documents", argument(options.documents, "documents"));
  root->set("add_generation_prompt", Value::boolean(options.add_generation_prompt));
  if (options.bos_token) {
    root->set("bos_token", argument(*options.bos_token, "bos_token"));
  }
  if (options.eos_token) {
    root->set("eos_token", argument(*options.eos_token, "eos_token"));
  }
  for (const auto& [key, value] : options.variables.items()) {
    root->set(key, argument(value, key));
  }
  return root;
}

}  // namespace

struct ChatTemplate::Parsed {
  std::string source;
  std::string name;
  jinja::Block block;
};

ChatTemplate ChatTemplate::parse(std::string source, std::string name) {
  if (source.size() > kMaxSourceBytes || !jinja::is_valid_utf8(source)) {
    throw FormatError(kWhere, "source",
                      fmt::format("`{}`: expected at most {} bytes of UTF-8, got {} bytes{}", name,
                                  kMaxSourceBytes, source.size(),
                                  source.size() > kMaxSourceBytes ? "" : " of something else"));
  }
  auto parsed = std::make_shared<Parsed>();
  try {
    parsed->block = jinja::parse_template(source);
  } catch (const Fault& fault) {
    rethrow(fault, name);
  }
  parsed->source = std::move(source);
  parsed->name = std::move(name);
  return ChatTemplate(std::move(parsed));
}

std::string ChatTemplate::render(const nlohmann::ordered_json& messages,
                                 const ChatTemplateOptions& options) const {
  const jinja::ScopePtr root = make_root(messages, options);
  jinja::Limits limits;
  limits.max_steps = options.max_steps;
  limits.max_output_bytes = options.max_output_bytes;
  limits.max_work_bytes = options.max_work_bytes;
  jinja::Interpreter interpreter(limits, options.now);
  try {
    return interpreter.render(parsed_->block, root);
  } catch (const Fault& fault) {
    rethrow(fault, parsed_->name);
  }
}

const std::string& ChatTemplate::source() const { return parsed_->source; }
const std::string& ChatTemplate::name() const { return parsed_->name; }

}  // namespace graft::text
