"""Kernels of a Hub: fetched, planned, locked and loaded by `graft`, beside Python's `kernels`, over one cache."""

import json
import pathlib
import shutil
import subprocess
import sys
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from local_hub import LocalHub  # noqa: E402
from support import BUILD, TINY, Workspace, environment, run, run_json  # noqa: E402

PACKAGE = BUILD / "share/graft/hub/graft-kernels/activation"
KERNEL = "acme/activation"
RULES = {"trusted-publishers": ["acme"]}
PYTHON_LOADS = """import json, sys, torch
from kernels import get_kernel, load_kernel
if len(sys.argv) > 2:
    kernel = load_kernel(sys.argv[1], lockfile=sys.argv[2], backend="cpu")
else:
    kernel = get_kernel(sys.argv[1], version=1, backend="cpu")
x = torch.arange(8, dtype=torch.float32).reshape(1, 8)
out = torch.empty(1, 4)
kernel.silu_and_mul(out, x)
print(json.dumps(bool(torch.allclose(out, torch.nn.functional.silu(x[:, :4]) * x[:, 4:]))))"""


def python(code, env, *arguments):
    done = subprocess.run([sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True,
                          timeout=240, env=environment(env), check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


def config(kernel, layer="SiluAndMul"):
    return json.dumps({"kernel_mapping": {"SiluAndMul": {"cpu": f"{kernel}:{layer}"}}, "inherit_mapping": False})


class HubKernels(unittest.TestCase):
    def setUp(self):
        self.workspace = Workspace()
        self.base = self.workspace.__enter__()
        self.folder, self.cache = self.base / "served", self.base / "cache"
        shutil.copytree(PACKAGE, self.folder / "kernels" / KERNEL / "refs/v1")
        shutil.copytree(PACKAGE, self.folder / "kernels/stranger/activation/refs/v1")
        for tag in ("v0.1.0", "v0.1.2", "v0.2.0"):
            shutil.copytree(PACKAGE, self.folder / "models/acme/old/tags" / tag)
            (self.folder / "models/acme/old/tags" / tag / "README.md").write_text(tag)
        (self.folder / "models/acme/old/refs/main").mkdir(parents=True)
        (self.folder / "models/acme/old/refs/main/README.md").write_text("old")
        (self.folder / ".graft-hub.json").write_text(json.dumps(RULES))
        (self.base / "embedded").mkdir()

    def tearDown(self):
        self.workspace.__exit__()

    def variables(self, hub, **more):
        return {**hub.variables(self.cache), "GRAFT_EMBEDDED_HUB": str(self.base / "embedded"),
                "XDG_CONFIG_HOME": str(self.base / "config"), "GRAFT_TRUST_JOURNAL": str(self.base / "trust.jsonl"), **more}

    def explain(self, env, kernel, command="explain"):
        """What the one swapped layer of the tiny model says of its kernel."""
        report = run_json(command, TINY, "--kernel-config", config(kernel), env=env)
        return next(slot for slot in report["slots"] if slot["layer"] == "SiluAndMul")

    def test_a_layer_gets_its_kernel_from_the_hub_and_the_trace_says_which_bytes(self):
        with LocalHub(self.folder) as hub:
            env = self.variables(hub)
            planned = self.explain(env, KERNEL, "plan")
            self.assertFalse((self.cache / "hub").exists())
            first = self.explain(env, KERNEL)
            self.assertEqual(first["chosen"], f"{KERNEL}:SiluAndMul", first["considered"])
            self.assertEqual((first["source"], len(first["commit"])), ("Hub", 40))
            self.assertGreater(first["bytes_fetched"], 10_000)
            for key in ("chosen", "variant", "id", "commit", "bytes_fetched"):
                self.assertEqual(planned[key], first[key], key)
            hub.forget()
            for kernel in (KERNEL, f"{KERNEL}@v1", f"{KERNEL}@{first['commit']}"):
                again = self.explain(env, kernel)
                self.assertEqual((again["source"], again["bytes_fetched"]), ("cache", 0))
            self.assertFalse([path for path in hub.paths() if not path.endswith("/refs")])
            hub.forget()
            self.explain(env, f"{KERNEL}@{first['commit']}")
            for changes in ({"USE_HUB_KERNELS": "0"}, {"HF_HUB_OFFLINE": "1"},
                            {"LOCAL_KERNELS": f"acme/unknown={PACKAGE}"}):
                unknown = "acme/unknown" if "LOCAL_KERNELS" in changes else f"{KERNEL}@v1"
                self.explain({**env, **changes}, unknown)
            self.assertEqual(hub.paths(), [])

    def test_specifiers_choose_tags_online_and_offline(self):
        with LocalHub(self.folder) as hub:
            env = self.variables(hub)
            found = run_json("kernels", "get", "acme/old@>=0.1,<0.2", env=env)["kernels"][0]
            self.assertEqual(found["ref"], "v0.1.2")
            self.assertIn("/models--acme--old/", found["folder"])
            self.assertEqual(self.explain(env, "acme/old@>=0.1,<0.2")["commit"], found["commit"])
            offline = self.explain({**env, "HF_HUB_OFFLINE": "1"}, "acme/old@>=0.1,<0.2")
            self.assertEqual(offline["commit"], found["commit"])
            refused = self.explain({**env, "HF_HUB_OFFLINE": "1"}, "acme/old@>=0.3")
            self.assertEqual(refused["considered"][-1]["outcome"], "kernel.resolver.missing-package")

    def test_python_loads_offline_what_graft_fetched(self):
        with LocalHub(self.folder) as hub:
            env = self.variables(hub)
            done = run("kernels", "get", f"{KERNEL}@v1", env=env)
            self.assertEqual(done.returncode, 0, done.stderr)
            self.assertTrue((pathlib.Path(done.stdout.strip()) / "metadata.json").exists())
        self.assertTrue(python(PYTHON_LOADS, {**env, "HF_HUB_OFFLINE": "1"}, KERNEL))

    def test_graft_loads_offline_what_python_fetched(self):
        with LocalHub(self.folder) as hub:
            env = self.variables(hub)
            self.assertTrue(python(PYTHON_LOADS, env, KERNEL))
        # Nobody here has allowed what Python brought, and nobody can be asked: the policy has to say so.
        offline = {**env, "HF_HUB_OFFLINE": "1"}
        refused = self.explain(offline, KERNEL)
        self.assertEqual(refused["considered"][-1]["outcome"], "trust.decision.not-asked", refused)
        for kernel in (KERNEL, f"{KERNEL}@v1"):
            slot = self.explain({**offline, "GRAFT_TRUST_ALLOW": "acme/*"}, kernel)
            self.assertEqual((slot["chosen"].split(":")[0], slot["source"]), (kernel, "cache"), slot["considered"])

    def test_both_write_and_read_the_same_lock(self):
        project = self.base / "project"
        project.mkdir()
        (project / "pyproject.toml").write_text(f'[tool.kernels.dependencies]\n"{KERNEL}" = 1\n')
        lock, hashes = project / "kernels.lock", project / "kernels.hashes.lock"
        with LocalHub(self.folder) as hub:
            env = self.variables(hub)
            dry = run_json("kernels", "lock", project, "--dry-run", env=env)
            self.assertEqual([change["change"] for change in dry["changes"]], ["added"])
            self.assertFalse(lock.exists())
            self.assertEqual(run_json("kernels", "lock", project, env=env)["kernels"], 1)
            ours = lock.read_text()
            self.assertEqual(run_json("kernels", "diff", lock, lock, env=env)["changes"], [])
            python("import json, argparse, pathlib, sys; from kernels.cli.lock import lock_kernels\n"
                   "lock_kernels(argparse.Namespace(project_dir=pathlib.Path(sys.argv[1]))); print(json.dumps(0))",
                   env, project)
            self.assertEqual(lock.read_text(), ours)
            row = json.loads(hashes.read_text())[0]
            self.assertEqual(row["repo_id"], KERNEL)
            self.assertEqual(sorted(row["variants"]), sorted(path.name for path in (PACKAGE / "build").iterdir()))
            got = run_json("kernels", "get", "--lock", lock, env=env)["kernels"][0]
            self.assertTrue(run_json("kernels", "verify", "--lock", lock, env=env)["verified"])
            # A branch that moves does not move the lock.
            (self.folder / "kernels" / KERNEL / "refs/v1/README.md").write_text("moved")
            moved = run_json("kernels", "lock", "--kernel", f"{KERNEL}@v1", "-o", self.base / "new.lock", env=env)
            self.assertNotEqual(moved["changes"], [])
            done = run("kernels", "diff", lock, self.base / "new.lock", env=env)
            self.assertEqual((done.returncode, done.stdout.split()[0]), (1, "moved"), done.stderr)
            again = run_json("kernels", "get", "--lock", lock, env=env)["kernels"][0]
            self.assertEqual((again["commit"], again["bytes_fetched"]), (got["commit"], 0))
        offline = {**env, "HF_HUB_OFFLINE": "1"}
        self.assertTrue(python(PYTHON_LOADS, offline, KERNEL, lock))
        # What lies in the cache is held against the lock.
        text = hashes.read_text()
        variant = got["variant"]
        hash_of = json.loads(text)[0]["variants"][variant]["hash"]
        hashes.write_text(text.replace(hash_of, "sha256-" + "0" * 64))
        done = run("kernels", "verify", "--lock", lock, env=offline)
        self.assertEqual(done.returncode, 4, done.stderr)
        self.assertIn("kernel.lock", done.stderr)

    def test_damage_is_found_and_healed(self):
        with LocalHub(self.folder) as hub:
            env = self.variables(hub)
            folder = pathlib.Path(run_json("kernels", "get", KERNEL, env=env)["kernels"][0]["folder"])
            self.assertTrue(run_json("kernels", "verify", KERNEL, env=env)["verified"])
            blob = (folder / "layers.json").resolve()
            blob.write_bytes(blob.read_bytes() + b" ")
            done = run("kernels", "verify", KERNEL, env=env)
            self.assertEqual(done.returncode, 4, done.stdout + done.stderr)
            self.assertEqual(run("kernels", "get", KERNEL, env=env).returncode, 0)
            self.assertTrue(run_json("kernels", "verify", KERNEL, env=env)["verified"])

    def test_packages_are_listed_described_and_their_variants_explained(self):
        with LocalHub(self.folder) as hub:
            env = self.variables(hub)
            info = run_json("kernels", "info", KERNEL, env=env)["kernels"][0]
            self.assertEqual((info["name"], info["version"], info["has_digest"]), ("activation", 1, True))
            self.assertGreater(info["bytes_fetched"], 0)
            self.assertFalse((self.cache / "hub").exists())
            variants = run_json("kernels", "variants", KERNEL, "--all", env=env)["kernels"]
            self.assertEqual([row["ref"] for row in variants], ["v1"])
            self.assertTrue(variants[0]["variants"][0]["accepted"])
            cuda = run("kernels", "variants", f"{KERNEL}@v1", env=env).stdout
            self.assertIn("  + torch-stable-abi", cuda)
            self.assertEqual(run_json("kernels", "list", env=env)["kernels"], [])
            run_json("kernels", "get", KERNEL, env=env)
            row = run_json("kernels", "list", env=env)["kernels"][0]
            self.assertEqual((row["repository"], row["source"], row["refs"]), (KERNEL, "cache", ["v1"]))
            dry = run_json("kernels", "get", "acme/old@v0.2.0", "--dry-run", env=env)
            self.assertGreater(dry["bytes_fetched"], 0)
            self.assertEqual(len(run_json("kernels", "list", env=env)["kernels"]), 1)

    def test_refusals_have_their_codes(self):
        with LocalHub(self.folder) as hub:
            env = self.variables(hub)
            for arguments, code, text in (
                    (("get", "stranger/activation@v1"), 4, "trust.decision"),
                    (("get", "acme/none"), 1, "acme/none"),
                    (("get", f"{KERNEL}@v7"), 1, "expected version 7, got the versions 1"),
                    (("get", "no-slash"), 2, "org/repo[@ref]"),
                    (("get",), 2, "--lock"),
                    (("get", f"{KERNEL}@>="), 2, "version specifier"),
                    (("lock",), 2, "PROJECT"),
                    (("verify", KERNEL), 1, "expected a kernel package")):
                done = run("kernels", *arguments, env=env)
                self.assertEqual(done.returncode, code, (arguments, done.stderr))
                self.assertIn(text, done.stderr, arguments)
            self.assertFalse([path for path in hub.paths() if "/resolve/" in path])
            self.assertEqual(run("kernels", "get", "stranger/activation@v1", "--trust-remote-code", env=env).returncode, 0)


if __name__ == "__main__":
    unittest.main(verbosity=2)
