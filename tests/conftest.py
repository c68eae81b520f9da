"""What several test files use: the emulated S3 and SQS, a stack of their own on it, and a model that loads fast."""

from __future__ import annotations

import itertools
import signal
from pathlib import Path

import pytest
import tiny_whisper

from run_transcription import demo
from run_transcription.demo.emulator import emulated, make_stack

numbers = itertools.count()


@pytest.fixture(scope="session", autouse=True)
def interruptible():
    """Listen to Ctrl-C: a suite that a script starts in the background ignores it, and so would what tests start."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def emulator(tmp_path_factory):
    """Run S3 and SQS for the whole session; this process and its children use them."""
    with emulated(tmp_path_factory.mktemp("emulator")):
        yield


@pytest.fixture
def stack(emulator):
    """Make a bucket, its queue and its dead-letter queue that no other test uses."""
    return make_stack(f"stack-{next(numbers)}")


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    """Name the demo model, and where it is not there yet one that writes nonsense."""
    if Path(demo.__file__).parent.joinpath("model", "model.safetensors").exists():
        return "demo"
    return str(tiny_whisper.make(tmp_path_factory.mktemp("model") / "tiny"))
