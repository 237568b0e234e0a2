#!/usr/bin/env python3
"""Prints one line for a pair of runs (kernels off, on): verdict, ties, speed, what was swapped."""

import json
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "tools"))
import teacher_forced  # noqa: E402


def main():
    graft, name, off_file, on_file, *arguments = sys.argv[1:]
    off, on = (json.loads(pathlib.Path(file).read_text()) for file in (off_file, on_file))
    dtype = arguments[arguments.index("--dtype") + 1]
    model, keep = [], iter(arguments)
    for argument in keep:
        if argument in ("--prompt-ids", "--chat", "--cache"):
            next(keep)
        else:
            model.append(argument)
    verdict, ties = teacher_forced.compare(graft, model, dtype, off, on)
    print(json.dumps({"run": name, "ids": verdict, "ties": len(ties), "first": ties[:1],
                      "decode_off": round(off["decode_tokens_per_second"], 1),
                      "decode_on": round(on["decode_tokens_per_second"], 1),
                      "prefill_off": round(off["prefill_tokens_per_second"], 1),
                      "prefill_on": round(on["prefill_tokens_per_second"], 1),
                      "swapped": [(row["layer"], row["count"]) for row in on["swapped"]]}))
    return 1 if verdict == "different" or not on["swapped"] else 0


if __name__ == "__main__":
    sys.exit(main())
