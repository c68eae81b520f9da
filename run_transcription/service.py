"""What a worker does with one recording and the model, how it shows that it can, and how it ends in a hurry."""

from __future__ import annotations

import logging
import shutil
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

from run_transcription import fast_transcribe, interruption, options, self_test
from run_transcription.errands import Errand, Shift
from run_transcription.errors import BrokenOff, OutOfOrder, Rejected
from run_transcription.failures import Kind
from run_transcription.pipeline import Outlet, conclude

if TYPE_CHECKING:
    from collections.abc import Callable

    from run_transcription.engines.golden import Golden
    from run_transcription.leases import Keeper
    from run_transcription.records import Advance

LONGEST_PAUSE = 30.0  # seconds between two recordings while every one fails
STORING_SECONDS = 2.0  # kept for the upload of a result before a deadline
SAVING_SECONDS = 5.0  # that an abandoned job's progress may take to be stored, and as long its messages
LETTING_GO_SECONDS = 3.0  # that the group may take, behind them, to hear that its instance holds nothing
SAVING_SHARE = 0.05  # of the time may go into saving progress
SAVING_GUESS = 0.1  # seconds that the first saving of a job takes

log = logging.getLogger(__name__)


def serve(shift: Shift, outlet: Outlet, errand: Errand) -> bool:
    """Transcribe one recording; whatever goes wrong, it ends as its failure asks for. Return whether it went well."""
    shift.current, began = errand, time.perf_counter()
    try:
        try:
            errand.reader.wait()
            outlet.wait_for(errand)
            task = fast_transcribe.Task(errand.known_job, shift.desk.handle, errand.decoding)
            keep, heard = Keeping(shift, errand).after_batch, errand.reader.heard()
            result = fast_transcribe.transcribe_recording(errand.reader, heard, task, keep, errand.progress.finished)
        except Rejected as rejection:
            result = fast_transcribe.failure(rejection, errand.known_job, shift.desk.handle, errand.decoding)
        errand.busy = time.perf_counter() - began
        outlet.put(errand, result, began)
    except Exception as error:  # noqa: BLE001 - conclude tells it, with its traceback
        errand.busy = time.perf_counter() - began
        errand.progress.save()
        return conclude(errand, error) is Kind.OVER
    except BaseException:
        shift.stop.ask("the worker was interrupted", None)
        errand.progress.save()
        conclude(errand, BrokenOff("the worker was interrupted"))
        raise
    finally:
        shift.current = None
    return True


class Keeping:
    """What is done between two batches of a job: note and save progress, and break off where the time is too short.

    Progress is saved after each batch as long as that takes a small share of the time, and anyhow every `save_seconds`:
    so much is done twice after a worker that could not say farewell.
    """

    def __init__(self, shift: Shift, errand: Errand) -> None:
        self.shift, self.errand = shift, errand
        self._saved = self._last = time.monotonic()
        self._done = 0.0  # seconds of the recording
        self._saving = SAVING_GUESS  # seconds that the last saving took

    def after_batch(self, advance: Advance) -> None:
        """Take in a batch; raises BrokenOff where the job can't end in time."""
        self.shift.heart.beat()
        progress, now = self.errand.progress, time.monotonic()
        progress.add(advance)
        left = self._seconds_left(advance.seconds, now - self._last)
        self._last, self._done = now, advance.seconds
        if not self.shift.stop.leaves_time_for(left):
            raise BrokenOff(f"the worker ends: {self.shift.stop.reason}")
        if now - self._saved >= min(self._saving / SAVING_SHARE, self.shift.save_seconds):
            progress.save()
            self._saved = time.monotonic()
            self._saving = self._saved - now

    def _seconds_left(self, done: float, seconds: float) -> float | None:
        """Reckon from the last batch how long the rest and its storing take; None where the length is unknown."""
        length = self.errand.reader.duration_hint
        if length is None or done <= self._done:
            return None
        return max(length - done, 0.0) * seconds / (done - self._done) + STORING_SECONDS


def examine(shift: Shift, golden: Golden | None) -> Golden:
    """Let the machine show that it works, and return what it heard; raises OutOfOrder where it does not at last."""
    while True:
        try:
            heard = self_test.run(shift.desk.handle, shift.folder, golden)
        except OutOfOrder as error:
            log.error("%s", error)  # noqa: TRY400 - one line says it all
            shift.breaker.failed()
            shift.journal.count(self_test_failures=1)
            if shift.breaker.open:
                raise OutOfOrder(f"this machine can't transcribe, so all is given back: {error}") from error
            pause(shift.breaker.failures, shift)
        else:
            shift.breaker.doubtful = False
            return heard
        finally:
            shift.heart.beat()


def abandon(shift: Shift, keeper: Keeper, let_go: Callable[[], object], why: str, status: int) -> None:
    """End this process at once, from whichever thread: save what is finished, and give all messages back."""
    log.warning("%s", options.one_line(why))
    shift.stop.ask(why, 0.0)
    if (errand := shift.current) is not None:
        _within(SAVING_SECONDS, errand.progress.save)
        log.info("broken off and given back: %s", options.one_line(errand.upload.address))
    shift.let_poll_end()
    _within(SAVING_SECONDS, lambda: shift.journal.count(given_back=keeper.release_all()))
    leave(shift.folder, let_go, why, status)


def leave(folder: Path, let_go: Callable[[], object], why: str, status: int) -> None:
    """End this process without a word to the thread that does not listen; `let_go` tells the group, if it can."""
    _within(LETTING_GO_SECONDS, let_go)
    log.info("ended: %s", why)
    interruption.tell_systemd("STOPPING=1")
    shutil.rmtree(folder, ignore_errors=True)
    options.end_at_once(status)


def _within(seconds: float, deed: Callable[[], object]) -> None:
    thread = threading.Thread(target=deed, daemon=True)
    thread.start()
    thread.join(seconds)


def pause(failures: int, shift: Shift) -> None:
    """Wait a little longer after each failure in a row, so that a broken worker leaves the queue to the others."""
    seconds = min(2.0 ** min(failures - 1, 10), LONGEST_PAUSE) if failures else 0.0  # 2.0 ** 1024 is too large
    until = time.monotonic() + seconds
    while not shift.stop.requested and time.monotonic() < until:
        shift.heart.beat()
        time.sleep(0.1)
