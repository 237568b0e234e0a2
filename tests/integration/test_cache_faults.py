"""The cache under a killed process, a disk that fails, damage and crowds: never a wrong file under its final name, and the
next run puts right what the last one left. GRAFT_LONG_TESTS=1 runs every point instead of a sample."""

import concurrent.futures
import errno
import hashlib
import itertools
import json
import os
import pathlib
import random
import shutil
import subprocess
import sys
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from fault_server import entry, git_oid  # noqa: E402
from local_hub import LocalHub  # noqa: E402
from support import GRAFT, Workspace, environment  # noqa: E402

LONG = os.environ.get("GRAFT_LONG_TESTS") == "1"
REPO = "somebody/things"
FOLDER = "models--somebody--things"
BLOCK = 256 << 10
_random = random.Random(7)
FILES = {"config.json": b'{"hello": "world"}', "sub/deep/notes.txt": b"notes", "empty.txt": b"",
         "a.safetensors": _random.randbytes(3 * BLOCK + 5), "b.safetensors": _random.randbytes(BLOCK)}
LARGE = hashlib.sha256(FILES["a.safetensors"]).hexdigest()
OPERATIONS = ("open", "write", "fsync", "rename", "symlink", "mkdir")
ERRORS = ("ENOSPC", "EIO", "EDQUOT", "EROFS", "EMFILE", "EACCES")


def content_id(name):
    row = entry(name.replace(".safetensors", ".bin"), FILES[name])
    return row.get("lfs", row)["oid"]


class Cache:
    """A home of its own, and `graft download` into it."""

    def __init__(self, place, hub):
        self.place, self.hub = place, hub
        self.root = place / "home/hub"
        self.repo = self.root / FOLDER

    def variables(self, **changes):
        home = str(self.place / "home")
        return {**self.hub.variables(self.place / "home"), "HF_HUB_CACHE": str(self.root), "HOME": home,
                "GRAFT_HUB_DEADLINE": "60", **changes}

    def spoilt(self, **faults):
        """Variables of a process whose calls to the disk fail as io_faults.c says."""
        values = {f"GRAFT_FAULT_{name.upper()}": str(value) for name, value in faults.items()}
        return self.variables(LD_PRELOAD=str(CacheFaults.shim), GRAFT_FAULT_UNDER=str(self.place), **values)

    def download(self, env=None):
        """(exit code, code of the error or None, all that was said)."""
        done = subprocess.run([GRAFT, "download", REPO, "--json"], env=environment(env or self.variables()),
                              stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120, check=False)
        code = json.loads(done.stdout)["error"]["code"] if done.returncode > 0 else None
        return done.returncode, code, done.stdout + done.stderr

    def snapshot(self):
        """The one snapshot, or None."""
        found = list((self.repo / "snapshots").glob("*"))
        assert len(found) <= 1, found
        return found[0] if found else None

    def require_nothing_wrong(self):
        for blob in (self.repo / "blobs").glob("*"):
            if not blob.suffix:
                content = blob.read_bytes()
                assert blob.name in (git_oid(content), hashlib.sha256(content).hexdigest()), blob
        names = set()
        for path in (self.snapshot() or self.place / "none").rglob("*"):
            name = str(path.relative_to(self.snapshot()))
            if not path.name.endswith(".graft-tmp") and not path.is_dir():
                assert path.read_bytes() == FILES[name], path
                names.add(name)
        ref = self.repo / "refs/main"
        if ref.exists():  # what a name leads to is whole
            assert ref.read_text() == self.snapshot().name and names == set(FILES), names
        for tree in (self.repo / "trees").glob("*.json"):
            assert set(json.loads(tree.read_text())["files"]) == set(FILES), tree

    def unfinished(self):
        return [path for path in self.place.rglob("*") if path.name.split(".")[-1].startswith("graft-")]

    def require_complete(self):
        self.require_nothing_wrong()
        assert (self.repo / "refs/main").exists()
        assert not [path for path in self.unfinished() if self.repo in path.parents], self.unfinished()
        assert {str(path.relative_to(self.snapshot())) for path in self.snapshot().rglob("*")
                if not path.is_dir()} == set(FILES)


