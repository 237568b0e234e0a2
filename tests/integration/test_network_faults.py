"""What can go wrong on the way from the Hub, 44 named cases and some more: each ends in the right files or in a named
error, within its time, with nothing wrong left in the cache, nothing outside it, and the token in no log."""

import concurrent.futures
import datetime
import gzip
import hashlib
import http.client
import json
import os
import pathlib
import random
import resource
import signal
import ssl
import subprocess
import sys
import time
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from fault_server import (COMMIT, DONE, REPO, FaultServer, Tunnel, entry, git_oid, head, tls_context,  # noqa: E402
                          wait_until, whole)
from support import GRAFT, Workspace, environment, start  # noqa: E402

LONG = os.environ.get("GRAFT_LONG_TESTS") == "1"
BLOCK = 256 << 10  # graft/hub/partial_file.h
TOKEN = "hf_TheTokenThatNobodyMaySee"
CONTENT = random.Random(1).randbytes(5 * BLOCK + 1234)
FILES = {"config.json": b'{"hello": "world"}', "weights.bin": CONTENT}
TREE, REVISION = f"/api/models/{REPO}/tree/{COMMIT}", f"/api/models/{REPO}/revision/main"
OK = None
CASES = {}


def case(ends, limit_s=20, **options):
    """A case: how it may end (OK or codes of errors), the seconds it may take, and what `Case` knows besides."""
    def add(fault):
        name = fault.__name__
        assert name not in CASES, name
        CASES[name] = (fault, ends if isinstance(ends, (list, tuple)) else [ends], limit_s, options)
        return fault
    return add


def first(request, name="weights.bin"):
    """Is this the first request for the file?"""
    return request.is_file(name) and request.hub.count(name) == 1


def tree_answer(request, rows):
    if request.path == TREE:
        request.send(whole(200, json.dumps(rows).encode()))
        return DONE
    return None


def flipped(content, at=1000):
    return content[:at] + bytes([content[at] ^ 1]) + content[at + 1:]


def cut(request, count, content=CONTENT):
    """The right head, `count` bytes of the body, and the connection is gone."""
    status, headers, body = request.file_answer(content)
    request.send(head(status, {"Content-Length": len(body), **headers}) + body[:count])
    return DONE


# The rows of the table in reliability-security.md 3.2.1.

@case("hub.download.digest")
def n01_same_size_other_bytes_under_sha256(request):
    if request.is_file():
        request.send(whole(200, flipped(CONTENT)))
        return DONE


@case("hub.download.digest")
def n02_same_size_other_bytes_under_git_sha1(request):
    if request.is_file("config.json"):
        request.send(whole(200, flipped(FILES["config.json"], 3)))
        return DONE


@case(OK)
def n03_the_rest_comes_from_a_changed_file(request):
    if first(request):
        return cut(request, 2 * BLOCK + 100)
    if request.is_file() and request.range:
        status, headers, body = request.file_answer(flipped(CONTENT, len(CONTENT) - 5))
        request.send(head(status, {"Content-Length": len(body), **headers}) + body)
        return DONE


@case("hub.client.not-the-hub")
def n04_the_rest_begins_elsewhere(request):
    if first(request):
        return cut(request, 2 * BLOCK + 100)
    if request.is_file():
        begin = request.range[0] + 1
        body = CONTENT[begin:]
        request.send(whole(206, body, {"Content-Range": f"bytes {begin}-{len(CONTENT) - 1}/{len(CONTENT)}"}))
        return DONE


@case(OK)
def n05_the_range_is_ignored(request):
    if first(request):
        return cut(request, 2 * BLOCK + 100)
    if request.is_file():
        request.send(whole(200, CONTENT))
        return DONE


@case(OK, ranges=[None, (2 * BLOCK, len(CONTENT) - 1)])
def n06_cut_once(request):
    if first(request):
        return cut(request, 2 * BLOCK + 100)


@case("hub.download.short")
def n07_short_with_an_honest_length(request):
    if request.is_file():
        request.send(whole(200 if not request.range else 206, b"1234567890" if not request.range else b"",
                           {} if not request.range else {"Content-Range": "bytes */10"}))
        return DONE


