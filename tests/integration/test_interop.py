"""One cache, two libraries: what huggingface_hub and kernels wrote, graft uses with no request, and the other way round."""

import json
import os
import pathlib
import shutil
import subprocess
import sys
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from local_hub import LocalHub  # noqa: E402
from support import BUILD, GRAFT, Workspace, environment  # noqa: E402

REPO, KERNEL = "somebody/things", "graft-kernels/activation"
PACKAGE = BUILD / "share/graft/hub/graft-kernels/activation"
FILES = {"config.json": "{}", "sub/deep/notes.txt": "notes", "weights.safetensors": "weights", "empty.txt": ""}

# form -> what Python's snapshot_download and graft's download are given
FORMS = {
    "main": ({}, ()),
    "a branch": ({"revision": "dev"}, ("--revision", "dev")),
    "a tag": ({"revision": "v1.0"}, ("--revision", "v1.0")),
    "a full ref": ({"revision": "refs/heads/dev"}, ("--revision", "refs/heads/dev")),
    "a commit": ({"revision": "COMMIT"}, ("--revision", "COMMIT")),
    "patterns": ({"allow_patterns": ["*.json", "sub/*"]}, ("--include", "*.json", "--include", "sub/*")),
    "copies": ({}, ()),
}
PYTHON_SNAPSHOTS = """
import json, sys
from huggingface_hub import snapshot_download
print(json.dumps({name: snapshot_download(sys.argv[1], cache_dir=folder, **options)
                  for name, (folder, options) in json.loads(sys.argv[2]).items()}))"""


