"""The worker: takes recordings from queues or a folder, one at a time, until it is told to stop or has nothing to do.

Its threads, and how they hand on recordings, stand in pipeline.py; here are the command and the main thread, which
alone runs the model.
"""

from __future__ import annotations

import logging
import time
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from run_transcription import (
    ec2,
    interruption,
    names,
    optimized_loader,
    options,
    recordings,
    scratch,
    service,
    sources,
    storage,
)
from run_transcription.errands import Desk, Shift
from run_transcription.errors import ModelNotLoaded, OutOfOrder, TranscriptionError
from run_transcription.intake import Intake
from run_transcription.journal import Journal
from run_transcription.leases import Heart, Keeper
from run_transcription.pipeline import Outlet
from run_transcription.worker_options import Settings, worker_options

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from run_transcription.engines.golden import Golden
    from run_transcription.records import Decoding, ModelHandle, ModelSpec

MOST_FAILURES = 10  # in a row; then `--once` gives up
WAIT_SECONDS = 0.25  # for the next recording, until the main thread looks about

log = logging.getLogger(__name__)


@options.command("worker")
@worker_options
@options.format_option(always=("json",))
@options.model_options
@options.decoding_options
def worker(*, settings: Settings, formats: tuple[str, ...], spec: ModelSpec, decoding: Decoding) -> None:
    """Transcribe what arrives in a queue or a folder.

    A recording KEY gives results/KEY/IDENTITY/transcript.json and its other formats, the json last; one that can't be
    transcribed gives failed/KEY/IDENTITY.json. SIGTERM and notices to the instance finish the job in hand, or give it
    back with what is done of it. Standard output gets a JSON line for each job.

    \b
    Examples:
      run-transcription worker --queue-url https://sqs.eu-west-1.amazonaws.com/123456789012/calls --bucket calls
      run-transcription worker --source inbox/ --once
    """
    options.refuse_unused(decoding, formats)
    heart = Heart(settings.stall_seconds)
    keeper = Keeper(settings.visibility_timeout, heart)
    source, output = source_for(settings, keeper), output_of(settings)
    refuse_loop(settings.output, settings.trigger_prefix, settings.folder, settings.buckets)
    journal = Journal(settings.price_per_hour, settings.notify_topic)
    with ExitStack() as stack:
        stop = stack.enter_context(interruption.stoppable(settings.stop_seconds))
        folder = stack.enter_context(scratch.private_folder())
        if (instance := ec2.instance()) is not None:
            stack.enter_context(interruption.notices(instance, stop))
        let_go = partial(_let_go, instance)
        with interruption.guard(stop, Heart(), partial(service.leave, folder, let_go)):
            handle = load(spec, journal, instance)
        heart.beat()  # loading is no job that hangs
        decoding = handle.engine.check(decoding)  # a wrong option is no recording's fault
        desk = Desk(handle, decoding, formats, output, frozenset(settings.buckets))
        shift = Shift(desk, folder, stop, heart, journal, save_seconds=settings.save_seconds)
        if instance is not None and settings.image_parameter is not None:
            stack.enter_context(interruption.images(instance, settings.image_parameter, stop))
        stack.enter_context(keeper)
        stack.enter_context(interruption.guard(stop, heart, partial(service.abandon, shift, keeper, let_go)))
        run(shift, source, Terms(settings.once, settings.idle_seconds, instance, golden_of(spec)))


@dataclass(frozen=True, slots=True)
class Terms:
    """When a worker ends by itself, with what, and what it must hear to begin."""

    once: bool = False  # with the last recording
    idle_seconds: float = 0.0  # after so long without one; 0: never
    instance: ec2.Instance | None = None  # that ends with it
    golden: Golden | None = None  # None: the first self-test tells


def source_for(settings: Settings, keeper: Keeper) -> sources.Source:
    """Return the source that was asked for; raises TranscriptionError where it, or every bucket, is not there."""
    if settings.queue_url is not None and settings.folder is None:
        if not settings.buckets:
            raise click.UsageError("Name each bucket that recordings may lie in, with --bucket or TRANSCRIBE_BUCKET.")
        require_some(settings.buckets)
        if settings.backfill_url is None:
            return sources.SqsSource(settings.queue_url, keeper)
        urls = (settings.queue_url, settings.backfill_url)
        return sources.InOrder(tuple(sources.SqsSource(url, keeper, poll_seconds=1) for url in urls))
    if settings.folder is not None and settings.queue_url is None:
        return sources.FolderSource(settings.folder, recordings.could_be_audio)
    raise click.UsageError("Give either --queue-url or --source (or set one of their variables, not both).")


def require_some(buckets: Sequence[str]) -> None:
    """Make sure that one of the buckets is there at least; raises TranscriptionError.

    With none each message would end among the dead letters. One that was removed by now stops nobody else's work.
    """
    lacking: list[TranscriptionError] = []
    for bucket in buckets:
        try:
            storage.require_bucket(bucket)
        except TranscriptionError as error:
            lacking.append(error)
    if len(lacking) == len(buckets):
        raise lacking[0]
    for one in lacking:
        log.warning("%s: going on with the other buckets", one)


