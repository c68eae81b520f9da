"""What stands in for the world where the real thing can't be had on demand."""

from __future__ import annotations

import json
import math
import struct
import threading
import wave
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from jsonschema import Draft202012Validator

from run_transcription import aws, schema
from run_transcription.errors import TranscriptionError
from run_transcription.uploads import Upload


def tone(path: Path, seconds: float) -> Path:
    """Write a wav file of 16 kHz with a tone in it."""
    period = struct.pack("<40h", *(int(9000 * math.sin(i * math.tau / 40)) for i in range(40)))
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16000)
        file.writeframes(period * int(seconds * 400))
    return path


def document(content: bytes) -> dict:
    """Return what a result's json says, once it is what the schema promises."""
    found = json.loads(content)
    Draft202012Validator(schema.schema()).validate(found)
    return found


def counts(queue_url: str) -> tuple[int, int]:
    """Return how many messages of a queue are visible, and how many are hidden."""
    names = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"]
    facts = aws.sqs().get_queue_attributes(QueueUrl=queue_url, AttributeNames=names)["Attributes"]
    return int(facts[names[0]]), int(facts[names[1]])


@contextmanager
def soon(deed, seconds: float):
    """Do something in another thread while the block runs."""
    timer = threading.Timer(seconds, deed)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()


@dataclass
class BrokenSource:
    """A source that can't be read, as a queue whose network is gone."""

    def receive(self):
        raise TranscriptionError("no route to the queue")


@dataclass
class EndlessSource:
    """A source that never runs out; it counts what becomes of its deliveries."""

    uploads: tuple[Upload, ...]
    received: int = 0
    receives: int = 1
    lag: float | None = None
    fates: list[str] = field(default_factory=list)

    def receive(self):
        self.received += 1
        return self

    def finish(self):
        self.fates.append("finished")

    def release(self, seconds=0.0):
        self.fates.append("released")