def python(code, env, *arguments):
    done = subprocess.run([sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True, timeout=240,
                          env=environment(env), check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


class Interop(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.workspace = Workspace()
        cls.folder = cls.workspace.__enter__()
        for tree, mark in (("refs/main", "main"), ("refs/dev", "development"), ("tags/v1.0", "tagged")):
            for name, content in FILES.items():
                path = cls.folder / "served/models" / REPO / tree / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(content + (mark if content else ""))
        shutil.copytree(PACKAGE, cls.folder / "served" / KERNEL)
        (cls.folder / "served/.graft-hub.json").write_text(json.dumps({"trusted-publishers": ["graft-kernels"]}))
        cls.hub = LocalHub(cls.folder / "served")
        cls.hub.__enter__()
        cls.commits = {row["name"]: row["targetCommit"] for kind in ("branches", "tags")
                       for row in cls.api(f"/api/models/{REPO}/refs")[kind]}

    @classmethod
    def tearDownClass(cls):
        cls.hub.__exit__()
        cls.workspace.__exit__()

    @classmethod
    def api(cls, path):
        import urllib.request
        with urllib.request.urlopen(cls.hub.url + path) as answer:
            return json.load(answer)

    def setUp(self):
        self.home_workspace = Workspace()
        self.home = self.home_workspace.__enter__()
        self.forms = {name: (self.filled(options), self.filled(arguments))
                      for name, (options, arguments) in FORMS.items()}

    def tearDown(self):
        self.home_workspace.__exit__()

    def filled(self, what):
        return json.loads(json.dumps(what).replace("COMMIT", self.commits["v1.0"]))

    def variables(self, name, **changes):
        return {**self.hub.variables(self.home), "HF_HUB_CACHE": str(self.home / name),
                "KERNELS_CACHE": str(self.home / name),
                "HF_HUB_DISABLE_SYMLINKS": "1" if name == "copies" else "", **changes}

    def graft(self, name, *arguments, **changes):
        done = subprocess.run([GRAFT, "download", *arguments, "--json"], capture_output=True, text=True, timeout=120,
                              env=environment(self.variables(name, **changes)), check=False)
        return json.loads(done.stdout)

    def by_python(self, **changes):
        """Every form, each in a cache of its own; links and copies need a process each."""
        found = {}
        for copies in (False, True):
            jobs = {name: (str(self.home / name), options) for name, (options, _) in self.forms.items()
                    if (name == "copies") == copies}
            env = self.variables("copies" if copies else "main", **changes)
            found |= python(PYTHON_SNAPSHOTS, env, REPO, json.dumps(jobs))
        return found

    def require_right(self, name, folder):
        mark = {"a branch": "development", "a full ref": "development", "a tag": "tagged", "a commit": "tagged"}.get(name, "main")
        expected = {path: content + (mark if content else "") for path, content in FILES.items()
                    if name != "patterns" or path.endswith(".json") or path.startswith("sub/")}
        found = {str(path.relative_to(folder)): path.read_text() for path in pathlib.Path(folder).rglob("*")
                 if path.is_file()}
        self.assertEqual(found, expected, name)

    def test_both_find_one_cache_by_the_same_variables(self):
        program = ("import json; from huggingface_hub import constants as c; "
                   "print(json.dumps([c.HF_HUB_CACHE, c.HF_HUB_OFFLINE]))")
        place = str(self.home / "a folder ü")
        base = {"PATH": os.getenv("PATH"), "HF_ENDPOINT": self.hub.url, "NO_PROXY": "*", "PLACE": place, "HOME": f"{place}/home"}
        cases = [{}, {"HF_HOME": "~/hf"}, {"HF_HOME": "$PLACE/hf"}, {"HF_HOME": "${PLACE}/x$NOBODY/$"}, {"HF_HUB_CACHE": "~/c"},
                 {"HUGGINGFACE_HUB_CACHE": "$HOME/d"}, {"XDG_CACHE_HOME": "~/xdg"}, {"XDG_CACHE_HOME": f"{place}/xdg"},
                 {"HOME": None}, {"HOME": ""}, {"HF_HOME": "~root/hf"}, {"HF_HOME": "~nobody-is-called-this/hf", "HOME": None},
                 {"HF_HUB_OFFLINE": "", "TRANSFORMERS_OFFLINE": "1"}, {"HF_HUB_OFFLINE": "0", "TRANSFORMERS_OFFLINE": "1"},
                 {"HF_HUB_OFFLINE": "yes"}]
        for changes in cases:
            with self.subTest(changes):
                env = {name: value for name, value in {**base, **changes}.items() if value is not None}
                done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=env, check=True)
                cache, offline = json.loads(done.stdout)
                done = subprocess.run([GRAFT, "download", REPO, "--dry-run", "--json"], capture_output=True, text=True,
                                      env=env, check=False)
                answer = json.loads(done.stdout)
                if offline:
                    self.assertEqual((done.returncode, answer["error"]["code"]), (3, "hub.client.offline"))
                else:
                    self.assertEqual(pathlib.Path(answer["folder"]).parents[2], pathlib.Path(cache))

    def test_what_python_wrote_graft_uses_with_no_request(self):
        written = self.by_python()
        self.hub.forget()
        for name, (_, arguments) in self.forms.items():
            with self.subTest(name):
                answer = self.graft(name, REPO, *arguments, HF_HUB_OFFLINE="1")
                self.assertEqual(answer.get("folder"), written[name], answer)
                self.require_right(name, answer["folder"])
        self.assertEqual(self.hub.log()["total"], 0)
        # Online a name costs one question, and a commit none.
        for name, (_, arguments) in self.forms.items():
            with self.subTest(name, online=True):
                self.hub.forget()
                self.assertEqual(self.graft(name, REPO, *arguments).get("folder"), written[name])
                self.assertEqual(self.hub.log()["total"], 0 if name == "a commit" else 1, self.hub.paths())

    def test_what_graft_wrote_python_uses_with_no_request(self):
        written = {name: self.graft(name, REPO, *arguments) for name, (_, arguments) in self.forms.items()}
        for name, answer in written.items():
            self.require_right(name, answer["folder"])
        self.hub.forget()
        found = self.by_python(HF_HUB_OFFLINE="1")
        self.assertEqual(found, {name: answer["folder"] for name, answer in written.items()})
        self.assertEqual(self.hub.log()["total"], 0)
        self.assertEqual(self.by_python(), found)
        self.assertFalse([path for path in self.hub.paths("GET") if "/resolve/" in path])
        for name in ("main", "copies", "a tag"):
            done = subprocess.run([pathlib.Path(sys.executable).parent / "hf", "cache", "verify", REPO, "--revision",
                                   written[name]["commit"]], env=environment(self.variables(name)), text=True,
                                  capture_output=True, check=False)
            self.assertEqual(done.returncode, 0, done.stdout + done.stderr)

    def test_one_file_from_python_is_enough_for_who_needs_one(self):
        code = """import json, sys
from huggingface_hub import hf_hub_download, try_to_load_from_cache, file_exists
path = hf_hub_download(sys.argv[1], "config.json")
try:
    hf_hub_download(sys.argv[1], "no-such-file")
except Exception as error:
    print(type(error).__name__, file=sys.stderr)
print(json.dumps(path))"""
        path = pathlib.Path(python(code, self.variables("one"), REPO))
        marks = list((self.home / "one").rglob(".no_exist/*/no-such-file"))
        self.assertEqual(len(marks), 1)
        answer = self.graft("one", REPO, "--include", "config.json", HF_HUB_OFFLINE="1")
        self.assertEqual(answer.get("folder"), str(path.parent), answer)
        # graft fetches the rest, and Python finds it whole; what is known to be absent stays known.
        self.require_right("main", self.graft("one", REPO)["folder"])
        code = """import json, sys
from huggingface_hub import snapshot_download, try_to_load_from_cache, _CACHED_NO_EXIST
print(json.dumps([snapshot_download(sys.argv[1]), try_to_load_from_cache(sys.argv[1], "no-such-file") is _CACHED_NO_EXIST]))"""
        self.assertEqual(python(code, self.variables("one", HF_HUB_OFFLINE="1"), REPO), [str(path.parent), True])

    def test_an_interrupted_snapshot_is_whole_for_nobody(self):
        answer = self.graft("cut", REPO)
        (pathlib.Path(answer["folder"]) / "weights.safetensors").unlink()
        self.assertEqual(self.graft("cut", REPO, HF_HUB_OFFLINE="1")["error"]["code"], "hub.download.incomplete")
        code = """import json, sys
from huggingface_hub import snapshot_download
try:
    print(json.dumps(snapshot_download(sys.argv[1])))
except Exception as error:
    print(json.dumps(type(error).__name__))"""
        self.assertNotEqual(python(code, self.variables("cut", HF_HUB_OFFLINE="1"), REPO), answer["folder"])

    def test_kernels_loads_offline_what_graft_fetched_and_the_other_way_round(self):
        self.assertNotIn("error", self.graft("kernels", KERNEL, "--kernel", "--revision", "v1"))
        code = """import json, sys, torch
from kernels import get_kernel
kernel = get_kernel(sys.argv[1], **json.loads(sys.argv[2]))
x = torch.arange(8, dtype=torch.float32).reshape(1, 8)
out = torch.empty(1, 4)
kernel.silu_and_mul(out, x)
print(json.dumps(torch.allclose(out, torch.nn.functional.silu(x[:, :4]) * x[:, 4:])))"""
        self.hub.forget()
        env = self.variables("kernels", HF_HUB_OFFLINE="1")
        self.assertTrue(python(code, env, KERNEL, json.dumps({"version": 1})))
        self.assertEqual(self.hub.log()["total"], 0)
        code = """import json, sys
from huggingface_hub import snapshot_download
print(json.dumps(snapshot_download(sys.argv[1], repo_type="kernel", revision="v1")))"""
        found = python(code, self.variables("theirs"), KERNEL)
        self.hub.forget()
        answer = self.graft("theirs", KERNEL, "--kernel", "--revision", "v1", HF_HUB_OFFLINE="1")
        self.assertEqual(answer.get("folder"), found, answer)
        self.assertEqual(self.hub.log()["total"], 0)


if __name__ == "__main__":
    unittest.main(verbosity=2)
