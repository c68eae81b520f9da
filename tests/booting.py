"""A simulated boot: an instance's units run in their order, as they say, and a recording is put into the queue."""

from __future__ import annotations

import os
import re
import subprocess
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from isolated_machine import ROOT

from run_transcription import storage
from run_transcription.results import documents

if TYPE_CHECKING:
    from pathlib import Path

    from isolated_machine import Machine

    from run_transcription.demo.emulator import Stack

UNITS = ROOT / "packer/rootfs/etc/systemd/system"
LIMIT = 180.0  # seconds


@dataclass(frozen=True)
class Boot:
    """What came of a boot."""

    prefetched: str  # what the prefetch said
    said: list[str]  # by the worker
    timeline: dict[str, float]  # seconds since the boot's begin
    result: bytes


def boot(instance: Machine, stack: Stack, recording: Path, **given: str) -> Boot:
    """Prefetch, start the worker, and upload a recording when it is ready; wait for the transcript.

    What is given stands in the environment of both.
    """
    lines = [f"{name}={value}" for name, value in given.items()]
    lines += [f"TRANSCRIBE_QUEUE_URL={stack.queue_url}", f"TRANSCRIBE_BUCKET={stack.bucket}", "TRANSCRIBE_THREADS=1"]
    lines += [f"{name}={os.environ[name]}" for name in os.environ if name.startswith("AWS_")]
    command = [*instance.ssh("")[:-1], "cat >> /etc/transcribe.env"]
    subprocess.run(command, input="\n".join(lines), text=True, check=True)
    began = time.monotonic()
    prefetched = instance.run(as_unit_says("transcribe-prefetch"))
    timeline = {"prefetch is done": time.monotonic() - began}
    command = instance.ssh(as_unit_says("transcribe-worker"))
    worker = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    giving_up = threading.Timer(LIMIT, worker.kill)
    giving_up.start()
    said: list[str] = []
    try:
        _wait_for(worker, "ready: ", said)
        timeline["worker is ready"] = time.monotonic() - began
        storage.upload(recording, f"s3://{stack.bucket}/uploads/{recording.name}")
        timeline["recording is uploaded"] = time.monotonic() - began
        _wait_for(worker, " done: ", said)
        timeline["transcript is there"] = time.monotonic() - began
    finally:
        giving_up.cancel()
        instance.run("pkill -TERM -u transcribe")
        worker.communicate(timeout=60)
    (address,) = documents(f"s3://{stack.bucket}", f"uploads/{recording.name}")
    return Boot(prefetched.stdout + prefetched.stderr, said, timeline, storage.read(address))


def as_unit_says(unit: str) -> str:
    """Return the shell command that runs a unit's program as its user, with its environment and nothing else."""
    text = (UNITS / f"{unit}.service").read_text()
    settings = re.findall(r"^(User|ExecStart|Environment)=(.+)$", text, re.MULTILINE)
    user, program = dict(settings)["User"], dict(settings)["ExecStart"]
    given = " ".join(value for name, value in settings if name == "Environment")
    inherited = "$(grep -v '^#' /etc/transcribe.env)"
    return f"cd / && exec runuser -u {user} -- env -i PATH=/usr/bin:/bin {given} {inherited} {program}"


def _wait_for(worker: subprocess.Popen[str], words: str, said: list[str]) -> None:
    for line in worker.stderr:
        said.append(line)
        if words in line:
            return
    raise AssertionError(f"the worker never says {words!r}: {''.join(said[-50:])}")
