#include "graft/text/jinja_expression_parser.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cstdlib>

#include <fmt/format.h>

#include "graft/text/jinja_object.h"

namespace graft::text::jinja {

namespace {

constexpr int kMaxNesting = 100;
constexpr uint32_t kMaxHeight = 200;

void check_height(const Expression& node) {
  if (node.height > kMaxHeight) {
    throw Fault{"budget",
                fmt::format("expression: expected at most {} levels", kMaxHeight),
                {},
                node.at,
                {}};
  }
}

void add_arguments(Expression& node, std::unique_ptr<CallArguments> arguments) {
  auto raise = [&](const ExpressionPtr& child) {
    if (child) {
      node.height = std::max(node.height, child->height + 1);
    }
  };
  for (const auto& child : arguments->positional) {
    raise(child);
  }
  for (const auto& [name, child] : arguments->named) {
    raise(child);
  }
  raise(arguments->star);
  raise(arguments->double_star);
  node.arguments = std::move(arguments);
  check_height(node);
}

}  // namespace

void add_child(Expression& parent, ExpressionPtr child) {
  if (child) {
    parent.height = std::max(parent.height, child->height + 1);
  }
  parent.items.push_back(std::move(child));
  check_height(parent);
}

std::string describe(const Token& token) {
  switch (token.kind) {
    case TokenKind::kEnd:
      return "the end of the template";
    case TokenKind::kVariableEnd:
      return "`}}`";
    case TokenKind::kBlockEnd:
      return "`%}`";
    case TokenKind::kString:
      return fmt::format("string '{}'", token.text.substr(0, 40));
    default:
      return fmt::format("`{}`", token.text.substr(0, 40));
  }
}

void fail_syntax(const Token& token, std::string message) {
  throw Fault{"syntax", std::move(message), {}, token.at, {}};
}

ExpressionParser::Nesting::Nesting(ExpressionParser& parser) : parser_(parser) {
  if (++parser_.depth_ > kMaxNesting) {
    --parser_.depth_;
    throw Fault{"budget",
                fmt::format("nesting: expected at most {} levels", kMaxNesting),
                {},
                parser_.current().at,
                {}};
  }
}

Token ExpressionParser::take() {
  const Token token = tokens_[index_];
  if (index_ + 1 < tokens_.size()) {
    ++index_;
  }
  return token;
}

bool ExpressionParser::skip_operator(std::string_view symbol) {
  const bool found = current().is_operator(symbol);
  if (found) {
    take();
  }
  return found;
}

bool ExpressionParser::skip_name(std::string_view name) {
  const bool found = current().is_name(name);
  if (found) {
    take();
  }
  return found;
}

Token ExpressionParser::expect_operator(std::string_view symbol) {
  if (!current().is_operator(symbol)) {
    fail_syntax(current(), fmt::format("expected `{}`, got {}", symbol, describe(current())));
  }
  return take();
}

Token ExpressionParser::expect_kind(TokenKind kind, std::string_view what) {
  if (current().kind != kind) {
    fail_syntax(current(), fmt::format("expected {}, got {}", what, describe(current())));
  }
  return take();
}

Token ExpressionParser::expect_name(std::string_view name) {
  if (!current().is_name(name)) {
    fail_syntax(current(), fmt::format("expected `{}`, got {}", name, describe(current())));
  }
  return take();
}

ExpressionPtr ExpressionParser::make(ExpressionKind kind, const Token& token, std::string name) {
  auto node = std::make_unique<Expression>();
  node->kind = kind;
  node->at = token.at;
  node->name = std::move(name);
  return node;
}

bool ExpressionParser::at_tuple_end(const TupleRules& rules) const {
  return current().kind == TokenKind::kVariableEnd || current().kind == TokenKind::kBlockEnd ||
         current().is_operator(")") ||
         (!rules.end_name.empty() && current().is_name(rules.end_name));
}

ExpressionPtr ExpressionParser::parse_tuple(const TupleRules& rules) {
  const Nesting nesting(*this);
  auto tuple = make(ExpressionKind::kTuple, current());
  bool is_tuple = false;
  while (true) {
    if (!tuple->items.empty()) {
      expect_operator(",");
    }
    if (at_tuple_end(rules)) {
      break;
    }
    add_child(*tuple, rules.target ? parse_primary(rules.with_namespace)
                                   : parse_expression(rules.with_condition));
    if (!current().is_operator(",")) {
      break;
    }
    is_tuple = true;
  }
  if (!is_tuple && !tuple->items.empty()) {
    return std::move(tuple->items[0]);
  }
  if (!is_tuple && !rules.parenthesized) {
    fail_syntax(current(), fmt::format("expected an expression, got {}", describe(current())));
  }
  return tuple;
}

ExpressionPtr ExpressionParser::parse_target(const TupleRules& rules) {
  const Token start = current();
  ExpressionPtr target = parse_tuple(rules);
  auto assignable = [](const Expression& node) {
    return node.kind == ExpressionKind::kName || node.kind == ExpressionKind::kNamespaceRef;
  };
  std::function<void(const Expression&)> check = [&](const Expression& node) {
    if (node.kind == ExpressionKind::kTuple) {
      for (const auto& item : node.items) {
        check(*item);
      }
    } else if (!assignable(node)) {
      fail_syntax(start, fmt::format("expected a name to assign to, got {}", describe(start)));
    }
  };
  check(*target);
  return target;
}

ExpressionPtr ExpressionParser::parse_expression(bool with_condition) {
  const Nesting nesting(*this);
  if (!with_condition) {
    return parse_or();
  }
  ExpressionPtr value = parse_or();
  while (current().is_name("if")) {
    auto node = make(ExpressionKind::kConditional, take());
    ++conditional_depth_;
    add_child(*node, parse_or());
    add_child(*node, std::move(value));
    add_child(*node, skip_name("else") ? parse_expression() : nullptr);
    --conditional_depth_;
    value = std::move(node);
  }
  return value;
}

ExpressionPtr ExpressionParser::parse_or() {
  ExpressionPtr left = parse_and();
  while (current().is_name("or")) {
    auto node = make(ExpressionKind::kOr, take());
    add_child(*node, std::move(left));
    add_child(*node, parse_and());
    left = std::move(node);
  }
  return left;
}

ExpressionPtr ExpressionParser::parse_and() {
  ExpressionPtr left = parse_not();
  while (current().is_name("and")) {
    auto node = make(ExpressionKind::kAnd, take());
    add_child(*node, std::move(left));
    add_child(*node, parse_not());
    left = std::move(node);
  }
  return left;
}

ExpressionPtr ExpressionParser::parse_not() {
  if (!current().is_name("not")) {
    return parse_compare();
  }
  const Nesting nesting(*this);
  auto node = make(ExpressionKind::kUnary, take(), "not");
  add_child(*node, parse_not());
  return node;
}

ExpressionPtr ExpressionParser::parse_compare() {
  static constexpr std::array<std::string_view, 6> kSymbols = {"==", "!=", "<", "<=", ">", ">="};
  const Token start = current();
  ExpressionPtr first = parse_sum();
  ExpressionPtr node;
  while (true) {
    std::string symbol;
    if (current().kind == TokenKind::kOperator &&
        std::find(kSymbols.begin(), kSymbols.end(), current().text) != kSymbols.end()) {
      symbol = current().text;
    } else if (current().is_name("in")) {
      symbol = "in";
    } else if (current().is_name("not") && look().is_name("in")) {
      symbol = "not in";
      take();
    } else {
      break;
    }
    if (!node) {
      node = make(ExpressionKind::kCompare, current());
      add_child(*node, std::move(first));
    }
    take();
    node->operators.push_back(std::move(symbol));
    add_child(*node, parse_sum());
  }
  return node ? std::move(node) : std::move(first);
}

ExpressionPtr ExpressionParser::parse_sum() {
  ExpressionPtr left = parse_concat();
  while (current().is_operator("+") || current().is_operator("-")) {
    auto node = make(ExpressionKind::kBinary, current(), current().text);
    take();
    add_child(*node, std::move(left));
    add_child(*node, parse_concat());
    left = std::move(node);
  }
  return left;
}

ExpressionPtr ExpressionParser::parse_concat() {
  ExpressionPtr first = parse_product();
  if (!current().is_operator("~")) {
    return first;
  }
  auto node = make(ExpressionKind::kConcat, current());
  add_child(*node, std::move(first));
  while (skip_operator("~")) {
    add_child(*node, parse_product());
  }
  return node;
}

ExpressionPtr ExpressionParser::parse_product() {
  ExpressionPtr left = parse_power();
  while (current().is_operator("*") || current().is_operator("/") || current().is_operator("//") ||
         current().is_operator("%")) {
    auto node = make(ExpressionKind::kBinary, current(), current().text);
    take();
    add_child(*node, std::move(left));
    add_child(*node, parse_power());
    left = std::move(node);
  }
  return left;
}

ExpressionPtr ExpressionParser::parse_power() {
  ExpressionPtr left = parse_unary(true);
  while (current().is_operator("**")) {
    auto node = make(ExpressionKind::kBinary, take(), "**");
    add_child(*node, std::move(left));
    add_child(*node, parse_unary(true));
    left = std::move(node);
  }
  return left;
}

ExpressionPtr ExpressionParser::parse_unary(bool with_filters) {
  ExpressionPtr node;
  if (current().is_operator("-") || current().is_operator("+")) {
    const Nesting nesting(*this);
    node = make(ExpressionKind::kUnary, current(), current().text);
    take();
    add_child(*node, parse_unary(false));
  } else {
    node = parse_primary(false);
  }
  node = parse_postfix(std::move(node));
  return with_filters ? parse_filter_chain(std::move(node)) : std::move(node);
}

ExpressionPtr ExpressionParser::parse_primary(bool with_namespace) {
  const Token& token = current();
  switch (token.kind) {
    case TokenKind::kName:
      return parse_name(with_namespace);
    case TokenKind::kString: {
      auto node = make(ExpressionKind::kConstant, token);
      std::string text;
      while (current().kind == TokenKind::kString) {
        text += take().text;
      }
      node->constant = Value::string(std::move(text));
      return node;
    }
    case TokenKind::kInteger: {
      auto node = make(ExpressionKind::kConstant, token);
      node->constant = Value::integer(std::stoll(take().text));
      return node;
    }
    case TokenKind::kFloat: {
      auto node = make(ExpressionKind::kConstant, token);
      const std::string digits = take().text;
      double number = 0;
      const auto parsed = std::from_chars(digits.data(), digits.data() + digits.size(), number);
      // Out of range leaves `number` alone; strtod then gives Python's inf or 0.
      node->constant =
          Value::real(parsed.ec == std::errc() ? number : std::strtod(digits.c_str(), nullptr));
      return node;
    }
    default:
      break;
  }
  if (token.is_operator("(")) {
    take();
    ExpressionPtr node = parse_tuple({.parenthesized = true});
    expect_operator(")");
    return node;
  }
  if (token.is_operator("[")) {
    return parse_list();
  }
  if (token.is_operator("{")) {
    return parse_dict();
  }
  fail_syntax(token, fmt::format("expected an expression, got {}", describe(token)));
}

ExpressionPtr ExpressionParser::parse_name(bool with_namespace) {
  const Token token = take();
  const std::string& name = token.text;
  if (name == "true" || name == "True" || name == "false" || name == "False") {
    auto node = make(ExpressionKind::kConstant, token);
    node->constant = Value::boolean(name == "true" || name == "True");
    return node;
  }
  if (name == "none" || name == "None") {
    return make(ExpressionKind::kConstant, token);
  }
  if (with_namespace && skip_operator(".")) {
    auto node = make(ExpressionKind::kNamespaceRef, token, name);
    node->attribute = expect_kind(TokenKind::kName, "an attribute's name").text;
    return node;
  }
  for (auto& names : names_read_) {
    names.insert(name);
  }
  return make(ExpressionKind::kName, token, name);
}

ExpressionPtr ExpressionParser::parse_list() {
  auto node = make(ExpressionKind::kList, expect_operator("["));
  while (!current().is_operator("]")) {
    if (!node->items.empty()) {
      expect_operator(",");
      if (current().is_operator("]")) {
        break;
      }
    }
    add_child(*node, parse_expression());
  }
  expect_operator("]");
  return node;
}

ExpressionPtr ExpressionParser::parse_dict() {
  auto node = make(ExpressionKind::kDict, expect_operator("{"));
  while (!current().is_operator("}")) {
    if (!node->items.empty()) {
      expect_operator(",");
      if (current().is_operator("}")) {
        break;
      }
    }
    add_child(*node, parse_expression());
    expect_operator(":");
    add_child(*node, parse_expression());
  }
  expect_operator("}");
  return node;
}

ExpressionPtr ExpressionParser::parse_postfix(ExpressionPtr subject) {
  while (true) {
    if (current().is_operator(".") || current().is_operator("[")) {
      subject = parse_subscript(std::move(subject));
    } else if (current().is_operator("(")) {
      subject = parse_call(std::move(subject));
    } else {
      return subject;
    }
  }
}

ExpressionPtr ExpressionParser::parse_subscript(ExpressionPtr subject) {
  const Token token = take();
  if (token.text == ".") {
    const Token attribute = take();
    if (attribute.kind == TokenKind::kName) {
      auto node = make(ExpressionKind::kAttributeOf, attribute, attribute.text);
      add_child(*node, std::move(subject));
      return node;
    }
    if (attribute.kind != TokenKind::kInteger) {
      fail_syntax(attribute,
                  fmt::format("expected a name or number after `.`, got {}", describe(attribute)));
    }
    auto node = make(ExpressionKind::kItemOf, token);
    auto index = make(ExpressionKind::kConstant, attribute);
    index->constant = Value::integer(std::stoll(attribute.text));
    add_child(*node, std::move(subject));
    add_child(*node, std::move(index));
    return node;
  }
  auto node = make(ExpressionKind::kItemOf, token);
  add_child(*node, std::move(subject));
  auto tuple = make(ExpressionKind::kTuple, token);
  while (!current().is_operator("]")) {
    if (!tuple->items.empty()) {
      expect_operator(",");
    }
    add_child(*tuple, parse_subscribed());
  }
  expect_operator("]");
  add_child(*node, tuple->items.size() == 1 ? std::move(tuple->items[0]) : std::move(tuple));
  return node;
}

ExpressionPtr ExpressionParser::parse_subscribed() {
  auto slice = make(ExpressionKind::kSlice, current());
  auto at_end = [&] { return current().is_operator("]") || current().is_operator(","); };
  if (!current().is_operator(":")) {
    ExpressionPtr first = parse_expression();
    if (!current().is_operator(":")) {
      return first;
    }
    add_child(*slice, std::move(first));
  } else {
    add_child(*slice, nullptr);
  }
  take();
  add_child(*slice, current().is_operator(":") || at_end() ? nullptr : parse_expression());
  const bool has_step = skip_operator(":") && !at_end();
  add_child(*slice, has_step ? parse_expression() : nullptr);
  return slice;
}

ExpressionPtr ExpressionParser::parse_call(ExpressionPtr subject) {
  auto node = make(ExpressionKind::kCall, current());
  add_child(*node, std::move(subject));
  add_arguments(*node, parse_arguments());
  return node;
}

std::unique_ptr<CallArguments> ExpressionParser::parse_arguments() {
  const Token open = expect_operator("(");
  auto arguments = std::make_unique<CallArguments>();
  bool first = true;
  while (!current().is_operator(")")) {
    if (!first) {
      expect_operator(",");
      if (current().is_operator(")")) {
        break;
      }
    }
    parse_argument(*arguments, open);
    first = false;
  }
  expect_operator(")");
  return arguments;
}

void ExpressionParser::parse_argument(CallArguments& arguments, const Token& open) {
  auto ensure = [&](bool condition) {
    if (!condition) {
      fail_syntax(open, "call: expected positional arguments, then named ones, then `**`");
    }
  };
  if (skip_operator("*")) {
    ensure(!arguments.star && !arguments.double_star);
    arguments.star = parse_expression();
  } else if (skip_operator("**")) {
    ensure(!arguments.double_star);
    arguments.double_star = parse_expression();
  } else if (current().kind == TokenKind::kName && look().is_operator("=")) {
    ensure(!arguments.double_star);
    std::string name = take().text;
    take();
    arguments.named.emplace_back(std::move(name), parse_expression());
  } else {
    ensure(!arguments.star && !arguments.double_star && arguments.named.empty());
    arguments.positional.push_back(parse_expression());
  }
}

ExpressionPtr ExpressionParser::parse_filter_chain(ExpressionPtr subject) {
  while (true) {
    if (current().is_operator("|")) {
      subject = parse_filters(std::move(subject), /*start_inline=*/false);
    } else if (current().is_name("is")) {
      subject = parse_test(std::move(subject));
    } else if (current().is_operator("(")) {
      subject = parse_call(std::move(subject));
    } else {
      return subject;
    }
  }
}

std::string ExpressionParser::parse_dotted_name(std::string_view what) {
  std::string name = expect_kind(TokenKind::kName, what).text;
  while (skip_operator(".")) {
    name += "." + expect_kind(TokenKind::kName, what).text;
  }
  return name;
}

ExpressionPtr ExpressionParser::parse_filters(ExpressionPtr subject, bool start_inline) {
  while (start_inline || current().is_operator("|")) {
    if (!start_inline) {
      take();
    }
    start_inline = false;
    const Token token = current();
    auto node = make(ExpressionKind::kFilter, token, parse_dotted_name("a filter's name"));
    if (conditional_depth_ == 0 && find_filter(node->name) == nullptr) {
      throw Fault{"unsupported", fmt::format("no filter named `{}`", node->name), {}, token.at, {}};
    }
    add_child(*node, std::move(subject));
    if (current().is_operator("(")) {
      add_arguments(*node, parse_arguments());
    }
    subject = std::move(node);
  }
  return subject;
}

ExpressionPtr ExpressionParser::parse_test(ExpressionPtr subject) {
  take();
  const Token start = current();
  const bool negated = skip_name("not");
  const Token token = current();
  auto node = make(ExpressionKind::kTest, token, parse_dotted_name("a test's name"));
  if (conditional_depth_ == 0 && find_test(node->name) == nullptr) {
    throw Fault{"unsupported", fmt::format("no test named `{}`", node->name), {}, token.at, {}};
  }
  add_child(*node, std::move(subject));
  const TokenKind kind = current().kind;
  const bool has_operand = kind == TokenKind::kName || kind == TokenKind::kString ||
                           kind == TokenKind::kInteger || kind == TokenKind::kFloat ||
                           current().is_operator("[") || current().is_operator("{");
  if (current().is_operator("(")) {
    add_arguments(*node, parse_arguments());
  } else if (has_operand && !current().is_name("else") && !current().is_name("or") &&
             !current().is_name("and")) {
    if (current().is_name("is")) {
      fail_syntax(current(), "tests cannot be chained with `is`");
    }
    auto arguments = std::make_unique<CallArguments>();
    arguments->positional.push_back(parse_postfix(parse_primary(false)));
    add_arguments(*node, std::move(arguments));
  }
  if (!negated) {
    return node;
  }
  auto result = make(ExpressionKind::kUnary, start, "not");
  add_child(*result, std::move(node));
  return result;
}

}  // namespace graft::text::jinja