@case("hub.http.too-large")
def n08_a_body_without_end(request):
    if request.is_file():
        request.send(head(200))
        piece = bytes(65536)
        while request.send(piece) and not request.hub.stopping.is_set():
            request.hub.sent_bytes += len(piece)
            assert request.hub.sent_bytes < 64 << 20, "it goes on reading"
        return DONE


@case(OK)
def n09_an_etag_that_leaves_the_cache(request):
    if request.is_file():
        status, headers, body = request.file_answer(CONTENT)
        request.send(whole(status, body, {**headers, "ETag": '"../../../../escaped"', "X-Linked-Etag": '"../escaped"',
                                          "X-Repo-Commit": "../escaped"}))
        return DONE


@case("hub.client.not-the-hub")
def n10_a_commit_that_leaves_the_cache(request):
    if request.path == REVISION:
        request.send(whole(200, json.dumps({"sha": "../../../../escaped"}).encode()))
        return DONE


def content_length(value):
    def fault(request):
        if request.is_file():
            request.send(head(200, {"Content-Length": value}) + CONTENT)
            return DONE
    return fault


@case([OK, "hub.http.connection", "hub.http.too-large", "hub.download.short"])
def n11_content_length_negative(request):
    return content_length("-5")(request)


@case([OK, "hub.http.connection", "hub.http.too-large", "hub.download.short"])
def n11_content_length_no_number(request):
    return content_length("many")(request)


@case([OK, "hub.http.connection", "hub.http.too-large", "hub.download.short"])
def n11_content_length_of_2_to_the_70(request):
    return content_length(2**70)(request)


@case("hub.client.not-the-hub", hint="proxy")
def n12_a_login_page_answers(request):
    request.send(whole(200, b"<html>Please log in</html>", {"Content-Type": "text/html"}))
    return DONE


@case(OK, other=True, ends_without_token=True)
def n13_redirect_to_another_host(request):
    if request.is_file():
        request.send(whole(302, b"", {"Location": request.hub.other.url + request.target + "?signature=secret"}))
        return DONE


@case("hub.http.scheme")
def n14_redirect_to_a_local_file(request):
    if request.is_file():
        request.send(whole(302, b"", {"Location": "file:///etc/passwd"}))
        return DONE


@case("hub.client.redirects", max_requests=9)
def n15_redirects_without_end(request):
    if request.is_file():
        request.send(whole(302, b"", {"Location": request.target}))
        return DONE


@case("hub.client.redirects", other=True, max_requests=9, ends_without_token=True)
def n15_redirects_between_two_hosts(request):
    if request.is_file():
        back, hub = request.hub, request.hub.other
        # Before the answer: the client may be at the other host before this line ends.
        hub.fault = lambda again: again.send(whole(302, b"", {"Location": back.url + again.target})) and DONE
        request.send(whole(302, b"", {"Location": hub.url + request.target}))
        return DONE


@case("hub.client.status", max_requests=5)
def n16_the_api_fails(request):
    if request.is_api:
        request.send(whole(500, b"{}"))
        return DONE


@case(OK)
def n17_a_busy_server(request):
    if request.is_file() and request.hub.count("weights.bin") <= 2:
        request.send(whole(503, b"busy"))
        return DONE


@case("hub.client.rate-limit", hint="3600")
def n18_retry_after_an_hour(request):
    if request.is_file():
        request.send(whole(429, b"", {"Retry-After": 3600}))
        return DONE


@case(OK)
def n18_retry_after_a_second(request):
    if first(request):
        request.hub.refused = time.monotonic()
        request.send(whole(429, b"", {"Retry-After": 1}))
        return DONE
    if request.is_file():
        assert time.monotonic() - request.hub.refused > 1, "too early"


@case("hub.client.rate-limit")
def n18_retry_after_as_a_date(request):
    if request.is_api:
        date = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(hours=1)
        request.send(whole(429, b"", {"Retry-After": date.strftime("%a, %d %b %Y %H:%M:%S GMT")}))
        return DONE


@case("hub.client.rate-limit")
def n18_a_rate_limit_with_nothing_left(request):
    if request.is_api:
        request.send(whole(429, b"", {"RateLimit": '"api";r=0;t=290'}))
        return DONE


@case("hub.http.timeout")
def n19_a_drip(request):
    if request.is_file():
        request.send(head(200, {"Content-Length": len(CONTENT)}))
        request.send_slowly(CONTENT, 0.2)
        return DONE


