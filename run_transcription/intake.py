"""Receives deliveries in a thread of its own, and has their recordings fetched and decoded ahead of the model."""

from __future__ import annotations

import logging
import queue
import threading
import time
from typing import TYPE_CHECKING, Self

from run_transcription.errands import Errand, Shift
from run_transcription.errors import BrokenOff, TranscriptionError
from run_transcription.messages import Poison
from run_transcription.pipeline import conclude, errands

if TYPE_CHECKING:
    from functools import partial

    from run_transcription.sources import Delivery, Source

AHEAD = 2  # recordings that are fetched and decoded while another one is with the model
LONGEST_PAUSE = 30.0  # seconds between two tries while the source can't be read
WAKE_SECONDS = 0.2

log = logging.getLogger(__name__)


class Intake:
    """The thread, and what it has ready."""

    def __init__(self, shift: Shift, source: Source, ahead: int = AHEAD) -> None:
        self.shift, self.source = shift, source
        self.failures = 0  # of the source, in a row
        self.error: Exception | None = None  # a defect: no more will come
        self.empty_since = 0.0  # when the last poll that brought nothing began
        self._ready: queue.Queue[Errand] = queue.Queue()
        self._slots = threading.Semaphore(ahead)
        self._thread = threading.Thread(target=self._run, name="intake", daemon=True)

    def __enter__(self) -> Self:
        """Begin to receive."""
        self._thread.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        """Stop receiving, and give back what has not been begun."""
        self.shift.stop.ask("", None)  # where the worker ends by itself, it has said why
        self._thread.join()
        while (errand := self.next(0.0)) is not None:
            conclude(errand, BrokenOff("it had not been begun"))

    def next(self, seconds: float) -> Errand | None:
        """Return the next recording, None where none comes within so many seconds."""
        try:
            errand = self._ready.get(timeout=seconds) if seconds else self._ready.get_nowait()
        except queue.Empty:
            return None
        self._slots.release()
        return errand

    def _run(self) -> None:
        try:
            self._receive_all()
        except Exception as error:  # noqa: BLE001 - the main thread raises it
            self.error = error

    def _receive_all(self) -> None:
        while self._slot():
            delivery = self._receive()
            makers = [] if delivery is None else self._errands(delivery)
            for number, make in enumerate(makers):
                if number and not self._slot():
                    conclude(make(), BrokenOff("it had not been begun"))
                else:
                    self._ready.put(make())
            if not makers:
                self._slots.release()

    def _slot(self) -> bool:
        """Wait until there is room for one more; False where the worker ends."""
        while not self.shift.stop.requested:
            if self._closed:
                time.sleep(WAKE_SECONDS)
            elif self._slots.acquire(timeout=WAKE_SECONDS):
                return True
        return False

    @property
    def _closed(self) -> bool:
        """Whether nothing may be received: a broken machine would take the same message again and again."""
        return self.shift.stop.requested or self.shift.breaker.doubtful

    def _receive(self) -> Delivery | None:
        began = time.monotonic()
        try:
            with self.shift.polling:  # whoever gives a message back waits for its end
                if self._closed:
                    return None
                delivery = self.source.receive()
        except TranscriptionError as error:
            log.error("%s", error)  # noqa: TRY400 - one line says it all
            self.failures += 1
            self._pause(min(2.0 ** min(self.failures - 1, 10), LONGEST_PAUSE))
            return None
        self.failures = 0
        if delivery is None:
            self.empty_since = began
        elif self.shift.stop.requested:  # it came while the stop was asked for
            delivery.release()
            return None
        return delivery

    def _errands(self, delivery: Delivery) -> list[partial[Errand]]:
        try:
            return errands(self.shift, delivery)
        except Poison as reason:
            delivery.bury(str(reason))
            return []

    def _pause(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while not self.shift.stop.requested and time.monotonic() < until:
            time.sleep(WAKE_SECONDS / 2)
