"""What several test files use: emulated services, a stack of their own, a model that loads fast, and a baked image."""

from __future__ import annotations

import itertools
import signal
from pathlib import Path

import pytest
import tiny_whisper
from baking import OUTSIDE, PLANTED, Bakery, bakery, client, content, report
from emulated_ec2 import account
from isolated_machine import machine, require_machine

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


@pytest.fixture(scope="session")
def ec2_account(tmp_path_factory):
    """Run an EC2 whose calls are watched, for the whole session."""
    require_machine()
    with account(tmp_path_factory.mktemp("account")) as found:
        yield found


@pytest.fixture(scope="session")
def ec2(ec2_account):
    """Call the emulated EC2 past the watch."""
    return client(ec2_account)


@pytest.fixture(scope="session")
def baker(tmp_path_factory, ec2_account) -> Bakery:
    """Copy the templates, with a base image of the account pinned."""
    return bakery(tmp_path_factory.mktemp("baker"), ec2_account)


@pytest.fixture(scope="session")
def baked(tmp_path_factory, baker):
    """Bake once for all tests; give the report, the folder of the machine, and what was said on the way."""
    before = [content(path) for path in OUTSIDE]
    base = tmp_path_factory.mktemp("baked") / "machine"
    with machine(base) as built:
        done = baker.bake("--instance-type", "m5.large", made_on=built, **PLANTED)
    assert [content(path) for path in OUTSIDE] == before
    return report(done), base, done.stderr


@pytest.fixture
def fresh(tmp_path):
    """Run a machine on which nothing was done yet."""
    with machine(tmp_path / "fresh") as made:
        yield made


@pytest.fixture
def instance(tmp_path, baked):
    """Run a machine from the image that was baked."""
    with machine(tmp_path / "instance", baked[1]) as made:
        yield made