@case("hub.http.timeout")
def n19_a_drip_of_headers(request):
    if request.is_api:
        request.send_slowly(head(200, {"X-Some": "x" * 10_000}), 0.2)
        return DONE


@case("hub.http.timeout")
def n20_silence_after_1000_bytes(request):
    if request.is_file():
        status, headers, body = request.file_answer(CONTENT)
        request.send(head(status, {"Content-Length": len(body), **headers}) + body[:1000])
        request.hub.stopping.wait(20)
        return DONE


def no_more_than_a_mebibyte():
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))


@case("hub.download.disk", preexec_fn=no_more_than_a_mebibyte, leaves=())
def n21_files_may_not_grow_so_large(request):
    return None


# N22 to N26 and N27 to N33 stand below: they are more than a server that answers wrongly.

@case("hub.http.name", env={"HF_ENDPOINT": "http://no-such-host.invalid"})
def n34_no_such_name(request):
    return None


@case("hub.http.connection", env={"HF_ENDPOINT": "http://127.0.0.1:1"})
def n35_nobody_listens(request):
    return None


@case(OK)
def n36_reset_in_the_headers(request):
    if first(request):
        request.send(b"HTTP/1.1 200 OK\r\nContent-Le")
        request.reset()
        return DONE


@case("hub.http.connection")
def n36_reset_in_the_headers_always(request):
    if request.is_file():
        request.send(b"HTTP/1.1 200 OK\r\nContent-Le")
        request.reset()
        return DONE


def reset_after(count):
    def fault(request):
        if first(request):
            request.send(head(200, {"Content-Length": len(CONTENT)}) + CONTENT[:count])
            request.reset()
            return DONE
    fault.__name__ = f"n37_reset_after_{count}_bytes"
    return fault


for _position in (0, 1, 16_384, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK, 4 * BLOCK + 77, len(CONTENT) - 1, len(CONTENT)):
    case(OK)(reset_after(_position))


@case("hub.client.not-the-hub")
def n38_a_file_comes_compressed(request):
    if request.is_file():
        request.send(whole(200, gzip.compress(CONTENT), {"Content-Encoding": "gzip"}))
        return DONE


@case("hub.client.not-the-hub")
def n38_an_answer_comes_compressed(request):
    if request.path == TREE:
        request.send(whole(200, gzip.compress(b"[]"), {"Content-Encoding": "gzip"}))
        return DONE


BOMB = gzip.compress(bytes(200 << 20), 9)


@case("hub.client.not-the-hub", max_rss_mib=200)
def n39_a_bomb_of_zeros(request):
    if request.path == REVISION:
        request.send(whole(200, BOMB, {"Content-Encoding": "gzip", "Content-Type": "application/json"}))
        return DONE


@case(["hub.http.too-large", "hub.http.connection"])
def n40_a_mebibyte_of_headers(request):
    if request.is_api:
        request.send(head(200, {f"X-{i}": "y" * 1000 for i in range(1050)}) + b"{}")
        return DONE


@case(["hub.http.too-large", "hub.http.connection"])
def n40_a_header_of_a_mebibyte(request):
    if request.is_api:
        request.send(head(200, {"X-Some": "y" * (1 << 20)}) + b"{}")
        return DONE


@case("hub.client.downgrade", tls=True, other=True)
def n41_redirect_from_https_to_http(request):
    if request.is_file():
        request.send(whole(302, b"", {"Location": request.hub.other.url + request.target}))
        return DONE


@case("hub.http.host", other=True)
def n42_redirect_with_a_password(request):
    if request.is_file():
        request.send(whole(302, b"", {"Location": request.hub.other.url.replace("//", "//user:secret@") + "/"}))
        return DONE


@case("hub.client.forbidden")
def n43_the_server_says_the_token(request):
    if request.is_file():
        said = request.headers["authorization"]
        request.send(whole(403, said.encode(), {"X-Error-Message": f"go away, {said}, {said.split()[1]}"}))
        return DONE


def refusal(status, code=""):
    def fault(request):
        if request.is_file():
            request.send(whole(status, b"{}", {"X-Error-Code": code} if code else {}))
            return DONE
    return fault


