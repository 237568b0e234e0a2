#include "graft/text/jinja_parser.h"

#include <algorithm>
#include <array>
#include <initializer_list>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "graft/text/jinja_expression_parser.h"

namespace graft::text::jinja {

namespace {

class TemplateParser : ExpressionParser {
 public:
  using ExpressionParser::ExpressionParser;

  Block parse() { return parse_block({}); }

 private:
  using Ends = std::initializer_list<std::string_view>;
  using StatementPtr = std::unique_ptr<Statement>;

  StatementPtr make(StatementKind kind, const Token& token) {
    auto node = std::make_unique<Statement>();
    node->kind = kind;
    node->at = token.at;
    return node;
  }

  // Reads up to a tag whose name is one of `ends`, which stays the current token.
  Block parse_block(Ends ends) {
    const Nesting nesting(*this);
    Block block;
    while (current().kind != TokenKind::kEnd) {
      const Token token = take();
      if (token.kind == TokenKind::kData) {
        block.push_back(make(StatementKind::kData, token));
        block.back()->text = token.text;
      } else if (token.kind == TokenKind::kVariableBegin) {
        block.push_back(make(StatementKind::kPrint, token));
        block.back()->expressions.push_back(parse_tuple({}));
        expect_kind(TokenKind::kVariableEnd, "`}}`");
      } else {
        if (std::any_of(ends.begin(), ends.end(),
                        [&](std::string_view end) { return current().is_name(end); })) {
          return block;
        }
        block.push_back(parse_statement());
        expect_kind(TokenKind::kBlockEnd, "`%}`");
      }
    }
    if (ends.size() > 0) {
      fail_syntax(current(), fmt::format("expected `{{% {} %}}`, got the end of the template",
                                         fmt::join(ends, "` or `")));
    }
    return block;
  }

  // Body of a statement: behind the tag's end, up to one of `ends`.
  Block parse_body(Ends ends) {
    skip_operator(":");
    expect_kind(TokenKind::kBlockEnd, "`%}`");
    return parse_block(ends);
  }

  // A body that ends with its own end tag.
  Block parse_whole_body(std::string_view end) {
    Block body = parse_body({end});
    take();
    return body;
  }

  StatementPtr parse_statement() {
    if (current().kind != TokenKind::kName) {
      fail_syntax(current(), fmt::format("expected a tag's name, got {}", describe(current())));
    }
    const Token token = take();
    using Parse = StatementPtr (TemplateParser::*)(const Token&);
    static constexpr std::array<std::pair<std::string_view, Parse>, 11> kTags = {{
        {"if", &TemplateParser::parse_if},
        {"for", &TemplateParser::parse_for},
        {"set", &TemplateParser::parse_set},
        {"macro", &TemplateParser::parse_macro},
        {"call", &TemplateParser::parse_call_block},
        {"filter", &TemplateParser::parse_filter_block},
        {"with", &TemplateParser::parse_with},
        {"print", &TemplateParser::parse_print},
        {"generation", &TemplateParser::parse_generation},
        {"break", &TemplateParser::parse_jump},
        {"continue", &TemplateParser::parse_jump},
    }};
    for (const auto& [name, parse] : kTags) {
      if (token.text == name) {
        return (this->*parse)(token);
      }
    }
    static constexpr std::array<std::string_view, 8> kForeign = {
        "block", "extends", "include", "import", "from", "autoescape", "do", "trans"};
    if (std::find(kForeign.begin(), kForeign.end(), token.text) != kForeign.end()) {
      throw Fault{"unsupported",
                  fmt::format("tag `{}` has no place in a chat template", token.text),
                  {},
                  token.at,
                  {}};
    }
    fail_syntax(token, fmt::format("tag `{}` is unknown or may not stand here", token.text));
  }

  StatementPtr parse_if(const Token& token) {
    auto node = make(StatementKind::kIf, token);
    ++conditional_depth_;
    while (true) {
      Branch branch;
      branch.condition = parse_tuple({.with_condition = false});
      branch.body = parse_body({"elif", "else", "endif"});
      node->branches.push_back(std::move(branch));
      const Token end = take();
      if (end.text == "elif") {
        continue;
      }
      if (end.text == "else") {
        node->otherwise = parse_whole_body("endif");
      }
      break;
    }
    --conditional_depth_;
    return node;
  }

