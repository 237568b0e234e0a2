"""`graft kernels aot`: a layer of Python alone is compiled once, by Python, and then runs in a model without Python."""

import base64
import contextlib
import hashlib
import importlib.metadata
import json
import os
import pathlib
import shutil
import subprocess
import sys
import time
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from local_hub import LocalHub  # noqa: E402
from support import BUILD, ROOT, TINY, Workspace, environment, run, run_json, start  # noqa: E402

PACKAGE = ROOT / "tests/kernels/python-norms"
VARIANT = "torch{}{}-cxx11-cpu-x86_64-linux".format(*importlib.metadata.version("torch").split(".")[:2])
IDS = ("--prompt-ids", "1,2,3", "--max-new-tokens", "24", "--ignore-eos")
PYTHON_LOADS = """import json, sys, torch
from kernels import get_local_kernel
norm = torch.nn.Module()
norm.weight, norm.variance_epsilon = torch.rand(32), 1e-5
x = torch.randn(3, 32)
kernel = get_local_kernel(__import__("pathlib").Path(sys.argv[1]), backend="cpu")
out = kernel.layers.PlainRMSNorm.forward(norm, x)
print(json.dumps(bool(torch.allclose(out, torch.nn.functional.rms_norm(x, (32,), norm.weight, 1e-5), atol=1e-5))))"""


def digest_again(folder):
    """What the package's author would write after a change."""
    metadata = json.loads((folder / "metadata.json").read_text())
    metadata["digest"]["files"] = {
        path.relative_to(folder).as_posix(): base64.b64encode(hashlib.sha256(path.read_bytes()).digest()).decode()
        for path in sorted(folder.rglob("*")) if path.is_file() and path.name != "metadata.json"}
    (folder / "metadata.json").write_text(json.dumps(metadata))


def edit(file, **changes):
    value = json.loads(file.read_text())
    value.update(changes)
    file.write_text(json.dumps(value))


def config(package, layer="PlainRMSNorm"):
    return json.dumps({"kernel_mapping": {"RMSNorm": {"cpu": f"{package}:{layer}"}}, "inherit_mapping": False})