for _status, _code, _ends in ((401, "", "unauthorized"), (401, "RepoNotFound", "repository"), (403, "", "forbidden"),
                              (403, "GatedRepo", "gated"), (401, "GatedRepo", "gated"), (404, "", "repository"),
                              (404, "EntryNotFound", "file"), (404, "RevisionNotFound", "revision")):
    _fault = refusal(_status, _code)
    _fault.__name__ = f"n44_status_{_status}_{_code or 'alone'}"
    case("hub.client." + _ends)(_fault)


# Beyond the 44: other answers that no Hub gives (M47 to M51), and roads that a client must know.

@case(OK)
def a_renamed_repository_redirects_its_api(request):
    if request.path == REVISION and "again" not in request.target:
        request.send(whole(307, b"", {"Location": REVISION + "?again"}))
        return DONE


@case("hub.client.redirects", max_requests=6)
def the_api_redirects_without_end(request):
    if request.is_api:
        request.send(whole(307, b"", {"Location": request.target}))
        return DONE


@case("hub.client.repository")
def an_error_page_without_end(request):
    if request.is_file():
        request.send(head(404))
        while request.send(bytes(65536)) and not request.hub.stopping.is_set():
            request.hub.sent_bytes += 65536
            assert request.hub.sent_bytes < 64 << 20, "it goes on reading"
        return DONE


@case("hub.client.not-the-hub")
def several_parts_at_once(request):
    if first(request):
        return cut(request, 2 * BLOCK)
    if request.is_file():
        request.send(whole(206, CONTENT, {"Content-Type": "multipart/byteranges; boundary=x"}))
        return DONE


@case("hub.client.not-the-hub")
def a_range_of_another_size(request):
    if first(request):
        return cut(request, 2 * BLOCK)
    if request.is_file():
        status, headers, body = request.file_answer(CONTENT + b"more")
        request.send(whole(status, body, headers))
        return DONE


@case("hub.client.unexpected-status")
def no_such_range(request):
    if first(request):
        return cut(request, 2 * BLOCK)
    if request.is_file():
        request.send(whole(416, b"", {"Content-Range": f"bytes */{len(CONTENT)}"}))
        return DONE


@case("hub.http.too-large")
def a_range_without_end(request):
    if first(request):
        return cut(request, 2 * BLOCK)
    if request.is_file():
        _, headers, body = request.file_answer(CONTENT)
        request.send(head(206, headers) + body + bytes(1 << 20))
        return DONE


@case(OK)
def a_chunked_body_with_a_trailer(request):
    if request.is_file():
        request.send(head(200, {"Transfer-Encoding": "chunked"}) + b"%x\r\n%s\r\n0\r\nContent-Length: 3\r\n\r\n" %
                     (len(CONTENT), CONTENT))
        return DONE


@case(["hub.http.connection", "hub.download.short"])
def chunks_that_are_none(request):
    if request.is_file():
        request.send(head(200, {"Transfer-Encoding": "chunked"}) + b"xyz\r\n")
        return DONE


@case("hub.client.not-the-hub", max_requests=120)
def pages_without_end(request):
    if request.path == TREE:
        request.send(whole(200, b"[]", {"Link": f'<{request.hub.url}{TREE}?page=2>; rel="next"'}))
        return DONE


def refuse_tree(name, rows):
    def fault(request):
        return tree_answer(request, rows)
    fault.__name__ = f"a_listing_with_{name}"
    case("hub.client.not-the-hub")(fault)


_row = entry("config.json", b"x")
for _name, _rows in (
        ("an_absolute_path", [{**_row, "path": "/etc/passwd"}]), ("a_path_upwards", [{**_row, "path": "a/../../x"}]),
        ("a_drive", [{**_row, "path": "C:/x"}]), ("a_share", [{**_row, "path": "\\\\host\\x"}]),
        ("a_nul", [{**_row, "path": "a\0b"}]), ("an_escape", [{**_row, "path": "a\x1b[31mb"}]),
        ("a_path_of_5000_bytes", [{**_row, "path": "a" * 5000}]), ("a_negative_size", [{**_row, "size": -1}]),
        ("a_size_of_2_to_the_63", [{**_row, "size": 2**63}]), ("a_size_of_a_petabyte", [{**_row, "size": 2**50}]),
        ("no_hash", [{"type": "file", "path": "x", "size": 1}]), ("a_hash_upwards", [{**_row, "oid": "../" * 13 + "a"}]),
        ("a_hash_in_capitals", [{**_row, "oid": "A" * 40}]), ("a_short_sha256", [{**_row, "lfs": {"oid": "a" * 63}}]),
        ("a_path_twice", [_row, _row]), ("a_file_in_a_file", [_row, {**_row, "path": "config.json/x"}]),
        ("no_list", {"files": []}), ("numbers", [1, 2]), ("deep_nesting", [json.loads("[" * 500 + "]" * 500)])):
    refuse_tree(_name, _rows)