class CacheFaults(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.workspace = Workspace()
        cls.folder = cls.workspace.__enter__()
        cls.shim = cls.folder / "io_faults.so"
        source = pathlib.Path(__file__).parent / "io_faults.c"
        subprocess.run(["gcc", "-shared", "-fPIC", "-O1", "-o", cls.shim, source, "-ldl"], check=True)
        for name, content in FILES.items():
            path = cls.folder / "served/models" / REPO / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        cls.hub = LocalHub(cls.folder / "served")
        cls.hub.__enter__()

    @classmethod
    def tearDownClass(cls):
        cls.hub.__exit__()
        cls.workspace.__exit__()

    def setUp(self):
        self.cache_workspace = Workspace()
        self.cache = Cache(self.cache_workspace.__enter__(), self.hub)

    def tearDown(self):
        self.cache_workspace.__exit__()

    def in_parallel(self, run, cases, threads=6):
        """run(case) for each; every failure is told."""
        failures = []
        with concurrent.futures.ThreadPoolExecutor(threads) as pool:
            for one, done in [(one, pool.submit(run, one)) for one in cases]:
                if done.exception():
                    failures.append((one, done.exception()))
        for one, error in failures:
            with self.subTest(one):
                raise error

    # Killed processes.

    def killed_at(self, point):
        with Workspace() as place:
            cache = Cache(place, self.hub)
            exit_code, _, said = cache.download(cache.spoilt(op="any", kill=point))
            assert exit_code in (-9, 0), said
            cache.require_nothing_wrong()
            done = sum(path.read_bytes().count(b"1") for path in (cache.repo / "blobs").glob("*.graft-blocks"))
            exit_code, _, said = cache.download()
            assert exit_code == 0, said
            assert "cache holds other bytes" not in said, said  # nothing was wrong, so nothing is healed
            cache.require_complete()
            return done

    def test_a_process_killed_at_any_change_of_the_disk_leaves_nothing_wrong(self):
        count = self.cache.place / "count"
        exit_code, _, said = self.cache.download(self.cache.spoilt(op="any", count=count))
        self.assertEqual(exit_code, 0, said)
        total = int(count.read_text())
        self.assertGreater(total, 150)
        points = list(range(1, total + 4))
        if LONG:
            points += [1 + _random.randrange(total) for _ in range(max(0, 200 - len(points)))]
        else:
            points = points[_random.randrange(8)::8]
        print(f"{len(points)} of {total} points", file=sys.stderr)
        self.in_parallel(self.killed_at, points)

    def test_what_a_killed_process_brought_is_not_brought_again(self):
        self.hub.forget()
        exit_code, _, _ = self.cache.download(self.cache.spoilt(op="write", kill=75))
        self.assertEqual(exit_code, -9)
        done = [path for path in (self.cache.repo / "blobs").glob(f"{LARGE}*.graft-blocks")
                if b"1" in path.read_bytes()]
        self.hub.forget()
        self.assertEqual(self.cache.download()[0], 0)
        ranges = [row["range"] for row in self.hub.log()["requests"]
                  if row["path"].startswith(f"/.graft/large/{LARGE}")]
        self.assertFalse(done and "" in ranges, ranges)  # a part of it, or nothing where all was there
        self.cache.require_complete()

    # Calls that fail.

    def failing(self, one):
        operation, error, skip = one
        with Workspace() as place:
            cache = Cache(place, self.hub)
            number = getattr(errno, error)
            exit_code, code, said = cache.download(cache.spoilt(op=operation, errno=number, skip=skip))
            assert code in (None, "hub.download.disk") and exit_code in (0, 1), said
            # A listing, a ref or a receipt that cannot be kept is no reason to fail; a file is.
            if skip == 0 and operation in ("open", "write", "rename", "mkdir"):
                assert code == "hub.download.disk" and os.strerror(number) in said and "bytes free" in said, said
            cache.require_nothing_wrong()
            exit_code, _, said = cache.download()
            assert exit_code == 0, said
            cache.require_complete()

    def test_each_call_may_fail_in_each_way(self):
        skips = range(0, 12) if LONG else (0, 3)
        self.in_parallel(self.failing, list(itertools.product(OPERATIONS, ERRORS, skips)))

    # Crowds.

    def crowd(self, size, **faults):
        with Workspace() as place:
            cache = Cache(place, self.hub)
            env = cache.spoilt(**faults)
            with concurrent.futures.ThreadPoolExecutor(size) as pool:
                ends = list(pool.map(lambda _: cache.download(env), range(size)))
            assert all(exit_code == 0 for exit_code, _, _ in ends), [end for end in ends if end[0]]
            cache.require_complete()

    def test_many_processes_start_with_nothing(self):
        rounds = 50 if LONG else 2
        for _ in range(rounds):
            self.hub.forget()
            self.crowd(32 if LONG else 12)
            counts = self.hub.log()["counts"]
            for name in FILES:
                gets = sum(count for path, count in counts.items() if path.startswith("GET ") and "/resolve/" in path
                           and path.endswith(name))
                self.assertLessEqual(gets, 2, name)

    def test_many_processes_where_locks_do_nothing(self):
        for _ in range(50 if LONG else 2):
            self.crowd(32 if LONG else 12, locks=1)

    def test_many_processes_where_no_lock_file_can_be_made(self):
        for _ in range(10 if LONG else 1):
            with Workspace() as place:
                (place / "home/hub").mkdir(parents=True)
                (place / "home/hub/.locks").write_text("in the way")
                cache = Cache(place, self.hub)
                with concurrent.futures.ThreadPoolExecutor(12) as pool:
                    ends = list(pool.map(lambda _, cache=cache: cache.download(), range(32 if LONG else 12)))
                self.assertEqual({end[0] for end in ends}, {0}, ends)
                cache.require_complete()

    # Damage.

    def test_damage_is_found_and_healed_with_a_word(self):
        def path(cache, name):
            return cache.snapshot() / name

        def blob(cache, name):
            return cache.repo / "blobs" / content_id(name)

        def flip(cache):
            content = bytearray(FILES["a.safetensors"])
            content[12345] ^= 4
            blob(cache, "a.safetensors").write_bytes(content)

        def swap(cache):
            one, two = blob(cache, "config.json"), blob(cache, "sub/deep/notes.txt")
            one.rename(cache.place / "x")
            two.rename(one)
            (cache.place / "x").rename(two)

        def outside(cache):
            (cache.place / "outside").write_bytes(b"other")
            path(cache, "config.json").unlink()
            path(cache, "config.json").symlink_to(cache.place / "outside")

        def folder_for_a_blob(cache):
            blob(cache, "b.safetensors").unlink()
            (blob(cache, "b.safetensors") / "in the way").mkdir(parents=True)

        def folder_for_a_link(cache):
            path(cache, "b.safetensors").unlink()
            (path(cache, "b.safetensors") / "in the way").mkdir(parents=True)

        def future(cache):
            os.utime(blob(cache, "a.safetensors"), (4e9, 4e9))

        def copy_that_is_wrong(cache):
            path(cache, "config.json").unlink()
            path(cache, "config.json").write_bytes(b"wrong")

        damages = {
            "flip": flip, "swap": swap, "outside": outside, "folder for a blob": folder_for_a_blob,
            "folder for a link": folder_for_a_link, "copy that is wrong": copy_that_is_wrong,
            "cut": lambda cache: os.truncate(blob(cache, "a.safetensors"), 1000),
            "longer": lambda cache: os.truncate(blob(cache, "a.safetensors"), 10**6),
            "empty": lambda cache: os.truncate(blob(cache, "config.json"), 0),
            "no blob": lambda cache: blob(cache, "a.safetensors").unlink(),
            "link in a circle": lambda cache: (blob(cache, "config.json").unlink(),
                                               blob(cache, "config.json").symlink_to(content_id("config.json"))),
        }
        harmless = {"future": future, "other owner": lambda cache: os.chown(blob(cache, "a.safetensors"), 12345, 12345)
                    if os.geteuid() == 0 else None, "no link": lambda cache: path(cache, "config.json").unlink(),
                    "no ref": lambda cache: (cache.repo / "refs/main").unlink(),
                    "no listing": lambda cache: shutil.rmtree(cache.repo / "trees"),
                    "broken listing": lambda cache: next((cache.repo / "trees").iterdir()).write_text("{" * 100_000),
                    "broken ref": lambda cache: (cache.repo / "refs/main").write_text("../../x")}
        self.assertEqual(self.cache.download()[0], 0)
        whole = self.cache.place / "home"

        def run(one):
            name, damage = one
            with Workspace() as place:
                shutil.copytree(whole, place / "home", symlinks=True)
                cache = Cache(place, self.hub)
                assert cache.download()[0] == 0  # its receipts are of these very files
                damage(cache)
                if name in damages:
                    exit_code, code, said = cache.download(cache.variables(HF_HUB_OFFLINE="1"))
                    healed_offline = exit_code == 0 and "anew" in said  # the blob was right, the link was not
                    assert healed_offline or code in ("hub.cache.damaged", "hub.download.incomplete"), said
                    if healed_offline:
                        cache.require_complete()
                        return
                exit_code, _, said = cache.download()
                assert exit_code == 0, said
                assert ("anew" in said) == (name in damages), said
                cache.require_complete()

        self.in_parallel(run, [*damages.items(), *harmless.items()])

    def test_what_may_not_be_read_is_fetched_anew(self):
        self.assertEqual(self.cache.download()[0], 0)
        shutil.rmtree(self.cache.place / "home/graft")  # no receipts: it must be read
        env = self.cache.spoilt(hide="/config.json")
        exit_code, code, said = self.cache.download(env)
        self.assertIsNone(code, said)
        self.assertIn("anew", said)
        self.assertEqual(self.cache.download()[0], 0)
        self.cache.require_complete()

    # Other file systems.

    def test_a_cache_that_cannot_be_written_serves_what_it_holds(self):
        self.assertEqual(self.cache.download()[0], 0)
        for changes in ({}, {"HF_HUB_OFFLINE": "1"}):
            env = {**self.cache.spoilt(op="any", errno=errno.EROFS), **changes}
            exit_code, _, said = self.cache.download(env)
            self.assertEqual(exit_code, 0, said)
        (self.cache.repo / "blobs" / LARGE).unlink()
        _, code, said = self.cache.download(self.cache.spoilt(op="any", errno=errno.EROFS))
        self.assertEqual(code, "hub.download.disk", said)
        self.assertIn("HF_HUB_CACHE", said)

    def test_a_file_system_without_links_holds_copies(self):
        code = ("import json, sys; from huggingface_hub import snapshot_download; "
                "print(json.dumps(snapshot_download(sys.argv[1], local_files_only=True)))")
        for env in (self.cache.spoilt(op="symlink", errno=errno.EPERM),
                    self.cache.variables(HF_HUB_DISABLE_SYMLINKS="1")):
            with self.subTest("LD_PRELOAD" in env):
                exit_code, _, said = self.cache.download(env)
                self.assertEqual(exit_code, 0, said)
                self.cache.require_complete()
                self.assertFalse((self.cache.snapshot() / "config.json").is_symlink())
                found = subprocess.run([sys.executable, "-c", code, REPO], env=environment(self.cache.variables()),
                                       capture_output=True, text=True, check=True)
                self.assertEqual(pathlib.Path(json.loads(found.stdout)), self.cache.snapshot())
                (self.cache.snapshot() / "config.json").write_bytes(b"wrong")
                self.assertIn("anew", self.cache.download(env)[2])
                self.cache.require_complete()
                shutil.rmtree(self.cache.root)

    def test_a_cache_may_be_moved(self):
        self.assertEqual(self.cache.download()[0], 0)
        self.cache.root.rename(self.cache.place / "elsewhere")
        self.cache.root, self.cache.repo = self.cache.place / "elsewhere", self.cache.place / "elsewhere" / FOLDER
        self.hub.forget()
        self.assertEqual(self.cache.download(self.cache.variables(HF_HUB_OFFLINE="1"))[0], 0)
        self.assertEqual(self.hub.log()["total"], 0)
        self.cache.require_complete()

    def test_names_of_255_bytes_and_twins_in_case(self):
        served = self.folder / "served/models/somebody/names"
        names = {"x" * 255: b"long", "Read.me": b"one", "read.me": b"two"}
        served.mkdir(parents=True)
        for name, content in names.items():
            (served / name).write_bytes(content)
        command = [GRAFT, "download", "somebody/names"]
        done = subprocess.run(command, env=environment(self.cache.spoilt(case=1)), capture_output=True, text=True, check=False)
        self.assertIn("code: hub.download.case", done.stderr)
        self.assertFalse(list(self.cache.root.rglob("snapshots")))
        done = subprocess.run(command, env=environment(self.cache.variables()), capture_output=True, text=True, check=False)
        self.assertEqual(done.returncode, 0, done.stderr)
        for name, content in names.items():
            self.assertEqual((pathlib.Path(done.stdout.strip()) / name).read_bytes(), content)

    def test_a_full_disk_says_how_much_is_missing(self):
        if os.geteuid() != 0:
            return
        small = self.cache.place / "home/hub"
        small.mkdir(parents=True)
        mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512k", "none", small], check=False,
                                 capture_output=True).returncode == 0
        if not mounted:  # in a container
            return
        try:
            _, code, said = self.cache.download()
            self.assertEqual(code, "hub.download.disk", said)
            self.assertRegex(said, r"expected to write \d{6} bytes, got: No space left on device \(\d+ bytes free\)")
            # What came of the other files of the call waits for the next try and belongs to no process.
            kept = [path.name for path in self.cache.unfinished() if path.suffix == ".graft-incomplete"]
            self.assertLess(len(kept), len(list((self.folder / "served/models/somebody/things").iterdir())))
            self.assertTrue(all("-0-" in name for name in kept), kept)
            self.cache.require_nothing_wrong()
        finally:
            subprocess.run(["umount", small], check=True)


if __name__ == "__main__":
    unittest.main(verbosity=2)
