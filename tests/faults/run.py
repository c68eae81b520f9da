"""A fault run: worker processes that are killed, stopped, paused and robbed of disk and S3; and what came of it all.

Everything random comes from the seed, which is printed; what the system's scheduling adds is real.
"""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import quote_plus, urlsplit

from faults import speech
from faults.imds import metadata
from faults.proxy import proxied

from run_transcription import aws, names, storage
from run_transcription.demo.emulator import RECEIVES, make_stack
from run_transcription.ec2 import MARGIN

VISIBILITY = 6
IN_HAND = 7  # messages that a worker may hold at once: two ahead, one with the model, three on their way out, one more
POISON = ('{"poison": 1}', "no json at all", '{"bucket": "a-bucket-nobody-named", "key": "uploads/x.wav"}', "[]")
CORRUPT = 2


@dataclass(frozen=True)
class Plan:
    """How large a run is."""

    recordings: int = 300
    workers: int = 4
    strikes: int = 40
    share: float = 0.04  # of the requests to S3 that fail
    seed: int = 20260131
    most_seconds: float = 3000.0


@dataclass
class Counts:
    """What was done to the workers, and what came of it."""

    seed: int
    recordings: int
    messages: int = 0
    strikes: Counter = field(default_factory=Counter)
    not_struck: Counter = field(default_factory=Counter)  # kinds that this machine can't do, and why
    s3_faults: Counter = field(default_factory=Counter)
    starts: int = 0
    seconds: float = 0.0
    results: int = 0
    failures: int = 0
    lost: list[str] = field(default_factory=list)
    double: list[str] = field(default_factory=list)
    different: list[str] = field(default_factory=list)
    dead_letters: int = 0
    strange_dead_letters: list[str] = field(default_factory=list)
    left: tuple[int, int] = (0, 0)  # messages in the queue: visible, hidden

    @property
    def clean(self) -> bool:
        """Whether each recording has exactly one result, the right one, and only poison is in the dead letters."""
        bad = (self.lost, self.double, self.different, self.strange_dead_letters)
        complete = self.results == self.recordings and self.failures == CORRUPT and self.dead_letters >= len(POISON)
        return complete and not any(bad) and self.left == (0, 0)


class Worker:
    """A worker process that is started again whenever it ends."""

    def __init__(self, number: int, command: list[str], variables: dict[str, str], folder: Path, server) -> None:
        self.number, self.command, self.server = number, command, server
        self.log = folder / f"worker-{number}.log"
        self.temporary = Path(variables["TMPDIR"])
        self.environment = os.environ | variables
        self.starts = 0
        self.paused_until = 0.0
        self.full = False
        self.start()

    def start(self) -> None:
        """Start the process anew; its log goes on."""
        self.server.facts.pop("spot/instance-action", None)
        self.server.facts.pop("events/recommendations/rebalance", None)
        (self.temporary / "ballast").unlink(missing_ok=True)
        self.full = False
        self.read_from = self.log.stat().st_size if self.log.exists() else 0
        self.starts += 1
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command, env=self.environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL
            )

    def tend(self) -> None:
        """Wake it, or start it again, where that is due."""
        if self.paused_until and time.monotonic() > self.paused_until:
            self.process.send_signal(signal.SIGCONT)
            self.paused_until = 0.0
        if self.process.poll() is not None:
            self.start()

    def may_be_struck(self) -> bool:
        """Tell whether it works, and all that it may hold has two receipts left after this one."""
        if self.process.poll() is not None or self.paused_until or self.full or len(self.server.facts) > len(FACTS):
            return False
        said = self.log.read_bytes()[self.read_from :].decode(errors="replace")
        received = [int(count) for count in re.findall(r"holds message \S+, received (\d+) times", said)][-IN_HAND:]
        return bool(received) and max(received) <= RECEIVES - 2

    def end(self) -> None:
        """End it for good."""
        self.process.send_signal(signal.SIGCONT)
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


FACTS = ("instance-id", "ami-id", "placement/region")


def kill(worker: Worker) -> None:
    """End it in the middle of whatever it does."""
    worker.process.kill()


def terminate(worker: Worker) -> None:
    """Ask it to end, as systemd does."""
    worker.process.terminate()


def spot_notice(worker: Worker) -> None:
    """Announce the end of its instance, very near."""
    at = datetime.now(UTC) + timedelta(seconds=MARGIN + 3)
    said = {"action": "terminate", "time": at.strftime("%Y-%m-%dT%H:%M:%SZ")}
    worker.server.facts["spot/instance-action"] = json.dumps(said)


