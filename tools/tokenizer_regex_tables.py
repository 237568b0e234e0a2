#!/usr/bin/env python3
"""Writes graft/text/regex_tables.cpp: the characters that PCRE2 10.42 takes for unassigned (it has Unicode 14) and the
regular expressions of the `tokenizers` library know, by property. Each is asked of the library itself.

usage: tokenizer_regex_tables.py > graft/text/regex_tables.cpp        (with a Python of Unicode 14: 3.11)
"""
import unicodedata

from tokenizer_unicode_tables import CODE_POINTS, regex_class

assert unicodedata.unidata_version == "14.0.0", "a Python that knows Unicode 14 and no more"
NEW = {c for c in CODE_POINTS if unicodedata.category(chr(c)) == "Cn"}
CATEGORIES = ["Lu", "Ll", "Lt", "Lm", "Lo", "Mn", "Mc", "Me", "Nd", "Nl", "No", "Pc", "Pd", "Ps", "Pe", "Pi", "Pf", "Po",
              "Sm", "Sc", "Sk", "So", "Zs", "Zl", "Zp", "Cc", "Cf"]
NAMED = ["Alphabetic", "Lowercase", "Uppercase", "White_Space", "Emoji"]
# Scripts that Unicode 14 knows; PCRE2 refuses the name of a younger one.
SCRIPTS = ["Arabic", "Armenian", "Balinese", "Bengali", "Bopomofo", "Common", "Coptic", "Cyrillic", "Devanagari",
           "Egyptian_Hieroglyphs", "Ethiopic", "Georgian", "Glagolitic", "Greek", "Gujarati", "Gurmukhi", "Han", "Hangul",
           "Hebrew", "Hiragana", "Inherited", "Kannada", "Katakana", "Khmer", "Lao", "Latin", "Malayalam", "Mongolian",
           "Myanmar", "Oriya", "Sinhala", "Syriac", "Tamil", "Telugu", "Thai", "Tibetan", "Yi"]


def ranges(points):
    found = []
    for c in points:
        if found and found[-1][1] == c - 1:
            found[-1][1] = c
        else:
            found.append([c, c])
    return found


def main():
    print("// Made by tools/tokenizer_regex_tables.py with tokenizers 0.23; do not edit.")
    print('#include "graft/text/regex_tables.h"\n\nnamespace graft::text::detail {\n\n// clang-format off')
    print("const YoungRange kYoungRanges[] = {")
    for name in CATEGORIES + NAMED + SCRIPTS:
        line = "   "
        for low, high in ranges(sorted(regex_class(rf"\p{{{name}}}") & NEW)):
            entry = f' {{"{name}", 0x{low:X}, 0x{high:X}}},'
            if len(line + entry) > 100:
                print(line)
                line = "   "
            line += entry
        if line.strip():
            print(line)
    print("};\nconst size_t kYoungRangesSize = sizeof(kYoungRanges) / sizeof(kYoungRanges[0]);\n// clang-format on")
    print("}  // namespace graft::text::detail")


if __name__ == "__main__":
    main()