@contextlib.contextmanager
def full_pipe():
    """The writing end of a pipe into which nothing more goes."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(writing, b"x" * 65536)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(writing, b"x")
    os.set_blocking(writing, True)
    try:
        yield writing
    finally:
        os.close(reading)
        os.close(writing)


class Aot(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.workspace = Workspace()
        cls.base = cls.workspace.__enter__()
        cls.env = {"XDG_CACHE_HOME": str(cls.base / "cache"), "XDG_STATE_HOME": str(cls.base / "state"),
                   "XDG_CONFIG_HOME": str(cls.base / "config"), "GRAFT_PYTHON": sys.executable}
        cls.package = cls.base / "plain-norm"
        cls.made = run_json("kernels", "aot", f"{PACKAGE}:PlainRMSNorm", "--contract", "RMSNorm", "--out", cls.package,
                            env=cls.env, timeout=900)

    @classmethod
    def tearDownClass(cls):
        cls.workspace.__exit__()

    def copy(self, name):
        """A copy of the compiled package, and its variant folder."""
        shutil.copytree(self.package, self.base / name)
        return self.base / name, self.base / name / "build" / VARIANT

    def slot(self, package, **more):
        report = run_json("explain", TINY, "--kernel-config", config(package), env={**self.env, **more})
        return next(slot for slot in report["slots"] if slot["layer"] == "RMSNorm")

    def refusal(self, package, **more):
        slot = self.slot(package, **more)
        self.assertFalse(slot["chosen"], slot)
        return slot["considered"][0]["outcome"], slot["considered"][0]["reason"]

    # What comes out

    def test_the_package_says_what_it_is(self):
        folder = self.package / "build" / VARIANT
        self.assertEqual(self.made["variant"], str(folder))
        library, = self.made["libraries"]
        self.assertEqual((library["dtype"], library["columns"], library["eps"]), ("float32", 0, "1e-05"))
        self.assertEqual(sorted(path.name for path in folder.iterdir()), sorted(
            ["__init__.py", "layers.py", "aot.json", "layers.json", "metadata.json", library["file"]]))
        self.assertEqual(sorted(path.name for path in (self.package / "build").iterdir()), [VARIANT])
        info = run_json("kernels", "info", self.package, env=self.env)["kernels"][0]
        self.assertEqual((info["name"], info["license"], info["has_digest"]), ("plain-norm", "Apache-2.0", True))

    def test_a_model_runs_with_it_as_without(self):
        slot = self.slot(self.package)
        self.assertEqual(slot["chosen"], f"{self.package}:PlainRMSNorm", slot["considered"])
        off = run_json("generate", TINY, *IDS, "--kernels", "off", env=self.env)
        on = run_json("generate", TINY, *IDS, "--kernel-config", config(self.package), env=self.env)
        self.assertEqual(on["generated_ids"], off["generated_ids"])
        self.assertEqual([row["layer"] for row in on["swapped"]], ["RMSNorm"])

    def test_no_python_is_in_the_process_and_the_library_is(self):
        with full_pipe() as out:  # the first token cannot be written, so the process waits to be looked at
            process = start("generate", TINY, "--prompt-ids", "1,2,3", "--max-new-tokens", "60", "--ignore-eos",
                            "--stream", "--kernel-config", config(self.package),
                            env={**self.env, "GRAFT_LOG": "off"}, stdout=out, stderr=subprocess.DEVNULL)
            maps, deadline = "", time.monotonic() + 240
            while "memfd:_plain_norm" not in maps and process.poll() is None and time.monotonic() < deadline:
                maps = pathlib.Path(f"/proc/{process.pid}/maps").read_text()
                time.sleep(0.02)
            process.kill()
            process.wait()
        self.assertIn("memfd:_plain_norm", maps)
        self.assertNotIn("libpython", maps)
        self.assertNotIn("libtorch_python", maps)

    def test_it_went_through_the_canary(self):
        env = {**self.env, "GRAFT_CANARY": "strict", "XDG_CACHE_HOME": str(self.base / "fresh"), "GRAFT_LOG": "info"}
        done = run("explain", TINY, "--kernel-config", config(self.package), env=env)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertRegex(done.stderr, r"\[kernel.canary\] `.*plain-norm`: ok in [0-9.]+ s, 2 checks")

    def test_pythons_kernels_takes_the_package_too(self):
        done = subprocess.run([sys.executable, "-c", PYTHON_LOADS, self.package], capture_output=True, text=True,
                              timeout=240, env=environment(self.env), check=False)
        self.assertEqual(done.returncode, 0, done.stderr[-3000:])
        self.assertTrue(json.loads(done.stdout.splitlines()[-1]))

    # What is refused

    def test_a_damaged_library(self):
        package, folder = self.copy("damaged")
        library = next(folder.glob("*.so"))
        data = bytearray(library.read_bytes())
        data[len(data) // 2] ^= 1
        library.write_bytes(data)
        code, reason = self.refusal(package)
        self.assertEqual(code, "kernel.loader.digest")
        self.assertIn(library.name, reason)
        library.write_bytes(data[:5000])  # its author lost the rest
        digest_again(folder)
        self.assertEqual(self.refusal(package)[0], "kernel.elf.format")
        library.unlink()
        self.assertEqual(self.refusal(package)[0], "kernel.loader.library")

    def test_a_library_that_is_none_of_aotinductors(self):
        package, folder = self.copy("other")
        other = next((BUILD / "share/graft/hub/graft-kernels/activation/build").glob("*-cpu-*/*.so"))
        shutil.copy(other, next(folder.glob("*.so")))
        digest_again(folder)
        code, reason = self.refusal(package)
        self.assertIn(code, ("kernel.canary.load", "kernel.canary.forbidden", "kernel.aot.library"))
        code, reason = self.refusal(package, GRAFT_CANARY="off")
        self.assertEqual(code, "kernel.aot.library", reason)

    def test_descriptions_that_do_not_fit(self):
        for name, changes, code in (("torch", {"torch": "2.10.0"}, "kernel.aot.torch"),
                                    ("device", {"device": "cuda"}, "kernel.aot.device"),
                                    ("processor", {"processor": "x86-64-v9"}, "kernel.aot.processor"),
                                    ("contract", {"contract": "Linear"}, "kernel.aot.contract"),
                                    ("schema", {"schema": 2}, "kernel.aot.schema"),
                                    ("nothing", {"libraries": []}, "kernel.aot.libraries"),
                                    ("more", {"more": 1}, "kernel.aot.unknown-key")):
            with self.subTest(name):
                package, folder = self.copy(name)
                edit(folder / "aot.json", **changes)
                digest_again(folder)
                self.assertEqual(self.refusal(package)[0], code)
        package, folder = self.copy("elsewhere")
        libraries = json.loads((folder / "aot.json").read_text())["libraries"]
        for file in ("../x.so", "/tmp/x.so", "x.txt"):
            edit(folder / "aot.json", libraries=[{**libraries[0], "file": file}])
            self.assertEqual(self.refusal(package)[0], "kernel.aot.file")

    def test_metadata_of_another_device(self):
        package, folder = self.copy("metadata")
        edit(folder / "metadata.json", backend={"type": "cuda"})
        code, reason = self.refusal(package)
        self.assertEqual(code, "kernel.resolver.no-variant")
        self.assertIn("metadata.json says backend cuda", reason)

    def test_a_width_or_an_eps_that_it_was_not_compiled_for(self):
        package, folder = self.copy("width")
        layers = json.loads((folder / "layers.json").read_text())
        for key, value, code in (("rows", [64], "layers.adapter.rows"), ("eps", [1e-6], "layers.adapter.eps")):
            changed = {name: {**layer, key: value} for name, layer in layers["layers"].items()}
            edit(folder / "layers.json", layers=changed)
            digest_again(folder)
            got, reason = self.refusal(package, GRAFT_CANARY="off")
            self.assertEqual(got, code, reason)
        # A package that promises more than it has is caught by running it.
        edit(folder / "layers.json", layers=layers["layers"])
        libraries = json.loads((folder / "aot.json").read_text())["libraries"]
        edit(folder / "aot.json", libraries=[{**libraries[0], "columns": 64}])
        digest_again(folder)
        code, reason = self.refusal(package)
        self.assertEqual(code, "kernel.canary.wrong-answer", reason)
        code, reason = self.refusal(package, GRAFT_CANARY="off")
        self.assertEqual(code, "layers.guard.refused")
        self.assertIn("expected what it was compiled for (Float 64 eps 1e-05)", reason)

    # The command

    def aot(self, kernel, *options, env=None, expect=None, timeout=300):
        done = run("kernels", "aot", kernel, *options, "--json", env={**self.env, **(env or {})}, timeout=timeout)
        answer = json.loads(done.stdout)
        self.assertEqual(done.returncode, 0 if expect is None else expect, f"{done.stdout}\n{done.stderr}")
        return answer.get("error", answer)

    def test_a_dry_run_runs_and_writes_nothing(self):
        out = self.base / "dry"
        answer = self.aot(f"{PACKAGE}:PlainSiLU", "--out", out, "--columns", "64", "96", "--dry-run", "--python", "/bin/false")
        self.assertEqual(answer["command"][0], "/bin/false")
        self.assertIn("PlainSiLU", answer["command"])
        self.assertEqual(answer["command"][answer["command"].index("--columns") + 1:][:2], ["64", "96"])
        self.assertFalse(out.exists())

    def test_what_python_cannot_do_is_said(self):
        out = self.base / "never"
        for layer, options, code, text in (
                ("Nothing", ("--contract", "RMSNorm"), "kernel.aot.layer", "PlainRMSNorm"),
                ("PlainRMSNorm", (), "kernel.aot.contract", "--contract"),
                ("PlainRMSNorm", ("--contract", "RMSNorm", "--eps", "2"), "kernel.aot.options", "eps"),
                ("OneWidthRMSNorm", ("--contract", "RMSNorm"), "kernel.aot.run", "--columns")):
            with self.subTest(layer=layer, options=options):
                error = self.aot(f"{PACKAGE}:{layer}", "--out", out, *options, expect=1)
                self.assertEqual(error["code"], code)
                self.assertIn(text, error["message"] + error.get("hint", ""))
                self.assertEqual([*out.glob("build/*")], [])
        for python, code in (("/nowhere/python", "kernel.aot.python"), ("/bin/false", "kernel.aot.compile")):
            error = self.aot(f"{PACKAGE}:PlainSiLU", "--out", out, "--python", python, expect=1)
            self.assertEqual(error["code"], code)
            self.assertIn("GRAFT_PYTHON", error.get("hint", ""))
        error = self.aot(f"{self.package}:PlainRMSNorm", "--out", out, expect=1)
        self.assertIn("nothing to compile", error["message"])

    def test_a_package_of_the_hub_needs_a_clear_word_and_is_named_as_the_way_on(self):
        served, spy = self.base / "served", self.base / "spy.sh"
        spy.write_text(f"#!/bin/sh\nenv > {self.base}/seen.env; "
                       f"for word; do [ \"$last\" = --package ] && find \"$word\" > {self.base}/seen.files; last=$word; done\n"
                       "echo chatter\necho '{\"error\": {\"reason\": \"layer\", \"message\": \"spied\", \"hint\": \"\"}}'\nexit 1\n")
        spy.chmod(0o755)
        for name in ("acme/python-norms", "stranger/python-norms"):
            shutil.copytree(PACKAGE, served / "kernels" / name / "refs/v1")
        (served / ".graft-hub.json").write_text(json.dumps({"trusted-publishers": ["acme"]}))
        with LocalHub(served) as hub:
            env = {**hub.variables(self.base / "hub-cache"), "HF_TOKEN": "hf_secret"}
            options = ("--contract", "RMSNorm", "--out", self.base / "hub-out", "--python", spy)
            code, reason = self.refusal("acme/python-norms", **env)
            self.assertEqual(code, "kernel.resolver.no-variant", reason)
            self.assertIn("Python files only", reason)
            self.assertIn("graft kernels aot acme/python-norms", reason)
            self.aot("acme/python-norms:PlainRMSNorm", *options, "--dry-run", env=env)
            error = self.aot("acme/python-norms:PlainRMSNorm", *options, env=env, expect=4)
            self.assertEqual(error["code"], "kernel.aot.trust")
            self.assertIn("--trust-remote-code", error.get("hint", ""))
            error = self.aot("stranger/python-norms:PlainRMSNorm", *options, env=env, expect=4)
            self.assertEqual(error["code"], "trust.decision.unknown-publisher")
            self.assertFalse((self.base / "seen.env").exists())
            error = self.aot("acme/python-norms:PlainRMSNorm", *options, "--trust-remote-code", env=env, expect=1)
            self.assertEqual((error["code"], error["message"].endswith("spied")), ("kernel.aot.layer", True))
        self.assertNotIn("hf_secret", (self.base / "seen.env").read_text())
        self.assertIn("layers.py", (self.base / "seen.files").read_text())


if __name__ == "__main__":
    unittest.main()
