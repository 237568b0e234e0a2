"""Compares two greedy runs of one model, kernels off and on, as the documentation defines "equal".

In bfloat16 and float16 two logits can lie closer than the dtype resolves; the runs may then part without
either being wrong. So: equal ids are equal. Otherwise the run with kernels is fed back through the reference
(kernels off), token by token, and every token it chose must be the reference's best up to the dtype's
resolution. Where a gap is larger, both runs are held against float32 without kernels: the run with kernels may choose
no worse than twice as far below the best as the reference does itself, or than what counts as a tie. Such places are
counted and reported as ties, never hidden."""

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


def tie_gap(dtype, logit):
    """How far below a best logit another one counts as a tie."""
    return TIE_UNITS * EPSILON[dtype] * max(1.0, abs(logit))


def largest_gap(graft, model_arguments, run):
    """How far a run's tokens lie below the best by float32 logits without kernels: at most; and the largest logit."""
    arguments = [*model_arguments, "--dtype", "float32"]
    if "--dtype" in model_arguments:
        arguments = list(model_arguments)
        arguments[arguments.index("--dtype") + 1] = "float32"
    rows = logits(graft, arguments, "off", run["prompt_ids"] + run["generated_ids"][:-1])[len(run["prompt_ids"]) - 1:]
    return max((row.max() - row[chosen]).item() for row, chosen in zip(rows, run["generated_ids"])), rows.abs().max().item()


def is_as_good(graft, model_arguments, dtype, off, on):
    """Whether the tokens of `on` lie no further below the best than twice those of `off`, or a tie; with the numbers."""
    (gap_off, _), (gap_on, largest) = (largest_gap(graft, model_arguments, run) for run in (off, on))
    tie = tie_gap(dtype, largest)
    return gap_on <= 2 * max(gap_off, tie), {"gap_off": gap_off, "gap_on": gap_on, "tie": tie}


def compare(graft, model_arguments, dtype, off, on):
    """Returns (verdict, ties): verdict is "equal", "tie" or "different". `off` and `on` are the JSON objects
    of `graft generate`; model_arguments are the arguments that name model, device and dtype."""
    if off["generated_ids"] == on["generated_ids"]:
        return "equal", []
    reference = logits(graft, model_arguments, "off", on["prompt_ids"] + on["generated_ids"][:-1])
    ties, beyond, start = [], [], len(on["prompt_ids"])
    for step, chosen in enumerate(on["generated_ids"]):
        row = reference[start - 1 + step]
        best = row.max().item()
        gap = best - row[chosen].item()
        if gap == 0 and row.argmax().item() == chosen:
            continue
        (ties if gap <= tie_gap(dtype, best) else beyond).append(
            {"step": step, "chosen": chosen, "reference": row.argmax().item(), "gap": gap, "best": best})
    if beyond:
        good, numbers = (False, {}) if dtype == "float32" else is_as_good(graft, model_arguments, dtype, off, on)
        if not good:
            return "different", [{**beyond[0], **numbers}]
    return "tie", beyond + ties
