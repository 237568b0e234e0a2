#!/usr/bin/env python3
"""Writes the generated parts of README.md: what is supported (from the program's registries) and the quick
start (from examples/quick_start). With --check it only says whether README.md is up to date.

    tools/update_readme.py [--check] build/bin/graft"""

import json
import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent


def supported(graft):
    facts = json.loads(subprocess.run([graft, "doctor", "--json"], capture_output=True, text=True, check=True).stdout)
    rows = ["| what | names |", "| --- | --- |"]
    for label, values in facts["supported"].items():
        rows.append(f"| {label} | {', '.join(f'`{value}`' for value in values)} |")
    return "\n".join(rows)


def quick_start():
    return "```cpp\n" + (ROOT / "examples/quick_start/main.cpp").read_text().rstrip() + "\n```"


def replace(text, name, body):
    pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
    if not pattern.search(text):
        raise SystemExit(f"README.md: markers of `{name}` are missing")
    return pattern.sub(lambda match: match.group(1) + body + "\n" + match.group(2), text)


def main():
    check = "--check" in sys.argv
    graft = [argument for argument in sys.argv[1:] if argument != "--check"][0]
    readme = ROOT / "README.md"
    old = readme.read_text()
    new = replace(replace(old, "supported", supported(graft)), "quick-start", quick_start())
    if check:
        if new != old:
            print(f"README.md is out of date: run tools/update_readme.py {graft}")
        return int(new != old)
    readme.write_text(new)
    return 0


if __name__ == "__main__":
    sys.exit(main())
