"""`graft hub serve` under the real clients: huggingface_hub, kernels, transformers, and `graft download`."""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from local_hub import LocalHub  # noqa: E402
from support import BUILD, TINY, Workspace, environment, run, run_json, start  # noqa: E402

PACKAGES = BUILD / "share/graft/hub/graft-kernels"
REPO = "somebody/tiny"
KERNEL = "graft-kernels/activation"
RULES = {"users": {"tok-alice": "alice", "tok-bob": "bob"}, "trusted-publishers": ["graft-kernels"],
         "repositories": {"somebody/secret": {"private": True, "readers": ["alice"]},
                          "somebody/gated": {"gated": True, "readers": ["alice"]}}}


def python(code, env, *arguments):
    """Runs Python code as a program of its own (the libraries read their variables at import); returns what it printed."""
    done = subprocess.run([sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True,
                          timeout=240, env=environment(env), check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


ERROR_OF = """
import json, sys
from huggingface_hub import hf_hub_download, snapshot_download
from huggingface_hub.errors import *
def name_of(call):
    try:
        return call()
    except Exception as error:
        return type(error).__name__
"""


class HubServe(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.workspace = Workspace()
        cls.folder = cls.workspace.__enter__()
        for name in ("models/" + REPO, "models/somebody/secret", "models/somebody/gated"):
            target = cls.folder / name
            target.mkdir(parents=True)
            for file in ("config.json", "generation_config.json", "model.safetensors"):
                shutil.copy(TINY / file, target / file)
        shutil.copytree(PACKAGES / "activation", cls.folder / KERNEL)
        (cls.folder / ".graft-hub.json").write_text(json.dumps(RULES))

    @classmethod
    def tearDownClass(cls):
        cls.workspace.__exit__()

    def setUp(self):
        self.cache_workspace = Workspace()
        self.cache = self.cache_workspace.__enter__()

    def tearDown(self):
        self.cache_workspace.__exit__()

    def test_snapshot_download_brings_every_file_and_asks_nothing_twice(self):
        code = "import json, sys; from huggingface_hub import *; print(json.dumps(snapshot_download(sys.argv[1])))"
        for arguments in ((), ("--large-file-port", "0"), ("--page-size", "1")):
            with self.subTest(arguments), Workspace() as cache, LocalHub(self.folder, *arguments) as hub:
                found = pathlib.Path(python(code, hub.variables(cache, "tok-bob"), REPO))
                for file in ("config.json", "generation_config.json", "model.safetensors"):
                    self.assertEqual((found / file).read_bytes(), (TINY / file).read_bytes(), file)
                large = [row for row in hub.log()["requests"] if row["path"].startswith("/.graft/large/")]
                self.assertTrue(large)
                if "--large-file-port" in arguments:  # the token stays with the host that it is for
                    self.assertFalse([row for row in large if row["authorized"]])
                hub.forget()
                self.assertEqual(python(code, hub.variables(cache), REPO), str(found))
                self.assertFalse([path for path in hub.paths() if "/resolve/" in path])

    def test_hf_hub_download_takes_one_file_of_any_revision(self):
        code = """import json, sys
from huggingface_hub import *
api = HfApi()
info = api.model_info(sys.argv[1], files_metadata=True)
path = hf_hub_download(sys.argv[1], "config.json", revision=info.sha)
refs = api.list_repo_refs(sys.argv[1])
paths = api.get_paths_info(sys.argv[1], ["config.json", "model.safetensors", "none"])
print(json.dumps([path, info.sha, [branch.target_commit for branch in refs.branches],
                  [(row.path, row.size, row.lfs and row.lfs.sha256) for row in paths],
                  sorted(sibling.rfilename for sibling in info.siblings), api.whoami()["name"]]))"""
        with LocalHub(self.folder) as hub:
            path, sha, commits, rows, siblings, name = python(code, hub.variables(self.cache, "tok-bob"), REPO)
        self.assertEqual(pathlib.Path(path).read_bytes(), (TINY / "config.json").read_bytes())
        self.assertEqual(pathlib.Path(path).parent.name, sha)
        self.assertEqual(commits, [sha])
        self.assertEqual(siblings, ["config.json", "generation_config.json", "model.safetensors"])
        self.assertEqual([row[0] for row in rows], ["config.json", "model.safetensors"])
        self.assertEqual(rows[1][1], (TINY / "model.safetensors").stat().st_size)
        self.assertEqual(len(rows[1][2]), 64)
        self.assertEqual(name, "bob")

    def test_refusals_become_the_errors_that_python_knows(self):
        code = ERROR_OF + """
print(json.dumps([name_of(lambda: hf_hub_download(repo, file, revision=revision) and "ok")
                  for repo, file, revision in json.loads(sys.argv[1])]))"""
        cases = [("somebody/none", "config.json", None), (REPO, "none.json", None), (REPO, "config.json", "v7"),
                 ("somebody/secret", "config.json", None), ("somebody/gated", "config.json", None)]
        expected = {"": ["RepositoryNotFoundError", "GatedRepoError"], "tok-alice": ["ok", "ok"],
                    "tok-bob": ["RepositoryNotFoundError", "GatedRepoError"]}
        with LocalHub(self.folder) as hub:
            for token, ends in expected.items():
                with Workspace() as cache:
                    got = python(code, hub.variables(cache, token), json.dumps(cases))
                self.assertEqual(got[1:3], ["RemoteEntryNotFoundError", "RevisionNotFoundError"], token)
                self.assertEqual([got[0], *got[3:]], ["RepositoryNotFoundError", *ends], token)

    def test_kernels_loads_one_of_our_packages(self):
        code = """import json, sys, torch
from kernels import get_kernel, install_kernel
kernel = get_kernel(sys.argv[1], version=1)
x = torch.arange(8, dtype=torch.float32).reshape(1, 8)
out = torch.empty(1, 4)
kernel.silu_and_mul(out, x)
same = torch.allclose(out, torch.nn.functional.silu(x[:, :4]) * x[:, 4:])
print(json.dumps([same, str(install_kernel(sys.argv[1], version=1))]))"""
        with LocalHub(self.folder) as hub:
            same, folder = python(code, hub.variables(self.cache), KERNEL)
            self.assertIn(f"/api/kernels/{KERNEL}/refs", hub.paths())
            self.assertIn("/api/organizations/graft-kernels/overview", hub.paths())
        self.assertTrue(same)
        installed = pathlib.Path(folder)
        for file in installed.iterdir():
            if file.is_file():
                self.assertEqual(file.read_bytes(), (PACKAGES / "activation/build" / installed.name / file.name).read_bytes())

    def test_a_publisher_that_is_not_trusted_is_refused(self):
        shutil.copytree(PACKAGES / "activation", self.folder / "stranger/activation", dirs_exist_ok=True)
        code = ERROR_OF + """
from kernels import install_kernel
print(json.dumps(name_of(lambda: install_kernel("stranger/activation", version=1) and "ok")))"""
        with LocalHub(self.folder) as hub:
            self.assertEqual(python(code, hub.variables(self.cache)), "ValueError")
            self.assertFalse([path for path in hub.paths() if "/resolve/" in path])

    def test_transformers_loads_a_model(self):
        code = """import json, sys
from transformers import AutoModelForCausalLM
import torch
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
ids = model.generate(torch.tensor([[1, 2, 3]]), max_new_tokens=4, do_sample=False)
print(json.dumps(ids[0].tolist()))"""
        with LocalHub(self.folder) as hub:
            downloaded = python(code, hub.variables(self.cache), REPO)
        self.assertEqual(downloaded, python(code, {"HF_HUB_OFFLINE": "1"}, TINY))

    def test_graft_download_shares_its_cache_with_python(self):
        code = "import json, sys; from huggingface_hub import *; print(json.dumps(snapshot_download(sys.argv[1])))"
        with LocalHub(self.folder, "--large-file-port", "0") as hub:
            env = hub.variables(self.cache, "tok-bob")
            result = run_json("download", REPO, env=env)
            folder = pathlib.Path(result["folder"])
            self.assertEqual((folder / "model.safetensors").read_bytes(), (TINY / "model.safetensors").read_bytes())
            large = [row for row in hub.log()["requests"] if row["path"].startswith("/.graft/large/")]
            self.assertTrue(large)
            self.assertFalse([row for row in large if row["authorized"]])
            hub.forget()
            self.assertEqual(pathlib.Path(python(code, env, REPO)).resolve(), folder.resolve())
            self.assertFalse([path for path in hub.paths("GET") if "/resolve/" in path])

    def test_python_resumes_a_cut_body_and_waits_for_a_busy_server(self):
        code = """import json, sys
from huggingface_hub import constants, snapshot_download
print(json.dumps([snapshot_download(sys.argv[1]), constants.DOWNLOAD_CHUNK_SIZE]))"""
        content = bytes(range(256)) * (11 << 12)  # 11 MiB: it keeps whole pieces of 10 MiB
        file = self.folder / "models/somebody/long/weights.bin"
        file.parent.mkdir(parents=True)
        file.write_bytes(content)
        faults = [{"path": "/.graft/large/*", "method": "GET", "times": 1, "cut_after": len(content) - 1000},
                  {"path": "/api/models/*/tree/*", "times": 1, "status": 503}]
        with LocalHub(self.folder, faults=faults) as hub:
            found, piece = python(code, hub.variables(self.cache), "somebody/long")
            requests = hub.log()["requests"]
        self.assertEqual((pathlib.Path(found) / "weights.bin").read_bytes(), content)
        self.assertEqual([row["range"] for row in requests if "/large/" in row["path"] and row["method"] == "GET"],
                         ["", f"bytes={piece}-"])
        self.assertEqual([row["status"] for row in requests if "/tree/" in row["path"]], [503, 200])

    def test_graft_download_refuses_wrong_bytes(self):
        faults = [{"path": "/.graft/large/*", "method": "GET", "flip_byte": 500}]
        with LocalHub(self.folder, faults=faults) as hub:
            done = run("download", REPO, env=hub.variables(self.cache))
        self.assertEqual(done.returncode, 4, done.stderr)

    def test_it_prints_its_url_and_ends_cleanly_on_a_signal(self):
        for number in (signal.SIGTERM, signal.SIGINT):
            process = start("hub", "serve", self.folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
            line = process.stdout.readline().decode()
            self.assertRegex(line, r"^http://127\.0\.0\.1:\d+\n$")
            process.send_signal(number)
            rest, notes = process.communicate(timeout=120)
            self.assertEqual((process.returncode, rest), (0, b""), notes)

    def test_a_folder_that_is_none_and_a_taken_port_are_errors(self):
        self.assertEqual(run("hub", "serve", self.cache / "none").returncode, 1)
        with LocalHub(self.folder) as hub:
            done = run("hub", "serve", self.folder, "--port", hub.url.rsplit(":", 1)[1])
            self.assertEqual(done.returncode, 3, done.stderr)
            self.assertIn("hub.server", done.stderr)
        self.assertEqual(hub.exit_code, 0)
        self.assertEqual(os.listdir(self.cache), [])


if __name__ == "__main__":
    unittest.main(verbosity=2)
