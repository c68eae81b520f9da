"""An HTTP proxy between workers and the emulator that fails as S3 does: errors, time-outs, answers lost or cut."""

from __future__ import annotations

import http.client
import random
import socket
import threading
import time
from collections import Counter
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

FAULTS = ("500", "503", "time-out", "answer lost", "answer cut")
HANG_SECONDS = 3.0
ERRORS = {"500": ("InternalError", 500), "503": ("SlowDown", 503)}


class Proxy(ThreadingHTTPServer):
    """Forwards to an upstream port; a share of the requests to S3 fails, chosen by a seeded generator."""

    daemon_threads = True

    def __init__(self, upstream: int, share: float, seed: int) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.upstream, self.share = upstream, share
        self.chance = random.Random(seed)
        self.lock = threading.Lock()
        self.injected: Counter[str] = Counter()

    def fault(self) -> str | None:
        """Draw what goes wrong with the next request."""
        with self.lock:
            if self.chance.random() >= self.share:
                return None
            found = self.chance.choice(FAULTS)
            self.injected[found] += 1
            return found

    def handle_error(self, request, client_address) -> None:
        """Say nothing: clients that were killed hang up."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def answer(self) -> None:
        """Forward one request, or fail it."""
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        fault = None if "X-Amz-Target" in self.headers else self.server.fault()  # SQS is asked in JSON, S3 is not
        if fault in ERRORS:
            self.refuse(*ERRORS[fault])
            return
        if fault == "time-out":
            time.sleep(HANG_SECONDS)
            self.hang_up()
            return
        connection = http.client.HTTPConnection("127.0.0.1", self.server.upstream, timeout=60)
        connection.request(self.command, self.path, body, dict(self.headers))
        answer = connection.getresponse()
        content = answer.read()
        connection.close()
        if fault == "answer lost":
            self.hang_up()
            return
        self.send_response_only(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in {"connection", "transfer-encoding", "content-length"}:
                self.send_header(name, value)
        length = answer.getheader("Content-Length") if self.command == "HEAD" else str(len(content))
        self.send_header("Content-Length", length or "0")
        self.end_headers()
        if fault == "answer cut" and len(content) > 1:
            self.wfile.write(content[: len(content) // 2])
            self.hang_up()
        elif self.command != "HEAD":
            self.wfile.write(content)

    def refuse(self, code: str, status: int) -> None:
        """Answer with an error as S3 writes it."""
        content = f"<Error><Code>{code}</Code><Message>injected</Message></Error>".encode()
        self.send_response_only(status)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def hang_up(self) -> None:
        """End the connection in the middle of whatever it is in."""
        self.close_connection = True
        self.wfile.flush()
        self.connection.shutdown(socket.SHUT_RDWR)

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = answer  # noqa: N815 - http.server's names


@contextmanager
def proxied(upstream: int, share: float, seed: int):
    """Run a proxy while the block runs."""
    with Proxy(upstream, share, seed) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield server
        finally:
            server.shutdown()
