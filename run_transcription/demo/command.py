"""The main job from upload to transcript on this machine alone, with a real worker process."""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from run_transcription import changes, display, names, options, results, stacks, storage
from run_transcription.demo import report
from run_transcription.demo.emulator import REGION, emulated
from run_transcription.demo.processes import Process, last_line, running
from run_transcription.errors import TranscriptionError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from run_transcription.stacks import Stack

RECORDINGS = Path(__file__).parent / "recordings"
STACK = "transcribe-demo"
LOOK_SECONDS = 0.2
MOST_SECONDS = 900.0  # for one recording; the demo's own take seconds


@dataclass(frozen=True, slots=True)
class Sample:
    """A recording and what is said in it."""

    path: Path
    reference: str

    @property
    def key(self) -> str:
        """The key that it is uploaded to."""
        return names.UPLOADS + self.path.name


@options.command("demo")
@click.option(
    "--model", default="demo", allow_from_autoenv=False, help="The demo's own model, a folder or a Hugging Face id."
)
@click.option(
    "--recordings",
    "folder",
    type=click.Path(path_type=Path),
    default=RECORDINGS,
    show_default="the demo's own",
    allow_from_autoenv=False,
    help="Folder with a manifest.json: a list of {file, reference}.",
)
def demo(model: str, folder: Path) -> None:
    """Run the main job on an embedded S3 and SQS.

    That is deployment, upload, event, queue, worker, transcript. Prints each transcript, its word error rate and its
    timing. The exit status is 0 only if every transcript equals its reference. Whatever it starts ends with it.
    """
    began = time.monotonic()
    samples = samples_in(folder)
    with clean_exit(), tempfile.TemporaryDirectory(prefix="transcribe-demo-") as scratch:
        display.say("starting S3, SQS and CloudFormation on this machine …")
        with emulated(Path(scratch)):
            stack = deployed()
            with worker_process(stack, model, Path(scratch)) as (process, log):
                findings = transcribe(samples, stack, lambda: _require_alive(process, log))
    report.show(findings, time.monotonic() - began)
    if any(found.errors for found in findings):
        raise TranscriptionError("not every transcript equals its reference")


def deployed() -> Stack:
    """Deploy infra/stack.yaml as it is, without a fleet: the worker is started here."""
    display.say("deploying the stack …")
    changes.carry_out(changes.prepare(STACK, REGION, {"MaxWorkers": "0"}), lambda _event: None)
    return stacks.find(STACK, REGION)


def samples_in(folder: Path) -> list[Sample]:
    """Return the recordings of a folder's manifest; raises TranscriptionError."""
    manifest = folder / "manifest.json"
    try:
        rows = json.loads(storage.read(str(manifest)))
        samples = [Sample(folder / row["file"], row["reference"]) for row in rows]
    except (ValueError, TypeError, KeyError) as error:
        raise TranscriptionError(f"{manifest} is no list of file and reference: {error!r}") from error
    absent = [sample.path.name for sample in samples if not sample.path.is_file()]
    if absent or not samples:
        raise TranscriptionError(f"{manifest} names {', '.join(absent) or 'no recording'}, which is not there")
    return samples


@contextmanager
def worker_process(stack: Stack, model: str, scratch: Path) -> Iterator[tuple[Process, Path]]:
    """Run a worker on the queue while the block runs, as its own process; give the process and its log."""
    arguments = [sys.executable, "-m", "run_transcription", "worker", "--queue-url", stack.live_url]
    arguments += ["--bucket", stack.bucket, "--model", model, "--dtype", "float32", "--stop-seconds", "1"]
    environment = os.environ | {
        "TMPDIR": str(scratch),
        "TRANSCRIBE_HOME": str(scratch / "home"),
        "PYTHONPATH": str(Path(__file__).parents[2]),  # it also runs from a checkout that is not installed
    }
    log = scratch / "worker.log"
    with running(arguments, environment, log) as process:
        yield process, log


def transcribe(samples: list[Sample], stack: Stack, check: Callable[[], None]) -> list[report.Finding]:
    """Upload recordings, and return what the worker finds in them, in order; `check` raises when it can't go on."""
    root = f"{storage.SCHEME}{stack.bucket}"
    findings: dict[str, report.Finding] = {}
    with _progress(len(samples)) as advance:
        advance("uploading")
        for sample in samples:
            storage.upload(sample.path, f"{root}/{sample.key}")
        advance("the worker loads its model")
        deadline = time.monotonic() + MOST_SECONDS
        while len(findings) < len(samples):
            for sample in samples:
                if sample.key not in findings and (address := next(results.documents(root, sample.key), None)):
                    document = json.loads(storage.read(address))
                    findings[sample.key] = report.finding(sample.path.name, sample.reference, document, address)
                    advance(sample.path.name, len(findings))
                    deadline = time.monotonic() + MOST_SECONDS
            check()
            if time.monotonic() > deadline:
                raise TranscriptionError(f"no result came within {MOST_SECONDS:.0f} s")
            time.sleep(LOOK_SECONDS)
    return [findings[sample.key] for sample in samples]


@contextmanager
def clean_exit() -> Iterator[None]:
    """Let SIGTERM and a closed terminal unwind the program as Ctrl-C does, and a second signal not disturb that."""

    def unwind(number: int, _frame: object) -> None:
        for each in before:
            signal.signal(each, signal.SIG_IGN)
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(128 + number)

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    with ExitStack() as restored:
        for number, handler in before.items():
            signal.signal(number, unwind)
            restored.callback(signal.signal, number, handler)
        yield


def _require_alive(process: Process, log: Path) -> None:
    if process.poll() is not None:
        raise TranscriptionError(f"the worker ended with status {process.returncode}: {last_line(log)}")


@contextmanager
def _progress(total: int) -> Iterator[Callable[..., None]]:
    """Show how many recordings are done: a bar on a terminal, lines elsewhere."""
    if not sys.stderr.isatty():
        yield lambda what, done=0: display.say(f"{done} of {total} transcribed: {what}")
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task("starting", total=total)
        yield lambda what, done=0: bars.update(task, description=what, completed=done)
