#!/usr/bin/env python3
"""Writes tests/data/text/chat/{conversations,snippets}.json: what transformers and jinja2 render.

The templates beside them are written for these tests: they use the constructs of the templates
that well-known models ship, with texts of their own. Run it with transformers and jinja2 installed;
running it again gives the same bytes.
"""

import datetime
import json
import pathlib

import jinja2
import transformers.utils.chat_template_utils as chat

ROOT = pathlib.Path(__file__).resolve().parent.parent / "tests/data/text/chat"
NOW = datetime.datetime(2025, 3, 7, 9, 5, 1)


class FixedClock(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return NOW


chat.datetime = FixedClock


def error_of(exception):
    """The reason that graft's error code must carry; '' where any reason will do."""
    if isinstance(exception, jinja2.exceptions.SecurityError):
        return "security"
    if isinstance(exception, jinja2.UndefinedError):
        return "undefined"
    if isinstance(exception, jinja2.TemplateAssertionError):
        return ""
    if isinstance(exception, jinja2.TemplateSyntaxError):
        return "syntax"
    if type(exception) is jinja2.TemplateError:
        return "raised"
    return ""


def render(template, **variables):
    try:
        return {"expected": chat._compile_jinja_template(template).render(**variables)}
    except Exception as exception:  # every failure of the oracle is data
        return {"error": error_of(exception), "message": str(exception).split(" at 0x")[0]}


# ---------------------------------------------------------------------------- conversations

U = {"role": "user", "content": "  What is 2 + 2?\n"}
A = {"role": "assistant", "content": "It is 4.  "}
U2 = {"role": "user", "content": "Und größer? «ß» 日本 🙂 <b>&\"'</b>"}
S = {"role": "system", "content": "Be brief.\n"}
THINK = {"role": "assistant", "content": "<think>\nAdding…\n</think>\n\nFour."}
REASONED = {"role": "assistant", "content": "Four.", "reasoning_content": "\nsum\n"}
CALL = {
    "role": "assistant",
    "content": "",
    "tool_calls": [
        {
            "id": "abc123XYZ",
            "type": "function",
            "function": {"name": "weather", "arguments": {"city": "Köln", "days": 3, "exact": True}},
        }
    ],
}
CALL_TEXT = {
    "role": "assistant",
    "content": None,
    "tool_calls": [
        {"id": "call00001", "type": "function",
         "function": {"name": "weather", "arguments": '{"city": "Bonn"}'}},
        {"id": "call00002", "type": "function",
         "function": {"name": "time", "arguments": "{}"}},
    ],
}
RESULT = {"role": "tool", "name": "weather", "content": "sunny", "tool_call_id": "abc123XYZ"}
RESULT_DICT = {"role": "tool", "content": {"content": 21.5, "unit": "°C"}, "tool_call_id": "abc123XYZ"}
PARTS = {
    "role": "user",
    "content": [{"type": "image"}, {"type": "text", "text": " Look at this. "}],
}
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Weather of a city & its \"surroundings\"",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "description": "A city's name"},
                "unit": {"type": "string", "enum": ["°C", "°F"], "default": "°C"},
                "days": {"type": "integer", "default": 1},
                "tags": {"type": "array", "items": {"type": "string", "nullable": True}},
                "where": {
                    "type": "object",
                    "properties": {"lat": {"type": "number"}, "lon": {"type": "number"}},
                    "required": ["lat", "lon"],
                },
                "either": {"oneOf": [{"type": "string"}, {"type": "number", "description": "a code"}]},
                "both": {"type": ["string", "null"]},
            },
            "required": ["city"],
        },
        "return": {"type": "string"},
    },
}
TIME = {
    "type": "function",
    "function": {"name": "time", "description": "Now", "parameters": {"type": "object", "properties": {}}},
}

PLAIN = [[U], [U, A], [U, A, U2], [S, U], [S, U, A, U2]]
TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}


