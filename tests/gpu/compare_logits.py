#!/usr/bin/env python3
"""Logits of one prompt with kernels off and on: float32 against each other, bfloat16 against float32.

    tests/gpu/compare_logits.py GRAFT MODEL IDS

Where two runs in bfloat16 choose other tokens, this says whether the kernels are at fault: their error against
float32 may be no worse than twice that of the same model without them."""

import json
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "tools"))
import teacher_forced  # noqa: E402

FLOAT32_TOLERANCE = 1e-4  # logits of a random model have a standard deviation of about 1


def logits(graft, model, ids, dtype, kernels):
    arguments = (model, "--device", "cuda", "--dtype", dtype)
    return teacher_forced.logits(graft, arguments, kernels, ids.split(",")).cuda().double()


def error(got, expected):
    difference = got - expected
    return {"rms": difference.pow(2).mean().sqrt().item(), "max": difference.abs().max().item(),
            "other_best": (got.argmax(-1) != expected.argmax(-1)).sum().item()}


def main():
    graft, model, ids = sys.argv[1:]
    exact = logits(graft, model, ids, "float32", "off")
    errors = {name: error(logits(graft, model, ids, *name.split()), exact)
              for name in ("float32 on", "bfloat16 off", "bfloat16 on")}
    ok = errors["float32 on"]["max"] <= FLOAT32_TOLERANCE and all(
        errors["bfloat16 on"][key] <= 2 * errors["bfloat16 off"][key] for key in ("rms", "max"))
    print(json.dumps({"logits": "ok" if ok else "FAILED", "standard_deviation": exact.std().item(), "errors": errors}))
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
