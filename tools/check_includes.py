#!/usr/bin/env python3
"""Checks the include order of the rooms: core <- io <- hub <- text, trust <- tensor <- kernel <- layers <- nn
<- models <- generation <- cli, python. Torch headers stay out of the base rooms, graft's headers
out of kernels/."""

import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
BASE = ["core", "hub", "io", "text", "trust"]
ORDER = {"core": 0, "io": 1, "hub": 2, "text": 3, "trust": 3, "tensor": 4, "kernel": 5, "layers": 6, "canary": 7, "nn": 7,
         "models": 8, "generation": 9}
FORBIDDEN = {("text", "hub")}
TORCH = re.compile(r"^(ATen|torch|c10)/")
INCLUDE = re.compile(r'^\s*#\s*include\s+[<"]([^>"]+)[>"]')


def includes(path):
    for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1):
        match = INCLUDE.match(line)
        if match:
            yield number, match.group(1)


def problem(path, target):
    parts = path.relative_to(ROOT).parts
    if parts[0] == "kernels":
        return "kernels/ may not include graft/" if target.startswith("graft/") else None
    if target.startswith(("cli/", "python/")) and parts[0] not in ("cli", "python"):
        return "nobody includes cli/ or python/"
    if parts[0] != "graft" or len(parts) < 3:
        return None
    room = parts[1]
    is_test = path.stem.endswith(("_test", "_bench", "_fuzz"))
    if TORCH.match(target) and room in BASE:
        return f"room {room} knows no libtorch"
    if not target.startswith("graft/") or target.count("/") < 2:
        return None
    other = target.split("/")[1]
    if other == room or is_test and ORDER.get(other, 99) <= ORDER[room]:
        return None
    if ORDER.get(other, 99) >= ORDER[room] or (room, other) in FORBIDDEN:
        return f"room {room} may not include room {other}"
    return None


def main():
    bad = 0
    for folder in ("graft", "kernels"):
        for path in sorted((ROOT / folder).rglob("*")):
            if path.suffix not in (".h", ".cpp", ".cu", ".cuh"):
                continue
            for number, target in includes(path):
                text = problem(path, target)
                if text:
                    bad += 1
                    print(f"{path.relative_to(ROOT)}:{number}: {text}: {target}")
    print(f"check_includes: {bad} violations")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
