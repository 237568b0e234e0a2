#!/usr/bin/env python3
"""One large package from a local Hub: `graft download` beside `curl` and `sha256sum`, alternating in one run.

    bench/hub/download_vs_curl.py [--mb 256] [--rounds 5] [--folder DIR]     JSON lines on stdout

graft's time holds what the others' does not: the listing, `fsync`, the links, its start. DIR says which disk (default:
a temporary folder); a second pair of rows has `sync FILE` added to curl's side, since graft's files are on the disk
when it returns."""

import argparse
import json
import os
import pathlib
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests/integration"))
from local_hub import LocalHub  # noqa: E402
from support import GRAFT, environment  # noqa: E402

REPO = "acme/large"


def seconds(command, **options):
    began = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **options)
    return time.perf_counter() - began


def machine():
    with open("/proc/cpuinfo") as info:
        return next((line.split(":")[1].strip() for line in info if line.startswith("model name")), platform.machine())


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mb", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder")
    options = parser.parse_args()
    folder = pathlib.Path(tempfile.mkdtemp(prefix="graft-bench-", dir=options.folder))
    times = {"graft download": [], "curl + sha256sum": [], "curl + sync + sha256sum": []}
    try:
        weights = folder / "served/kernels" / REPO / "build/torch-cpu/large.so"
        weights.parent.mkdir(parents=True)
        with weights.open("wb") as out:
            for _ in range(options.mb):
                out.write(os.urandom(1 << 20))
        with LocalHub(folder / "served") as hub:
            env = environment(hub.variables(folder / "home"))
            url = f"{hub.url}/kernels/{REPO}/resolve/main/build/torch-cpu/large.so"
            for _ in range(options.rounds + 1):  # the first warms up
                target = folder / "by-curl"
                curl = f"curl -sSfL --noproxy '*' -o {target} {url}"
                for name, command in (("curl + sha256sum", f"{curl} && sha256sum {target}"),
                                      ("curl + sync + sha256sum", f"{curl} && sync {target} && sha256sum {target}")):
                    times[name].append(seconds(["sh", "-c", command], env=env))
                    target.unlink()
                times["graft download"].append(seconds([GRAFT, "download", REPO, "--kernel"], env=env))
                shutil.rmtree(folder / "home")
    finally:
        shutil.rmtree(folder)
    best = {name: statistics.median(rounds[1:]) for name, rounds in times.items()}
    for name, rounds in times.items():
        print(json.dumps({"op": "download", "variant": name, "megabytes": options.mb,
                          "median_s": round(best[name], 3), "min_s": round(min(rounds[1:]), 3),
                          "max_s": round(max(rounds[1:]), 3), "rounds": options.rounds,
                          "ratio_to_curl_sha256sum": round(best[name] / best["curl + sha256sum"], 2),
                          "ratio_to_curl_sync_sha256sum": round(best[name] / best["curl + sync + sha256sum"], 2),
                          "file_system": options.folder or tempfile.gettempdir(), "machine": machine()}))


if __name__ == "__main__":
    main()
