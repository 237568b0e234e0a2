"""A Hub for tests: `with LocalHub(folder) as hub` runs `graft hub serve` over the folder."""

import json
import signal
import subprocess
import time
import urllib.request

from support import Workspace, start


class LocalHub:
    """Serves `folder`; `faults` are rules as graft/hub/server/faults.h describes them."""

    def __init__(self, folder, *arguments, faults=None):
        self.folder, self.arguments = folder, list(arguments)
        self.workspace = Workspace()
        self.faults = faults or []

    def __enter__(self):
        place = self.workspace.__enter__()
        rules, port_file = place / "faults.json", place / "port"
        rules.write_text(json.dumps(self.faults))
        self.process = start("hub", "serve", self.folder, "--quiet", "--port-file", port_file, "--faults", rules,
                             *self.arguments, stdout=subprocess.PIPE)
        deadline = time.monotonic() + 60
        while not port_file.exists():
            assert self.process.poll() is None, f"graft hub serve ended with {self.process.returncode}"
            assert time.monotonic() < deadline, "graft hub serve did not start"
            time.sleep(0.02)
        self.url = f"http://127.0.0.1:{int(port_file.read_text())}"
        return self

    def __exit__(self, *_):
        self.process.send_signal(signal.SIGTERM)
        self.exit_code = self.process.wait(timeout=120)
        self.process.stdout.close()
        self.workspace.__exit__()

    def variables(self, cache, token=""):
        """The environment of a client of this Hub."""
        return {"HF_ENDPOINT": self.url, "HF_HOME": str(cache), "HF_HUB_CACHE": str(cache / "hub"), "HF_TOKEN": token,
                "HF_HUB_OFFLINE": "", "TRANSFORMERS_OFFLINE": "", "NO_PROXY": "*", "HF_HUB_DISABLE_PROGRESS_BARS": "1",
                "XDG_CACHE_HOME": str(cache), "KERNELS_CACHE": str(cache / "hub"), "HF_HUB_DISABLE_TELEMETRY": ""}

    def log(self):
        with urllib.request.urlopen(f"{self.url}/.graft/requests") as answer:
            return json.load(answer)

    def paths(self, method=None):
        return [row["path"] for row in self.log()["requests"] if method in (None, row["method"])]

    def forget(self):
        urllib.request.urlopen(urllib.request.Request(f"{self.url}/.graft/requests", method="DELETE")).close()
