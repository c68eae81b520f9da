"""A message's body → the recordings that it announces. Whatever else a message may say, it is poison with a reason."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote_plus

from run_transcription import asked
from run_transcription.errors import TranscriptionError
from run_transcription.records import Given
from run_transcription.uploads import Upload

DEEPEST = 3  # envelopes around an event, such as SNS's
BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,253}[A-Za-z0-9]")
JOB_FIELDS = frozenset({"bucket", "key", "version_id", "options"})

Event = dict[str, Any]


class Poison(TranscriptionError):
    """A message that no worker can ever make use of."""


@dataclass(frozen=True, slots=True)
class Shape:
    """A kind of message: how it is recognized, and how the recordings in it are found."""

    name: str
    fits: Callable[[Event], bool]
    uploads: Callable[[Event, int], Iterator[Upload]]


def uploads_in(body: str, depth: int = 0) -> tuple[Upload, ...]:
    """Return the recordings that a message's body announces; none for a test event or a removal. Raises Poison."""
    try:
        event = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Poison(f"it is no JSON ({type(error).__name__})") from error
    if not isinstance(event, dict):
        raise Poison("it is no S3 event and no job, but a bare value")
    shape = next((shape for shape in SHAPES if shape.fits(event)), None)
    if shape is None:
        raise Poison("it is no S3 event and no job: nothing in it is known")
    try:
        return tuple(shape.uploads(event, depth))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise Poison(f"it is no {shape.name} as S3 sends them ({type(error).__name__}: {error})") from error


def _none(_event: Event, _depth: int) -> Iterator[Upload]:
    return iter(())


def _from_sns(event: Event, depth: int) -> Iterator[Upload]:
    if depth >= DEEPEST:
        raise Poison(f"it is wrapped more than {DEEPEST} times")
    yield from uploads_in(event["Message"], depth + 1)


def _from_records(event: Event, _depth: int) -> Iterator[Upload]:
    """S3's own events, 2.1 and later, encode keys as forms do."""
    for record in event["Records"]:
        version = str(record.get("eventVersion", "2.1"))
        if version.partition(".")[0] != "2":
            raise Poison(f"it is an S3 event of version {version}, of which only 2.x is known")
        if record["eventName"].removeprefix("s3:").startswith("ObjectCreated:"):
            found = record["s3"]["object"]
            key = unquote_plus(found["key"], errors="strict")
            facts = (found.get("versionId"), found.get("eTag"), found.get("sequencer"))
            yield from _upload(record["s3"]["bucket"]["name"], key, found.get("size"), facts)


def _from_event_bridge(event: Event, _depth: int) -> Iterator[Upload]:
    """EventBridge has its own names for the same, and does not encode keys."""
    if event.get("detail-type") != "Object Created":
        return
    found = event["detail"]["object"]
    facts = (found.get("version-id"), found.get("etag"), found.get("sequencer"))
    yield from _upload(event["detail"]["bucket"]["name"], found["key"], found.get("size"), facts)


def _from_job(event: Event, _depth: int) -> Iterator[Upload]:
    """Read a job written by hand: its version is looked up where it has none."""
    if unknown := event.keys() - JOB_FIELDS:
        raise Poison(f"it is a job with unknown fields: {', '.join(sorted(map(repr, unknown)))}")
    given = asked.from_job(event.get("options") or {})
    yield from _upload(event["bucket"], event["key"], None, (event.get("version_id"), None, None), given)


def _upload(
    bucket: str, key: str, size: int | None, facts: tuple[Any, Any, Any], options: Given = ()
) -> Iterator[Upload]:
    """Yield a recording, but not the empty object that a folder made in the console is; facts are S3's."""
    for text in (bucket, key, *(fact for fact in facts if fact is not None)):
        if not isinstance(text, str) or not text or any("\ud800" <= letter <= "\udfff" for letter in text):
            raise Poison(f"it names no object: {text!r:.100}")
    if not BUCKET.fullmatch(bucket):
        raise Poison(f"it names no bucket: {bucket!r:.100}")
    if key.endswith("/") and not size:
        return
    version_id, etag, sequencer = facts
    version_id = None if version_id == "null" else version_id
    yield Upload(f"s3://{bucket}", key, version_id or etag or "", version_id, sequencer, options)


SHAPES = (
    Shape("test event", lambda event: event.get("Event") == "s3:TestEvent", _none),
    Shape("SNS envelope", lambda event: event.get("Type") == "Notification" and "Message" in event, _from_sns),
    Shape("S3 event", lambda event: "Records" in event, _from_records),
    Shape("EventBridge event", lambda event: event.get("source") == "aws.s3", _from_event_bridge),
    Shape("job", lambda event: "bucket" in event and "key" in event, _from_job),
)
