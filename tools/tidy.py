#!/usr/bin/env python3
"""Runs clang-tidy on host code, with the compile commands of a build folder made fit for clang.

    tools/tidy.py BUILD [FILE…]        no file: every .cpp of graft/ and cli/ that is in the build"""

import concurrent.futures
import json
import os
import pathlib
import shlex
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent


def for_clang(words):
    """A command of GCC without what clang does not know: GCC's precompiled headers and one option."""
    kept, skip = [], False
    for index, word in enumerate(words):
        if skip:
            skip = False
        elif word == "-include" and "cmake_pch" in words[index + 1]:
            skip = True
        elif word not in ("-Winvalid-pch", "-fno-gnu-unique") and not word.endswith("ccache"):
            kept.append(word)
    return kept


def main():
    build = pathlib.Path(sys.argv[1])
    database = []
    for entry in json.loads((build / "compile_commands.json").read_text()):
        words = for_clang(shlex.split(entry["command"]))
        database.append({"directory": entry["directory"], "file": entry["file"], "arguments": words})
    folder = build / "tidy"
    folder.mkdir(exist_ok=True)
    (folder / "compile_commands.json").write_text(json.dumps(database))
    wanted = [str(pathlib.Path(name).resolve()) for name in sys.argv[2:]]
    ours = tuple(str(ROOT / name) + "/" for name in ("graft", "cli"))
    files = wanted or sorted({entry["file"] for entry in database if entry["file"].startswith(ours)})

    def check(path):
        return subprocess.run(["clang-tidy", "--quiet", "-p", folder, path], capture_output=True, text=True,
                              check=False)

    bad = 0
    with concurrent.futures.ThreadPoolExecutor(int(os.environ.get("GRAFT_TEST_JOBS", "2"))) as pool:
        for path, done in zip(files, pool.map(check, files)):
            if done.returncode or "warning:" in done.stdout:
                bad += 1
                print(done.stdout, end="", flush=True)
    print(f"tidy: {len(files)} files, {bad} with findings")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