def conversations():
    cases = []

    def add(template, messages, **options):
        cases.append({"template": template, "messages": messages, "options": options})

    for name in sorted(path.stem for path in (ROOT / "templates").glob("*.jinja")):
        for i, messages in enumerate(PLAIN):
            add(name, messages, add_generation_prompt=i % 2 == 0)
        add(name, [A, U])  # many templates refuse this order
        add(name, [])
    for prompt in (True, False):
        add("llama2", [U, A, U2], use_default_system=prompt)
        add("llama3.1", [S, U, CALL, RESULT], tools=[WEATHER, TIME], add_generation_prompt=prompt)
        add("llama3.1", [U, CALL, RESULT_DICT], tools=[WEATHER], tools_in_user_message=prompt)
        add("llama3.1", [U], tools=[TIME], custom_tools=[WEATHER], date_string="1 Jan 2000")
        add("llama3.1", [], tools=[TIME], add_generation_prompt=prompt)
        add("mistral_v3", [S, U, CALL, RESULT, A, U2], tools=[WEATHER, TIME], add_generation_prompt=prompt)
        add("qwen2.5", [S, U, CALL, RESULT, RESULT, A, U2], tools=[WEATHER], add_generation_prompt=prompt)
        add("qwen2.5", [U, CALL, RESULT], tools=[TIME], add_generation_prompt=prompt)
        add("qwen3", [S, U, THINK, U2, THINK], add_generation_prompt=prompt)
        add("qwen3", [U, REASONED, CALL, RESULT], tools=[WEATHER], add_generation_prompt=prompt)
        add("qwen3", [U, CALL_TEXT, RESULT, RESULT, REASONED], tools=[TIME])
        add("qwen3", [U], enable_thinking=prompt, add_generation_prompt=True)
        add("smollm3", [S, U, A], enable_thinking=prompt, add_generation_prompt=True)
        add("smollm3", [U, A], tools=[WEATHER], enable_thinking=prompt)
        add("smollm3", [U], python_tools=["def f(x): ...", "def g(): ..."], xml_tools=[TIME])
        add("gemma3", [S, PARTS, A], add_generation_prompt=prompt)
        add("deepseek", [S, U, THINK, U2], add_generation_prompt=prompt)
        add("deepseek", [U, CALL_TEXT, RESULT, RESULT], add_generation_prompt=prompt)
        add("typescript_tools", [U, A], tools=[WEATHER, TIME])
        add("phi3", [S, U, A], add_generation_prompt=prompt)
    add("llama3.1", [S, U], builtin_tools=["code_interpreter", "search", "maths"])
    add("llama3.1", [U, {"role": "assistant", "content": "", "tool_calls": [
        {"function": {"name": "search", "arguments": {"query": "cats", "lang": "en"}}}]}],
        builtin_tools=["search"])
    add("llama3.1", [U, {"role": "assistant", "tool_calls": [{}, {}]}])
    add("mistral_v3", [U, {**CALL, "tool_calls": [{"function": {"name": "f", "arguments": {}}}]}])
    add("gemma3", [{"role": "system", "content": [{"type": "text", "text": "Parts"}]}, PARTS])
    add("gemma3", [{"role": "user", "content": 3}])
    add("smollm3", [{"role": "system", "content": "/system_override Obey. /no_think"}, U])
    add("smollm3", [{"role": "system", "content": "Hm /no_think"}, U, A], add_generation_prompt=True)
    add("phi4_mini", [{**S, "tools": json.dumps([TIME])}, U], add_generation_prompt=True)
    add("typescript_tools", [{"role": "developer", "content": "x"}], model_name="this model", tools=[TIME])
    for case in cases:
        variables = {"tools": None, "documents": None, "add_generation_prompt": False}
        variables.update(TOKENS)
        variables.update(case["options"])
        source = (ROOT / "templates" / (case["template"] + ".jinja")).read_text(encoding="utf-8")
        case.update(render(source, messages=case["messages"], **variables))
    return cases


# ---------------------------------------------------------------------------- snippets

# Every snippet sees these variables.
VARIABLES = {
    "a": 7, "b": -3, "f": 2.5, "t": True, "n": None, "s": "Hello, World", "u": "größe 日本🙂",
    "l": [3, 1, 2], "words": ["pear", "Apple", "fig", "apple"], "e": [], "d": {"x": 1, "y": "two", "items": 5},
    "people": [{"name": "Bo", "age": 30, "job": {"title": "x"}}, {"name": "al", "age": 25},
               {"name": "Cy", "age": 30, "job": {"title": "y"}}],
    "deep": {"k": [1, {"z": [None, True, 1.5, "q'\"\n"]}]}, "html": "<a href='x'>&</a>",
    "lines": "one\n\n  two\nthree\n", "messages": [{"role": "user", "content": "hi"}],
}