def refuse_revision(name, body):
    def fault(request):
        if request.path == REVISION:
            request.send(whole(200, body))
            return DONE
    fault.__name__ = f"an_answer_that_is_{name}"
    case("hub.client.not-the-hub")(fault)


for _name, _body in (("empty", b""), ("cut_off", b'{"sha": "01'), ("a_list", b"[]"), ("null", b"null"),
                     ("of_two_minds", b'{"sha": "%s", "sha": "%s"}' % (COMMIT.encode(), b"f" * 40)),
                     ("in_capitals", json.dumps({"sha": "A" * 40}).encode()), ("a_million_brackets", b"[" * 1_000_000),
                     ("no_utf8", b'{"sha": "\xff"}')):
    refuse_revision(_name, _body)


# Whoever is to succeed may be as slow as a busy machine makes it; only what is to fail must give up soon.
SHORT = {"GRAFT_HUB_DEADLINE": "4"}


class Case:
    """One run of `graft download` against one fault, and what must hold after it."""

    def __init__(self, place, certificates):
        self.place, self.certificates = place, certificates
        self.cache = place / "home/hub"

    def variables(self, hub, **changes):
        return {"HF_ENDPOINT": hub.url, "HF_HUB_CACHE": str(self.cache), "HOME": str(self.place / "home"),
                "HF_HOME": str(self.place / "home"), "XDG_CACHE_HOME": str(self.place / "home"), "HF_TOKEN": TOKEN,
                "HF_HUB_OFFLINE": "", "TRANSFORMERS_OFFLINE": "", "NO_PROXY": "*", "GRAFT_LOG": "debug",
                "HF_HUB_DOWNLOAD_TIMEOUT": "20", "GRAFT_HUB_DEADLINE": "60",
                "SSL_CERT_FILE": str(self.certificates / "root.pem"), **changes}

    def download(self, env, **options):
        """(code of the error or None, all that was said, seconds)."""
        began = time.monotonic()
        done = subprocess.run([GRAFT, "download", REPO, "--json"], env=environment(env), stdin=subprocess.DEVNULL,
                              capture_output=True, text=True, timeout=60, check=False, **options)
        answer = json.loads(done.stdout)
        code = answer["error"]["code"] if done.returncode else None
        return code, done.stdout + done.stderr, time.monotonic() - began

    def blobs(self):
        return sorted((self.cache / "models--somebody--things/blobs").glob("*"))

    def require_nothing_wrong(self):
        """Whatever has its final name is right, and nothing lies elsewhere."""
        assert sorted(path.name for path in self.place.iterdir()) in ([], ["home"]), list(self.place.iterdir())
        assert {path.name for path in (self.place / "home").glob("*")} <= {"hub", "graft"}, self.place
        for blob in self.blobs():
            if not blob.suffix:
                content = blob.read_bytes()
                assert blob.name in (git_oid(content), hashlib.sha256(content).hexdigest()), blob
        snapshot = self.cache / f"models--somebody--things/snapshots/{COMMIT}"
        for path in snapshot.rglob("*"):
            assert path.suffix == ".graft-tmp" or path.read_bytes() == FILES[str(path.relative_to(snapshot))], path

    def require_complete(self):
        self.require_nothing_wrong()
        snapshot = self.cache / f"models--somebody--things/snapshots/{COMMIT}"
        assert {path.name for path in snapshot.iterdir()} == set(FILES)
        assert all(not blob.suffix for blob in self.blobs()), self.blobs()

    def require_no_secret(self, said):
        secret = TOKEN.encode()
        assert TOKEN not in said and "signature=secret" not in said and "user:secret" not in said, said
        for path in self.place.rglob("*"):
            assert not path.is_file() or secret not in path.read_bytes(), path


