#!/usr/bin/env python3
"""Counts the skipped GoogleTest cases of a run and checks them against tests/expected_skips.json.

A machine without a GPU skips exactly the cases that need one; a machine with one skips none of them.
Any other skip, or another count, fails: a test that silently stops running is a test that is gone."""

import json
import pathlib
import re
import sys
import xml.etree.ElementTree as ET

ROOT = pathlib.Path(__file__).resolve().parent.parent


def skipped(results):
    for path in sorted(results.glob("*.xml")):
        for case in ET.parse(path).getroot().iter("testcase"):
            reason = case.find("skipped")
            if reason is not None:
                text = (reason.get("message") or reason.text or "").strip().splitlines()
                yield path.stem, f"{case.get('classname')}.{case.get('name')}", text[-1] if text else ""


def main():
    rows = list(skipped(pathlib.Path(sys.argv[1])))
    expected = json.loads((ROOT / "tests/expected_skips.json").read_text())
    has_gpu = pathlib.Path("/dev/nvidiactl").exists()
    bad = []
    # A program that runs several times (once per instruction set) writes NAME.xml, NAME_1.xml, …
    counts = {path.stem: 0 for path in pathlib.Path(sys.argv[1]).glob("*.xml")}
    for program, name, reason in rows:
        allowed = next((key for key in expected["reasons"] if reason.startswith(key)), None)
        if allowed is None or (has_gpu and allowed == expected["no_gpu"]):
            bad.append(f"{program}: {name}: skipped for an unexpected reason: {reason!r}")
        counts[program] += 1
    if not has_gpu:
        for program, count in sorted(counts.items()):
            wanted = expected["counts"].get(re.sub(r"_[0-9]+$", "", program), 0)
            if count != wanted:
                bad.append(f"{program}: expected {wanted} skipped cases, got {count}")
    for line in bad:
        print("check_skips:", line)
    print(f"check_skips: {len(rows)} cases skipped ({'a GPU is here' if has_gpu else 'no GPU here'})")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
