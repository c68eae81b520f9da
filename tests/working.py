"""What the tests of the worker share: an engine that something happens to, an instance, and workers as processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from fakes import document

from run_transcription import storage
from run_transcription.resume import load
from run_transcription.worker import Terms

ONCE = Terms(once=True)


@dataclass
class Watched:
    """An engine that something happens to before each batch; what that raises, it raises."""

    engine: object
    deed: Callable[[list], object]

    def __getattr__(self, name):
        """Be the engine in all else."""
        return getattr(self.engine, name)

    def transcribe(self, windows, decoding):
        self.deed(windows)
        return self.engine.transcribe(windows, decoding)


def before_each_batch(shift, deed):
    """Let something happen before the engine of a worker hears windows."""
    handle = shift.desk.handle
    shift.desk = replace(shift.desk, handle=replace(handle, engine=Watched(handle.engine, deed)))


def refusing(shift, error, times=1):
    """Let a worker's engine fail so many times, and then work."""
    left = iter([error] * times)

    def refuse(_windows):
        for each in left:
            raise each

    before_each_batch(shift, refuse)


class Instance:
    """What a worker does with its instance; it may leave its group at the second time that it asks."""

    def __init__(self):
        self.asked = []

    def end(self, *, smaller):
        self.asked.append(f"end, smaller: {smaller}")
        return len(self.asked) == 2

    def out_of_service(self):
        self.asked.append("out of service")

    def let_go(self):
        self.asked.append("let go")


def terminate():
    """Send this process the signal that systemd sends."""
    os.kill(os.getpid(), signal.SIGTERM)


def journal_of(capsys):
    """Return the lines of the journal, jobs only."""
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    return [line for line in lines if "status" in line]


def json_below(address):
    """Return the json documents below an address, by address."""
    return {found: document(storage.read(found)) for found in storage.listing(address) if found.endswith(".json")}


def rows_of(root):
    """Return how many finished rows lie below a bucket's work/."""
    return max((len(load(address).rows) for address in storage.listing(f"{root}/work/")), default=0)


def queue_of(stack):
    """Return the arguments by which a worker serves a stack."""
    return ("--queue-url", stack.queue_url, "--bucket", stack.bucket)


def start_worker(*arguments, home, **environment):
    """Start a worker as its own process."""
    command = [sys.executable, "-m", "run_transcription", "worker", *arguments, "--dtype", "float32"]
    environment = os.environ | {"TRANSCRIBE_HOME": str(home), "OMP_NUM_THREADS": "2"} | environment
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_until(condition, process, seconds=120):
    """Wait for something that a process does."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
