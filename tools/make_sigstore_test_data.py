#!/usr/bin/env python3
"""Writes tests/data/trust/cases.json: bundles of a Sigstore instance of our own, right ones and ones that are broken
in one way each, with what graft answers and what sigstore-python answered. A case is the first bundle and a JSON patch
(RFC 6902), or a text. Run with a Python that has sigstore; makes new keys each time."""

import json
import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests/integration"))

import sigstore_cases  # noqa: E402
import sigstore_instance  # noqa: E402


def patch(old, new, path=""):
    """Operations that make `new` of `old`."""
    if isinstance(old, dict) and isinstance(new, dict):
        operations = [{"op": "remove", "path": f"{path}/{key}"} for key in old if key not in new]
        for key, value in new.items():
            if key not in old:
                operations.append({"op": "add", "path": f"{path}/{key}", "value": value})
            else:
                operations += patch(old[key], value, f"{path}/{key}")
        return operations
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        return [operation for i, pair in enumerate(zip(old, new)) for operation in patch(*pair, f"{path}/{i}")]
    return [] if old == new and type(old) is type(new) else [{"op": "replace", "path": path, "value": new}]


def main():
    cases = sigstore_cases.Cases(sigstore_instance.Instance())
    found = cases.all()
    base = json.loads(found[0]["bundle"])
    rows = []
    for case in found:
        row = {"name": case["name"], "expected": case["expected"]}
        verdict = sigstore_instance.python_verdict(case["root"], case["content"], case["bundle"])
        row["python"] = verdict.split(":")[0]
        if case["content"] != sigstore_cases.CONTENT:
            row["content"] = case["content"].decode()
        if case["root"] != cases.root:
            row["root_patch"] = patch(cases.root, case["root"])
        try:
            bundle = json.loads(case["bundle"])
            plain = sigstore_cases.compact(bundle) == case["bundle"]
        except (ValueError, RecursionError):
            plain = False
        if plain and isinstance(bundle, dict):
            row["patch"] = patch(base, bundle)
        else:
            row["text"] = case["bundle"]
        rows.append(row)
    out = ROOT / "tests/data/trust/cases.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    data = {"content": sigstore_cases.CONTENT.decode(), "trusted_root": cases.root, "bundle": base, "cases": rows}
    out.write_text(json.dumps(data, ensure_ascii=False, indent=1) + "\n")
    (out.parent / "metadata.json.sigstore").write_text(found[0]["bundle"])  # a seed for fuzzing
    print(f"{out}: {len(rows)} cases")


if __name__ == "__main__":
    main()
