#!/usr/bin/env python3
"""Compares the sources with two pages: every environment variable that is read stands in docs/env.md, every
error code that is thrown stands in docs/errors.md with what it means, and neither page names what is gone.

    tools/check_docs.py            says what differs
    tools/check_docs.py --write    writes the table of error codes anew; what they mean is kept, and written by hand"""

import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
CLASSES = {"Error": 1, "NotFound": 1, "FormatError": 1, "IncompatibleError": 1, "InternalError": 1,
           "InvalidArgument": 2, "NetworkError": 3, "IntegrityError": 4, "LoadError": 5, "DeviceError": 5,
           "Cancelled": 130}
# Class(where, reason, …): both may be literals; a reason that is computed becomes <reason>.
THROWN = re.compile(rf'\b({"|".join(CLASSES)})\(\s*("[^"]*"|\w+),\s*("[^"]*"|[^,"]+),')
# A call of graft/io/json.h's parsers: their errors carry the room that is named here.
PARSES_JSON = re.compile(r'\b(?:parse_json|parse_ordered_json|read_json_file)\(\s*[^,;{]+,\s*("[^"]*")')
JSON_REASONS = ("duplicate-key", "json", "json-limits")
# In a file that reads the environment, every literal of this form is a variable's name.
VARIABLE = re.compile(r'"((?:HOME|TERM|CI)|[A-Z][A-Z0-9]*(?:_[A-Z0-9]+)+)"')
READS = re.compile(r"\benv::(?:get|folder)\(|\bgetenv\(")
SCRIPT_VARIABLE = re.compile(r'environ(?:\.get\(|\[)"([A-Z][A-Z0-9_]+)"(?!\] =)|\$\{(GRAFT_\w+):[-?]')


def sources(folders, suffixes):
    for folder in folders:
        for path in sorted((ROOT / folder).rglob("*")):
            if path.suffix in suffixes and not path.stem.endswith(("_test", "_fuzz")):
                yield path, path.read_text(errors="replace")


def variables():
    """Every variable that something reads -> one place that reads it."""
    found = {}
    for path, text in sources(("graft", "cli", "kernels"), (".h", ".cpp", ".cu", ".cuh")):
        if READS.search(text):
            found.update({name: path for name in VARIABLE.findall(text)})
    for path, text in sources(("tools", "tests", "bench"), (".py", ".sh")):
        for names in SCRIPT_VARIABLE.findall(text):
            found.update({name: path for name in names if name})
    return found


def constants(text):
    """String constants of a file, for codes whose first part is one."""
    return dict(re.findall(r'(k\w+)(?:\[\])?\s*=\s*("[^"]*");', text))


def codes():
    """Every (code, class) that is thrown."""
    found = {("cli.usage", "InvalidArgument")}  # of what CLI11 throws
    for _, text in sources(("graft", "cli"), (".h", ".cpp")):
        names = constants(text)
        for name, where, reason in THROWN.findall(text):
            where = names.get(where, where)
            if not where.startswith('"'):
                if where not in ("where", "where_"):  # a declaration, or a call without a code
                    continue
                where = '"<where>"'
            reason = reason[1:-1] if reason.startswith('"') else "<reason>"
            found.add((f"{where[1:-1]}.{reason}", name))
        for where in PARSES_JSON.findall(text):
            found |= {(f"{where[1:-1]}.{reason}", "FormatError") for reason in JSON_REASONS}
    return found


def meanings(page):
    """What the page says of each (code, class)."""
    rows = re.findall(r"^\| `([^`]+)` \| `(\w+)` \| \d+ \| (.*) \|$", page, re.MULTILINE)
    return {(code, name): text.strip() for code, name, text in rows}


def code_table(known):
    rows = ["| code | class | exit code | what happened, and the way on |", "| --- | --- | --- | --- |"]
    for code, name in sorted(codes()):
        rows.append(f"| `{code}` | `{name}` | {CLASSES[name]} | {known.get((code, name), '')} |")
    return "\n".join(rows)


def main():
    page = ROOT / "docs/errors.md"
    old = page.read_text()
    known = meanings(old)
    marked = re.compile(r"(<!-- codes -->\n).*?(<!-- /codes -->)", re.DOTALL)
    new = marked.sub(lambda match: match.group(1) + code_table(known) + "\n" + match.group(2), old)
    problems = []
    if "--write" in sys.argv:
        page.write_text(new)
    elif new != old or not marked.search(old):
        problems.append("docs/errors.md: the table of codes is out of date: run tools/check_docs.py --write")
    problems += [f"docs/errors.md: {code} ({name}) is not explained" for code, name in sorted(codes())
                 if not known.get((code, name))]
    documented, elsewhere = set(), set()
    for line in (ROOT / "docs/env.md").read_text().splitlines():
        if line.startswith("| `"):
            names = set(re.findall(r"`([A-Z][A-Z0-9_]+)`", line.split("|")[1]))
            documented |= names
            if line.split("|")[2].strip() in ("libcurl", "OpenMP"):
                elsewhere |= names
    read = variables()
    problems += [f"docs/env.md: {name} is missing, read in {read[name].relative_to(ROOT)}"
                 for name in sorted(set(read) - documented)]
    problems += [f"docs/env.md: {name} is documented, and nothing reads it" for name in sorted(documented - set(read) - elsewhere)]
    for problem in problems:
        print("check_docs:", problem)
    print(f"check_docs: {len(read)} variables, {len(codes())} error codes, {len(problems)} problems")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