def rebalance(worker: Worker) -> None:
    """Recommend to end its instance."""
    worker.server.facts["events/recommendations/rebalance"] = json.dumps({"noticeTime": "2026-01-31T08:22:00Z"})


def pause(worker: Worker) -> None:
    """Let its receipts expire while it sleeps, and wake it with them in its hands."""
    worker.process.send_signal(signal.SIGSTOP)
    worker.paused_until = time.monotonic() + VISIBILITY + 2


def fill_disk(worker: Worker) -> None:
    """Leave no room on its disk until it starts again."""
    worker.full = True
    try:
        with (worker.temporary / "ballast").open("wb", buffering=0) as ballast:
            while ballast.write(bytes(1 << 16)):
                pass
    except OSError:
        pass


STRIKES = {
    "kill -9": kill,
    "SIGTERM": terminate,
    "spot notice": spot_notice,
    "receipts expired": pause,
    "disk full": fill_disk,
    "rebalance": rebalance,
}


@contextmanager
def small_disk(folder: Path):
    """Mount 24 MB of memory as a disk, and say whether that was possible."""
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=24m,mode=0700", "tmpfs", str(folder)], capture_output=True, check=False
    )
    try:
        yield done.returncode == 0
    finally:
        if done.returncode == 0:
            subprocess.run(["umount", "-l", str(folder)], check=False)


def run(plan: Plan, folder: Path, name: str) -> Counts:
    """Carry out a plan on the emulator that the environment points to; the logs stay in the folder."""
    counts = Counts(plan.seed, plan.recordings)
    paths = speech.make(folder / "speech", plan.recordings, plan.seed)
    stack = make_stack(name, VISIBILITY)
    began = time.monotonic()
    with speech.undisturbed(folder / "speech", folder / "undisturbed", folder / "home") as wanted:
        with ExitStack() as closing:
            port = urlsplit(os.environ["AWS_ENDPOINT_URL"]).port
            proxy = closing.enter_context(proxied(port, plan.share, plan.seed))
            mounted = closing.enter_context(small_disk(folder / "small"))
            if not mounted:
                counts.not_struck["disk full: no tmpfs may be mounted here"] += 1
            counts.messages = upload(stack, paths, plan.seed, folder)
            workers = []
            for number in range(plan.workers):
                server = closing.enter_context(metadata())
                variables = variables_of(folder, number, proxy, server, small=mounted and number == 0)
                workers.append(Worker(number, command_of(stack), variables, folder, server))
                closing.callback(workers[-1].end)
            strike(plan, counts, workers, stack, mounted=mounted, deadline=began + plan.most_seconds)
            counts.starts = sum(worker.starts for worker in workers)
            counts.s3_faults = Counter(proxy.injected)
        counts.seconds = time.monotonic() - began
        judge(counts, stack, wanted())
    return counts


def command_of(stack) -> list[str]:
    """Return how a worker is started."""
    return [
        *(sys.executable, "-m", "run_transcription", "worker", "--queue-url", stack.queue_url),
        *("--bucket", stack.bucket, "--visibility-timeout", str(VISIBILITY), "--stop-seconds", "1"),
        *("--save-seconds", "0", "--model", "demo", "--dtype", "float32", "--batch-size", "1", "-f", "txt"),
    ]


def variables_of(folder: Path, number: int, proxy, server, *, small: bool) -> dict[str, str]:
    """Return the environment of a worker: S3 behind the proxy, a metadata service and a disk of its own."""
    temporary = folder / "small" if small else folder / f"tmp-{number}"
    temporary.mkdir(exist_ok=True)
    return {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{proxy.server_port}",
        "AWS_EC2_METADATA_DISABLED": "false",
        "AWS_EC2_METADATA_SERVICE_ENDPOINT": server.endpoint,
        "TMPDIR": str(temporary),
        "TRANSCRIBE_HOME": str(folder / "home"),
        "OMP_NUM_THREADS": "1",
    }


def upload(stack, paths: list[Path], seed: int, folder: Path) -> int:
    """Upload all recordings, send every event a second time in one of the shapes, and poison; return the messages."""
    sqs, root = aws.sqs(), f"s3://{stack.bucket}"
    bodies = list(POISON)
    for number, path in enumerate(paths):
        storage.upload(path, f"{root}/{speech.key(number)}")
        bodies.append(again(number, stack.bucket, speech.key(number), storage.version(f"{root}/{speech.key(number)}")))
    for number in range(CORRUPT):
        storage.store(f"{root}/uploads/corrupt-{number}.wav", f"no sound {number}".encode())
    storage.store(f"{root}/uploads/folder/", b"")
    random.Random(seed).shuffle(bodies)
    for body in bodies:
        sqs.send_message(QueueUrl=stack.queue_url, MessageBody=body)
    return len(bodies) + len(paths) + CORRUPT + 2  # S3's own events, the folder's and the test event among them


