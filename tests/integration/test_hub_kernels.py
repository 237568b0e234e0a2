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
TEST_PACKAGES = BUILD / "tests/hub/graft-tests"
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
        self.decided = report.get("trust")
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

    def test_a_plan_needs_config_json_alone(self):
        with_weights = run_json("plan", TINY)
        bare = self.base / "bare"
        bare.mkdir()
        shutil.copy(TINY / "config.json", bare)
        self.assertEqual({path.name for path in bare.iterdir()}, {"config.json"})
        served = self.folder / "models/acme/tiny/refs/main"
        shutil.copytree(TINY, served)
        (self.folder / "models/acme/gguf/refs/main").mkdir(parents=True)
        (self.folder / "models/acme/gguf/refs/main/model.gguf").write_text("GGUF")
        def told(report):  # but for its model and how long it took
            return {key: value for key, value in report.items() if key not in ("model", "seconds")}
        self.assertTrue(any(slot["chosen"] for slot in with_weights["slots"]))
        self.assertEqual(told(run_json("plan", bare)), told(with_weights))
        with LocalHub(self.folder) as hub:
            env = self.variables(hub)
            env.pop("GRAFT_EMBEDDED_HUB")
            self.assertEqual(told(run_json("plan", "acme/tiny", env=env)), told(with_weights))
            resolved = [path for path in hub.paths() if "/resolve/" in path]
            self.assertEqual({path.rsplit("/", 1)[1] for path in resolved}, {"config.json"}, resolved)
            self.assertLessEqual(len(hub.paths()), 4, hub.paths())
            self.assertFalse((self.cache / "hub").exists())
            none = run("plan", "acme/gguf", env=env)
            self.assertEqual((none.returncode, "graft download acme/gguf" in none.stderr), (1, True), none.stderr)
            self.assertEqual(run("plan", "acme/nothing", env=env).returncode, 1)
        offline = run("plan", "acme/tiny", env={**env, "HF_HUB_OFFLINE": "1"})
        self.assertEqual((offline.returncode, "graft download acme/tiny" in offline.stderr), (1, True), offline.stderr)

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
            trusting = PYTHON_LOADS.replace("version=1", "version=1, trust_remote_code=True")
            self.assertTrue(python(trusting, env, "stranger/activation"))
            offline = {**env, "HF_HUB_OFFLINE": "1"}
            # Nobody here has allowed what Python brought, nobody can be asked, and nobody ever was.
            refused = self.explain(offline, KERNEL)["considered"][-1]
            self.assertEqual(refused["outcome"], "trust.decision.not-asked", refused)
            self.assertIn("graft kernels trust allow acme/activation", refused["reason"] + refused.get("hint", ""))
            # A word on the publisher is enough, on whatever occasion the Hub gave it.
            self.assertEqual(run("kernels", "get", "acme/old@v0.2.0", env=env).returncode, 0)
        def load(kernel, **more):
            return self.explain({**offline, **more}, kernel)
        for kernel, more in ((KERNEL, {"HF_HUB_OFFLINE": ""}), (f"{KERNEL}@v1", {})):  # a Hub that is gone, offline
            slot = load(kernel, **more)
            self.assertEqual((slot["chosen"].split(":")[0], slot["source"]), (kernel, "cache"), slot["considered"])
            self.assertEqual(self.decided[0]["repository"], KERNEL)
            self.assertEqual(self.decided[0]["reason"], "trusted-publisher" if more else "allowed-before")
        refused = load("stranger/activation")["considered"][-1]
        self.assertEqual(refused["outcome"], "trust.decision.not-asked", refused)
        self.assertIn("stranger/activation", refused["reason"])
        self.assertEqual(load("stranger/activation", GRAFT_TRUST_ALLOW="stranger/*")["source"], "cache")

    def test_publishers_of_what_is_cached_are_asked_about_beforehand(self):
        with LocalHub(self.folder) as hub:
            env = self.variables(hub)
            trusting = PYTHON_LOADS.replace("version=1", "version=1, trust_remote_code=True")
            self.assertTrue(python(PYTHON_LOADS, env, KERNEL))
            self.assertTrue(python(trusting, env, "stranger/activation"))
            ask = ("kernels", "trust", "ask")
            rows = [{"publisher": "acme", "trusted": True}, {"publisher": "stranger", "trusted": False}]
            self.assertEqual(run_json(*ask, "--dry-run", env=env)["publishers"], rows)
            self.assertFalse((self.base / "trust.jsonl").exists())
            self.assertEqual(run_json(*ask, env=env)["publishers"], rows)
            self.assertEqual(run(*ask, "acme", env=env).stdout, "trusted      acme\n")
            self.assertEqual(run(*ask, "no/name", env=env).returncode, 2)
        offline = {**env, "HF_HUB_OFFLINE": "1"}
        self.assertEqual(run(*ask, env=offline).returncode, 3)
        slot = self.explain(offline, "stranger/activation")
        self.assertEqual(slot["considered"][-1]["outcome"], "trust.decision.unknown-publisher")
        # A folder that others can write to is no place for a word on its publisher to hold.
        blobs = self.cache / "hub/kernels--acme--activation/blobs"
        blobs.chmod(0o777)
        refused = self.explain(offline, KERNEL)["considered"][-1]
        self.assertEqual(refused["outcome"], "trust.decision.foreign-files", refused)
        blobs.chmod(0o755)
        self.explain(offline, KERNEL)
        self.assertEqual(self.decided[0]["reason"], "trusted-publisher")
        # Once allowed the content is known, whoever may write there.
        blobs.chmod(0o777)
        self.explain(offline, KERNEL)
        self.assertEqual(self.decided[0]["reason"], "allowed-before")

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

    def test_trust_is_told_wherever_a_package_is_shown(self):
        with LocalHub(self.folder) as hub:
            env = self.variables(hub)
            unfetched = run_json("kernels", "info", KERNEL, env=env)["kernels"][0]
            self.assertEqual((unfetched["signature"], unfetched["library"]), ("none", {"library": ""}))
            self.explain(env, KERNEL)
            self.assertEqual((self.decided[0]["repository"], self.decided[0]["reason"], self.decided[0]["signer"]),
                             (KERNEL, "allowed-before", ""))  # the fetch was
            text = run("explain", TINY, "--kernel-config", config(KERNEL), env=env).stdout
            self.assertRegex(text, rf"(?m)^{KERNEL} may run: (trusted-publisher|allowed-before), not signed$")
            info = run_json("kernels", "info", KERNEL, env=env)["kernels"][0]
            self.assertEqual(info["signature"], "not signed")
            library = info["library"]
            self.assertTrue(any(name.startswith("libtorch") for name in library["needed"]), library)
            self.assertRegex(library["library"], r"\.so$")
            self.assertGreater(library["undefined_symbols"], 0)
            self.assertEqual((library["missing_symbols"], set(library["imports"])),
                             ([], {"files", "processes", "network", "code"}))
            self.assertGreater(library["num_constructors"], 0)  # where the ops are registered
            text = run("kernels", "info", KERNEL, env=env).stdout
            self.assertRegex(text, r"(?m)^signature +not signed$")
            self.assertRegex(text, r"(?m)^canary +ok, \d+ checks")
            self.assertRegex(text, r"(?m)^undefined +\d+ symbols, all of them offered here$")
            self.assertRegex(text, rf"(?m)^constructors +{library['num_constructors']}\b")
            row = run_json("kernels", "verify", KERNEL, env=env)["kernels"][0]
            self.assertEqual((row["signature"], row["trust"], row["library"]), ("not signed", "allowed-before", library))
            text = run("kernels", "verify", KERNEL, env=env).stdout
            self.assertRegex(text, rf"(?m)^ok +{KERNEL} .*\(not signed\)$")
            self.assertRegex(text, r"(?m)^ +constructors +\d+")
            denied = run_json("kernels", "verify", KERNEL, env={**env, "GRAFT_TRUST_DENY": "acme/*"}, expect=4)
            self.assertEqual((denied["verified"], denied["kernels"][0]["trust"]), (False, "denied"))
            text = run("kernels", "verify", KERNEL, env={**env, "GRAFT_TRUST_DENY": "acme/*"}).stdout
            self.assertRegex(text, rf"(?m)^WRONG +{KERNEL} ")
            self.assertIn("the policy denies `acme/*`", text)
            # What would be refused at loading is said, and why.
            blob = pathlib.Path(info["folder"]) / library["library"]
            content = bytearray(blob.read_bytes())
            content[4] = 1  # 32 bits
            blob.resolve().write_bytes(content)
            broken = run_json("kernels", "verify", info["folder"].rsplit("/build/", 1)[0], env=env, expect=4)["kernels"][0]
            self.assertIn("kernel.elf", broken["library"]["refused"])

    def test_a_package_cannot_put_words_into_our_mouth(self):
        place = self.base / "package"
        shutil.copytree(PACKAGE, place)
        for file in place.glob("build/*/metadata.json"):
            metadata = json.loads(file.read_text())
            metadata.pop("digest")
            metadata["license"] = "mit\nsignature         verified\x1b[31m"
            file.write_text(json.dumps(metadata))
        shown = run("kernels", "info", place).stdout
        self.assertRegex(shown, r"(?m)^license +mit\\nsignature         verified\\x1b\[31m$")
        self.assertRegex(shown, r"(?m)^signature +not signed$")
        self.assertNotIn("\x1b", shown)

    def test_what_the_canary_did_not_run_is_shown(self):
        shutil.copytree(TEST_PACKAGES / "moe", self.folder / "kernels/acme/moe/refs/v1")
        with LocalHub(self.folder) as hub:
            env = self.variables(hub, XDG_CACHE_HOME=str(self.base / "private"))
            run_json("kernels", "get", "acme/moe", env=env)
            info = run_json("kernels", "info", "acme/moe", env=env)["kernels"][0]
            self.assertEqual(info["canary"], "will run before it is first loaded")
            self.assertEqual(info["library"]["missing_symbols"], [])  # it needs `libtorch.so`, which graft stands in for
            report = run_json("explain", TINY, "--kernel-config", config("acme/moe"), env=env)
            [row] = report["canary"]
            self.assertEqual((row["repository"], row["status"], row["unchecked"]), ("acme/moe", "ok", ["marlin_gemm_moe"]))
            shown = run("explain", TINY, "--kernel-config", config("acme/moe"), env=env).stdout
            self.assertRegex(shown, r"(?m)^acme/moe in the canary: ok, \d+ checks; opened and not run: marlin_gemm_moe$")
            info = run_json("kernels", "info", "acme/moe", env=env)["kernels"][0]
            self.assertRegex(info["canary"], r"^ok, \d+ checks; opened and not run: marlin_gemm_moe$")
            off = {**env, "GRAFT_CANARY": "off"}
            self.assertEqual(run_json("kernels", "info", "acme/moe", env=off)["kernels"][0]["canary"], "not needed")

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
