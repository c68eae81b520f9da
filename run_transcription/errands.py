"""One recording on its way through a worker: looked up, fetched and decoded by a thread of its own, and ended once."""

from __future__ import annotations

import secrets
import shutil
import threading
import time
from collections import deque
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from run_transcription import asked, combinations, decoding_table, downloads, names, results, resume, storage, writers
from run_transcription.ahead import ReadAhead
from run_transcription.errors import DoneBefore, Gone, Rejected, TranscriptionError
from run_transcription.failures import Breaker
from run_transcription.journal import Entry, Journal
from run_transcription.records import Decoding, Job, ModelHandle

if TYPE_CHECKING:
    from collections.abc import Callable

    from run_transcription.interruption import Stop
    from run_transcription.leases import Heart
    from run_transcription.sources import Delivery
    from run_transcription.uploads import Upload

RECENT = 1000  # identities that are remembered, since duplicates follow one another closely
POLL_ENDS_SECONDS = 5.0  # that giving back waits for a poll under way


@dataclass(frozen=True, slots=True)
class Desk:
    """All that a job needs beside the recording."""

    handle: ModelHandle
    decoding: Decoding
    formats: tuple[str, ...]
    output: str | None = None  # None: the recording's own bucket
    buckets: frozenset[str] = frozenset()  # on S3, that recordings may lie in


@dataclass(slots=True)
class Shift:
    """What the threads of a worker share while it works."""

    desk: Desk
    folder: Path  # of temporary files
    stop: Stop
    heart: Heart
    journal: Journal = field(default_factory=Journal)
    breaker: Breaker = field(default_factory=Breaker)
    save_seconds: float = 60.0  # at most, between two savings of a long recording's progress
    given_back: set[str] = field(default_factory=set)  # addresses of recordings, and not done since
    open: int = 0  # errands that have not ended
    settled: float = field(default_factory=time.monotonic)  # when the last one did
    current: Errand | None = None  # with the model
    handed: deque[str | None] = field(default_factory=lambda: deque(maxlen=RECENT))  # identities, to the outlet
    polling: threading.Lock = field(default_factory=threading.Lock)  # held while the source is asked
    lock: threading.Lock = field(default_factory=threading.Lock)

    def let_poll_end(self) -> None:
        """Wait, but not for ever, for a poll under way: it would bring back at once what is given back now."""
        if self.polling.acquire(timeout=POLL_ENDS_SECONDS):
            self.polling.release()


class Tally:
    """What is to become of a delivery: known with the last of its recordings."""

    def __init__(self, delivery: Delivery) -> None:
        self.delivery = delivery
        self._open, self._again = len(delivery.uploads), -1.0
        self._lock = threading.Lock()

    def settle(self, again: float | None) -> None:
        """Count one recording as done, or as to be tried again after so many seconds."""
        with self._lock:
            self._open -= 1
            self._again = max(self._again, -1.0 if again is None else again)
            if self._open:
                return
        if self._again < 0:
            self.delivery.finish()
        else:
            self.delivery.release(self._again)


