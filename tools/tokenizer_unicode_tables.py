#!/usr/bin/env python3
"""Writes graft/text/unicode_tables.cpp: what the `tokenizers` library takes each code point for.

That library mixes several versions of Unicode (its regular expressions, its normalization and its categories
come from different packages), and so do vocabularies made with it. Each property is therefore asked of the
library itself. Script names come from its source: `tokenizers/src/pre_tokenizers/unicode_scripts/scripts.rs`.

usage: tokenizer_unicode_tables.py SCRIPTS_RS > graft/text/unicode_tables.cpp
"""
import re
import sys
import unicodedata

from tokenizers import Regex, normalizers, pre_tokenizers

CODE_POINTS = [c for c in range(0x110000) if not 0xD800 <= c <= 0xDFFF]
ALL = "".join(map(chr, CODE_POINTS))


def removed_by(normalizer):
    kept = set(normalizer.normalize_str(ALL))
    return {c for c in CODE_POINTS if chr(c) not in kept}


def regex_class(pattern):
    return removed_by(normalizers.Replace(Regex(pattern), ""))


def splits_from_letter(pre_tokenizer):
    return {c for c in CODE_POINTS if pre_tokenizer.pre_tokenize_str("a" + chr(c))[0][0] == "a"}


def joins_letter(pre_tokenizer):
    return {c for c in CODE_POINTS if pre_tokenizer.pre_tokenize_str("a" + chr(c))[0][0] == "a" + chr(c)}


def gone_alone(normalizer):
    return {c for c in CODE_POINTS if normalizer.normalize_str(chr(c)) == ""}


def combining_classes():
    nfd, found = normalizers.NFD(), {}
    for c in CODE_POINTS:
        ccc = unicodedata.combining(chr(c))
        if ccc == 0:
            continue
        low, high = chr(c) + "\u0334", "\u0345" + chr(c)
        if (nfd.normalize_str(low) != low if ccc > 1 else nfd.normalize_str(high) != high):
            found[c] = ccc
    return found


def compositions():
    nfd, nfc, pairs = normalizers.NFD(), normalizers.NFC(), []
    for c in CODE_POINTS:
        if 0xAC00 <= c < 0xAC00 + 11172:
            continue
        parts = nfd.normalize_str(chr(c))
        if len(parts) < 2 or nfc.normalize_str(chr(c)) != chr(c):
            continue
        first = nfc.normalize_str(parts[:-1])
        assert len(first) == 1 and nfc.normalize_str(first + parts[-1]) == chr(c), hex(c)
        pairs.append((ord(first), ord(parts[-1]), c))
    return sorted(pairs)


def runs(value_of):
    last, out = None, []
    for c in range(0x110000):
        value = value_of(c)
        if value != last:
            out.append((c, value))
            last = value
    return out


def undecomposed():
    """Code points whose decomposition is newer than the library's Unicode (utf8proc knows Unicode 15)."""
    import ctypes
    import ctypes.util

    lib = ctypes.CDLL(ctypes.util.find_library("utf8proc"))
    buffer, out = (ctypes.c_int32 * 64)(), []
    for compat, normalizer in ((0, normalizers.NFD()), (4, normalizers.NFKD())):
        bad = []
        for c in CODE_POINTS:
            boundary = ctypes.c_int(0)
            n = lib.utf8proc_decompose_char(ctypes.c_int32(c), buffer, 64, 2 | 16 | compat, ctypes.byref(boundary))
            theirs = normalizer.normalize_str(chr(c))
            if theirs != "".join(chr(buffer[i]) for i in range(n)):
                assert theirs == chr(c), hex(c)
                bad.append(c)
        out.append(bad)
    lower = []
    lib.utf8proc_tolower.restype = ctypes.c_int32
    for c in CODE_POINTS:
        theirs = normalizers.Lowercase().normalize_str(chr(c))
        if theirs != chr(lib.utf8proc_tolower(c)):
            assert len(theirs) == 1 or c == 0x130, hex(c)
            lower.append((c, ord(theirs[0])))
    return out[0], out[1], lower


def script_table(path):
    text = open(path, encoding="utf-8").read()
    names = re.search(r"pub enum Script \{(.*?)\}", text, re.S).group(1).replace(",", " ").split()
    table = {}
    for low, high, name in re.findall(r"(0x[0-9A-Fa-f]+)(?:\s*\.\.=\s*(0x[0-9A-Fa-f]+))?\s*=>\s*Script::(\w+)", text):
        for c in range(int(low, 16), int(high or low, 16) + 1):
            table[c] = names.index(name)
    assert table, "no ranges found"
    return table


def emit(name, kind, rows):
    print(f"const {kind} {name}[] = {{")
    line = "   "
    for row in rows:
        item = " {" + ", ".join(f"0x{v:X}" for v in row) + "}," if isinstance(row, tuple) else f" 0x{row:X},"
        if len(line) + len(item) > 100:
            print(line)
            line = "   "
        line += item
    print(line)
    print("};")
    print(f"const size_t {name}Size = sizeof({name}) / sizeof({name}[0]);")
    print()


def main():
    pairs = compositions()
    pair_second = {second for _, second, _ in pairs}
    ccc = combining_classes()
    nfc = normalizers.NFC()
    # Hangul vowels and tails join what stands before them.
    inert = {c for c in CODE_POINTS if nfc.normalize_str(chr(c)) == chr(c) and c not in ccc and c not in pair_second
             and not 0x1161 <= c <= 0x1175 and not 0x11A8 <= c <= 0x11C2}
    properties = [
        regex_class(r"\p{L}"), regex_class(r"\p{N}"), regex_class(r"\s"), joins_letter(pre_tokenizers.Whitespace()),
        splits_from_letter(pre_tokenizers.Punctuation()),
        gone_alone(normalizers.BertNormalizer(True, False, False, False)),
        gone_alone(normalizers.BertNormalizer(False, False, True, False)), gone_alone(normalizers.StripAccents()),
        splits_from_letter(pre_tokenizers.Digits(True)), inert, regex_class(r"\w"),
    ]
    flags = runs(lambda c: sum(1 << i for i, members in enumerate(properties) if c in members))
    scripts = script_table(sys.argv[1])
    canonical, compat, lower = undecomposed()
    print("// Made by tools/tokenizer_unicode_tables.py with tokenizers 0.23; do not edit.")
    print('#include "graft/text/unicode_tables.h"')
    print()
    print("namespace graft::text::detail {")
    print()
    print("// clang-format off")
    emit("kFlagRuns", "Run", flags)
    emit("kCombiningRuns", "Run", runs(lambda c: ccc.get(c, 0)))
    emit("kScriptRuns", "Run", runs(lambda c: scripts.get(c, 0)))
    emit("kCompositions", "Composition", pairs)
    emit("kNoCanonical", "char32_t", canonical)
    emit("kNoCompatibility", "char32_t", compat)
    emit("kLowerExceptions", "Run", lower)
    print("// clang-format on")
    print("}  // namespace graft::text::detail")


if __name__ == "__main__":
    main()
