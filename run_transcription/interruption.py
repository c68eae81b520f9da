"""Why and when a worker ends: signals, notices to its instance, a newer image, a job that hangs. And systemd's part."""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from run_transcription.errors import TranscriptionError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from run_transcription.ec2 import Instance
    from run_transcription.leases import Heart

NOTICE_SECONDS = 5.0  # between two looks for notices
IMAGE_SECONDS = 300.0  # between two looks for a newer image
GUARD_SECONDS = 0.25
TELLING_SECONDS = 1.0  # that the service manager may take to hear a state

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Stop:
    """Whether the worker shall end, why, and by when. Signal handlers set it, so there is no lock in it."""

    requested: bool = False
    reason: str = ""
    deadline: float | None = None  # on the monotonic clock; None: when the job in hand is done
    outdated: bool = False  # the instance shall be replaced

    def ask(self, reason: str, seconds: float | None) -> None:
        """Ask for an end within so many seconds; the earliest deadline counts."""
        if seconds is not None:
            at = time.monotonic() + seconds
            self.deadline = at if self.deadline is None else min(self.deadline, at)
        self.reason = self.reason or reason
        self.requested = True

    @property
    def overdue(self) -> bool:
        """Whether the time is over."""
        return self.requested and self.deadline is not None and time.monotonic() >= self.deadline

    def leaves_time_for(self, seconds: float | None) -> bool:
        """Tell whether work of so many seconds can end in time; None: nobody knows, so it is tried."""
        if not self.requested or self.deadline is None or seconds is None:
            return not self.overdue
        return time.monotonic() + seconds < self.deadline


@contextmanager
def stoppable(seconds: float) -> Iterator[Stop]:
    """Let SIGTERM set the stop, with a deadline; a second one lets that be now."""
    stop = Stop()

    def on_term(_signal: int, _frame: object) -> None:
        stop.ask("SIGTERM", 0.0 if stop.requested else seconds)

    before = signal.signal(signal.SIGTERM, on_term)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGTERM, before)


class Watch:
    """Calls a function again and again in a thread of its own while the block runs."""

    def __init__(self, look: Callable[[], None], seconds: float, name: str) -> None:
        self._look, self._seconds = look, seconds
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def __enter__(self) -> Self:
        """Begin."""
        self._thread.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        """End the thread."""
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        while True:
            self._look()
            if self._ended.wait(self._seconds):
                return


def notices(instance: Instance, stop: Stop) -> Watch:
    """Watch what the instance is told about its end."""
    heard: set[str] = set()

    def look() -> None:
        notice = instance.notice()
        if notice is not None and notice.reason not in heard:
            heard.add(notice.reason)
            log.info("the worker ends: %s", notice.reason)
            stop.ask(notice.reason, notice.seconds)

    return Watch(look, NOTICE_SECONDS, "notices")


def images(instance: Instance, parameter: str, stop: Stop) -> Watch:
    """Watch whether there is a newer image than the instance's: then it ends after the job in hand."""

    def look() -> None:
        try:
            outdated = instance.outdated(parameter)
        except TranscriptionError as error:
            log.warning("%s", error)
            return
        if outdated and not stop.outdated:
            stop.outdated = True
            stop.ask("there is a newer image", None)

    return Watch(look, IMAGE_SECONDS, "images")


def guard(stop: Stop, heart: Heart, abandon: Callable[[str, int], None]) -> Watch:
    """Watch the time and the progress; `abandon`, with a reason and an exit status, must save what can be saved.

    It is called from the watching thread: one that hangs in a library hears no signal. systemd's watchdog is fed here.
    """
    fed = [0.0]

    def look() -> None:
        if stop.overdue:
            abandon(f"the time is over: {stop.reason}", 0)
        elif not heart.alive:
            abandon(f"no progress for {heart.stall_seconds:.0f} s: the job hangs", 1)
        elif time.monotonic() - fed[0] > NOTICE_SECONDS:
            fed[0] = time.monotonic()
            tell_systemd("WATCHDOG=1")

    return Watch(look, GUARD_SECONDS, "guard")


def tell_systemd(state: str) -> None:
    """Send a state to the service manager, if there is one that wants to know."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as manager:
            manager.settimeout(TELLING_SECONDS)  # one that does not listen must not hold up the end
            manager.connect("\0" + address[1:] if address[0] == "@" else address)
            manager.send(state.encode())
    except OSError as error:
        log.warning("systemd can't be told %s: %s", state, error)
