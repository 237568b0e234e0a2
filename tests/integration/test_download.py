"""`graft download` from a Hub that this test plays: into the cache that Python reads, and into a model that runs."""

import hashlib
import http.server
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import threading
import time
import unittest
import urllib.parse

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from fault_server import wait_until  # noqa: E402
from support import TINY, Workspace, run, run_json, run_on_terminal, start  # noqa: E402

COMMIT = "0123456789abcdef0123456789abcdef01234567"
REPO = "somebody/tiny"
FILES = {name: (TINY / name).read_bytes() for name in ("config.json", "generation_config.json", "model.safetensors")}
IDS = ("--prompt-ids", "1,2,3", "--max-new-tokens", "4")


def entry(name, content):
    blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    row = {"type": "file", "path": name, "size": len(content), "oid": blob}
    if name.endswith(".safetensors"):
        row["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content)}
    return row


class Hub(http.server.BaseHTTPRequestHandler):
    spoilt = False
    slow = {}  # seconds before a file comes
    requests = []
    tokens = set()  # that requests for files and lists carried
    exchanges = []  # bodies of POST /oauth/token
    exchange_status = 200

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        Hub.exchanges.append((self.path, self.headers.get("Authorization"), body))
        self.answer(json.dumps({"access_token": "hf_jwt_x", "expires_in": 3600}).encode(), status=Hub.exchange_status)

    def do_GET(self):
        url = urllib.parse.urlparse(self.path)
        path = url.path
        if path == "/ci":
            audience = urllib.parse.parse_qs(url.query)["audience"]
            Hub.exchanges.append((path, self.headers.get("Authorization"), audience))
            self.answer(b'{"value": "jwt-of-the-job"}')
            return
        Hub.requests.append(path)
        Hub.tokens.add(self.headers.get("Authorization"))
        if path == f"/api/models/{REPO}/revision/main":
            self.answer(json.dumps({"sha": COMMIT}).encode())
        elif path == f"/api/models/{REPO}/tree/{COMMIT}":
            self.answer(json.dumps([entry(*item) for item in FILES.items()]).encode())
        elif match := re.fullmatch(rf"/{REPO}/resolve/{COMMIT}/(.+)", path):
            content = FILES[match[1]]
            time.sleep(Hub.slow.get(match[1], 0))
            self.answer(content[:-1] + bytes([content[-1] ^ 1]) if Hub.spoilt else content)
        else:
            self.answer(b'{"error": "Repository not found"}', status=404)

    def answer(self, body, status=200):
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


class Download(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
        threading.Thread(target=cls.server.serve_forever, daemon=True).start()

    @classmethod
    def tearDownClass(cls):
        cls.server.shutdown()
        cls.server.server_close()

    def variables(self, cache):
        Hub.spoilt, Hub.slow = False, {}
        return {"HF_ENDPOINT": f"http://127.0.0.1:{self.server.server_port}", "HF_HUB_CACHE": str(cache),
                "HF_HUB_OFFLINE": "", "TRANSFORMERS_OFFLINE": "", "NO_PROXY": "*", "HF_TOKEN": ""}

    def test_what_was_downloaded_runs_offline_and_python_finds_it(self):
        from huggingface_hub import snapshot_download

        with Workspace() as cache:
            env = self.variables(cache)
            result = run_json("download", REPO, env=env)
            self.assertEqual(result["commit"], COMMIT)
            for name, content in FILES.items():
                self.assertEqual((pathlib.Path(result["folder"]) / name).read_bytes(), content)
            found = snapshot_download(REPO, cache_dir=cache, local_files_only=True)
            self.assertEqual(pathlib.Path(found).resolve(), pathlib.Path(result["folder"]).resolve())
            ids = run_json("generate", REPO, *IDS, env={**env, "HF_HUB_OFFLINE": "1"})["generated_ids"]
            self.assertEqual(ids, run_json("generate", TINY, *IDS)["generated_ids"])
            self.assertEqual(run_json("info", REPO, env=env)["architecture"], "llama")
            # Nothing is fetched twice.
            Hub.requests.clear()
            self.assertEqual(run("download", REPO, env=env).stdout.strip(), result["folder"])
            self.assertFalse([path for path in Hub.requests if "/resolve/" in path])

    def test_patterns_choose_files(self):
        with Workspace() as cache:
            folder = pathlib.Path(run_json("download", REPO, "--include", "*.json", env=self.variables(cache))["folder"])
            self.assertEqual({path.name for path in folder.iterdir()}, {"config.json", "generation_config.json"})
            done = run("download", REPO, "--include", "*.bin", "--json", env=self.variables(cache))
            self.assertEqual((done.returncode, json.loads(done.stdout)["error"]["code"]), (1, "hub.download.no-match"))

    def test_a_dry_run_says_what_would_come_and_writes_nothing(self):
        sizes = {name: len(content) for name, content in FILES.items()}
        with Workspace() as place:
            cache = place / "cache"
            env = self.variables(cache)
            plan = run_json("download", REPO, "--dry-run", env=env)
            self.assertEqual((plan["bytes_fetched"], plan["size_bytes"], plan["dry_run"], plan["commit"]),
                             (sum(sizes.values()), sum(sizes.values()), True, COMMIT))
            self.assertEqual(sorted(plan["files"]), sorted(FILES))
            lines = run("download", REPO, "--dry-run", env=env).stdout.splitlines()
            self.assertEqual(sorted(line.split()[-1] for line in lines), sorted(FILES))
            self.assertFalse(cache.exists())
            run_json("download", REPO, "--include", "*.json", env=env)
            self.assertEqual(run_json("download", REPO, "--dry-run", env=env)["bytes_fetched"],
                             sizes["model.safetensors"])
            done = run_json("download", REPO, env=env)
            self.assertEqual((done["bytes_fetched"], done["dry_run"]), (sizes["model.safetensors"], False))
            self.assertEqual(run_json("download", REPO, "--dry-run", env=env)["bytes_fetched"], 0)

    def test_a_log_gets_plain_lines_and_few_of_them(self):
        ways = {"log": ((), {}), "quiet": (("-q",), {}), "json": (("--json",), {}),
                "off": ((), {"HF_HUB_DISABLE_PROGRESS_BARS": "1"})}
        with Workspace() as place:
            env = {name: self.variables(place / name) for name in (*ways, "terminal", "json-terminal")}
            Hub.slow = {"generation_config.json": 3.6, "model.safetensors": 4.4}
            begin = time.monotonic()
            running = {name: start("download", REPO, *arguments, env={**env[name], **more}, stdout=subprocess.PIPE,
                                   stderr=subprocess.PIPE) for name, (arguments, more) in ways.items()}
            self.assertIn("\r", run_on_terminal("download", REPO, env=env["terminal"])[1])
            said = {name: process.communicate()[1].decode().splitlines() for name, process in running.items()}
            taken_s = time.monotonic() - begin
            self.assertEqual([process.returncode for process in running.values()], [0] * len(ways), said)
            self.assertEqual(run_on_terminal("download", REPO, "--json", env=env["json-terminal"])[1], "")
        self.assertGreaterEqual(len(said["log"]), 2, said)
        self.assertLessEqual(len(said["log"]), 1 + taken_s / 3, said)  # a line every three seconds, and the last
        for line in said["log"][:-1]:
            self.assertRegex(line, r"^downloading [\d.]+ \w+ of [\d.]+ \w+, at [\w.]+$")
        self.assertRegex(said["log"][-1], rf"^{REPO} at {COMMIT}: 3 files of [\d.]+ MiB, [\d.]+ MiB fetched$")
        self.assertEqual((said["off"], said["quiet"], said["json"]), (said["log"][-1:], [], []))

    def test_an_interrupt_says_that_the_same_command_goes_on(self):
        ways = {"plain": (), "quiet": ("-q",), "json": ("--json",)}
        with Workspace() as place:
            for name, arguments in ways.items():
                env = self.variables(place / name)
                Hub.slow = {"model.safetensors": 60}
                Hub.requests.clear()
                process = start("download", REPO, *arguments, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
                wait_until(lambda: any("model.safetensors" in path for path in Hub.requests))
                process.send_signal(signal.SIGINT)
                out, said = process.communicate(timeout=60)
                self.assertEqual((process.returncode, out), (-signal.SIGINT, b""), said)
                lines = [line for line in said.decode().splitlines() if not line.startswith("downloading")]
                kept = "interrupted; what has come is kept, the same command goes on from there"
                self.assertEqual(lines, [kept] if name == "plain" else [])
                Hub.slow = {}
                self.assertEqual(run_json("download", REPO, env=env)["commit"], COMMIT)

    def test_a_ci_job_gets_its_token_as_in_python(self):
        program = "import huggingface_hub, sys; sys.stdout.write(huggingface_hub.get_token())"
        with Workspace() as place:
            env = {**self.variables(place / "cache"), "HF_HOME": str(place), "HF_OIDC_RESOURCE": "somebody", "HF_TOKEN": "hf_other"}
            address = env["HF_ENDPOINT"]
            job = {"GITHUB_ACTIONS": "true", "ACTIONS_ID_TOKEN_REQUEST_URL": f"{address}/ci?v=1",
                   "ACTIONS_ID_TOKEN_REQUEST_TOKEN": "of-the-runner"}
            for way in ({"HF_OIDC_ID_TOKEN": "jwt"}, job):
                asked = []
                for command in ("download", "python"):
                    Hub.exchanges, Hub.tokens, Hub.exchange_status = [], set(), 200
                    if command == "download":
                        run_json("download", REPO, env={**env, **way, "HF_HUB_CACHE": str(place / str(len(way)))})
                        self.assertEqual(Hub.tokens, {"Bearer hf_jwt_x"})
                    else:
                        done = subprocess.run([sys.executable, "-c", program], env={**os.environ, **env, **way},
                                              stdout=subprocess.PIPE, check=True)
                        self.assertEqual(done.stdout, b"hf_jwt_x")
                    asked.append(list(Hub.exchanges))
                self.assertEqual(asked[0], asked[1])
            # Who asks for such a token gets no other in its place.
            Hub.tokens, Hub.exchange_status = set(), 403
            for way, code in (({"HF_OIDC_ID_TOKEN": "jwt"}, "hub.oidc.refused"), ({}, "hub.oidc.id-token"),
                              ({"GITHUB_ACTIONS": "true"}, "hub.oidc.id-token")):
                done = run("download", REPO, "--json", env={**env, **way})
                self.assertEqual((done.returncode, json.loads(done.stdout)["error"]["code"]), (1, code), done.stdout)
                self.assertNotIn("jwt", done.stdout + done.stderr)
            self.assertEqual(Hub.tokens, set())
            run_json("download", REPO, env={**env, "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1"})
            self.assertEqual(Hub.tokens, {None})
            self.assertEqual(run("download", REPO, env={**env, "HF_HUB_OFFLINE": "1"}).returncode, 0)

    def test_wrong_bytes_are_4_and_leave_no_model(self):
        with Workspace() as cache:
            env = self.variables(cache)
            Hub.spoilt = True
            done = run("download", REPO, env=env)
            self.assertEqual(done.returncode, 4, done.stderr)
            self.assertEqual(done.stdout, "")
            self.assertEqual(run("generate", REPO, *IDS, env=env).returncode, 1)

    def test_an_unknown_repository_is_1(self):
        with Workspace() as cache:
            done = run("download", "somebody/else", env=self.variables(cache))
            self.assertEqual(done.returncode, 1, done.stderr)
            self.assertIn("somebody/else", done.stderr)


if __name__ == "__main__":
    unittest.main(verbosity=2)
