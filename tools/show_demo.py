#!/usr/bin/env python3
"""Shows two runs of `graft generate --json` side by side: kernels off, kernels on."""

import collections
import json
import pathlib
import sys

import teacher_forced


def main():
    off, on = (json.loads(pathlib.Path(name).read_text()) for name in sys.argv[1:3])
    print(f"\n{on['text'].strip()}\n")
    graft, device, dtype = sys.argv[3:6]
    verdict, ties = teacher_forced.compare(graft, ["--device", device, "--dtype", dtype], dtype, off, on)
    said = {"equal": "equal", "tie": f"equal up to {len(ties)} ties of the reference's logits: {ties}",
            "different": f"DIFFERENT: {ties}"}[verdict]
    print(f"token ids with kernels off and on: {said} ({len(on['generated_ids'])} tokens)")
    print(f"\n{f'{device}, {dtype}':<22}{'kernels off':>14}{'kernels on':>14}")
    for key, label in (("prefill_tokens_per_second", "prefill tokens/s"), ("decode_tokens_per_second", "decode tokens/s")):
        print(f"{label:<22}{off[key]:>14.1f}{on[key]:>14.1f}")
    print(f"{'peak memory MiB':<22}{off['peak_rss_bytes'] / 2**20:>14.1f}{on['peak_rss_bytes'] / 2**20:>14.1f}")
    print(f"\n{'layer':<14}{'count':>6}  package")
    rows = collections.Counter()
    for row in on["swapped"]:
        rows[(row["layer"], row["package"], row["variant"])] += row["count"]
    for (layer, package, variant), count in sorted(rows.items()):
        print(f"{layer:<14}{count:>6}  {package} ({variant})")
    return 0 if verdict != "different" and rows else 1


if __name__ == "__main__":
    sys.exit(main())
