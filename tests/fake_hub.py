"""A server on this machine that speaks as much of Hugging Face's HTTP as a download needs."""

from __future__ import annotations

import hashlib
import json
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Hub:
    """Serves a folder as the one model there is; `cut` names a file that breaks off in the middle."""

    folder: Path
    endpoint: str = ""
    cut: str | None = None
    sent: list[str] = field(default_factory=list)  # the files that were asked for, in order
    broken: bool = False  # it has broken off, and the server is out of order since

    def answer(self, path: str) -> tuple[int, bytes]:
        """Return the status and the body for a path."""
        if self.broken:
            return 503, b"out of order"
        if path == "/robots.txt":
            return 200, b""
        if path.startswith("/api/models/example/whisper-tiny") and self.folder.is_dir():
            files = [self.described(file) for file in sorted(self.folder.iterdir())]
            about = {"id": "example/whisper-tiny", "sha": COMMIT, "siblings": files}
            return 200, json.dumps(files if "/tree/" in path else about).encode()
        file = self.folder / path.rpartition("/")[2]
        if path.startswith(f"/example/whisper-tiny/resolve/{COMMIT}/") and file.is_file():
            return 200, file.read_bytes()
        return 404, b""

    @staticmethod
    def described(file: Path) -> dict[str, object]:
        """Describe a file, both as a list of files and as the facts of a model do."""
        return {"type": "file", "path": file.name, "rfilename": file.name, "size": file.stat().st_size, "oid": "0" * 40}


@contextmanager
def served(folder: Path):
    """Serve a folder while the block runs."""
    hub = Hub(folder)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self):
            self.respond(with_body=False)

        def do_GET(self):
            self.respond(with_body=True)

        def respond(self, *, with_body):
            path = self.path.partition("?")[0]
            status, body = hub.answer(path)
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("ETag", f'"{hashlib.sha256(body).hexdigest()}"')
            self.send_header("X-Repo-Commit", COMMIT)
            self.end_headers()
            if with_body and "/resolve/" in path:
                hub.sent.append(path.rpartition("/")[2])
                if hub.sent[-1] == hub.cut:
                    hub.broken, self.close_connection, body = True, True, body[: len(body) // 2]
            self.wfile.write(body if with_body else b"")

        def log_message(self, format, *args):  # noqa: A002 - the name is http.server's
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield hub
    server.shutdown()
    thread.join()
    server.server_close()