EXPRESSIONS = r"""
1 + 2 * 3 - 4 / 2
7 // 2, -7 // 2, 7 % 3, -7 % 3, 7 % -3, 7.5 // 2, -7.5 % 2, 2 ** 10, 2 ** -1, 2 ** 3 ** 2, -2 ** 2
10 / 5, 1 / 3, 1e3, 1e16, 1e22, 1.5e-7, 0.1 + 0.2, 100000000000000000.0, 1e-4, 0.0001234, -0.0
0x1F, 0b101, 0o17, 1_000, 0, 00, 1_0.5_0, 1E5
True + True, true * 3, not true, not none, 1 == True, 1 == 1.0, "1" == 1, none == false
1 < 2 < 3, 1 < 3 > 2, 3 > 2 > 2, 1 != 1, "a" < "b", [1, 2] < [1, 3], (1, 2) == (1, 2), [1] == (1,)
a > 5 and b < 0, a and n, n or s, e or "none", t and e, not e and t
not a == 7, not (a == 7), a in l, 3 in l, 3 not in l, "x" in d, "ell" in s, "items" in d, not 3 in l
"a" ~ 1 ~ none ~ 2.0 ~ [1, "b"] ~ t, 1 ~ (2 + 3), 2 * "ab", "-" * 3, [0] * 3, (1,) * 2
"yes" if a > 5 else "no", "yes" if a < 5, ("x" if false) is defined, 1 if t else 2 if n else 3
l[0], l[-1], l[5], l[0:2], l[::-1], l[::2], l[-2:], l[:-1], l[5:], l[2:0:-1], s[0], s[-1], s[7:], s[::-1], u[6:8], u[-1]
d.x, d["y"], d.missing, d["missing"], d.items() | list, d["items"], d.get("x"), d.get("q"), d.get("q", 9), d.keys(), d.values(), d.items()
people[0].name, people[0]["job"].title, people[1].job, people[1].job is defined, deep.k[1].z[3]
[], (), {}, (1,), [1, "two", 3.0, none, true], {"a": 1, 2: "b", none: 3, (1, 2): 4}, {"k": [1, {"z": ()}]}
"it's", 'say "hi"', "both ' and \"", "tab\tnl\nbs\\ ", ["it's", 'say "hi"', "both ' and \"", "tab\tnl\nbs\\ ", "\u00e9\u200b\x01🙂"]
"impl" "icit" 'concat', "esc: \x41 \u00e9 \U0001F642 \101 \q", 'new
line'
s | upper, s | lower, s | title, s | capitalize, "hello-big (world) x.y" | title, u | upper, "ǆ ß ﬁ" | upper, "ΑΣ ΣΑΣ" | lower
"hELLO wORLD".title(), "hELLO wORLD".capitalize(), "they're bill's".title(), "Ab".swapcase(), "ab1".upper()
s | trim, "  x  " | trim, "xxhixx" | trim("x"), "\u00a0 x \u2003" | trim, " x ".strip(), "xyhixy".strip("xy"), "  x ".lstrip() ~ "|", " x  ".rstrip() ~ "|"
s | length, l | length, d | length, u | length, u | count, "" | length, range(5) | length, (1, 2) | length
s | replace("l", "L"), s | replace("l", "L", 1), "aaa" | replace("", "-"), "aaa".replace("a", "b", 2), 123 | replace("2", "x"), "abc".replace("", "."), "".replace("", "x")
s.split(", "), "a b  c ".split(), "a b  c ".split(" "), "a,b,c".split(",", 1), "a,b,c".rsplit(",", 1), " a b c ".split(none, 1), " a b c ".rsplit(none, 1), "".split(), "".split(",")
s.startswith("He"), s.endswith("d"), s.startswith(("x", "H")), s.startswith("o", 4), s.find("o"), s.find("z"), s.rfind("o"), s.index("W"), s.count("l"), s.count(""), u.find("日")
"a\nb\r\nc\n".splitlines(), "a\nb".splitlines(true), "a=b=c".partition("="), "a=b=c".rpartition("="), "abc".partition("x"), "abc".rpartition("x")
"x".center(5) ~ "|", "x".center(4, "*"), "ab".center(5, "."), "x".ljust(3) ~ "|", "x".rjust(3, "0"), "-7".zfill(4), "7".zfill(3), "a\tb".expandtabs(4), "prefix-x".removeprefix("prefix-"), "x.py".removesuffix(".py")
"abc".isalpha(), "ab1".isalnum(), "12".isdigit(), "12".isnumeric(), "½".isnumeric(), "".isdigit(), "ABC".isupper(), "abc".islower(), "Ab Cd".istitle(), " \n".isspace(), "x1".isidentifier(), "é".isascii(), "".isascii(), "1".isdecimal()
",".join(["a", "b"]), ", ".join("abc"), "".join([]), "-".join(d)
"{} and {}".format(1, "x"), "{0}{1}{0}".format("a", "b"), "{x}".format(x=3), "{:>5}|{:<5}|{:^5}|{:05d}|{:.2f}|{:,}|{:x}|{:+d}|{:%}|{!r}".format("a", "b", "c", 42, 3.14159, 1234567, 255, 5, 0.25, "q"), "{{}}".format(), "{0.x} {0[y]}".format(d)
"%s is %d years, %.1f%%, %05d, %-5s|, %5s|, %x, %r, %i, %e, %g" % ("Bo", 30, 99.5, 42, "ab", "cd", 255, "q", 7, 12345.678, 0.0001), "%(k)s" % {"k": 1}, "%s" % "x", "%s" % [1], "100%%" % ()
"%s and %s" | format("a", 2), "%(x)s" | format(x=5)
l | sort, l | sort(reverse=true), words | sort, words | sort(case_sensitive=true), people | sort(attribute="age") | map(attribute="name") | list, people | sort(attribute="age,name") | map(attribute="name") | join(" ")
l | first, l | last, e | first, e | last, s | first, s | last, d | first, l | min, l | max, words | min, e | max, l | sum, people | sum(attribute="age"), [0.5, 1] | sum(start=10)
l | join, l | join(", "), people | join("/", attribute="name"), [1, none, "x", true] | join("-"), "abc" | join("."), d | join(",")
l | map("string") | list, words | map("upper") | list, people[:1] | map(attribute="job.title") | list, people | map(attribute="job.title", default="-") | list, words | map("replace", "p", "q") | join(" "), none | map("upper") | list
l | select("odd") | list, l | reject("odd") | list, [0, 1, "", "x", none] | select | list, [0, 1, "", "x"] | reject | list, l | select(">", 1) | list, l | select("in", [1, 2]) | list
people | selectattr("job") | list, people | selectattr("age", "eq", 30) | map(attribute="name") | list, people | rejectattr("age", "==", 30) | list | length, people | selectattr("job", "defined") | list | length, people | rejectattr("job", "defined") | map(attribute="name") | first, people | selectattr("job.title", "equalto", "y") | list
d | items | list, missing | items | list, d | dictsort, {"b": 1, "A": 2, "c": 0} | dictsort, {"b": 1, "A": 2, "c": 0} | dictsort(true), {"b": 1, "A": 2, "c": 0} | dictsort(false, "value"), {"b": 1, "A": 2} | dictsort(reverse=true)
words | unique | list, words | unique(true) | list, [1, 1.0, true, 2] | unique | list, l | reverse | list, "abc" | reverse, l | list, "abc" | list, d | list, range(3) | list, (1, 2) | list
[1, 2, 3, 4, 5] | batch(2) | list, [1, 2, 3, 4, 5] | batch(2, "-") | list, [1, 2, 3, 4, 5] | slice(2) | list, [1, 2, 3, 4, 5] | slice(3, "x") | list
"3" | int, "3.7" | int, "x" | int, "x" | int(5), 3.9 | int, -3.9 | int, "0x1f" | int(0, 16), none | int, " 12 " | int, "1_000" | int, true | int, "1e3" | int
"3.5" | float, "x" | float, 3 | float, "inf" | float, "-1e3" | float, none | float(1.5), " 2 " | float, ".5" | float, "5." | float
-3 | abs, 3.5 | abs, 2.5 | round, 3.5 | round, 2.675 | round(2), 1234 | round(-2), 2.1 | round(0, "ceil"), 2.9 | round(method="floor"), 7 | round, 1.005 | round(1)
missing | default("d"), n | default("d"), n | default("d", true), "" | d("x", boolean=true), missing | d, missing.x | default("q") if missing is defined else "-"
html | e, html | escape, html | safe, (html | safe) | e, html | forceescape, ("<i>" | safe) + "<b>", ("<i>" | safe) ~ "<b>", ["<i>" | safe, "x"], html | string
d | tojson, l | tojson, deep | tojson, u | tojson, html | tojson, none | tojson, true | tojson, 1.0 | tojson, 1e100 | tojson, "\x7f\x1f\u2028" | tojson, {1: 2, none: 3, true: 4, 1.5: 5} | tojson, () | tojson, {} | tojson(indent=2), [] | tojson(indent=2)
deep | tojson(indent=2), d | tojson(indent=0), u | tojson(ensure_ascii=true), {"b": 1, "a": 2} | tojson(sort_keys=true), d | tojson(separators=(",", ":")), l | tojson(indent="--"), [[1], {"a": []}] | tojson(indent=4), d | tojson(true), "🙂é" | tojson(ensure_ascii=true)
lines | indent, lines | indent(2, true), lines | indent(2, blank=true), lines | indent("> ", true, true), "x" | indent
"one two three four" | truncate(11), "one two three four" | truncate(11, true), "one two three four" | truncate(11, end="~", leeway=0), "short" | truncate(3), "a b c" | wordcount, "x" | center(5), "a b/c?d=é" | urlencode
a is defined, missing is defined, missing is undefined, n is none, a is none, s is string, a is string, d is mapping, l is mapping, l is sequence, s is sequence, d is sequence, a is sequence, l is iterable, a is iterable, s is iterable
a is number, f is number, t is number, a is integer, t is integer, f is float, t is boolean, a is boolean, t is true, a is true, false is false, 1 is true, a is odd, a is even, 9 is divisibleby 3, 9 is divisibleby(4)
a is eq 7, a is equalto 7, a is ==(7), a is ne 7, a is gt 5, a is lt 5, a is ge 7, a is le 6, a is in [7], a is not in [7], a is in(l), s is lower, "abc" is lower, "ABC" is upper, range is callable, a is callable, n is sameas none, a is sameas 7, html is escaped, html | safe is escaped
a is not defined, a is not none and b is not none, not a is none, a is defined and a > 3, (a is defined) | string, missing is sequence, missing is iterable, missing is callable, "upper" is filter, "nope" is filter, "defined" is test
range(5), range(1, 10, 3) | list, range(3, 0, -1) | list, range(0) | list, range(10)[2:5], range(10)[::-2] | list, range(5)[-1], 3 in range(5), range(2) == range(2), range(1, 4, 2)
dict(a=1, b="x"), dict([("k", 1), ("l", 2)]), dict({"z": 1}, y=2), namespace(a=1).a, dict(**d).x
strftime_now("%Y-%m-%d %H:%M:%S %j %A %B %y %%"), strftime_now("%d %b %Y"), strftime_now("")
[1, 2] + [3], (1,) + (2,), "a" + "b", 1 + 2.5, [1, 2].index(2), [1, 2, 1].count(1), (1, 2).index(2), "a,b".split(",")[1], {"a": {"b": 1}}.a.b, {"a": 1}["a"], [[1, 2], [3]][0][1], l.0, "abc"[1:][0]
-1 | abs, -l[0], +a, - -a, -f | round, not not a, (a, b), a, b
a if a is defined, l | length > 2, "x" * (l | length), (l | first) + 1, l | map("int") | sum * 2, s.upper().lower() | title, (s | upper).split("L") | length
1.0, 2.50, 1e5, 123456789.123456789, 1e15, 1.0e15 + 0.5, 5 / 2, 4 / 2, 10 ** 18, 7 // 2.0, 0.1, 3.0 | int, f * 1e308 * 1e308, (-f * 1e308 * 1e308) | string
none, true, False, None, True, "none", [none, true], none ~ true, missing ~ "x", [missing], missing == missing, missing != 1, missing in [1], missing is none, 1 in missing
d.keys() | list, d.values() | list, d | length, d == {"y": "two", "items": 5, "x": 1}, d.items() | first, "x" in d.keys(), 5 in d.values(), (d.items() | list)[0][1], d.copy() == d, [1].copy()
""".strip().replace("'new\nline'", "'new\\nline'").split("\n")

