"""A metadata service that tells an instance what it is told to: facts, a spot notice, a lifecycle state."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

TOKEN = "a-token"
FACTS = {"instance-id": "i-0123456789abcdef0", "ami-id": "ami-1", "placement/region": "us-east-1"}


class Metadata(ThreadingHTTPServer):
    """What stands at meta-data/: `facts` may be changed at any time."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.facts = dict(FACTS)

    @property
    def endpoint(self) -> str:
        """Its address, as AWS_EC2_METADATA_SERVICE_ENDPOINT wants it."""
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    def do_PUT(self) -> None:
        """Give a token (IMDSv2)."""
        asked = self.path == "/latest/api/token" and self.headers.get("X-aws-ec2-metadata-token-ttl-seconds")
        self.say(200 if asked else 400, TOKEN)

    def do_GET(self) -> None:
        """Tell a fact to who has the token."""
        if self.headers.get("X-aws-ec2-metadata-token") != TOKEN:
            self.say(401, "")
            return
        fact = self.server.facts.get(self.path.removeprefix("/latest/meta-data/"))
        self.say(404 if fact is None else 200, fact or "")

    def say(self, status: int, text: str) -> None:
        """Send an answer."""
        self.send_response_only(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())


@contextmanager
def metadata():
    """Run a metadata service while the block runs."""
    with Metadata() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield server
        finally:
            server.shutdown()
