"""Messages that this worker holds: kept hidden while it makes progress, deleted or given back only while they are its.

A lease is lost when SQS refuses its receipt, or when its time ran out unrenewed: somebody else may have the message
then. What was made for it is still stored, on condition that it is not there yet, but the message is left alone.
"""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

from run_transcription import aws
from run_transcription.errors import TranscriptionError

if TYPE_CHECKING:
    from collections.abc import Callable

VISIBILITY_SECONDS = 300.0  # how long a message stays hidden once its worker has died
LONGEST_SECONDS = 11.5 * 3600  # SQS hides a message for 12 h at most, counted from its receipt …
LONGEST_VISIBILITY_SECONDS = 1800.0  # … so the last renewal may ask for no more than what is left of them
ENDING_SECONDS = 5.0  # that a renewal under way may take
STALL_SECONDS = 900.0  # without any progress the work hangs

log = logging.getLogger(__name__)


class Heart:
    """When the work last made progress; whoever moves it on beats, from any thread."""

    def __init__(self, stall_seconds: float = STALL_SECONDS) -> None:
        self.stall_seconds = stall_seconds
        self.beat()

    def beat(self) -> None:
        """Note progress."""
        self._last = time.monotonic()

    @property
    def alive(self) -> bool:
        """Whether there was progress not too long ago."""
        return time.monotonic() - self._last < self.stall_seconds


@dataclass(slots=True, eq=False)
class Lease:
    """One received message."""

    client: Any
    queue_url: str
    receipt: str
    visibility_seconds: float
    taken: float = field(default_factory=time.monotonic)  # before it was received: the answer may have been slow
    until: float = field(init=False)  # hidden at least until then, on the monotonic clock
    lost: bool = False

    def __post_init__(self) -> None:
        """Reckon until when the message is hidden."""
        self.until = self.taken + self.visibility_seconds

    def renew(self) -> None:
        """Hide the message for as long again; a failure that is none of the receipt's is tried again next time."""
        began = time.monotonic()
        if self._still_ours() and self._change(round(self.visibility_seconds)):
            self.until = began + self.visibility_seconds

    def release(self, seconds: float = 0.0) -> None:
        """Let the message come again after so many seconds."""
        if self._still_ours():
            self._change(round(seconds))
        self.lost = True

    def delete(self) -> None:
        """Let the message never come again."""
        if not self._still_ours():
            log.info("a message was lost before its work was done: it is left alone, and finds its result there")
            return
        self._told("delete a message", lambda: self.client.delete_message(**self._message()))
        self.lost = True

    def _still_ours(self) -> bool:
        self.lost = self.lost or time.monotonic() >= self.until
        return not self.lost

    def _change(self, seconds: int) -> bool:
        return self._told(
            "change a message's visibility",
            lambda: self.client.change_message_visibility(**self._message(), VisibilityTimeout=seconds),
        )

    def _told(self, deed: str, call: Callable[[], Any]) -> bool:
        """Tell whether a call went well; a refused receipt means that the message is no longer ours."""
        try:
            with aws.plainly(deed):
                call()
        except TranscriptionError as error:
            status = aws.status_of(error.__cause__) if isinstance(error.__cause__, Exception) else 0
            self.lost = self.lost or 400 <= status < 500  # noqa: PLR2004 - the request is wrong, so the receipt is
            log.warning("%s", error)
            return False
        return True

    def _message(self) -> dict[str, str]:
        return {"QueueUrl": self.queue_url, "ReceiptHandle": self.receipt}


class Keeper:
    """Renews all leases at a third of their time, in a thread of its own, while the work makes progress."""

    def __init__(self, visibility_seconds: float = VISIBILITY_SECONDS, heart: Heart | None = None) -> None:
        self.visibility_seconds = visibility_seconds
        self.heart = heart or Heart()
        self._leases: set[Lease] = set()
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="leases", daemon=True)

    def hold(self, lease: Lease) -> None:
        """Renew a lease from now on."""
        with self._lock:
            self._leases.add(lease)

    def drop(self, lease: Lease) -> None:
        """Leave a lease to itself."""
        with self._lock:
            self._leases.discard(lease)

    def release_all(self) -> int:
        """Give back everything at once, and return how many messages that were."""
        with self._lock:
            held, self._leases = self._leases, set()
        for lease in held:
            lease.release()
        return len(held)

    def __enter__(self) -> Self:
        """Begin to renew."""
        self._thread.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        """End the thread; what is held by then comes back by itself."""
        self._ended.set()
        self._thread.join(ENDING_SECONDS)

    def _run(self) -> None:
        while not self._ended.wait(self.visibility_seconds / 3):
            if not self.heart.alive:
                continue
            with self._lock:
                held = tuple(self._leases)
            for lease in held:
                if self._holds(lease) and time.monotonic() - lease.taken < LONGEST_SECONDS:
                    lease.renew()

    def _holds(self, lease: Lease) -> bool:
        """Tell whether a lease is still held: others were renewed meanwhile."""
        with self._lock:
            return lease in self._leases