def again(number: int, bucket: str, key: str, version: str) -> str:
    """Return an event of an upload as one of those who pass them on would send it."""
    found = {"key": quote_plus(key), "size": 9, "versionId": version, "sequencer": "0A"}
    records = {
        "Records": [
            {
                "eventVersion": f"2.{1 + number % 6}",
                "eventName": "ObjectCreated:Put",
                "s3": {"bucket": {"name": bucket}, "object": found},
            }
        ]
    }
    detail = {"bucket": {"name": bucket}, "object": {"key": key, "version-id": version, "size": 9}}
    bridge = {"source": "aws.s3", "detail-type": "Object Created", "detail": detail}
    job = {"bucket": bucket, "key": key}
    shapes = (records, {"Type": "Notification", "Message": json.dumps(records)}, bridge, job)
    return json.dumps(shapes[number % len(shapes)])


def strike(plan: Plan, counts: Counts, workers: list[Worker], stack, *, mounted: bool, deadline: float) -> None:
    """Strike workers until the plan is fulfilled, and wait until the queue is empty."""
    chance = random.Random(plan.seed + 1)
    kinds = [name for name in STRIKES if mounted or name != "disk full"]
    planned = [kinds[number % len(kinds)] for number in range(plan.strikes)]
    empty = 0
    while empty < 3 and time.monotonic() < deadline:
        time.sleep(0.5)
        for worker in workers:
            worker.tend()
        empty = empty + 1 if waiting(stack.queue_url) == (0, 0) else 0
        if not planned:
            continue
        victims = [worker for worker in workers if worker.may_be_struck()]
        if victims and chance.random() < 0.5:
            victim = chance.choice(victims)
            if name := next(suiting(planned, victim), None):
                planned.remove(name)
                STRIKES[name](victim)
                counts.strikes[name] += 1
    counts.not_struck.update(planned)


def suiting(planned: list[str], victim: Worker):
    """Yield what a worker can be struck with: one of them alone has a disk that can be filled, and that comes first."""
    if victim.number == 0:
        yield from (name for name in planned if name == "disk full")
    yield from (name for name in planned if name != "disk full")


def waiting(queue_url: str) -> tuple[int, int]:
    """Return how many messages are visible, and how many are hidden."""
    wanted = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"]
    facts = aws.sqs().get_queue_attributes(QueueUrl=queue_url, AttributeNames=wanted)["Attributes"]
    return int(facts[wanted[0]]), int(facts[wanted[1]])


def judge(counts: Counts, stack, wanted: dict[str, str]) -> None:
    """Find out what came of every recording, and what lies in the dead-letter queue."""
    root = f"s3://{stack.bucket}"
    counts.left = waiting(stack.queue_url)
    for number in range(counts.recordings):
        key = speech.key(number)
        folder = names.results_of(root, key)
        found = [address for address in storage.listing(folder) if address.endswith("/transcript.json")]
        counts.results += len(found)
        if not found:
            counts.lost.append(key)
        if len(found) > 1 or any(versions(stack.bucket, address) > 1 for address in found):
            counts.double.append(key)
        right = wanted[f"{number:04d}"]
        texts = [json.loads(storage.read(address))["text"] for address in found]
        counts.different += [f"{key}: {text!r} instead of {right!r}" for text in texts if text != right]
    counts.failures = len(list(storage.listing(f"{root}/failed/")))
    bodies = list(drained(stack.dead_letter_url))
    counts.dead_letters = len(set(bodies))
    counts.strange_dead_letters = [body for body in bodies if body not in POISON]


def versions(bucket: str, address: str) -> int:
    """Return how often an object was written."""
    key = storage.split(address)[1]
    answer = aws.s3().list_object_versions(Bucket=bucket, Prefix=key)
    return sum(version["Key"] == key for version in answer.get("Versions", ()))


def drained(queue_url: str):
    """Yield the bodies of all messages of a queue."""
    while found := aws.sqs().receive_message(QueueUrl=queue_url, MaxNumberOfMessages=10).get("Messages"):
        for message in found:
            yield message["Body"]
            aws.sqs().delete_message(QueueUrl=queue_url, ReceiptHandle=message["ReceiptHandle"])
