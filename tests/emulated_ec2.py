"""EC2 and parameters on this machine alone: moto as a child process, behind a proxy that keeps a list of the calls.

The proxy can give one answer of its own: some failures of EC2 can't be had from an emulator. And it remembers which
images answer only to tokens, which moto is told and forgets.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs

from isolated_machine import free_port

ERROR = (
    "<?xml version='1.0'?><Response><Errors><Error><Code>{code}</Code><Message>{message}</Message></Error></Errors>"
    "<RequestID>1</RequestID></Response>"
)

# the base image: of the hundreds that moto brings along, and looks through at each call, none is needed
AMAZONS = [
    {
        "ami_id": "ami-0a1b2c3d4e5f60718",
        "name": "Deep Learning Base OSS Nvidia Driver GPU AMI (Ubuntu 24.04) 20260101",
        "description": "What a builder starts from",
        "owner_id": "898082745236",
        "public": True,
        "state": "available",
        "image_type": "machine",
        "architecture": "x86_64",
        "root_device_type": "ebs",
        "root_device_name": "/dev/sda1",
        "virtualization_type": "hvm",
        "hypervisor": "xen",
    }
]


@dataclass
class Account:
    """An account whose calls are watched: `answers` gives an action's next answers, before moto is asked."""

    endpoint: str
    moto: str
    calls: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    answers: dict[str, list[tuple[int, str]]] = field(default_factory=dict)
    with_tokens: dict[str, str] = field(default_factory=dict)  # by image, what ImdsSupport it was given

    def refuse(self, action: str, code: str, message: str) -> None:
        """Let the next call of an action fail."""
        self.answers.setdefault(action, []).append((400, ERROR.format(code=code, message=message)))

    def said(self, action: str, given: dict[str, str], content: bytes) -> bytes:
        """Return what moto says, as EC2 would have said it."""
        if action == "ec2:ModifyImageAttribute" and (support := given.get("ImdsSupport.Value")):
            self.with_tokens[given["ImageId"]] = support
        if action != "ec2:DescribeImages":
            return content
        # moto says so of images that it made itself; EC2 says ebs, and packer wants that of its source
        content = content.replace(b"<rootDeviceType>standard<", b"<rootDeviceType>ebs<")
        return re.sub(rb"<imageId>([^<]+)</imageId>", self._with_support, content)

    def _with_support(self, found: re.Match[bytes]) -> bytes:
        support = self.with_tokens.get(found[1].decode())
        return found[0] + (f"<imdsSupport>{support}</imdsSupport>".encode() if support else b"")


def action_of(headers, body: bytes) -> tuple[str, dict[str, str]]:
    """Return service and action of a call, as a policy names it, and its parameters."""
    service = headers.get("Authorization", "").partition("/aws4_request")[0].rpartition("/")[2]
    if target := headers.get("X-Amz-Target"):
        return f"{service}:{target.rpartition('.')[2]}", json.loads(body)
    given = {name: values[0] for name, values in parse_qs(body.decode(errors="replace")).items()}
    return f"{service}:{given.get('Action', '')}", given


@contextmanager
def account(folder: Path):
    """Run EC2 and parameters while the block runs; give the account."""
    port = free_port()
    (folder / "amis.json").write_text(json.dumps(AMAZONS), encoding="utf-8")
    environment = os.environ | {"MOTO_PORT": str(port), "MOTO_AMIS_PATH": str(folder / "amis.json")}
    with (folder / "moto.log").open("wb") as log:
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
        moto = subprocess.Popen(command, env=environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
    found = Account("", f"127.0.0.1:{port}")
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler(found))
    server.daemon_threads = True
    found.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        wait_for(moto, port)
        yield found
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
        moto.kill()
        moto.wait()


def handler(found: Account) -> type[BaseHTTPRequestHandler]:
    """Return what answers a call: the account's own answer, else moto's."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self):
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            action, given = action_of(self.headers, body)
            found.calls.append((action, given))
            waiting = found.answers.get(action)
            status, kind, answer = self.own(*waiting.pop(0)) if waiting else self.motos(action, given, body)
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        do_GET = do_POST  # noqa: N815 - the name is http.server's

        @staticmethod
        def own(status: int, text: str) -> tuple[int, str, bytes]:
            return status, "text/xml" if text.startswith("<") else "application/x-amz-json-1.1", text.encode()

        def motos(self, action: str, given: dict[str, str], body: bytes) -> tuple[int, str, bytes]:
            connection = http.client.HTTPConnection(found.moto, timeout=60)
            connection.request(self.command, self.path, body, dict(self.headers.items()))
            answer = connection.getresponse()
            content = found.said(action, given, answer.read())
            connection.close()
            return answer.status, answer.headers.get("Content-Type", "text/xml"), content

        def log_message(self, format, *args):  # noqa: A002 - the name is http.server's
            pass

    return Handler


def wait_for(moto: subprocess.Popen, port: int) -> None:
    """Wait until moto answers."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and moto.poll() is None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
        try:
            connection.request("GET", "/moto-api/")
            connection.getresponse()
        except OSError:
            time.sleep(0.1)
        else:
            return
        finally:
            connection.close()
    raise RuntimeError("moto does not start")
