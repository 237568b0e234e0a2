"""Compares two greedy runs of one model, kernels off and on, as the documentation defines "equal".

In bfloat16 and float16 two logits can lie closer than the dtype resolves; the runs may then part without
either being wrong. So: equal ids are equal. Otherwise the run with kernels is fed back through the reference
(kernels off), token by token, and every token it chose must be the reference's best up to the dtype's
resolution. Such places are counted and reported as ties, never hidden."""

import pathlib
import subprocess
import tempfile

EPSILON = {"float32": 2.0**-23, "bfloat16": 2.0**-8, "float16": 2.0**-11}
# Rounding accumulates over the layers; this many units in the last place of the best logit count as a tie.
TIE_UNITS = 4


def logits(graft, model_arguments, kernels, ids):
    """[len(ids), V] of one forward pass."""
    from safetensors.torch import load_file

    with tempfile.TemporaryDirectory() as folder:
        out = pathlib.Path(folder) / "logits.safetensors"
        subprocess.run([graft, "logits", *model_arguments, "--kernels", kernels, "--ids", ",".join(map(str, ids)),
                        "--out", out], check=True)
        return load_file(out)["logits"].reshape(len(ids), -1)


def compare(graft, model_arguments, dtype, off, on):
    """Returns (verdict, ties): verdict is "equal", "tie" or "different". `off` and `on` are the JSON objects
    of `graft generate`; model_arguments are the arguments that name model, device and dtype."""
    if off["generated_ids"] == on["generated_ids"]:
        return "equal", []
    reference = logits(graft, model_arguments, "off", on["prompt_ids"] + on["generated_ids"][:-1])
    ties, start = [], len(on["prompt_ids"])
    for step, chosen in enumerate(on["generated_ids"]):
        row = reference[start - 1 + step]
        best = row.max().item()
        gap = best - row[chosen].item()
        if gap == 0 and row.argmax().item() == chosen:
            continue
        if gap > TIE_UNITS * EPSILON[dtype] * max(1.0, abs(best)):
            return "different", [{"step": step, "chosen": chosen, "gap": gap, "best": best}]
        ties.append({"step": step, "chosen": chosen, "reference": row.argmax().item(), "gap": gap})
    return "tie", ties