class Errand:
    """One recording on its way through the worker."""

    def __init__(self, shift: Shift, upload: Upload, tally: Tally) -> None:
        """Begin to fetch and decode it."""
        self.shift, self.upload, self.tally = shift, upload, tally
        self.job: Job | None = None  # known once its version is
        self.decoding, self.formats = shift.desk.decoding, shift.desk.formats
        self._refusal: Rejected | None = None  # why its options can't be done
        self.progress = resume.Progress("")
        self.busy = 0.0
        with shift.lock:
            shift.open += 1
        self.folder = shift.folder / secrets.token_hex(8)
        self.reader = ReadAhead(self._fetch, shift.heart.beat, lambda: self.decoding)

    @property
    def known_job(self) -> Job:
        """The job, of which only what `reader.wait` raises can keep us."""
        if self.job is None:
            raise TranscriptionError(f"{self.upload.address}: its job is not known")
        return self.job

    def settle(self, again: float | None) -> None:
        """End: the message may be finished or come again, and the temporary files are gone."""
        if again is None and self.progress.kept:
            resume.forget(self.progress.address)
        self.tally.settle(again)
        self.reader.close()
        shutil.rmtree(self.folder, ignore_errors=True)
        with self.shift.lock:
            if again is None:
                self.shift.given_back.discard(self.upload.address)
            else:
                self.shift.given_back.add(self.upload.address)
            self.shift.open -= 1
            self.shift.settled = time.monotonic()

    def entry(self, status: str, reason: str | None = None) -> Entry:
        """Return what the journal says of it."""
        return Entry(
            self.upload.address,
            self.job.identity if self.job else None,
            status,
            self.tally.delivery.receives,
            reason,
            self.tally.delivery.lag,
            self.reader.download_seconds,
            busy=self.busy,
            resumed=self.progress.before.seconds,
            strategy=self.shift.desk.handle.load.strategy,
        )

    def _fetch(self, step: Callable[[], None]) -> Path:
        """Find out what is to be done, and fetch the recording; raises Gone where nothing is to be done."""
        upload = self._identified()
        self.job = job = self._job(upload)
        if results.is_done(job):
            raise DoneBefore(f"{upload.address} was done before")
        names.check_key(upload.key)
        self._check_options()
        address = names.work_of(self._output(), str(job.identity))
        self.progress = resume.Progress(address, resume.load(address))
        if not storage.is_s3(upload.address):
            return Path(upload.address)
        etag = upload.version if upload.version_id is None else None  # a replaced recording is another job's
        try:
            wanted = storage.Stored(upload.address, upload.version_id, etag)
            return downloads.fetch(wanted, self.folder, step)
        except Rejected as rejection:
            if rejection.code == "not_found":
                raise Gone(str(rejection)) from rejection
            raise

    def _identified(self) -> Upload:
        """Look up the version where the message has none, and whether a file is still what was announced."""
        upload = self.upload
        if upload.address.startswith(tuple(storage.join(self._output(), own) for own in names.OWN_PREFIXES)):
            raise Gone(f"{upload.address} is passed over: a worker wrote it")
        if storage.is_s3(upload.address):
            return self._looked_up(upload)
        if storage.version(upload.address) != upload.version:
            raise Gone(f"{upload.address} is gone, or another one by now")
        return upload

    def _looked_up(self, upload: Upload) -> Upload:
        """Complete an upload by its object's version and by what its metadata ask for; what the job says goes first."""
        found = storage.look(upload.address, upload.version_id)
        if not upload.version:
            if found is None:
                raise Gone(f"{upload.address} is gone by now")
            upload = replace(upload, version=found.version_id or found.etag or "", version_id=found.version_id)
        if found is None or upload.version not in {found.version_id, found.etag}:
            return upload  # another one's metadata are none of its own; fetching it says that it is gone
        return replace(upload, options=asked.merged(asked.from_metadata(dict(found.metadata)), upload.options))

    def _output(self) -> str:
        return self.shift.desk.output or self.upload.root

    def _job(self, upload: Upload) -> Job:
        """Name the job by what it shall be; whether that is possible is found out afterwards."""
        desk, given = self.shift.desk, dict(upload.options)
        if formats := given.pop("formats", ""):
            self.formats = tuple(dict.fromkeys(("json", *(name.strip() for name in formats.split(",")))))
        try:
            decoding = decoding_table.with_given(desk.decoding, tuple(given.items()))
            self.decoding = combinations.fitted(decoding, {name.replace("-", "_") for name in given}, self.formats)
        except Rejected as refusal:
            self._refusal = refusal
        refused = upload.options if self._refusal else ()
        identity = names.identity(upload, desk.handle.engine.facts, self.decoding, self.formats, refused)
        return names.job_for(upload, self._output(), identity)

    def _check_options(self) -> None:
        """Raise Rejected for what this worker can't do."""
        if self._refusal is not None:
            raise self._refusal
        if unknown := [name for name in self.formats if name not in writers.FORMATS]:
            raise Rejected("unsupported_option", f"there is no format {unknown[0]!r:.40}")
        self.decoding = self.shift.desk.handle.engine.check(self.decoding)
