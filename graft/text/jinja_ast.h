// Syntax tree of a template. Internal to graft/text.
#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "graft/text/jinja_value.h"

namespace graft::text::jinja {

struct Expression;
using ExpressionPtr = std::unique_ptr<Expression>;

enum class ExpressionKind : uint8_t {
  kConstant,     // constant
  kName,         // name
  kAttributeOf,  // items[0] . name
  kItemOf,       // items[0] [ items[1] ]
  kSlice,        // start, stop, step; null where left out
  kCall,         // items[0] ( arguments )
  kFilter,       // items[0] | name ( arguments ); items[0] null: the body of a filter block
  kTest,         // items[0] is name ( arguments )
  kUnary,        // name is `-`, `+` or `not`
  kBinary,       // name is the operator
  kAnd,
  kOr,
  kConcat,       // items joined by ~
  kCompare,      // items[0] with operators[i] and items[i + 1]
  kConditional,  // items: condition, then, else (null when left out)
  kList,
  kTuple,
  kDict,          // items: key, value, key, value…
  kNamespaceRef,  // target `name`.`attribute`
};

struct CallArguments {
  std::vector<ExpressionPtr> positional;
  std::vector<std::pair<std::string, ExpressionPtr>> named;
  ExpressionPtr star;         // *expression
  ExpressionPtr double_star;  // **expression
};

struct Expression {
  ExpressionKind kind = ExpressionKind::kConstant;
  Position at;
  std::string name;
  std::string attribute;
  Value constant;
  std::vector<ExpressionPtr> items;
  std::vector<std::string> operators;
  std::unique_ptr<CallArguments> arguments;
  uint32_t height = 1;  // of the tree below; bounded, because evaluation recurses
};

struct Statement;
using Block = std::vector<std::unique_ptr<Statement>>;

enum class StatementKind : uint8_t {
  kData,         // text
  kPrint,        // expressions
  kSet,          // target, value
  kSetBlock,     // target, body, value: chain of filters or null
  kIf,           // branches, otherwise
  kFor,          // target, value, test, body, otherwise, recursive
  kMacro,        // text: name; parameters, body
  kCallBlock,    // value: the call; parameters, body
  kFilterBlock,  // value: chain of filters; body
  kWith,         // parameters with values; body
  kGeneration,   // body
  kBreak,
  kContinue,
};

struct Parameter {
  std::string name;
  ExpressionPtr target;  // only in `with`, where tuples may stand
  ExpressionPtr value;   // the default, null if none
};

struct Branch {
  ExpressionPtr condition;
  Block body;
};

struct Statement {
  StatementKind kind = StatementKind::kData;
  Position at;
  std::string text;
  ExpressionPtr target;
  ExpressionPtr value;
  ExpressionPtr test;
  std::vector<ExpressionPtr> expressions;
  std::vector<Parameter> parameters;
  std::vector<Branch> branches;
  Block body;
  Block otherwise;
  bool recursive = false;
  // Which of the special names a macro's body reads; only then it accepts such arguments.
  bool reads_varargs = false;
  bool reads_kwargs = false;
  bool reads_caller = false;
};

}  // namespace graft::text::jinja