STATEMENTS = [
    "{% for x in l %}{{ loop.index }}/{{ loop.length }}:{{ x }}{{ '' if loop.last else ', ' }}{% endfor %}",
    "{% for x in l %}{{ loop.index0 }}{{ loop.revindex }}{{ loop.revindex0 }}{{ loop.first }}{{ loop.last }}{{ loop.depth }}{{ loop.depth0 }} {% endfor %}",
    "{% for x in l %}{{ loop.previtem }}<{{ x }}>{{ loop.nextitem }} {% endfor %}",
    "{% for x in l %}{{ loop.cycle('odd', 'even') }} {% endfor %}{% for x in [1, 1, 2] %}{{ loop.changed(x) }} {% endfor %}",
    "{% for x in e %}x{% else %}empty{% endfor %}{% for x in l if x > 5 %}x{% else %}none{% endfor %}",
    "{% for x in l if x != 1 %}{{ loop.index }}{{ x }}{{ loop.last }} {% endfor %}",
    "{% for k, v in d.items() %}{{ k }}={{ v }};{% endfor %}{% for k in d %}{{ k }}{% endfor %}",
    "{% for k, v in d | items %}{{ k }}={{ v }};{% endfor %}{% for a, (b, c) in [(1, (2, 3))] %}{{ a }}{{ b }}{{ c }}{% endfor %}",
    "{% for a, b in [[1, 2, 3]] %}{% endfor %}",
    "{% for a, b in [[1]] %}{% endfor %}",
    "{% for x in 5 %}{% endfor %}",
    "{% for x in none %}{% endfor %}",
    "{% for x in missing %}x{% endfor %}ok",
    "{% for c in u %}[{{ c }}]{% endfor %}",
    "{% for x in range(10) %}{% if x == 2 %}{% continue %}{% endif %}{% if x == 5 %}{% break %}{% endif %}{{ x }}{% endfor %}",
    "{% for x in l %}{% for y in l %}{% if y == x %}{% break %}{% endif %}{{ x }}{{ y }} {% endfor %}{% endfor %}",
    "{% for x in l %}{% for y in 'ab' %}{{ loop.index }}{{ y }}{% endfor %}{{ loop.index }} {% endfor %}",
    "{% for x in [1, [2, [3]]] recursive %}{% if x is number %}{{ x }}@{{ loop.depth }}{% else %}({{ loop(x) }}){% endif %}{% endfor %}",
    "{% for x in l recursive %}{{ x }}{% else %}none{% endfor %}",
    "{% set x = 1 %}{% for i in l %}{% set x = x + i %}{{ x }} {% endfor %}{{ x }}",
    "{% set ns = namespace(x=1, y='q') %}{% for i in l %}{% set ns.x = ns.x + i %}{% endfor %}{{ ns.x }}{{ ns.y }}{{ ns.z }}{{ ns }}",
    "{% set q.x = 1 %}",
    "{% set d.x = 1 %}",
    "{% set a, b = 1, 2 %}{{ a }}{{ b }}{% set (c, e) = [3, 4] %}{{ c }}{{ e }}{% set z = 1, 2 %}{{ z }}",
    "{% set ns = namespace() %}{% set ns.a, x = 1, 2 %}{{ ns.a }}{{ x }}",
    "{% set block %}a{{ a }}{% if t %}b{% endif %}{% endset %}[{{ block }}]{{ block is string }}",
    "{% set block | upper | replace('A', '*') %}abc{% endset %}{{ block }}",
    "{% set x = 1 %}{% set y %}{% set x = 2 %}{{ x }}{% endset %}{{ x }}{{ y }}",
    "{% if a > 100 %}1{% elif a > 5 %}2{% elif t %}3{% else %}4{% endif %}{% if n %}x{% endif %}{% if e %}x{% else %}y{% endif %}",
    "{% if t %}{% set inner = 5 %}{% endif %}{{ inner }}",
    "{% if missing %}x{% else %}y{% endif %}{% if not missing %}z{% endif %}",
    "{% macro m(x, y=2, z='q') %}<{{ x }},{{ y }},{{ z }}>{% endmacro %}{{ m(1) }}{{ m(1, 3) }}{{ m(x=5, z=6) }}{{ m(1, z=0) }}{{ m() }}",
    "{% macro m(x, y=x + 1) %}{{ x }}{{ y }}{% endmacro %}{{ m(1) }}{{ m(1, 5) }}",
    "{% macro m(x) %}{{ x }}{% endmacro %}{{ m(1, 2) }}",
    "{% macro m(x) %}{{ x }}{% endmacro %}{{ m(y=1) }}",
    "{% macro m(x) %}{{ x }}{{ varargs }}{{ kwargs }}{% endmacro %}{{ m(1, 2, 3, k=4) }}{{ m.name }}{{ m.arguments }}",
    "{% macro m() %}{{ caller() }}-{{ caller(2) }}{% endmacro %}{% call(x=1) m() %}<{{ x }}>{% endcall %}",
    "{% macro m(x) %}[{{ x }}{{ caller() }}]{% endmacro %}{% call m('q') %}in{{ a }}{% endcall %}",
    "{% macro m(x) %}{{ caller is defined }}{{ x }}{% endmacro %}{{ m(1) }}",
    "{% macro m(x) %}{{ caller() }}{% endmacro %}{{ m(1) }}",
    "{% macro fact(i) %}{% if i < 2 %}1{% else %}{{ i * (fact(i - 1) | int) }}{% endif %}{% endmacro %}{{ fact(10) }}",
    "{% macro m() %}{{ late }}{% endmacro %}{% set late = 3 %}{{ m() }}",
    "{% set x = 1 %}{% macro m() %}{% set x = 2 %}{{ x }}{% endmacro %}{{ m() }}{{ x }}",
    "{% macro m(a) %}{{ a }}{% endmacro %}{{ m }}{{ m(*[1]) }}{{ m(**{'a': 2}) }}{{ [m(3), m(4)] }}{{ m is callable }}",
    "{% for i in l %}{% macro m() %}{{ i }}{% endmacro %}{{ m() }}{% endfor %}",
    "{% filter upper %}abc{{ a }}x{% endfilter %}{% filter replace('a', 'b') | upper %}aaa{% endfilter %}",
    "{% with x = 1, y = a %}{{ x }}{{ y }}{% set x = 5 %}{% endwith %}{{ x }}{% with %}{% set q = 1 %}{{ q }}{% endwith %}{{ q }}",
    "{% with a = 1, b = a %}{{ b }}{% endwith %}",
    "{% raw %}{{ x }}{% if %}{# c #}{% endraw %}|{%- raw -%}  y  {%- endraw -%}  |",
    "{# comment {{ x }} #}a{#- strip -#}  b  {#- both -#}  c",
    "{% generation %}gen{{ a }}{% set inner = 1 %}{% endgeneration %}{{ inner }}",
    "{% print a, b %}{% print 'x' %}",
    "{{ raise_exception('no: ' ~ a) }}",
    "{{ missing.x }}", "{{ missing() }}", "{{ missing + 1 }}", "{{ n.x }}|", "{{ n.x.y }}", "{{ d.q.r }}", "{{ l[9].x }}", "{{ missing[0] }}", "{{ missing < 1 }}", "{{ -missing }}",
    "{{ 1 + 'a' }}", "{{ 'a' + 1 }}", "{{ 'a' + none }}", "{{ 1 / 0 }}", "{{ 1 // 0 }}", "{{ 1 % 0 }}", "{{ [1] + (2,) }}", "{{ 'a' < 1 }}", "{{ {} + {} }}", "{{ a() }}", "{{ none | length }}", "{{ 5 | length }}", "{{ 1 in 'abc' }}", "{{ 1 in 5 }}",
    "{{ missing | tojson }}", "{{ range | tojson }}", "{{ (l | map('string')) | tojson }}", "{{ l | map('string') | length }}", "{{ l | map('nope') | list }}", "{{ l | select('nope') | list }}", "{{ [1, 'a'] | sort }}",
    "{{ l.append(1) }}", "{{ l.append }}|", "{{ d.update({}) }}", "{{ d.pop('x') }}", "{{ d.clear is defined }}", "{{ l.sort() }}",
    "{{ ''.__class__ }}", "{{ d.__class__.__mro__ }}", "{{ ''['__class__'] }}", "{{ l | map(attribute='__class__') | list }}", "{{ '{0.__class__}'.format(1) }}",
    "{{ s | nope }}", "{{ s is nope }}", "{{ s | upper | nope(1) }}", "{% if false %}{{ s | nope }}{% endif %}ok", "{{ 1 if t else s | nope }}",
    "{% nope %}", "{% if a %}", "{% endif %}", "{{ a", "{{ }}", "{% for x in %}{% endfor %}", "{% set = 1 %}", "{% if %}{% endif %}", "{{ 'abc }}", "{{ a b }}", "{{ (1, 2 }}", "{{ [1 }}", "{{ 1 + }}", "{{ a | }}", "{{ a. }}", "{{ a is }}", "{# open", "{% raw %} open", "{{ a ? b }}", "{% for loop in l %}{% endfor %}", "{% set 1 = 2 %}", "{% set 'a' = 2 %}", "{% set true = 2 %}", "{{ m(a=1, 2) }}", "{{ m(**d, *l) }}", "{% break %}", "{% macro 1() %}{% endmacro %}", "{% macro m(a=1, b) %}{% endmacro %}", "{% else %}", "{% for x in l %}{% endif %}", "{{ a is defined is defined }}", "{% call a %}{% endcall %}", "{{ {1} }}", "{{ a.b. }}", "{{ l[0:1:0] }}", "{{ d[1:2] }}",
    "{% set it = l | map('string') %}{{ it | list }}{{ it | list }}",
    "{% set c = cycler('a', 'b') %}{{ c.next() }}{{ c.next() }}{{ c.next() }}{{ c.current }}{{ c.reset() }}{{ c.current }}",
    "{% set j = joiner('; ') %}{% for x in l %}{{ j() }}{{ x }}{% endfor %}",
    "{{ range(100001) | length }}", "{{ range(100000) | length }}", "{{ range(1, 2, 0) }}",
    "{{ messages[0]['role'] }}{{ messages[0].content }}{{ messages | length }}{{ messages[-1:] }}",
    "{%- set m = messages[0] -%}{{ m.role ~ ':' ~ m['content'] | upper }}",
    "{{ 'x' if a == 7 and b == -3 or false else 'y' }}{{ a + b ~ 'z' }}{{ 'a' ~ 1 + 2 }}",
    "{{ ('x', 'y')[1] }}{{ {'a': 1}.get('a') }}{{ [1, 2, 3][1:] }}{{ 'abc'.upper() | lower }}{{ (l | sort)[0] }}",
    "{% for m in messages %}{% if loop.first %}{% set first = m.content %}{% endif %}{% endfor %}{{ first is defined }}",
    "{{ loop }}", "{{ loop is defined }}", "{% for x in l %}{{ loop }}{% endfor %}",
    "{{ l | tojson | safe }}{{ d | tojson | e }}", "{{ 9223372036854775807 }}",
]

