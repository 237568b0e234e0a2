#include "graft/text/chat_template.h"

#include <fstream>
#include <sstream>
#include <string>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "graft/core/error.h"

namespace graft::text {
namespace {

using Json = nlohmann::ordered_json;
using testing::HasSubstr;

std::string read_file(const std::string& path) {
  std::ifstream stream(path, std::ios::binary);
  EXPECT_TRUE(stream.good()) << path;
  std::ostringstream text;
  text << stream.rdbuf();
  return text.str();
}

std::string data(const std::string& name) {
  return read_file(std::string(GRAFT_TEST_DATA) + "/text/chat/" + name);
}

// The moment that the recorded data was rendered at.
std::tm moment() {
  std::tm now = {};
  now.tm_year = 2025 - 1900;
  now.tm_mon = 2;
  now.tm_mday = 7;
  now.tm_hour = 9;
  now.tm_min = 5;
  now.tm_sec = 1;
  std::tm copy = now;
  const std::time_t seconds = timegm(&copy);
  gmtime_r(&seconds, &now);
  return now;
}

// Renders a recorded case and compares text or error with what Python gave.
template <typename Render>
void check(const Json& expected, const std::string& label, Render&& render) {
  try {
    const std::string text = render();
    if (expected.contains("error")) {
      ADD_FAILURE() << label << "\nexpected an error: " << expected.dump() << "\ngot: " << text;
    } else {
      EXPECT_EQ(text, expected["expected"].get<std::string>()) << label;
    }
  } catch (const Error& error) {
    if (!expected.contains("error")) {
      ADD_FAILURE() << label << "\n" << error.what() << "\nexpected: " << expected["expected"];
      return;
    }
    const auto reason = expected["error"].get<std::string>();
    EXPECT_TRUE(reason.empty() || error.code() == "text.chat_template." + reason)
        << label << "\nexpected " << expected.dump() << "\ngot " << error.code() << ": "
        << error.what();
    EXPECT_THAT(error.what(), HasSubstr(" column ")) << label;
  }
}

std::string render(const std::string& source, const Json& variables = {},
                   ChatTemplateOptions options = {}) {
  options.variables = variables;
  options.now = moment();
  return ChatTemplate::parse(source).render(Json::array(), options);
}

template <typename Call>
std::string code_of(Call&& call) {
  try {
    call();
  } catch (const Error& error) {
    return error.code();
  }
  return "no error";
}

TEST(ChatTemplate, ConversationsRenderAsInTransformers) {
  const Json recorded = Json::parse(data("conversations.json"));
  for (const Json& entry : recorded["cases"]) {
    const auto name = entry["template"].get<std::string>();
    check(entry, entry.dump(), [&] {
      ChatTemplateOptions options;
      options.bos_token = recorded["tokens"]["bos_token"];
      options.eos_token = recorded["tokens"]["eos_token"];
      options.now = moment();
      options.variables = Json::object();
      for (const auto& [key, value] : entry["options"].items()) {
        if (key == "add_generation_prompt") {
          options.add_generation_prompt = value;
        } else if (key == "tools") {
          options.tools = value;
        } else {
          options.variables[key] = value;
        }
      }
      return ChatTemplate::parse(data("templates/" + name + ".jinja"), name)
          .render(entry["messages"], options);
    });
  }
}

TEST(ChatTemplate, SnippetsRenderAsInJinja2) {
  const Json recorded = Json::parse(data("snippets.json"));
  for (const Json& entry : recorded["cases"]) {
    const auto source = entry["template"].get<std::string>();
    check(entry, source, [&] { return render(source, recorded["variables"]); });
  }
}

TEST(ChatTemplate, ErrorsNameTemplateLineAndColumn) {
  try {
    ChatTemplate::parse("a\n  {{ b +\n  }}", "my.jinja");
    FAIL();
  } catch (const FormatError& error) {
    EXPECT_EQ(error.code(), "text.chat_template.syntax");
    EXPECT_THAT(error.what(), HasSubstr("`my.jinja` line 3, column 3: expected an expression"));
  }
  try {
    render("é {{ 1 }}\n{{ x.y }}");
    FAIL();
  } catch (const FormatError& error) {
    EXPECT_EQ(error.code(), "text.chat_template.undefined");
    EXPECT_THAT(error.what(), HasSubstr("line 2, column 6: 'x' is undefined"));
  }
}

TEST(ChatTemplate, ARefusalOfTheTemplateIsTheCallersMistake) {
  const auto refuse = ChatTemplate::parse("{{ raise_exception('roles must alternate') }}");
  try {
    refuse.render(Json::array());
    FAIL();
  } catch (const InvalidArgument& error) {
    EXPECT_EQ(error.code(), "text.chat_template.raised");
    EXPECT_THAT(error.what(), HasSubstr("roles must alternate"));
  }
}

TEST(ChatTemplate, WhatIsNotSupportedIsRefusedByName) {
  for (const std::string source :
       {"{{ x | xmlattr }}", "{{ x is odder }}", "{% include 'x' %}", "{% block b %}{% endblock %}",
        "{% do x %}", "{{ 'x'.encode() }}", "{% if true %}{{ x | xmlattr }}{% endif %}"}) {
    EXPECT_EQ(code_of([&] { render(source); }), "text.chat_template.unsupported") << source;
  }
  try {
    ChatTemplate::parse("\n{{ x | xmlattr }}");
    FAIL();
  } catch (const FormatError& error) {
    EXPECT_THAT(error.what(), HasSubstr("line 2, column 8: no filter named `xmlattr`"));
  }
}

TEST(ChatTemplate, DunderAttributesAreRefused) {
  for (const std::string source :
       {"{{ ''.__class__ }}", "{{ messages['__class__'] }}", "{{ range.__globals__ }}",
        "{{ [1] | map(attribute='__init__') | list }}", "{{ '{0.__class__}'.format(1) }}"}) {
    EXPECT_EQ(code_of([&] { render(source); }), "text.chat_template.security") << source;
  }
}

// Each of these runs for hours or takes gigabytes when nothing stops it.
TEST(ChatTemplate, BudgetsStopWhatNeverEnds) {
  const std::string loop = "{% for i in range(100000) %}";
  const std::string chain = "{% set ns = namespace(x='ab') %}" + loop;
  const std::vector<std::string> sources = {
      loop + loop + "{% endfor %}{% endfor %}",
      loop + "{{ 'x' * 1000000 }}{% endfor %}",
      "{{ 'x' * 1000000000000 }}",
      "{{ 'x' * 9223372036854775807 }}",
      "{{ [0] * 1000000000 }}",
      chain + "{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
      chain + "{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x == ns.x }}",
      chain + "{% set ns.x = (ns.x,) %}{% endfor %}",
      chain + "{% set ns.x = ns.x | map('upper') %}{% endfor %}{{ ns.x | list }}",
      chain + "{% set ns.x = ns.x.replace('a', 'a' * 1000) %}{% endfor %}",
      "{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}",
      "{% macro f(x) %}{% for i in [1, 2] %}{{ f(i) }}{% endfor %}{% endmacro %}{{ f(1) }}",
      "{% for x in [[1]] recursive %}{{ loop([[1]]) }}{% endfor %}",
      "{{ 'x'.center(1000000000000) }}",
      "{{ '%1000000000d' % 1 }}",
      "{{ '{:>1000000000}'.format(1) }}",
      "{{ range(1000000000) | list }}",
  };
  for (const std::string& source : sources) {
    const std::string code = code_of([&] { render(source); });
    EXPECT_TRUE(code == "text.chat_template.budget" || code == "text.chat_template.type")
        << source << ": " << code;
  }
}

TEST(ChatTemplate, DeepNestingIsRefusedAndDoesNotOverflowTheStack) {
  constexpr size_t kDepth = 50'000;
  auto repeat = [](const std::string& text) {
    std::string out;
    for (size_t i = 0; i < kDepth; ++i) {
      out += text;
    }
    return out;
  };
  for (const std::string& source :
       {"{{ " + repeat("(") + "1" + repeat(")") + " }}",
        "{{ " + repeat("[") + "1" + repeat("]") + " }}", "{{ " + repeat("not ") + "1 }}",
        "{{ " + repeat("-") + "1 }}", "{{ 1" + repeat("+1") + " }}", "{{ a" + repeat(".b") + " }}",
        "{{ a" + repeat("|e") + " }}", "{{ a" + repeat("()") + " }}",
        "{{ 1" + repeat(" if 1") + " }}", repeat("{% if 1 %}"), repeat("{% for x in y %}"),
        "{{ 1" + repeat(" if 1 else 1") + " }}", "{{ a" + repeat(" and a") + " }}",
        "{{ " + repeat("{1:") + "1" + repeat("}") + " }}",
        "{% set " + repeat("(") + "a" + repeat(")") + " = 1 %}"}) {
    EXPECT_EQ(code_of([&] { ChatTemplate::parse(source); }), "text.chat_template.budget")
        << source.substr(0, 40);
  }
  // Many siblings are no nesting.
  std::string flat = "{% if a %}0";
  for (int i = 0; i < 2000; ++i) {
    flat += "{% elif b %}{{ 1 ~ 2 }}";
  }
  EXPECT_EQ(render(flat + "{% endif %}"), "");
}

TEST(ChatTemplate, CyclesThroughNamespacesAndMacrosAreFreed) {
  EXPECT_EQ(
      render("{% set ns = namespace() %}{% set ns.me = ns %}{% macro m() %}{{ ns.f is defined "
             "}}{% endmacro %}{% set ns.f = m %}{{ ns.me.me.f() }}"),
      "True");
  EXPECT_EQ(render("{% set ns = namespace(p=none) %}{% for i in range(20000) %}{% set ns = "
                   "namespace(p=ns) %}{% endfor %}x"),
            "x");
  EXPECT_EQ(render("{% set o = namespace(p=none) %}{% for i in range(20000) %}{% set o.p = "
                   "namespace(p=o.p) %}{% endfor %}x"),
            "x");
}

TEST(ChatTemplate, ValuesThatTheTemplateCannotHoldAreRefused) {
  const auto any = ChatTemplate::parse("{{ messages }}");
  EXPECT_EQ(code_of([&] { any.render(Json::object()); }), "text.chat_template.arguments");
  EXPECT_EQ(code_of([&] { any.render(Json::array({"\xff"})); }), "text.chat_template.arguments");
  EXPECT_EQ(code_of([&] { any.render(Json::array({UINT64_MAX})); }),
            "text.chat_template.arguments");
  Json deep;
  for (int i = 0; i < 100'000; ++i) {
    deep = Json::array({std::move(deep)});
  }
  EXPECT_EQ(code_of([&] { any.render(deep); }), "text.chat_template.arguments");
  EXPECT_EQ(code_of([&] { ChatTemplate::parse("\xff"); }), "text.chat_template.source");
  EXPECT_EQ(code_of([&] { ChatTemplate::parse(std::string(2 << 20, 'x')); }),
            "text.chat_template.source");
}

TEST(ChatTemplate, RenderingTwiceGivesTheSameText) {
  const auto chat = ChatTemplate::parse(data("templates/qwen3.jinja"));
  const Json messages = Json::parse(R"([{"role": "user", "content": "hi"}])");
  EXPECT_EQ(chat.render(messages, {.add_generation_prompt = true}),
            "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n");
  EXPECT_EQ(chat.render(messages), "<|im_start|>user\nhi<|im_end|>\n");
  EXPECT_EQ(chat.render(messages), "<|im_start|>user\nhi<|im_end|>\n");
}

}  // namespace
}  // namespace graft::text
