"""The worker: takes deliveries from a queue or a folder, one at a time, until it is told to stop."""

from __future__ import annotations

import logging
import signal
import time
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from run_transcription import fast_transcribe, names, optimized_loader, options, recordings, results, sources, storage
from run_transcription.errors import TranscriptionError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from run_transcription.records import Decoding, ModelHandle, ModelSpec, Result, Upload

LONGEST_PAUSE = 30.0  # seconds between two turns while every turn fails
MOST_FAILURES = 10  # in a row; then `--once` gives up

log = logging.getLogger(__name__)


class Fate(Enum):
    """How one turn of the worker ended."""

    EMPTY = "nothing came"
    DONE = "finished"
    FAILED = "failed, and given back"


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn of the worker: how it ended, and which recordings it was about."""

    fate: Fate
    addresses: tuple[str, ...] = ()


class OutOfTime(BaseException):
    """Raised in the middle of a job when a stop can't wait for its end; not to be caught as an Exception."""


@dataclass(slots=True)
class Stop:
    """Whether the worker was asked to stop. Signal handlers set it, so there is no lock in it."""

    requested: bool = False


@dataclass(frozen=True, slots=True)
class Desk:
    """All that a job needs beside the recording."""

    handle: ModelHandle
    decoding: Decoding
    formats: tuple[str, ...]
    output: str | None  # None: the recording's own bucket


@options.command("worker")
@click.option("--queue-url", metavar="URL", help="SQS queue that gets the bucket's events.")
@click.option("--source", "folder", type=click.Path(path_type=Path), metavar="FOLDER", help="Folder to watch instead.")
@click.option(
    "-o",
    "--output-dir",
    "output",
    metavar="DIR|s3://BUCKET/PREFIX",
    show_default="the recording's bucket, or the folder beside FOLDER",
    help="Where results/ and failed/ go.",
)
@click.option(
    "--trigger-prefix",
    default=names.UPLOADS,
    metavar="PREFIX",
    help="Keys that cause events: results must not go there, or each would cause the next.",
)
@click.option("--once", is_flag=True, help="End when nothing is left.")
@click.option(
    "--stop-seconds",
    type=click.FloatRange(min=0),
    default=20.0,
    help="Time that SIGTERM leaves the job in hand; then it is given back.",
)
@options.format_option(always=("json",))
@options.model_options
@options.decoding_options
def worker(  # noqa: PLR0913 - one parameter for each option
    *,
    queue_url: str | None,
    folder: Path | None,
    output: str | None,
    trigger_prefix: str,
    once: bool,
    stop_seconds: float,
    formats: tuple[str, ...],
    spec: ModelSpec,
    decoding: Decoding,
) -> None:
    """Transcribe what arrives in a queue or a folder.

    A recording KEY gives results/KEY/IDENTITY/transcript.json and its other formats, the json last; one that can't be
    transcribed gives failed/KEY/IDENTITY.json. SIGTERM finishes the job in hand, or gives it back.

    \b
    Examples:
      run-transcription worker --queue-url https://sqs.eu-west-1.amazonaws.com/123456789012/transcribe
      run-transcription worker --source inbox/ --once
    """
    refuse_loop(output, trigger_prefix, folder)
    source = source_for(queue_url, folder)
    if output is None and folder is not None:
        output = str(folder.resolve().parent)
    if output is not None:
        storage.require_writable(output)
    with stoppable(stop_seconds) as stop:
        handle = optimized_loader.load(spec)
        log.info("ready: %s on %s", handle.engine.facts.id, handle.engine.facts.device)
        desk = Desk(handle, decoding, formats, output)
        given_back = work(source, partial(transcribe, desk), stop, once=once)
        if once and given_back:
            raise TranscriptionError(
                f"given back, as the log says, and not transcribed: {', '.join(sorted(given_back))}"
            )


def source_for(queue_url: str | None, folder: Path | None) -> sources.Source:
    """Return the source that was asked for."""
    if queue_url is not None and folder is None:
        return sources.SqsSource(queue_url)
    if folder is not None and queue_url is None:
        return sources.FolderSource(folder, recordings.could_be_audio)
    raise click.UsageError("Give either --queue-url or --source (or set one of their variables, not both).")


def refuse_loop(output: str | None, trigger: str, folder: Path | None = None) -> None:
    """Refuse to write results where they would arrive as new recordings; raises TranscriptionError."""
    if output is not None and storage.is_s3(output) != (folder is None):
        return  # from a bucket into a folder, or the other way: they can't meet
    if folder is not None:
        written, trigger = str(Path(output or folder.resolve().parent).resolve()), f"{folder.resolve()}/"
    elif output is None or trigger:
        written = storage.split(output)[1] if output else ""
    else:
        return  # all keys trigger, in a bucket not known yet: each recording is looked at when it comes
    if any(storage.join(written, own).lstrip("/").startswith(trigger.lstrip("/")) for own in names.OWN_PREFIXES):
        place = output or "the default output"
        raise TranscriptionError(f"results in {place} would be taken for recordings: choose an -o outside {trigger!r}")