# White space: trim_blocks and lstrip_blocks are on, and signs override them.
SPACES = [
    "a\n  {% if t %}\n  b\n  {% endif %}\nc\n", "a\n  {%- if t %}\n  b\n  {%- endif %}\nc", "a\n  {% if t -%}\n  b\n  {% endif -%}\n  c",
    "a\n  {%+ if t %}\n  b\n  {%+ endif %}\nc", "a {% if t %} b {% endif %} c", "  {% if t %}x{% endif %}  ", "x  {% if t %}\ny{% endif %}\n\nz",
    "{% if t +%}\nx{% endif +%}\ny", "  {{ a }}  \n  {{ b }}\n", "  {{- a -}}  \n  {{- b -}}\n x", "a\n\n\n{% set x = 1 %}\n\n\nb",
    "\n{% set x = 1 %}\n", "\n\n", "x\n", "x\n\n", "x\r\ny\r\n", "x\ry", "{% if t %}\r\nx\r\n{% endif %}\r\ny", "\t{% if t %}\n\tx\n\t{% endif %}\n",
    "a\n  {# c #}\n  b", "a\n  {#- c -#}\n  b", "a\n  {#+ c +#}\n  b", "a {# c #} b {#c#}\n{#c#}d", "{##}x{#--#}y",
    "  {% raw %}\n  x\n  {% endraw %}\n  y", "  {%- raw %}\n  x\n  {%- endraw -%}\n  y", "a  {% raw -%}  x  {%- endraw +%}\n  y",
    "{% for x in l %}\n  {{ x }}\n{% endfor %}\nend", "{% for x in l -%}\n  {{ x }}\n{%- endfor %}\nend", "{%- for x in l %}\n{{- x }}\n{%- endfor -%}\nend",
    "{{ a }}\n{{ b }}\n", "{{ a -}}\n{{ b }}", "{{ a }}\n{{- b }}", "{% if t %}\n\n\nx\n\n\n{% endif %}\n\n\ny", "x{%- if t -%} \n y \n {%- endif -%}z",
    "\u00a0{%- if t %}x{% endif %}", "\u2003{% if t %}x{% endif %}", "a\n \u00a0{% if t %}x{% endif %}", "{% if t %} {% endif %}{% if t %}\n{% endif %}",
    "{{ '{{' }}{{ '}}' }}{{ '{%' }}{{ \"#}\" }}", "{{ {'a': {'b': 1}}['a']['b'] }}{{ {'a': {'b': 2}}}}", "{ {x} } {x% %} # }}", "{{a}}{{b}}{%if t%}x{%endif%}",
    "{%   if   t   %}x{%   endif   %}", "{%\nif t\n%}x{%\nendif\n%}", "{{\n  a\n  + b\n}}", "{% set x = '  a  ' %}[{{ x }}][{{ x | trim }}]", "{{ a }}{# c #}\n{{ b }}",
    "{% macro m() %}\n  in\n{% endmacro %}\n[{{ m() }}]", "{% macro m() -%}\n  in\n{%- endmacro %}\n[{{ m() }}]", "{% set x %}\n  in\n{% endset %}\n[{{ x }}]", "a\n{% generation %}\nx\n{% endgeneration %}\nb",
]


