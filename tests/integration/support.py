"""What the integration tests share: the built program, the demo model, one way to run a command."""

import json
import os
import pathlib
import subprocess

ROOT = pathlib.Path(__file__).resolve().parents[2]
BUILD = pathlib.Path(os.environ.get("GRAFT_BUILD", ROOT / "build"))
GRAFT = BUILD / "bin" / "graft"


def demo_model():
    return next((BUILD / "share/graft/models").glob("*.gguf")).resolve()


def run(*arguments, env=None, timeout=300):
    """Runs `graft ARGUMENTS` and returns the finished process (text)."""
    return subprocess.run([str(GRAFT), *map(str, arguments)], capture_output=True, text=True, timeout=timeout,
                          env={**os.environ, **(env or {})}, check=False)


def run_json(*arguments, env=None, expect=0):
    """Runs `graft ARGUMENTS --json` and returns the object that it printed."""
    done = run(*arguments, "--json", env=env)
    assert done.returncode == expect, f"exit {done.returncode}, expected {expect}\n{done.stdout}\n{done.stderr}"
    return json.loads(done.stdout)
