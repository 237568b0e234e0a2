// The expression half of the parser. Internal to graft/text.
#pragma once

#include <functional>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "graft/text/jinja_ast.h"
#include "graft/text/jinja_lexer.h"

namespace graft::text::jinja {

class ExpressionParser {
 public:
  explicit ExpressionParser(std::vector<Token> tokens) : tokens_(std::move(tokens)) {}

 protected:
  struct TupleRules {
    bool with_condition = true;
    std::string_view end_name = {};  // a name that ends the tuple, as `in` does in `for`
    bool parenthesized = false;
    bool target = false;          // only names and literals
    bool with_namespace = false;  // targets may be `namespace.attribute`
  };

  const Token& current() const { return tokens_[index_]; }
  const Token& look() const { return tokens_[std::min(index_ + 1, tokens_.size() - 1)]; }
  Token take();
  bool skip_operator(std::string_view symbol);
  bool skip_name(std::string_view name);
  Token expect_operator(std::string_view symbol);
  Token expect_kind(TokenKind kind, std::string_view what);
  Token expect_name(std::string_view name);

  ExpressionPtr parse_tuple(const TupleRules& rules);
  ExpressionPtr parse_expression(bool with_condition = true);
  ExpressionPtr parse_target(const TupleRules& rules);
  ExpressionPtr parse_filters(ExpressionPtr subject, bool start_inline);

  // Nesting guard: one for every construct that makes the parser recurse.
  class Nesting {
   public:
    explicit Nesting(ExpressionParser& parser);
    ~Nesting() { --parser_.depth_; }
    Nesting(const Nesting&) = delete;
    Nesting& operator=(const Nesting&) = delete;

   private:
    ExpressionParser& parser_;
  };

  // Unknown filters and tests are errors at once, but under a condition only when reached, so that
  // a template may ask for what its host offers.
  int conditional_depth_ = 0;
  std::vector<std::set<std::string>> names_read_;  // one set per open macro

 private:
  ExpressionPtr make(ExpressionKind kind, const Token& token, std::string name = {});
  ExpressionPtr parse_or();
  ExpressionPtr parse_and();
  ExpressionPtr parse_not();
  ExpressionPtr parse_compare();
  ExpressionPtr parse_sum();
  ExpressionPtr parse_concat();
  ExpressionPtr parse_product();
  ExpressionPtr parse_power();
  ExpressionPtr parse_unary(bool with_filters);
  ExpressionPtr parse_primary(bool with_namespace);
  ExpressionPtr parse_name(bool with_namespace);
  ExpressionPtr parse_list();
  ExpressionPtr parse_dict();
  ExpressionPtr parse_postfix(ExpressionPtr subject);
  ExpressionPtr parse_subscript(ExpressionPtr subject);
  ExpressionPtr parse_subscribed();
  ExpressionPtr parse_call(ExpressionPtr subject);
  std::unique_ptr<CallArguments> parse_arguments();
  void parse_argument(CallArguments& arguments, const Token& open);
  ExpressionPtr parse_filter_chain(ExpressionPtr subject);
  ExpressionPtr parse_test(ExpressionPtr subject);
  std::string parse_dotted_name(std::string_view what);
  bool at_tuple_end(const TupleRules& rules) const;

  std::vector<Token> tokens_;
  size_t index_ = 0;
  int depth_ = 0;
};

// Gives `parent` a child and the height that follows; a null child is allowed.
void add_child(Expression& parent, ExpressionPtr child);
std::string describe(const Token& token);
[[noreturn]] void fail_syntax(const Token& token, std::string message);

}  // namespace graft::text::jinja