def make_certificates(folder):
    """A root, and certificates that it signed: a good one, an expired one, one for another host; and a stranger's."""
    def openssl(*arguments):
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)

    for name in ("root", "stranger"):
        openssl("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", f"{name}.key", "-out", f"{name}.pem",
                "-subj", f"/CN={name}", "-days", "2")
    openssl("req", "-newkey", "rsa:2048", "-nodes", "-keyout", "key.pem", "-out", "request.csr", "-subj", "/CN=hub")
    for name, address, days, root in (("good", "IP:127.0.0.1", "2", "root"), ("expired", "IP:127.0.0.1", "-1", "root"),
                                      ("elsewhere", "DNS:example.org", "2", "root"),
                                      ("untrusted", "IP:127.0.0.1", "2", "stranger")):
        (folder / "names").write_text(f"subjectAltName={address}\n")
        openssl("x509", "-req", "-in", "request.csr", "-CA", f"{root}.pem", "-CAkey", f"{root}.key", "-CAcreateserial",
                "-days", days, "-extfile", "names", "-out", f"{name}.pem")


class NetworkFaults(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.workspace = Workspace()
        cls.folder = cls.workspace.__enter__()
        cls.certificates = cls.folder / "certificates"
        cls.certificates.mkdir()
        make_certificates(cls.certificates)

    @classmethod
    def tearDownClass(cls):
        cls.workspace.__exit__()

    def setUp(self):
        self.case_workspace = Workspace()
        self.one = Case(self.case_workspace.__enter__(), self.certificates)

    def tearDown(self):
        self.case_workspace.__exit__()

    def context(self, name="good", newest=None):
        return tls_context(self.certificates / f"{name}.pem", self.certificates / "key.pem", newest)

    def run_case(self, name):
        fault, ends, limit_s, options = CASES[name]
        context = self.context() if options.get("tls") else None
        with Workspace() as place, FaultServer(FILES) as other, FaultServer(FILES, fault, context) as hub:
            one, hub.other = Case(place, self.certificates), other
            patience = {} if OK in ends else SHORT
            if "hub.http.timeout" in ends:
                patience = {**SHORT, "HF_HUB_DOWNLOAD_TIMEOUT": "1"}
            env = one.variables(hub, **{**patience, **options.get("env", {})})
            code, said, took_s = one.download(env, preexec_fn=options.get("preexec_fn"))
            assert code in ends, f"ends with {code}, expected {ends}\n{said}"
            assert took_s <= limit_s, f"took {took_s:.1f} s of {limit_s}"
            one.require_no_secret(said)
            one.require_nothing_wrong()
            assert options.get("hint", "") in said, said
            requests = hub.requests + other.requests
            assert len(requests) <= options.get("max_requests", 20), [request.target for request in requests]
            if options.get("ends_without_token"):
                assert other.requests and not any("authorization" in row.headers for row in other.requests)
            if "ranges" in options:
                assert [row.range for row in hub.requests if row.is_file()] == options["ranges"]
            if "leaves" in options:
                large = hashlib.sha256(CONTENT).hexdigest()
                left = [blob.name for blob in one.blobs() if blob.suffix and blob.name.startswith(large)]
                assert left == list(options["leaves"]), left
            if code is None:
                one.require_complete()
                return
            # Once all is well again, so is the cache.
            hub.fault = None
            code, said, _ = one.download(one.variables(hub))
            assert code is None, f"after the fault: {said}"
            one.require_complete()

    def test_each_fault_ends_right_or_in_a_named_error(self):
        failures = {}
        with concurrent.futures.ThreadPoolExecutor(12) as pool:
            running = {pool.submit(self.run_case, name): name for name in CASES}
            for done in concurrent.futures.as_completed(running):
                if done.exception():
                    failures[running[done]] = done.exception()
        self.assertGreaterEqual(len({name[:3] for name in CASES if name[0] == "n" and name[1:3].isdigit()}), 32)
        for name, error in sorted(failures.items()):
            with self.subTest(name):
                raise error

    def test_n22_eight_processes_ask_once(self):
        with FaultServer(FILES) as hub:
            env = self.one.variables(hub, GRAFT_HUB_DEADLINE="60")
            with concurrent.futures.ThreadPoolExecutor(8) as pool:
                ends = list(pool.map(lambda _: self.one.download(env)[0], range(8)))
            self.assertEqual(ends, [None] * 8)
            self.assertEqual(hub.count("weights.bin"), 1)
        self.one.require_complete()

    def test_n23_a_killed_download_goes_on_where_it_stood(self):
        def fault(request):
            if first(request):
                request.send(head(200, {"Content-Length": len(CONTENT)}) + CONTENT[:3 * BLOCK + 5])
                request.hub.stopping.wait(20)
                return DONE

        with FaultServer(FILES, fault) as hub:
            env = self.one.variables(hub, HF_HUB_DOWNLOAD_TIMEOUT="30", GRAFT_HUB_DEADLINE="60")
            process = start("download", REPO, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            # By its name: the list of a smaller file may be gone between being listed and being read.
            name = hashlib.sha256(CONTENT).hexdigest() + ".*.graft-blocks"
            blobs = self.one.cache / "models--somebody--things/blobs"
            wait_until(lambda: any(path.read_bytes().startswith(b"111") for path in blobs.glob(name)))
            process.send_signal(signal.SIGKILL)
            process.wait()
            self.one.require_nothing_wrong()
            self.assertEqual(self.one.download(env)[0], None)
            self.assertEqual(hub.requests[-1].range or hub.requests[-2].range, (3 * BLOCK, len(CONTENT) - 1))
        self.one.require_complete()

    def damaged(self, damage):
        with FaultServer(FILES) as hub:
            env = self.one.variables(hub)
            self.assertEqual(self.one.download(env)[0], None)
            damage(self.one.cache / "models--somebody--things/blobs" / hashlib.sha256(CONTENT).hexdigest())
            code, said, _ = self.one.download(env)
            self.assertEqual((code, hub.count("weights.bin")), (None, 2), said)
        self.one.require_complete()
        return said

    def test_n24_a_flipped_bit_in_a_blob_is_found_said_and_healed(self):
        self.assertIn("fetching it anew", self.damaged(lambda blob: blob.write_bytes(flipped(blob.read_bytes()))))

    def test_n25_a_blob_that_was_cut_is_found_said_and_healed(self):
        self.assertIn("fetching it anew", self.damaged(lambda blob: os.truncate(blob, 1000)))

    def test_n26_a_blob_that_is_gone_is_fetched_again(self):
        self.damaged(os.unlink)

    def test_n27_to_n30_certificates(self):
        old = ssl.TLSVersion.TLSv1_1
        for name, newest in (("expired", None), ("elsewhere", None), ("untrusted", None), ("good", old)):
            with self.subTest(name, newest=newest), FaultServer(FILES, context=self.context(name, newest)) as hub:
                code, said, took_s = self.one.download(self.one.variables(hub, **SHORT))
                self.assertEqual(code, "hub.http.tls", said)
                self.assertLess(took_s, 20)
                self.assertIn("root.pem", said)  # which certificates were trusted
                self.assertEqual(hub.requests, [])
        for variable in ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
            with self.subTest(variable), FaultServer(FILES, context=self.context()) as hub, Workspace() as place:
                one = Case(place, self.certificates)
                none = {"SSL_CERT_FILE": "", "REQUESTS_CA_BUNDLE": "", "CURL_CA_BUNDLE": ""}
                env = one.variables(hub, **{**none, variable: str(self.certificates / "root.pem")})
                code, said, _ = one.download(env)
                self.assertEqual(code, None, said)
                one.require_complete()
        with FaultServer(FILES, context=self.context()) as hub:
            code, said, _ = self.one.download(self.one.variables(hub, SSL_CERT_FILE=str(self.folder / "none.pem"),
                                                                **SHORT))
            self.assertEqual(code, "hub.http.tls", said)

    def test_n31_to_n33_proxies(self):
        refused, no_credentials = whole(403, b"no"), whole(407, b"", {"Proxy-Authenticate": "Basic"})
        for tls in (False, True):
            for answer in (refused, no_credentials) if tls else (no_credentials,):
                with self.subTest("refused", tls=tls, answer=answer), Tunnel(answer) as proxy, \
                        FaultServer(FILES, context=self.context() if tls else None) as hub:
                    env = self.one.variables(hub, NO_PROXY="", HTTPS_PROXY=proxy.url, HTTP_PROXY=proxy.url, **SHORT)
                    code, said, took_s = self.one.download(env)
                    self.assertEqual(code, "hub.http.proxy", said)
                    self.assertLess(took_s, 20)
                    self.assertEqual(hub.requests, [])
                    self.one.require_no_secret(said)
            for variable in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy") if tls else ("HTTP_PROXY",):
                with self.subTest(variable, tls=tls), Tunnel(credentials="dXNlcjpzZWNyZXQ=") as proxy, \
                        FaultServer(FILES, context=self.context() if tls else None) as hub, Workspace() as place:
                    one = Case(place, self.certificates)
                    address = proxy.url.replace("//", "//user:secret@")
                    code, said, _ = one.download(one.variables(hub, **{"NO_PROXY": "", variable: address}))
                    self.assertEqual(code, None, said)
                    self.assertTrue(proxy.seen)
                    if tls:  # what the proxy sees of it
                        self.assertNotIn(TOKEN, "".join(proxy.seen))
                    one.require_no_secret(said)
                    one.require_complete()
        with FaultServer(FILES) as hub:
            dead = {"HTTP_PROXY": "http://127.0.0.1:1", "ALL_PROXY": "http://127.0.0.1:1"}
            env = self.one.variables(hub, NO_PROXY="example.org,127.0.0.1", **dead)
            self.assertEqual(self.one.download(env)[0], None)
            code, said, _ = self.one.download(self.one.variables(hub, NO_PROXY="", HTTP_PROXY="http://no.invalid:80"))
            self.assertEqual(code, None, said)  # the cache answers
            self.assertNotIn("asks to wait", said)  # nobody did

    def test_the_token_comes_from_every_documented_place(self):
        home = self.one.place / "home"
        home.mkdir()

        def sent(**changes):
            with FaultServer(FILES) as hub:
                env = self.one.variables(hub, **{"HF_TOKEN": "", **changes})
                self.assertIsNone(self.one.download(env)[0])
                return {request.headers.get("authorization") for request in hub.requests}

        self.assertEqual(sent(), {None})
        self.assertEqual(sent(HF_TOKEN=" hf_a \n"), {"Bearer hf_a"})
        self.assertEqual(sent(HUGGING_FACE_HUB_TOKEN="hf_b"), {"Bearer hf_b"})
        self.assertEqual(sent(HF_TOKEN="hf_a", HUGGING_FACE_HUB_TOKEN="hf_b"), {"Bearer hf_a"})
        (home / "token").write_text("hf_c\n")
        self.assertEqual(sent(), {"Bearer hf_c"})
        (home / "elsewhere").write_text("hf_d")
        self.assertEqual(sent(HF_TOKEN_PATH=str(home / "elsewhere")), {"Bearer hf_d"})
        self.assertEqual(sent(HF_HUB_DISABLE_IMPLICIT_TOKEN="1", HF_TOKEN="hf_a"), {None})
        with FaultServer(FILES) as hub:  # two lines are no header
            code, said, _ = self.one.download(self.one.variables(hub, HF_TOKEN="hf_a\r\nX-Evil: 1"))
            self.assertEqual(code, "hub.http.header", said)
            self.assertNotIn("hf_a", said)

    def one_random_run(self, seed):
        chance = random.Random(seed)

        def fault(request):
            if not request.is_file() or chance.random() < 0.4:
                return None
            time.sleep(chance.random() * 0.05)
            status, headers, body = request.file_answer(CONTENT)
            if body and chance.random() < 0.2:
                body = flipped(body, chance.randrange(len(body)))
            headers = {"Content-Length": len(body), **headers}
            request.send(head(status, headers) + body[:chance.randrange(len(body) + 1)])
            if chance.random() < 0.5:
                request.reset()
            return DONE

        with Workspace() as place, FaultServer(FILES, fault) as hub:
            one = Case(place, self.certificates)
            code, said, took_s = one.download(one.variables(hub, **SHORT))
            assert code in (None, "hub.download.digest", "hub.download.short", "hub.http.connection"), said
            assert took_s < 30
            one.require_complete() if code is None else one.require_nothing_wrong()
            one.require_no_secret(said)
            return code

    def test_random_cuts_delays_and_flipped_bits(self):
        with concurrent.futures.ThreadPoolExecutor(16) as pool:
            codes = list(pool.map(self.one_random_run, range(500 if LONG else 40)))
        self.assertIn(None, codes)
        print({str(code): codes.count(code) for code in set(codes)}, file=sys.stderr)


if __name__ == "__main__":
    unittest.main(verbosity=2)
