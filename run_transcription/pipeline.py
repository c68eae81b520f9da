"""The way of a recording through a worker, in threads that hand errands on.

    intake ──────► read ahead ────────► main ────────────► outlet
    receives       HEAD, download,      the model,         side files, json,
    one message    decode, listen, for  one recording      message deleted,
    at a time      two ahead            at a time          journal and notice

    leases renews all messages that any of them holds; notices and guard watch over the end.

At most two recordings wait for the model, one is with it and three are on their way out: that bounds memory and disk.
An errand ends once, by `conclude` or in the outlet, and its message is settled with its last errand.
"""

from __future__ import annotations

import logging
import queue
import threading
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from run_transcription import fast_transcribe, options, results, storage
from run_transcription.errands import Errand, Shift, Tally
from run_transcription.errors import DoneBefore, TranscriptionError
from run_transcription.failures import Kind, back_off, kind_of
from run_transcription.messages import Poison

if TYPE_CHECKING:
    from run_transcription.records import Result
    from run_transcription.sources import Delivery

LEAVING = 2  # recordings that wait for the outlet

log = logging.getLogger(__name__)


def errands(shift: Shift, delivery: Delivery) -> list[partial[Errand]]:
    """Return what makes an errand of each recording; a delivery without one is finished. Raises Poison."""
    for upload in delivery.uploads:
        bucket = upload.root.removeprefix(storage.SCHEME)
        if storage.is_s3(upload.root) and bucket not in shift.desk.buckets:
            raise Poison(f"it names the bucket {bucket}, which this worker was not told")
    if not delivery.uploads:
        delivery.finish()
    tally = Tally(delivery)
    return [partial(Errand, shift, upload, tally) for upload in delivery.uploads]


def conclude(errand: Errand, error: BaseException) -> Kind:
    """End an errand that has no result, as its failure asks for."""
    shift, kind = errand.shift, kind_of(error)
    address, said = options.one_line(errand.upload.address), options.one_line(str(error))
    if kind is Kind.OVER:
        status = "DONE_BEFORE" if isinstance(error, DoneBefore) else "GONE"
        log.info("%s", said)
        errand.settle(None)
        shift.journal.job(errand.entry(status))
        return kind
    if not isinstance(error, TranscriptionError):
        log.error("given back: %s", address, exc_info=error)
    else:
        log.warning("given back: %s: %s", address, said)
    if kind is Kind.ENVIRONMENT:
        shift.breaker.failed()
        shift.journal.count(environment_failures=1)
    if kind in (Kind.ENVIRONMENT, Kind.BROKEN_OFF):
        shift.let_poll_end()
        errand.settle(0.0)
    else:
        errand.settle(back_off(errand.tally.delivery.receives))
    shift.journal.job(errand.entry("AGAIN", kind.name.lower()))
    return kind


class Outlet:
    """Stores results in a thread of its own, and finishes their messages."""

    def __init__(self, shift: Shift) -> None:
        self.shift = shift
        self._waiting: queue.Queue[tuple[Errand, Result, float] | None] = queue.Queue(LEAVING)
        self._thread = threading.Thread(target=self._run, name="outlet", daemon=True)
        self._thread.start()

    def put(self, errand: Errand, result: Result, began: float) -> None:
        """Hand over a result; waits while too many do."""
        self.shift.handed.append(errand.known_job.identity)
        self._waiting.put((errand, result, began))

    def wait_for(self, errand: Errand) -> None:
        """Wait until an errand's twin is stored, if it was handed over; raises DoneBefore where it is done then."""
        if errand.known_job.identity in self.shift.handed:
            self._waiting.join()
            if results.is_done(errand.known_job):
                raise DoneBefore(f"{errand.upload.address} was done just now")

    def close(self) -> None:
        """Wait until all is stored."""
        self._waiting.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (item := self._waiting.get()) is not None:
            errand, result, began = item
            try:
                self._store(errand, result, began)
            except Exception as error:  # noqa: BLE001 - conclude tells it, with its traceback
                conclude(errand, error)
            finally:
                self._waiting.task_done()

    def _store(self, errand: Errand, result: Result, began: float) -> None:
        self.shift.heart.beat()
        if result.error is not None:
            fast_transcribe.store_failure(result)
            address = result.job.failed
        else:
            path = errand.reader.path or Path(result.job.recording)
            result = fast_transcribe.store(result, path, errand.formats, began)
            address = result.files["json"].address
            self.shift.breaker.succeeded()
        errand.settle(None)
        log.info("%s", options.one_line(_summary(result)))
        entry = replace(
            errand.entry(result.status, result.error.code if result.error else None),
            timing=result.timing,
            audio_seconds=result.transcript.duration if result.transcript else 0.0,
            result=address,
        )
        self.shift.journal.job(entry)
        self.shift.journal.notify(entry)
        self.shift.heart.beat()


def _summary(result: Result) -> str:
    """Say in one line what became of a job, without a word of the recording."""
    if result.error is not None:
        return f"{result.job.recording} failed: {result.error.code}: {result.error.message}"
    duration = result.transcript.duration if result.transcript else 0.0
    wall = result.timing.wall
    return f"{result.job.recording} done: {duration:.1f} s in {wall:.1f} s, RTFx {duration / max(wall, 1e-9):.1f}"
