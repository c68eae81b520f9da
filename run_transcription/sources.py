"""Where work comes from: a queue of S3 events, or a folder. Both hand out deliveries, one at a time."""

from __future__ import annotations

import json
import logging
import os
import re
import threading
import time
from collections import Counter, deque
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import unquote_plus

from run_transcription import aws
from run_transcription.errors import TranscriptionError
from run_transcription.records import Upload

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

POLL_SECONDS = 2  # long enough to ask all of SQS's servers, short enough for a SIGTERM, which ends no poll
VISIBILITY_SECONDS = 300  # how long a message stays hidden once its worker has died
SETTLE_SECONDS = 1.0  # a file that changed more recently may still be growing
LOOK_SECONDS = 0.2  # between two looks into a folder
FOLDER_ATTEMPTS = 3  # a queue has its dead-letter queue; a file is left alone after so many failures

log = logging.getLogger(__name__)


class Delivery(Protocol):
    """Recordings to transcribe together, and what becomes of them: finished, or given back."""

    @property
    def uploads(self) -> tuple[Upload, ...]:
        """The recordings; none where a message only announces that events will come."""

    def held(self) -> AbstractContextManager[None]:
        """Keep everybody else from these recordings while the block runs."""

    def finish(self) -> None:
        """Let these recordings never come again."""

    def release(self) -> None:
        """Let these recordings come again at once, here or elsewhere."""


class Source(Protocol):
    """Hands out deliveries."""

    def receive(self) -> Delivery | None:
        """Return what comes within POLL_SECONDS, None when nothing does."""


class UnknownMessage(TranscriptionError):
    """A message that is no S3 event."""


class SqsSource:
    """S3's events in an SQS queue; messages of another shape are left for the dead-letter queue."""

    def __init__(self, queue_url: str, visibility_seconds: float = VISIBILITY_SECONDS) -> None:
        """Make sure that the queue answers; raises TranscriptionError."""
        self.queue_url = queue_url
        self.visibility_seconds = visibility_seconds
        self.client = aws.sqs(_region_of(queue_url))
        with aws.plainly(f"use the queue {queue_url}"):
            self.client.get_queue_attributes(QueueUrl=queue_url, AttributeNames=["QueueArn"])

    def receive(self) -> Delivery | None:
        """Return the next event, None when none comes within POLL_SECONDS; raises TranscriptionError."""
        while (delivery := self._poll()) is not None:
            try:
                return SqsDelivery(self, delivery["ReceiptHandle"], uploads_in(delivery["Body"]))
            except UnknownMessage as error:
                log.warning("message %s is left for the dead-letter queue: %s", delivery["MessageId"], error)
        return None

    def hide(self, receipt: str, seconds: float) -> None:
        """Make a message visible again after so many seconds from now; a failure only costs time, so it is logged."""
        try:
            with aws.plainly("change a message's visibility"):
                self.client.change_message_visibility(
                    QueueUrl=self.queue_url, ReceiptHandle=receipt, VisibilityTimeout=round(seconds)
                )
        except TranscriptionError as error:
            log.warning("%s", error)

    def _poll(self) -> Any:
        with aws.plainly(f"receive from {self.queue_url}"):
            answer = self.client.receive_message(
                QueueUrl=self.queue_url,
                MaxNumberOfMessages=1,
                WaitTimeSeconds=POLL_SECONDS,
                VisibilityTimeout=round(self.visibility_seconds),
            )
        return next(iter(answer.get("Messages", ())), None)


@dataclass(frozen=True, slots=True)
class SqsDelivery:
    """One message."""

    source: SqsSource
    receipt: str
    uploads: tuple[Upload, ...]

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep the message hidden while the block runs: renewed at every third of the time that it has."""
        ended = threading.Event()

        def renew() -> None:
            while not ended.wait(self.source.visibility_seconds / 3):
                self.source.hide(self.receipt, self.source.visibility_seconds)

        renewal = threading.Thread(target=renew, name="visibility", daemon=True)
        renewal.start()
        try:
            yield
        finally:
            ended.set()
            renewal.join()  # or a late renewal would hide again what is about to be released

    def finish(self) -> None:
        """Delete the message; raises TranscriptionError."""
        with aws.plainly("delete a finished message"):
            self.source.client.delete_message(QueueUrl=self.source.queue_url, ReceiptHandle=self.receipt)

    def release(self) -> None:
        """Make the message visible at once."""
        self.source.hide(self.receipt, 0)


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
        return FolderDelivery(self, (upload,))

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

    @contextmanager
    def held(self) -> Iterator[None]:
        """Do nothing: a folder has one worker."""
        yield

    def finish(self) -> None:
        """Do nothing: the recording stays, and is not handed out again before it changes."""

    def release(self) -> None:
        """Queue the recording once more."""
        for upload in self.uploads:
            self.source.again(upload)


def uploads_in(body: str) -> tuple[Upload, ...]:
    """Return the recordings that a message's body announces; none for S3's test event.

    Raises UnknownMessage for anything but an S3 event.
    """
    try:
        event = json.loads(body)
        if event.get("Event") == "s3:TestEvent":
            return ()
        return tuple(_uploads_of(event["Records"]))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UnknownMessage(f"it is no S3 event ({type(error).__name__}: {error})") from error


def _uploads_of(records: list[Any]) -> Iterator[Upload]:
    """S3 encodes keys as forms do; a folder made in the console is an empty object that ends in a slash."""
    for record in records:
        bucket, found = record["s3"]["bucket"]["name"], record["s3"]["object"]
        key = unquote_plus(found["key"])
        created = record["eventName"].removeprefix("s3:").startswith("ObjectCreated:")
        if created and not (key.endswith("/") and not found.get("size", 0)):
            version_id = found.get("versionId")
            yield Upload(f"s3://{bucket}", key, version_id or found["eTag"], version_id)


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
