"""The services of AWS on this machine alone: MiniStack as a child process, and what a test needs on it."""

from __future__ import annotations

import http.client
import importlib.util
import json
import os
import socket
import sys
import time
from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from run_transcription import aws, names
from run_transcription.demo.processes import Process, last_line, running
from run_transcription.errors import TranscriptionError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

HOST = "127.0.0.1"
REGION = "us-east-1"
START_SECONDS = 60.0  # on a busy machine; two are usual
PORT_TRIES = 5  # another program may take the free port first
RECEIVES = 5  # then a message goes to the dead-letter queue


@dataclass(frozen=True, slots=True)
class Stack:
    """A bucket whose uploads are announced in a queue."""

    bucket: str
    queue_url: str
    dead_letter_url: str


@contextmanager
def emulated(folder: Path) -> Iterator[None]:
    """Run S3 and SQS while the block runs, and let this process and its children use them; logs go into a folder."""
    if importlib.util.find_spec("ministack") is None:
        raise TranscriptionError("MiniStack is lacking: pip install 'run-transcription[demo]'")
    for _ in range(PORT_TRIES):
        port, log = _free_port(), folder / "emulator.log"
        with running([sys.executable, "-m", "ministack"], _settings(folder, port), log) as process:
            if _comes_up(process, port):
                with environment(clean_environment() | _credentials(port)):
                    yield
                return
    raise TranscriptionError(f"MiniStack does not start: {last_line(log)}")


def make_stack(name: str, visibility_seconds: int = 300, *, versioned: bool = True) -> Stack:
    """Make bucket, queue, dead-letter queue and notification: what tests need of a deployment, in no time."""
    s3, sqs = aws.s3(), aws.sqs()

    def make_queue(queue: str, attributes: Mapping[str, str]) -> tuple[str, str]:
        url = sqs.create_queue(QueueName=queue, Attributes=attributes)["QueueUrl"]  # type: ignore[arg-type]
        facts = sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["QueueArn"])
        return url, facts["Attributes"]["QueueArn"]

    with aws.plainly(f"make bucket and queue {name}"):
        s3.create_bucket(Bucket=name)
        if versioned:
            s3.put_bucket_versioning(Bucket=name, VersioningConfiguration={"Status": "Enabled"})
        dead_letter_url, dead_letter = make_queue(f"{name}-dead", {})
        redrive = json.dumps({"deadLetterTargetArn": dead_letter, "maxReceiveCount": RECEIVES})
        queue_url, queue = make_queue(name, {"VisibilityTimeout": str(visibility_seconds), "RedrivePolicy": redrive})
        uploads = {"Key": {"FilterRules": [{"Name": "prefix", "Value": names.UPLOADS}]}}
        events = {"QueueArn": queue, "Events": ["s3:ObjectCreated:*"], "Filter": uploads}
        s3.put_bucket_notification_configuration(
            Bucket=name,
            NotificationConfiguration={"QueueConfigurations": [events]},  # type: ignore[list-item]
        )
    return Stack(name, queue_url, dead_letter_url)


@contextmanager
def environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Run a block with exactly these environment variables, and clients of AWS made by them."""
    before = dict(os.environ)
    _replace_environment(variables)
    try:
        yield
    finally:
        _replace_environment(before)


def clean_environment() -> dict[str, str]:
    """Return this process's environment without what would point to a real account or change how the demo runs."""
    ours = ("AWS_", "TRANSCRIBE_", "MINISTACK_", "LOCALSTACK_", "BOTO_")
    return {name: value for name, value in os.environ.items() if not name.startswith(ours)}


def _settings(folder: Path, port: int) -> dict[str, str]:
    return clean_environment() | {
        "BIND_HOST": HOST,  # it would listen on all interfaces
        "GATEWAY_PORT": str(port),
        "SERVICES": "s3,sqs,sns,sts,ssm,iam,ec2,logs,monitoring,autoscaling,cloudformation",
        "IOT_MTLS_ENABLED": "0",  # it would listen on all interfaces too
        "LOG_LEVEL": "WARNING",
        "PERSIST_STATE": "0",
        "S3_PERSIST": "0",
        "TMPDIR": str(folder),
    }


def _credentials(port: int) -> dict[str, str]:
    """Return what makes boto3 use the emulator, and nothing of what a user has configured."""
    return {
        "AWS_ENDPOINT_URL": f"http://{HOST}:{port}",
        "AWS_ACCESS_KEY_ID": "demo",
        "AWS_SECRET_ACCESS_KEY": "demo",
        "AWS_DEFAULT_REGION": REGION,
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "AWS_EC2_METADATA_DISABLED": "true",
        "NO_PROXY": HOST,
        "no_proxy": HOST,
    }


def _comes_up(process: Process, port: int) -> bool:
    deadline = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        if _is_healthy(port):
            return True
        time.sleep(0.05)
    return False


def _is_healthy(port: int) -> bool:
    connection = http.client.HTTPConnection(HOST, port, timeout=2)
    try:
        connection.request("GET", "/_ministack/health")
        return connection.getresponse().status == http.HTTPStatus.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def _replace_environment(variables: Mapping[str, str]) -> None:
    os.environ.clear()
    os.environ.update(variables)
    aws.forget_clients()  # a client keeps the address that it was made with
