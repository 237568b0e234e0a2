"""A Hub on raw sockets that a test can spoil byte by byte: `with FaultServer(files) as hub`.

`hub.fault` is called with every request before the right answer is sent; what it returns decides:
    None        the right answer follows
    DONE        the fault has sent what it wanted; the connection is closed
"""

import contextlib
import hashlib
import json
import re
import socket
import socketserver
import ssl
import struct
import threading
import time
import urllib.parse

COMMIT = "0123456789abcdef0123456789abcdef01234567"
REPO = "somebody/things"
DONE = "done"


def git_oid(content):
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def entry(path, content):
    row = {"type": "file", "path": path, "size": len(content), "oid": git_oid(content)}
    if path.endswith(".bin"):
        row["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content)}
    return row


def head(status=200, headers=()):
    """The bytes of an answer's head; `headers` are pairs."""
    lines = [f"HTTP/1.1 {status} Whatever", *(f"{name}: {value}" for name, value in dict(headers).items())]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


def whole(status, body, headers=()):
    return head(status, {"Content-Length": len(body), **dict(headers)}) + body


class Request:
    def __init__(self, text, connection, hub):
        line, *headers = text.decode("latin-1").split("\r\n")
        self.method, self.target, _ = line.split(" ", 2)
        self.path = urllib.parse.unquote(urllib.parse.urlparse(self.target).path)
        pairs = (header.split(":", 1) for header in headers if ":" in header)
        self.headers = {name.strip().lower(): value.strip() for name, value in pairs}
        self.connection, self.hub = connection, hub

    @property
    def range(self):
        """(first, last) byte that was asked for, or None."""
        match = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("range", ""))
        return match and (int(match[1]), int(match[2]) if match[2] else None)

    def is_file(self, name="weights.bin"):
        return self.path.endswith("/" + name) and "/resolve/" in self.path

    @property
    def is_api(self):
        return self.path.startswith("/api/")

    def send(self, data):
        """False once nobody listens any more."""
        try:
            self.connection.sendall(data)
            return True
        except OSError:
            return False

    def send_slowly(self, data, pause_s):
        """One byte at a time, until the server stops."""
        for byte in data:
            if not self.send(bytes([byte])) or self.hub.stopping.wait(pause_s):
                return

    def reset(self):
        """Ends the connection as a crash does (RST)."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()

    def file_answer(self, content):
        """(status, headers, body) of the right answer for a file."""
        if not self.range:
            return 200, {}, content
        first, last = self.range
        last = min(len(content) - 1, len(content) - 1 if last is None else last)
        return 206, {"Content-Range": f"bytes {first}-{last}/{len(content)}"}, content[first:last + 1]


class FaultServer:
    def __init__(self, files, fault=None, context=None):
        self.files, self.fault, self.context = files, fault, context
        self.requests, self.sent_bytes = [], 0
        self.stopping, self.lock = threading.Event(), threading.Lock()

    def __enter__(self):
        outer = self

        class Handler(socketserver.BaseRequestHandler):
            def handle(self):
                with contextlib.suppress(OSError, ValueError):
                    outer.serve(self.request)

        class Server(socketserver.ThreadingTCPServer):
            daemon_threads, allow_reuse_address, request_queue_size = True, True, 128

            def handle_error(self, *_):
                pass

        self.server = Server(("127.0.0.1", 0), Handler)
        self.port = self.server.server_address[1]
        self.url = f"http{'s' if self.context else ''}://127.0.0.1:{self.port}"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.stopping.set()
        self.server.shutdown()
        self.server.server_close()

    def serve(self, connection):
        if self.context:
            connection = self.context.wrap_socket(connection, server_side=True)
        connection.settimeout(30)
        with contextlib.closing(connection):
            pending = b""
            while not self.stopping.is_set():
                while b"\r\n\r\n" not in pending:
                    piece = connection.recv(65536)
                    if not piece:
                        return
                    pending += piece
                text, pending = pending.split(b"\r\n\r\n", 1)
                request = Request(text, connection, self)
                with self.lock:
                    self.requests.append(request)
                if self.fault and self.fault(request) is DONE:
                    return
                if not request.send(self.answer(request)):
                    return

    def answer(self, request):
        """The right answer, as bytes."""
        if request.path == f"/api/models/{REPO}/revision/main":
            return whole(200, json.dumps({"sha": COMMIT}).encode())
        if request.path == f"/api/models/{REPO}/tree/{COMMIT}":
            return whole(200, json.dumps([entry(*item) for item in self.files.items()]).encode())
        prefix = f"/{REPO}/resolve/{COMMIT}/"
        content = self.files.get(request.path.removeprefix(prefix)) if request.path.startswith(prefix) else None
        if content is None:
            return whole(404, b'{"error": "Repository not found"}', {"X-Error-Code": "RepoNotFound"})
        status, headers, body = request.file_answer(content)
        return whole(status, body, {"ETag": '"x"', "X-Repo-Commit": COMMIT, **headers})

    def count(self, name):
        """How often a file was asked for."""
        return sum(request.is_file(name) for request in self.requests)


class Tunnel(socketserver.ThreadingTCPServer):
    """A proxy: `answer` (bytes) refuses every request; without it requests pass, CONNECT included."""

    daemon_threads, allow_reuse_address = True, True

    def __init__(self, answer=None, credentials=None):
        self.answer, self.credentials, self.seen = answer, credentials, []
        super().__init__(("127.0.0.1", 0), Passing)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"

    def __enter__(self):
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.shutdown()
        self.server_close()

    def handle_error(self, *_):
        pass


class Passing(socketserver.BaseRequestHandler):
    def handle(self):
        with contextlib.suppress(OSError):
            text = b""
            while b"\r\n\r\n" not in text:
                piece = self.request.recv(65536)
                if not piece:
                    return
                text += piece
            self.server.seen.append(text.decode("latin-1"))
            wanted = self.server.credentials
            if self.server.answer or wanted and f"Basic {wanted}" not in text.decode("latin-1"):
                self.request.sendall(self.server.answer or whole(407, b"", {"Proxy-Authenticate": "Basic"}))
                return
            method, target = text.decode("latin-1").split(" ")[:2]
            place = target if method == "CONNECT" else urllib.parse.urlparse(target).netloc
            host, port = place.rsplit(":", 1)
            with socket.create_connection((host, int(port))) as other:
                if method == "CONNECT":
                    self.request.sendall(head(200))
                else:
                    other.sendall(text)
                other_way = threading.Thread(target=self.copy, args=(other, self.request), daemon=True)
                other_way.start()
                self.copy(self.request, other)
                other_way.join(10)

    @staticmethod
    def copy(source, sink):
        with contextlib.suppress(OSError):
            while piece := source.recv(65536):
                sink.sendall(piece)
            sink.shutdown(socket.SHUT_WR)


def tls_context(certificate, key, newest=None):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    if newest:
        context.set_ciphers("ALL:@SECLEVEL=0")
        context.minimum_version, context.maximum_version = ssl.TLSVersion.TLSv1, newest
    context.load_cert_chain(certificate, key)
    return context


def wait_until(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)
