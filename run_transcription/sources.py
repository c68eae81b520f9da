"""Where work comes from: queues of S3 events and jobs, or a folder. Both hand out deliveries, one at a time."""

from __future__ import annotations

import json
import logging
import os
import re
import time
from collections import Counter, deque
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from run_transcription import aws, messages
from run_transcription.errors import TranscriptionError
from run_transcription.leases import Keeper, Lease
from run_transcription.uploads import Upload

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

POLL_SECONDS = 2  # long enough to ask all of SQS's servers, short enough for a SIGTERM, which ends no poll
SETTLE_SECONDS = 1.0  # a file that changed more recently may still be growing
LOOK_SECONDS = 0.2  # between two looks into a folder
FOLDER_ATTEMPTS = 3  # a queue has its dead-letter queue; a file is left alone after so many failures

log = logging.getLogger(__name__)


class Delivery(Protocol):
    """Recordings to transcribe together, and what becomes of them: finished, or given back."""

    @property
    def uploads(self) -> tuple[Upload, ...]:
        """The recordings; none where a message only announces that events will come."""

    @property
    def receives(self) -> int:
        """How often they were handed out, this time included."""

    @property
    def lag(self) -> float | None:
        """Seconds from the event to its first receipt; None where this is not the first."""

    def finish(self) -> None:
        """Let these recordings never come again."""

    def release(self, seconds: float = 0.0) -> None:
        """Let these recordings come again after so many seconds, here or elsewhere."""

    def bury(self, reason: str) -> None:
        """Put aside, for a person to look at, what nobody can use."""


class Source(Protocol):
    """Hands out deliveries."""

    def receive(self) -> Delivery | None:
        """Return what comes within some POLL_SECONDS, None when nothing does."""


class SqsSource:
    """Jobs in an SQS queue; messages that are none go to its dead-letter queue at once, with the reason."""

    def __init__(self, queue_url: str, keeper: Keeper | None = None, poll_seconds: int = POLL_SECONDS) -> None:
        """Make sure that the queue answers; `keeper` renews what is received. Raises TranscriptionError."""
        if not re.match(r"https?://[^/]+/.+", queue_url):
            raise TranscriptionError(f"{queue_url!r} is no address of a queue: give the QueueUrl that SQS shows")
        self.queue_url = queue_url
        self.keeper = keeper or Keeper()
        self.poll_seconds = poll_seconds
        self.client = aws.sqs(_region_of(queue_url))
        with aws.plainly(f"use the queue {queue_url}"):
            facts = self.client.get_queue_attributes(QueueUrl=queue_url, AttributeNames=["QueueArn", "RedrivePolicy"])
        policy = json.loads(facts["Attributes"].get("RedrivePolicy", "{}"))
        self._dead_letters: str = policy.get("deadLetterTargetArn", "").rpartition(":")[2]
        if not self._dead_letters:
            log.warning("%s has no dead-letter queue: what nobody can use or finish comes again and again", queue_url)

    def receive(self) -> Delivery | None:
        """Return the next job, None when none comes within the time of a poll; raises TranscriptionError."""
        while True:
            began = time.monotonic()
            if (message := self._poll()) is None:
                return None
            receipt, hidden = message["ReceiptHandle"], self.keeper.visibility_seconds
            lease = Lease(self.client, self.queue_url, receipt, hidden, began)
            try:
                uploads = messages.uploads_in(message["Body"])
            except messages.Poison as reason:
                self.bury(message, lease, str(reason))
                continue
            self.keeper.hold(lease)
            facts = message.get("Attributes", {})
            receives = int(facts.get("ApproximateReceiveCount", 1))
            sent, first = (int(facts.get(name, 0)) for name in ("SentTimestamp", "ApproximateFirstReceiveTimestamp"))
            lag = max(0.0, (first - sent) / 1000) if receives == 1 and sent and first else None
            log.info("holds message %s, received %d times", message["MessageId"], receives)
            return SqsDelivery(self, lease, uploads, receives, lag, message)

    def bury(self, message: Any, lease: Lease, reason: str) -> None:
        """Move a message that nobody can use to the dead-letter queue; without one it stays, and is said."""
        log.warning("message %s is of no use: %s", message["MessageId"], reason)
        if not self._dead_letters:
            return
        said = {"reason": {"DataType": "String", "StringValue": "".join(filter(str.isprintable, reason))[:1000]}}
        try:
            with aws.plainly("move a message to the dead-letter queue"):
                url = self.client.get_queue_url(QueueName=self._dead_letters)["QueueUrl"]
                self.client.send_message(QueueUrl=url, MessageBody=message["Body"], MessageAttributes=said)  # type: ignore[arg-type]
        except TranscriptionError as error:
            log.warning("%s", error)
        else:
            lease.delete()

    def _poll(self) -> Any:
        with aws.plainly(f"receive from {self.queue_url}"):
            answer = self.client.receive_message(
                QueueUrl=self.queue_url,
                MaxNumberOfMessages=1,
                WaitTimeSeconds=self.poll_seconds,
                VisibilityTimeout=round(self.keeper.visibility_seconds),
                MessageSystemAttributeNames=[
                    "SentTimestamp",
                    "ApproximateReceiveCount",
                    "ApproximateFirstReceiveTimestamp",
                ],
            )
        return next(iter(answer.get("Messages", ())), None)