def split_expressions(line):
    """The parts of a line between commas that stand outside of brackets and strings."""
    parts, depth, quote, start = [], 0, None, 0
    for i, c in enumerate(line):
        if quote:
            if c == quote and line[i - 1] != "\\":
                quote = None
        elif c in "'\"":
            quote = c
        elif c in "([{":
            depth += 1
        elif c in ")]}":
            depth -= 1
        elif c == "," and depth == 0:
            parts.append(line[start:i].strip())
            start = i + 1
    return parts + [line[start:].strip()]


def snippets():
    cases = []
    for line in EXPRESSIONS:
        for expression in split_expressions(line):
            cases.append("{{ " + expression + " }}")
            cases.append("{{ [" + expression + "] }}")
    cases += STATEMENTS + SPACES
    results = []
    for template in cases:
        result = render(template, **VARIABLES)
        if "__" in template:
            # jinja2 lets such an attribute stand as long as nothing uses it; graft refuses it at once.
            result = {"error": "security"}
        if " at 0x" not in result.get("expected", ""):
            results.append({"template": template, **result})
    return results


def write(name, data):
    text = json.dumps(data, ensure_ascii=False, indent=1) + "\n"
    (ROOT / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    write("conversations.json", {"now": NOW.isoformat(), "tokens": TOKENS, "cases": conversations()})
    write("snippets.json", {"now": NOW.isoformat(), "variables": VARIABLES, "cases": snippets()})