  StatementPtr parse_for(const Token& token) {
    auto node = make(StatementKind::kFor, token);
    node->target = parse_target({.end_name = "in", .target = true});
    if (node->target->kind == ExpressionKind::kName && node->target->name == "loop") {
      fail_syntax(token, "for: the name `loop` cannot be the target");
    }
    expect_name("in");
    node->value = parse_tuple({.with_condition = false, .end_name = "recursive"});
    if (skip_name("if")) {
      node->test = parse_expression();
    }
    node->recursive = skip_name("recursive");
    ++loop_depth_;
    node->body = parse_body({"endfor", "else"});
    --loop_depth_;
    if (take().text == "else") {
      node->otherwise = parse_whole_body("endfor");
    }
    return node;
  }

  StatementPtr parse_set(const Token& token) {
    auto node = make(StatementKind::kSet, token);
    node->target = parse_target({.target = true, .with_namespace = true});
    if (skip_operator("=")) {
      node->value = parse_tuple({});
      return node;
    }
    node->kind = StatementKind::kSetBlock;
    node->value = parse_filters(nullptr, /*start_inline=*/false);
    node->body = parse_whole_body("endset");
    return node;
  }

  void parse_signature(Statement& node) {
    expect_operator("(");
    while (!current().is_operator(")")) {
      if (!node.parameters.empty()) {
        expect_operator(",");
      }
      Parameter parameter;
      const Token name = expect_kind(TokenKind::kName, "a parameter's name");
      parameter.name = name.text;
      for (const Parameter& other : node.parameters) {
        if (other.name == parameter.name) {
          fail_syntax(name, fmt::format("parameter `{}` appears twice", parameter.name));
        }
      }
      if (skip_operator("=")) {
        parameter.value = parse_expression();
      } else if (!node.parameters.empty() && node.parameters.back().value) {
        fail_syntax(name, "a parameter without a default follows one with a default");
      }
      node.parameters.push_back(std::move(parameter));
    }
    expect_operator(")");
  }

  // Body that becomes a function of its own: outer loops cannot be left from inside it.
  void parse_function_body(Statement& node, std::string_view end) {
    const int outer = std::exchange(loop_depth_, 0);
    names_read_.emplace_back();
    node.body = parse_whole_body(end);
    const auto& names = names_read_.back();
    node.reads_varargs = names.count("varargs") > 0;
    node.reads_kwargs = names.count("kwargs") > 0;
    node.reads_caller = names.count("caller") > 0;
    names_read_.pop_back();
    loop_depth_ = outer;
  }

  StatementPtr parse_macro(const Token& token) {
    auto node = make(StatementKind::kMacro, token);
    node->text = expect_kind(TokenKind::kName, "the macro's name").text;
    parse_signature(*node);
    parse_function_body(*node, "endmacro");
    return node;
  }

  StatementPtr parse_call_block(const Token& token) {
    auto node = make(StatementKind::kCallBlock, token);
    node->text = "caller";
    if (current().is_operator("(")) {
      parse_signature(*node);
    }
    node->value = parse_expression();
    if (node->value->kind != ExpressionKind::kCall) {
      fail_syntax(token, "call: expected a call of a macro");
    }
    parse_function_body(*node, "endcall");
    return node;
  }

  StatementPtr parse_filter_block(const Token& token) {
    auto node = make(StatementKind::kFilterBlock, token);
    node->value = parse_filters(nullptr, /*start_inline=*/true);
    node->body = parse_whole_body("endfilter");
    return node;
  }

  StatementPtr parse_with(const Token& token) {
    auto node = make(StatementKind::kWith, token);
    while (current().kind != TokenKind::kBlockEnd) {
      if (!node->parameters.empty()) {
        expect_operator(",");
      }
      Parameter parameter;
      parameter.target = parse_target({.target = true});
      expect_operator("=");
      parameter.value = parse_expression();
      node->parameters.push_back(std::move(parameter));
    }
    node->body = parse_whole_body("endwith");
    return node;
  }

  StatementPtr parse_print(const Token& token) {
    auto node = make(StatementKind::kPrint, token);
    while (current().kind != TokenKind::kBlockEnd) {
      if (!node->expressions.empty()) {
        expect_operator(",");
      }
      node->expressions.push_back(parse_expression());
    }
    return node;
  }

  StatementPtr parse_generation(const Token& token) {
    auto node = make(StatementKind::kGeneration, token);
    parse_function_body(*node, "endgeneration");
    return node;
  }

  StatementPtr parse_jump(const Token& token) {
    if (loop_depth_ == 0) {
      fail_syntax(token, fmt::format("`{}` outside of a loop", token.text));
    }
    return make(token.text == "break" ? StatementKind::kBreak : StatementKind::kContinue, token);
  }

  int loop_depth_ = 0;
};

}  // namespace

Block parse_template(std::string_view source) { return TemplateParser(tokenize(source)).parse(); }

}  // namespace graft::text::jinja