@dataclass(frozen=True, slots=True)
class SqsDelivery:
    """One message."""

    source: SqsSource
    lease: Lease
    uploads: tuple[Upload, ...]
    receives: int
    lag: float | None
    message: Any

    def finish(self) -> None:
        """Delete the message, if it is still ours."""
        self.source.keeper.drop(self.lease)
        self.lease.delete()

    def release(self, seconds: float = 0.0) -> None:
        """Make the message visible again, if it is still ours."""
        self.source.keeper.drop(self.lease)
        self.lease.release(seconds)

    def bury(self, reason: str) -> None:
        """Move the message to the dead-letter queue."""
        self.source.keeper.drop(self.lease)
        self.source.bury(self.message, self.lease, reason)


@dataclass(frozen=True, slots=True)
class InOrder:
    """Several sources, each asked only where the ones before it have nothing: live work goes before a backfill."""

    sources: tuple[Source, ...]

    def receive(self) -> Delivery | None:
        """Return the next delivery of the first source that has one."""
        return next((found for source in self.sources if (found := source.receive()) is not None), None)


class FolderSource:
    """The recordings in a folder and the folders below it; each stays where it is and is handed out once.

    `wanted` tells by a file's name whether it is to be handed out; what is hidden never is.
    """

    def __init__(self, folder: Path, wanted: Callable[[str], bool], settle_seconds: float = SETTLE_SECONDS) -> None:
        """Make sure that the folder is there; raises TranscriptionError."""
        if not os.path.isdir(folder):  # noqa: PTH112 - a Path would raise an error for a name that is too long
            raise TranscriptionError(f"{folder} is no folder: give --source a folder of recordings")
        self.root = folder.resolve()
        self.wanted = wanted
        self.settle_seconds = settle_seconds
        self._waiting: deque[Upload] = deque()
        self._attempts: Counter[Upload] = Counter()

    def receive(self) -> Delivery | None:
        """Return the next recording, None when none comes within POLL_SECONDS."""
        deadline = time.monotonic() + POLL_SECONDS
        while not self._waiting:
            self._waiting.extend(upload for upload in self._settled() if upload not in self._attempts)
            if not self._waiting:
                if time.monotonic() >= deadline:
                    return None
                time.sleep(LOOK_SECONDS)
        upload = self._waiting.popleft()
        self._attempts[upload] += 1
        return FolderDelivery(self, (upload,), self._attempts[upload])

    def again(self, upload: Upload) -> None:
        """Hand a recording out once more, unless that was tried often enough."""
        if self._attempts[upload] < FOLDER_ATTEMPTS:
            self._waiting.append(upload)
        else:
            log.error("%s is left alone after %d failures", upload.address, FOLDER_ATTEMPTS)

    def _settled(self) -> Iterator[Upload]:
        for path in _visible_below(self.root):
            if not self.wanted(path.name):
                continue
            try:
                facts = path.stat()
            except OSError:  # gone since the folder was read, or not ours to look at
                continue
            if not 0 <= time.time() - facts.st_mtime < self.settle_seconds:
                key = path.relative_to(self.root).as_posix()
                yield Upload(str(self.root), key, f"{facts.st_size}-{facts.st_mtime_ns}")


@dataclass(frozen=True, slots=True)
class FolderDelivery:
    """One recording of a folder."""

    source: FolderSource
    uploads: tuple[Upload, ...]
    receives: int
    lag: float | None = None

    def finish(self) -> None:
        """Do nothing: the recording stays, and is not handed out again before it changes."""

    def release(self, seconds: float = 0.0) -> None:  # noqa: ARG002 - a folder has one worker, which paces itself
        """Queue the recording once more."""
        for upload in self.uploads:
            self.source.again(upload)

    def bury(self, reason: str) -> None:
        """Leave the recording alone."""
        log.error("%s is left alone: %s", self.uploads[0].address, reason)


def _visible_below(folder: Path) -> Iterator[Path]:
    for parent, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            path = Path(parent, name)
            if not name.startswith(".") and os.path.isfile(path):  # noqa: PTH113 - a Path would raise where it may not look
                yield path


def _region_of(queue_url: str) -> str | None:
    """Return the region that an address of AWS names: it need not be configured twice."""
    found = re.match(r"https://sqs\.([a-z0-9-]+)\.amazonaws\.com", queue_url)
    return found.group(1) if found else None
