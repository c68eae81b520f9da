"""What several test files use: emulated services, a stack, a model that loads fast, a worker, and a baked image."""

from __future__ import annotations

import functools
import itertools
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import tiny_whisper
from baking import OUTSIDE, PLANTED, Bakery, bakery, client, content, report
from emulated_ec2 import account
from fakes import tone
from isolated_machine import machine, require_machine
from xdist.scheduler import LoadFileScheduling

from run_transcription import demo, optimized_loader, pipeline, service
from run_transcription.demo.emulator import emulated, make_stack
from run_transcription.errands import Desk, Shift
from run_transcription.interruption import Stop
from run_transcription.leases import Heart, Keeper
from run_transcription.records import Decoding, ModelSpec
from run_transcription.sources import SqsSource
from tools import require_tool

OF_THE_IMAGE = ("tests/test_bake.py", "tests/test_bake_failures.py", "tests/test_user_data.py")
numbers = itertools.count()


def pytest_xdist_make_scheduler(config, log):
    """Keep each file's tests in one process, and in the same one all that use the image baked once."""
    return ByFile(config, log)


class ByFile(LoadFileScheduling):
    """Takes the files that use the baked image for one."""

    def _split_scope(self, nodeid):
        file = super()._split_scope(nodeid)
        return "image" if file in OF_THE_IMAGE else file


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
def desk(tmp_path_factory, model):
    """Load a model for workers that run in this process."""
    home = tmp_path_factory.mktemp("home")
    handle = optimized_loader.load(ModelSpec(model, device="cpu", dtype="float32", home=home))
    return Desk(handle, handle.engine.check(Decoding(vad=False)), ("json", "txt"))  # a tone is loud, but no speech


@pytest.fixture
def shift(desk, tmp_path):
    """Make what the threads of a worker share, with a folder for its temporary files."""
    (tmp_path / "scratch").mkdir()
    return Shift(desk, tmp_path / "scratch", Stop(), Heart())


@pytest.fixture
def queue(stack, shift):
    """Take recordings of the stack's bucket from its queue."""
    shift.desk = replace(shift.desk, buckets=frozenset({stack.bucket}))
    source = SqsSource(stack.queue_url, Keeper(30), poll_seconds=0)
    source.receive().finish()  # S3's test event
    return source


@pytest.fixture
def recording(tmp_path):
    """Make a second of a tone."""
    return tone(tmp_path / "tone.wav", 1)


@pytest.fixture
def no_pause(monkeypatch):
    """Let failures follow one another at once."""
    monkeypatch.setattr(service, "LONGEST_PAUSE", 0.0)
    monkeypatch.setattr(pipeline, "back_off", lambda _receives: 0.0)


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


@pytest.fixture(scope="session")
def engine():
    """Load the demo model in float32 on a CPU."""
    return optimized_loader.load(ModelSpec("demo", dtype="float32", device="cpu")).engine


@pytest.fixture(scope="session")
def scene():
    """Make recordings of a kind, whose words are known; two speakers say them that the model's training never heard."""
    require_tool("espeak-ng")
    import scenes

    clips = scenes.small_bank()

    @functools.cache
    def made(name, seconds, seed=100):
        return next(each for each in scenes.SPEECH if each.name == name).make(clips, seconds, seed)

    return made