def output_of(settings: Settings) -> str | None:
    """Return where results go, once it is known that they can; None: into each recording's bucket."""
    output = settings.output
    if output is None and settings.folder is not None:
        output = str(settings.folder.resolve().parent)
    if output is not None:
        storage.require_writable(output)
    return output


def refuse_loop(output: str | None, trigger: str, folder: Path | None = None, buckets: Sequence[str] = ()) -> None:
    """Refuse to write results where they would arrive as new recordings; raises TranscriptionError."""
    if output is not None and storage.is_s3(output) != (folder is None):
        return  # from a bucket into a folder, or the other way: they can't meet
    if folder is not None:
        written, trigger = str(Path(output or folder.resolve().parent).resolve()), f"{folder.resolve()}/"
    elif output is None:
        written = ""
    else:
        bucket, written = storage.split(output)
        if bucket not in buckets:
            return  # another bucket than those of the recordings
    if any(storage.join(written, own).lstrip("/").startswith(trigger.lstrip("/")) for own in names.OWN_PREFIXES):
        place = output or "the default output"
        raise TranscriptionError(f"results in {place} would be taken for recordings: choose an -o outside {trigger!r}")


def load(spec: ModelSpec, journal: Journal, instance: ec2.Instance | None) -> ModelHandle:
    """Load the model; an instance that can't has failed its self-test, and is out of service then."""
    try:
        return optimized_loader.load(spec)
    except ModelNotLoaded:
        if instance is not None:
            journal.count(self_test_failures=1)
            _tried(instance.out_of_service)
        raise


def golden_of(spec: ModelSpec) -> Golden | None:
    """Return what the model heard in the golden clip when its state was made, None where there is no state."""
    try:
        return optimized_loader.read_golden(spec)
    except TranscriptionError:
        return None


def run(shift: Shift, source: sources.Source, terms: Terms) -> None:
    """Test this machine, work, and end the instance where that is due.

    Raises TranscriptionError where with `once` something was given back and not done since, and OutOfOrder where this
    machine can't do the work: its instance is out of service then.
    """
    try:
        terms = replace(terms, golden=service.examine(shift, terms.golden))
        interruption.tell_systemd("READY=1")
        facts = shift.desk.handle.engine.facts
        log.info("ready: %s on %s", facts.id, facts.device)
        work(shift, source, terms)
    except OutOfOrder:
        if terms.instance is not None:
            _tried(terms.instance.out_of_service)
        raise
    finally:
        interruption.tell_systemd("STOPPING=1")
    if shift.stop.reason:
        log.info("the worker ends: %s", shift.stop.reason)
    if shift.stop.outdated and terms.instance is not None:
        terms.instance.end(smaller=False)
    _let_go(terms.instance)
    if terms.once and shift.given_back:
        raise TranscriptionError(
            f"given back, as the log says, and not transcribed: {', '.join(sorted(shift.given_back))}"
        )


def _let_go(instance: ec2.Instance | None) -> None:
    """Let the group end an instance that it waits for."""
    if instance is not None:
        _tried(instance.let_go)


def _tried(deed: Callable[[], None]) -> None:
    """Do what helps the fleet; where it fails, what this worker ends with is the more important message."""
    try:
        deed()
    except TranscriptionError as error:
        log.warning("%s", error)


def work(shift: Shift, source: sources.Source, terms: Terms) -> None:
    """Work until told to stop, or until nothing is left; what was not begun by then is given back."""
    outlet = Outlet(shift)
    failures, shift.settled = 0, time.monotonic()
    try:
        with Intake(shift, source) as intake:
            while not shift.stop.requested:
                shift.heart.beat()
                if shift.breaker.doubtful:
                    service.examine(shift, terms.golden)
                errand = intake.next(WAIT_SECONDS)
                if errand is None:
                    if _rests(shift, intake, terms):
                        break
                    continue
                failures = 0 if service.serve(shift, outlet, errand) else failures + 1
                if terms.once and failures == MOST_FAILURES:
                    raise TranscriptionError(
                        f"{failures} failures in a row, as the log says: mend that and start again"
                    )
                service.pause(failures, shift)
    finally:
        outlet.close()


def _rests(shift: Shift, intake: Intake, terms: Terms) -> bool:
    """Tell whether a worker with nothing in hand ends now."""
    if intake.error is not None:
        raise intake.error
    if terms.once and intake.failures >= MOST_FAILURES:
        raise TranscriptionError(f"{intake.failures} failures in a row, as the log says: mend that and start again")
    if shift.open:
        return False
    if terms.once:
        return intake.empty_since > shift.settled
    if not terms.idle_seconds or time.monotonic() - shift.settled < terms.idle_seconds:
        return False
    return _may_leave(shift, terms)


def _may_leave(shift: Shift, terms: Terms) -> bool:
    """End the instance of an idle worker; at its group's minimum it stays, and is idle anew."""
    try:
        leaves = terms.instance is None or terms.instance.end(smaller=True)
    except TranscriptionError as error:  # another one was faster, and the group is at its minimum by now
        log.warning("%s", error)
        leaves = False
    shift.settled = time.monotonic()
    if leaves:
        log.info("the worker ends: nothing came for %.0f s", terms.idle_seconds)
    return leaves
