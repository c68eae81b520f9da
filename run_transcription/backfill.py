"""The command that has everything transcribed that lies in a bucket already."""

from __future__ import annotations

import hashlib
import json
import signal
import threading
import time
from collections import deque
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import click

from run_transcription import aws, backlog, display, fleet_report, names, options, stacks, storage
from run_transcription.errors import TranscriptionError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from run_transcription.backlog import Page
    from run_transcription.stacks import Stack

AT_ONCE = 10  # messages that SQS takes in one call
PAUSES = (0.2, 1.0, 5.0)  # seconds between tries of what SQS did not take
SETTLE_SECONDS = 60.0  # after which SQS's counts are right
LOOK_SECONDS = 5.0  # between two looks into a queue that is full enough


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a backfill is: what it goes on from, and how many recordings it has sent and passed over."""

    position: str = ""
    sent: int = 0
    passed: int = 0  # they had a result


@dataclass(frozen=True, slots=True)
class Run:
    """A backfill under way: its progress is kept in the bucket, so that the next one goes on from there."""

    stack: Stack
    address: str  # of the progress
    outstanding: int
    stop: threading.Event
    total: int | None = None  # recordings, None where nobody has counted them
    recent: deque[tuple[float, int]] = field(default_factory=deque)  # when messages were sent, and how many


@options.command("backfill")
@click.argument("source", metavar="s3://BUCKET/PREFIX", required=False)
@click.option("--manifest", type=click.Path(path_type=Path), help="File with an s3:// address on each line instead.")
@click.option("--outstanding", type=click.IntRange(min=1), default=10_000, help="Most messages in the queue.")
@click.option("--count", is_flag=True, allow_from_autoenv=False, help="Send nothing: say how many have a result.")
@click.option("--again", is_flag=True, allow_from_autoenv=False, help="Begin anew, not where the last run has ended.")
@stacks.stack_option
@stacks.region_option
def backfill(  # noqa: PLR0913 - one parameter for each option
    source: str | None,
    manifest: Path | None,
    outstanding: int,
    name: str,
    region: str | None,
    *,
    count: bool,
    again: bool,
) -> None:
    """Have everything transcribed that lies in a bucket already.

    What has a result or a failure is passed over. Workers do this while no new recordings wait. An interrupted run
    goes on where it ended. It says of how many with a manifest; a prefix is listed as it goes, and --count counts it.

    \b
    Examples:
      run-transcription backfill s3://my-calls/2025/
      run-transcription backfill --manifest calls.txt --count
    """
    if (source is None) == (manifest is None):
        raise click.UsageError("Give either s3://BUCKET/PREFIX or --manifest.")
    stack = stacks.find(name, aws.require_region(region))
    what = _what(source, manifest)
    address = f"{storage.SCHEME}{stack.bucket}/work/backfill/{hashlib.sha256(what.encode()).hexdigest()[:16]}.json"
    progress = Progress() if again or count else kept(address)
    pages = _pages(source, manifest, progress.position)
    if count:
        click.echo(counted(pages, stack))
        return
    if progress.position:
        display.say(f"going on after {progress.sent} sent and {progress.passed} passed over")
    total = None if manifest is None else backlog.count(manifest)
    with _stoppable() as stop:
        progress = send_all(pages, Run(stack, address, outstanding, stop, total), progress)
    storage.remove(address)
    if progress.sent + progress.passed == 0:
        raise TranscriptionError(f"{source or manifest} names no recording")
    click.echo(f"{progress.sent} sent, {progress.passed} passed over, which have a result or a failure")


def kept(address: str) -> Progress:
    """Return the progress that an interrupted run has left; raises TranscriptionError for one that is none."""
    if not storage.exists(address):
        return Progress()
    try:
        return Progress(**json.loads(storage.read(address)))
    except (ValueError, TypeError) as error:
        raise TranscriptionError(f"{address} holds no progress: begin anew with --again") from error


def counted(pages: Iterator[Page], stack: Stack) -> str:
    """Return how many recordings have a result or a failure, of how many, and how many will never have one."""
    done = total = gone = 0
    for page in pages:
        left = _left_of(page, stack)
        total += len(page.addresses)
        done += len(page.addresses) - len(left)
        gone += 0 if page.listed else len(backlog.gone(left))
        display.say(f"{done} of {total} done so far")
    return f"{done} of {total} done" + (f", {gone} gone: no such object" if gone else "")


def send_all(pages: Iterable[Page], run: Run, progress: Progress) -> Progress:
    """Send what has no result, page by page, and keep the progress: after an interruption nothing is sent twice.

    Raises KeyboardInterrupt once it was told to stop.
    """
    for page in pages:
        _require_readable(page, run.stack)
        left = frozenset(_left_of(page, run.stack))
        try:
            for batch in _batches(page, left):
                _wait_for_room(run)
                if run.stop.is_set():
                    raise KeyboardInterrupt
                wanted = [address for address, _ in batch if address in left]
                _send(run.stack, wanted)
                run.recent.append((time.monotonic(), len(wanted)))
                passed = len(batch) - len(wanted)
                progress = Progress(batch[-1][1], progress.sent + len(wanted), progress.passed + passed)
        finally:
            storage.store(run.address, json.dumps(asdict(progress)).encode())
        of = "" if run.total is None else f", of {run.total}"
        display.say(f"{progress.sent} sent, {progress.passed} passed over{of}")
    return progress


def _left_of(page: Page, stack: Stack) -> list[str]:
    return backlog.without_result(page, f"{storage.SCHEME}{stack.bucket}", {stack.bucket, *stack.attached})


def _batches(page: Page, left: frozenset[str]) -> Iterator[list[tuple[str, str]]]:
    """Yield the recordings of a page in runs that hold as many to send as SQS takes in one call."""
    batch: list[tuple[str, str]] = []
    sends = 0
    for address, position in zip(page.addresses, page.positions, strict=True):
        if address in left and sends == AT_ONCE:
            yield batch
            batch, sends = [], 0
        batch.append((address, position))
        sends += address in left
    yield batch


def _wait_for_room(run: Run) -> None:
    """Wait until the queue holds so few messages that a batch more are not too many.

    SQS counts late what is sent, so all of the last minute is taken for not counted yet.
    """
    while not run.stop.is_set():
        now = fleet_report.queue("backfill", run.stack.backfill_url, run.stack.region)
        while run.recent and run.recent[0][0] < time.monotonic() - SETTLE_SECONDS:
            run.recent.popleft()
        uncounted = sum(sent for _, sent in run.recent)
        if now.waiting + now.in_work + uncounted + AT_ONCE <= max(run.outstanding, AT_ONCE):
            return
        run.stop.wait(LOOK_SECONDS)


def _send(stack: Stack, addresses: list[str]) -> None:
    """Send a job for each recording; those that SQS did not take are sent again. Raises TranscriptionError."""
    jobs = [dict(zip(("bucket", "key"), storage.split(address), strict=True)) for address in addresses]
    entries = [{"Id": str(at), "MessageBody": json.dumps(job)} for at, job in enumerate(jobs)]
    for pause in (*PAUSES, None):
        if not entries:
            return
        with aws.plainly(f"send to {stack.backfill_url}"):
            answer = aws.sqs(stack.region).send_message_batch(QueueUrl=stack.backfill_url, Entries=entries)  # type: ignore[arg-type]
        failed = {each["Id"]: each for each in answer.get("Failed", ())}
        entries = [entry for entry in entries if entry["Id"] in failed]
        if entries and pause is None:
            reason = failed[entries[0]["Id"]].get("Message", "for no reason that it says")
            raise TranscriptionError(f"{stack.backfill_url} does not take a message: {reason}")
        time.sleep(pause if entries and pause else 0)


def _require_readable(page: Page, stack: Stack) -> None:
    """Refuse what the workers' role may not read: it would only fail there. Raises TranscriptionError."""
    for address in page.addresses:
        bucket, key = storage.split(address)
        if bucket not in stack.attached and not (bucket == stack.bucket and key.startswith(names.UPLOADS)):
            raise TranscriptionError(
                f"the workers may not read {address}: run-transcription attach-bucket {bucket}, or in the stack's own "
                f"bucket a key below {names.UPLOADS}"
            )


def _pages(source: str | None, manifest: Path | None, position: str) -> Iterator[Page]:
    if manifest is not None:
        return backlog.in_manifest(manifest, position)
    if not storage.is_s3(source or ""):
        raise TranscriptionError(f"{source!r} is no s3://BUCKET/PREFIX")
    return backlog.listed(source or "", position)


def _what(source: str | None, manifest: Path | None) -> str:
    """Return what two runs over the same recordings have in common, and two over others have not."""
    if manifest is None:
        return source or ""
    with aws.plainly(f"read {manifest}"), manifest.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def _stoppable() -> Iterator[threading.Event]:
    """Let the first Ctrl-C or SIGTERM end the run between two calls, and the second one at once."""
    stop = threading.Event()

    def handle(number: int, _frame: object) -> None:
        stop.set()
        signal.signal(number, before[signal.Signals(number)])

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in before:
        signal.signal(number, handle)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