def work(source: sources.Source, process: Callable[[Upload], object], stop: Stop, *, once: bool) -> set[str]:
    """Work until told to stop, or with `once` until nothing is left; return what was given back and not done since.

    Raises TranscriptionError where with `once` nothing but failures comes.
    """
    given_back: set[str] = set()
    failures = 0
    while not stop.requested:
        turn = work_once(source, process, stop)
        if turn.fate is Fate.EMPTY:
            if once:
                break
            continue
        failures = failures + 1 if turn.fate is Fate.FAILED else 0
        given_back = given_back.union(turn.addresses) if failures else given_back.difference(turn.addresses)
        if once and failures == MOST_FAILURES:
            raise TranscriptionError(f"{failures} failures in a row, as the log says: mend that and start again")
        _pause(failures, stop)
    return given_back


def work_once(source: sources.Source, process: Callable[[Upload], object], stop: Stop) -> Turn:
    """Take one delivery and process its recordings; whatever goes wrong, it is finished or given back."""
    try:
        delivery = source.receive()
    except TranscriptionError as error:
        log.error("%s", error)  # noqa: TRY400 - one line says it all
        return Turn(Fate.FAILED)
    if delivery is None:
        return Turn(Fate.EMPTY)
    if stop.requested:  # it came while the stop was asked for
        delivery.release()
        return Turn(Fate.EMPTY)
    addresses = tuple(upload.address for upload in delivery.uploads)
    try:
        with delivery.held():
            for upload in delivery.uploads:
                process(upload)
        delivery.finish()
    except Exception:
        log.exception("given back: %s", options.one_line(", ".join(addresses)))
        delivery.release()
        return Turn(Fate.FAILED, addresses)
    except BaseException:
        delivery.release()
        log.info("broken off and given back: %s", options.one_line(", ".join(addresses)))
        raise
    return Turn(Fate.DONE, addresses)


def transcribe(desk: Desk, upload: Upload) -> Result | None:
    """Transcribe one recording, unless it is a result of ours or has its result already."""
    output = desk.output or upload.root
    if upload.address.startswith(tuple(storage.join(output, own) for own in names.OWN_PREFIXES)):
        log.warning("%s is passed over: a worker wrote it", options.one_line(upload.address))
        return None
    identity = names.identity(upload, desk.handle.engine.facts, desk.decoding, desk.formats)
    job = names.job_for(upload, output, identity)
    if results.is_done(job):
        log.info("%s was done before", options.one_line(upload.address))
        return None
    result = fast_transcribe.process(job, desk.handle, desk.decoding, desk.formats)
    log.info("%s", options.one_line(_summary(result)))
    return result


def _summary(result: Result) -> str:
    """Say in one line what became of a job, without a word of the recording."""
    if result.error is not None:
        return f"{result.job.recording} failed: {result.error.code}: {result.error.message}"
    duration = result.transcript.duration if result.transcript else 0.0
    wall = result.timing.wall
    return f"{result.job.recording} done: {duration:.1f} s in {wall:.1f} s, RTFx {duration / max(wall, 1e-9):.1f}"


@contextmanager
def stoppable(seconds: float) -> Iterator[Stop]:
    """Let SIGTERM set the stop; what runs on after so many seconds, or after a second SIGTERM, is broken off."""
    stop = Stop()

    def on_term(_signal: int, _frame: object) -> None:
        if stop.requested:
            raise OutOfTime
        stop.requested = True
        signal.setitimer(signal.ITIMER_REAL, max(seconds, 1e-3))

    def on_alarm(_signal: int, _frame: object) -> None:
        raise OutOfTime

    before = signal.signal(signal.SIGTERM, on_term), signal.signal(signal.SIGALRM, on_alarm)
    try:
        yield stop
    except OutOfTime:
        log.info("stopped, as the time for it was over")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGTERM, before[0])
        signal.signal(signal.SIGALRM, before[1])


def _pause(failures: int, stop: Stop) -> None:
    """Wait a little longer after each failure in a row, so that a broken worker leaves the queue to the others."""
    seconds = min(2.0 ** min(failures - 1, 10), LONGEST_PAUSE) if failures else 0.0  # 2.0 ** 1024 is too large
    until = time.monotonic() + seconds
    while not stop.requested and time.monotonic() < until:
        time.sleep(0.1)
