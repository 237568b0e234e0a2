"""`graft cache` and `graft kernels cache`: what lies there, what goes, what is damaged."""

import json
import os
import pathlib
import subprocess
import sys
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from local_hub import LocalHub  # noqa: E402
from support import GRAFT, Workspace, environment, run, run_json  # noqa: E402

MODEL, KERNEL = "somebody/model", "somebody/kernel"
HOURS_AGO = 1.6e9


class CacheCommands(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.workspace = Workspace()
        cls.served = cls.workspace.__enter__()
        files = {f"models/{MODEL}/config.json": b"{}", f"models/{MODEL}/weights.safetensors": bytes(3 << 20),
                 f"kernels/{KERNEL}/build/torch-cpu/metadata.json": b'{"version": 1}',
                 f"kernels/{KERNEL}/build/torch-cpu/x.so": bytes(1 << 20)}
        for name, content in files.items():
            (cls.served / name).parent.mkdir(parents=True, exist_ok=True)
            (cls.served / name).write_bytes(content)

    @classmethod
    def tearDownClass(cls):
        cls.workspace.__exit__()

    def setUp(self):
        self.cache_workspace = Workspace()
        self.home = self.cache_workspace.__enter__()
        self.cache = self.home / "hub"
        with LocalHub(self.served) as hub:
            self.env = hub.variables(self.home)
            self.commit = run_json("download", MODEL, env=self.env)["commit"]
            run_json("download", KERNEL, "--kernel", env=self.env)

    def tearDown(self):
        self.cache_workspace.__exit__()

    def graft(self, *arguments, expect=0):
        return run_json(*arguments, env=self.env, expect=expect)

    def second_commit(self):
        """Another commit of the model, as Python leaves it: one file changed, one shared, and no name."""
        repo, commit = self.cache / "models--somebody--model", "f" * 40
        snapshot = repo / "snapshots" / commit
        snapshot.mkdir()
        blob = repo / "blobs" / "9e26dfeeb6e641a33dae4961196235bdb965b21b"  # git's hash of `{}` and nothing else
        blob.write_bytes(b"{}")
        (snapshot / "config.json").symlink_to(f"../../blobs/{blob.name}")
        shared = os.readlink(repo / "snapshots" / self.commit / "weights.safetensors")
        (snapshot / "weights.safetensors").symlink_to(shared)
        return repo, commit

    def test_ls_shows_what_is_there(self):
        both = self.graft("cache", "ls")
        rows = {row["type"]: row for row in both["repositories"]}
        self.assertEqual({kind: row["repo_id"] for kind, row in rows.items()}, {"kernel": KERNEL, "model": MODEL})
        self.assertGreater(rows["model"]["size_bytes"], 3 << 20)
        self.assertLess(rows["model"]["size_bytes"], (3 << 20) + 10_000)  # each byte once, whatever links to it
        self.assertEqual(rows["model"]["commits"][0]["refs"], ["main"])
        self.assertEqual(rows["kernel"]["commits"][0]["variants"], ["torch-cpu"])
        self.assertEqual(both["size_bytes"], sum(row["size_bytes"] for row in rows.values()))
        kernels = self.graft("kernels", "cache", "ls")["repositories"]
        self.assertEqual([row["repo_id"] for row in kernels], [KERNEL])
        text = run("cache", "ls", env=self.env)
        self.assertRegex(text.stdout, rf"(?m)^model   somebody/model   {self.commit[:12]}     3\.0 MiB     2 files  main$")
        self.assertIn("2 repositories, 4.0 MiB", text.stderr)
        self.assertEqual(self.graft("cache", "ls")["repositories"], both["repositories"])
        self.env["HF_HUB_CACHE"] = self.env["KERNELS_CACHE"] = str(self.home / "none")
        self.assertEqual(self.graft("cache", "ls")["repositories"], [])

    def test_what_is_no_file_is_not_waited_for(self):
        """Pipes and devices where files should be, as anybody who shares the cache can put them there."""
        repo = self.cache / "models--somebody--model"
        kernel = self.cache / "kernels--somebody--kernel"
        blob = (repo / "snapshots" / self.commit / "config.json").resolve()
        tree = repo / f"trees/{self.commit}.json"
        for place in (repo / "refs/pipe", kernel / "refs/pipe", repo / "refs/main", kernel / "refs/v1", blob,
                      next(kernel.glob("snapshots/*")) / "kernel-status.toml"):
            place.unlink(missing_ok=True)
            os.mkfifo(place)
        (repo / "refs/device").symlink_to("/dev/zero")
        policy = self.home / "policy.json"
        os.mkfifo(policy)
        env = {**self.env, "HF_HUB_OFFLINE": "1"}
        for expect, *command in ((0, "cache", "ls"), (4, "cache", "verify"), (0, "cache", "prune", "--yes"), (0, "kernels", "list"),
                                 (3, "download", MODEL), (4, "download", MODEL, "--revision", self.commit),
                                 (1, "kernels", "info", KERNEL), (1, "kernels", "info", f"{KERNEL}@v1")):
            with self.subTest(command):
                done = run(*command, env=env, timeout=20)
                self.assertEqual(done.returncode, expect, done.stderr)
        tree.unlink()
        os.mkfifo(tree)  # then nobody can say what is missing
        self.assertEqual(run("download", MODEL, "--revision", self.commit, env=env, timeout=20).returncode, 0)
        done = run("kernels", "trust", "list", "--json", env={**env, "GRAFT_TRUST_POLICY": str(policy)}, timeout=20)
        self.assertEqual(json.loads(done.stdout)["error"]["code"], "trust.policy.file")

    def test_rm_shows_asks_and_removes(self):
        before = sorted(self.cache.rglob("*"))
        dry = self.graft("cache", "rm", MODEL, "--dry-run")
        self.assertFalse(dry["removed"])
        self.assertGreater(dry["size_bytes"], 3 << 20)
        self.assertEqual(self.graft("cache", "rm", MODEL, expect=2)["error"]["code"], "cli.cache.yes")
        self.assertEqual(self.graft("cache", "rm", "somebody/else", "--yes", expect=1)["error"]["code"],
                         "cli.cache.repository")
        self.assertEqual(self.graft("kernels", "cache", "rm", MODEL, "--yes", expect=1)["error"]["code"],
                         "cli.cache.repository")
        for bad in ("../hub", "/etc", "", "somebody/model@../x", "somebody/model@"):
            self.assertEqual(self.graft("cache", "rm", bad, "--yes", expect=1)["error"]["code"], "cli.cache.repository")
        self.assertEqual(sorted(self.cache.rglob("*")), before)
        self.assertTrue(self.graft("cache", "rm", MODEL, "--yes")["removed"])
        self.assertFalse((self.cache / "models--somebody--model").exists())
        self.assertEqual([row["repo_id"] for row in self.graft("cache", "ls")["repositories"]], [KERNEL])

    def test_rm_of_one_commit_leaves_what_others_share(self):
        repo, commit = self.second_commit()
        self.graft("cache", "rm", f"{MODEL}@{commit}", "--yes")
        self.assertEqual(self.graft("cache", "verify", MODEL)["right"], 2)
        self.assertEqual(len(list((repo / "blobs").iterdir())), 2)
        self.second_commit()
        self.graft("cache", "rm", f"{MODEL}@main", "--yes")
        rows = self.graft("cache", "ls")["repositories"]
        self.assertEqual([row["commit"] for row in rows[1]["commits"]], [commit])
        self.assertEqual(len(list((repo / "blobs").iterdir())), 2)
        self.assertFalse((repo / "refs/main").exists())

    def test_prune_takes_what_nothing_uses(self):
        repo, commit = self.second_commit()
        self.assertEqual(self.graft("cache", "prune", "--yes")["paths"], [])
        loose = repo / "blobs" / ("a" * 64)
        fresh = repo / "blobs" / ("b" * 64)  # somebody may be about to link to it
        unfinished = repo / "blobs" / f"{'c' * 64}.12345678-0-9.graft-incomplete"
        stray = repo / "trees" / f"{'d' * 40}.json"
        for path in (loose, fresh, unfinished, stray):
            path.write_bytes(bytes(1000))
        os.utime(loose, (HOURS_AGO, HOURS_AGO))
        dry = self.graft("cache", "prune", "--dry-run")
        self.assertEqual(sorted(dry["paths"]), sorted(map(str, (loose, unfinished, stray))))
        self.assertEqual(dry["size_bytes"], 3000)
        self.assertTrue(self.graft("cache", "prune", "--yes")["removed"])
        self.assertTrue(fresh.exists() and not loose.exists())
        self.assertTrue((repo / "snapshots" / commit).exists())
        self.graft("cache", "prune", "--unnamed", "--yes")
        self.assertFalse((repo / "snapshots" / commit).exists())
        self.assertEqual(self.graft("cache", "verify")["wrong"], 0)

    def test_verify_names_what_is_damaged(self):
        self.assertEqual(self.graft("cache", "verify")["right"], 4)
        snapshot = self.cache / "models--somebody--model/snapshots" / self.commit
        weights = (snapshot / "weights.safetensors").resolve()
        status = weights.stat()
        content = bytearray(weights.read_bytes())
        content[5] ^= 1
        weights.write_bytes(content)
        os.utime(weights, ns=(status.st_atime_ns, status.st_mtime_ns))
        (snapshot / "config.json").resolve().unlink()
        (snapshot / "more\x1b[31m.txt").write_text("not of the Hub")
        found = self.graft("cache", "verify", expect=4)
        row = next(row for row in found["commits"] if row["type"] == "model")
        self.assertEqual((row["damaged"], row["missing"]), (["weights.safetensors"], ["config.json"]))
        self.assertEqual(row["unknown"], ["more\x1b[31m.txt"])
        self.assertEqual(self.graft("kernels", "cache", "verify")["wrong"], 0)
        text = run("cache", "verify", MODEL, env=self.env)
        self.assertEqual(text.returncode, 4)
        self.assertIn("damaged  weights.safetensors", text.stdout)
        self.assertNotIn("\x1b", text.stdout + text.stderr)

    def test_python_agrees(self):
        code = """import json
from huggingface_hub import scan_cache_dir
info = scan_cache_dir()
print(json.dumps([[repo.repo_id, repo.repo_type, repo.size_on_disk] for repo in info.repos] +
                 [str(warning) for warning in info.warnings]))"""
        done = subprocess.run([sys.executable, "-c", code], env=environment(self.env), capture_output=True, text=True,
                              check=True)
        rows = json.loads(done.stdout)
        model = next(row for row in rows if row[0] == MODEL)
        self.assertEqual(model[2], (3 << 20) + 2)
        self.assertFalse([row for row in rows if isinstance(row, str)], rows)
        with LocalHub(self.served) as hub:
            verified = subprocess.run([pathlib.Path(sys.executable).parent / "hf", "cache", "verify", MODEL],
                                      env=environment({**self.env, "HF_ENDPOINT": hub.url}), capture_output=True,
                                      text=True, check=False)
        self.assertEqual(verified.returncode, 0, verified.stdout + verified.stderr)

    def test_help_names_the_commands(self):
        for group in (("cache",), ("kernels", "cache")):
            done = subprocess.run([GRAFT, *group, "--help"], capture_output=True, text=True, check=True)
            for command in ("ls", "rm", "prune", "verify"):
                self.assertRegex(done.stdout, rf"(?m)^\s+{command} ")


if __name__ == "__main__":
    unittest.main(verbosity=2)
