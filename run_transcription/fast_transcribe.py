"""One recording from start to end: fetch, decode, transcribe, write, store; and the command that does it to many."""

from __future__ import annotations

import hashlib
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from run_transcription import (
    audio,
    channels,
    direct_transcribe,
    display,
    downloads,
    optimized_loader,
    options,
    recordings,
    storage,
    writers,
)
from run_transcription.display import Progress
from run_transcription.errors import DoneBefore, Rejected, TranscriptionError
from run_transcription.records import (
    Advance,
    Chunk,
    Decoding,
    Failure,
    Job,
    ModelHandle,
    ModelSpec,
    Result,
    Row,
    StoredFile,
    Transcript,
)
from run_transcription.timeline import Timeline

if TYPE_CHECKING:
    from run_transcription.channels import Recording
    from run_transcription.direct_transcribe import AfterBatch
    from run_transcription.hearing import Heard

STANDARD_OUTPUT = "-"


def process(
    job: Job, handle: ModelHandle, decoding: Decoding, formats: Sequence[str], progress: Progress | None = None
) -> Result:
    """Transcribe one recording and store its result in each format, the json last: where it is, all is there.

    A recording that can never be transcribed gives a result with status FAILED, stored at `job.failed` where that is
    set. Raises TranscriptionError for what may go well another time, such as S3 that can't be reached.
    """
    began = time.perf_counter()
    try:
        with downloads.local_copy(job.recording, job.version_id) as path:
            result = transcribe_file(path, job, handle, decoding, progress)
            return store(result, path, formats, began)
    except Rejected as rejection:
        result = failure(rejection, job, handle, decoding)
        if job.failed is not None:
            store_failure(result)
        return result


def transcribe_file(
    path: Path, job: Job, handle: ModelHandle, decoding: Decoding, progress: Progress | None = None
) -> Result:
    """Transcribe a local file, and store nothing. Raises Rejected where it holds no sound."""
    with channels.opened(path, decoding.channels) as reader:

        def report(advance: Advance) -> None:
            if progress is not None:
                progress(advance.seconds, reader.duration_hint)

        heard = direct_transcribe.listen(reader.blocks(), decoding, reader.kept)
        return transcribe_recording(reader, heard, Task(job, handle, decoding), report)


@dataclass(frozen=True, slots=True)
class Task:
    """A job, what does it, and how."""

    job: Job
    handle: ModelHandle
    decoding: Decoding


def transcribe_recording(
    reader: Recording,
    heard: Iterable[tuple[Heard, ...]],
    task: Task,
    after_batch: AfterBatch,
    finished: Mapping[Chunk, Row] | None = None,
) -> Result:
    """Transcribe what is heard of a recording; all but the first are as in direct_transcribe. Raises Rejected."""
    began = time.perf_counter()
    engine, decoding = task.handle.engine, task.decoding
    transcript, timing = direct_transcribe.decode(heard, engine, decoding, after_batch, finished, kept=reader.kept)
    timing = replace(timing, decode=reader.seconds, wall=time.perf_counter() - began)
    return Result("COMPLETED", task.job, decoding, engine.facts, task.handle.load, transcript, reader.facts, timing)


def failure(rejection: Rejected, job: Job, handle: ModelHandle, decoding: Decoding) -> Result:
    """Return the result of a recording that can never be transcribed."""
    error = Failure(rejection.code, str(rejection))
    return Result("FAILED", job, decoding, handle.engine.facts, handle.load, error=error)


def store_failure(result: Result) -> None:
    """Store the json of a failure, once for each identity. Raises DoneBefore where another worker was faster."""
    assert result.job.failed is not None  # noqa: S101 - whoever calls this has named a place
    _store_one(result, "json", result.job.failed, Path(result.job.recording))


def store(result: Result, path: Path, formats: Sequence[str], began: float) -> Result:
    """Store the files of a result, the json last, as it names the others. Raises DoneBefore as `store_failure` does."""
    uploading = time.perf_counter()
    for name in sorted(formats, key="json".__eq__):
        now = time.perf_counter()
        result = replace(result, timing=replace(result.timing, upload=now - uploading, wall=now - began))
        address = result.job.results + writers.FORMATS[name].extension
        stored = _store_one(result, name, address, path)
        result = replace(result, files={**result.files, name: stored})
    return result


def _store_one(result: Result, name: str, address: str, path: Path) -> StoredFile:
    """Keep a file that is there already if its address has the job's identity: the same work was done before.

    That goes for each format, or of two workers with one message the one's json would name the other's texts.
    """
    written = _written(result, name, path)
    stored = storage.store(address, written, if_absent=result.job.identity is not None)
    if name == "json" and stored.sha256 != hashlib.sha256(written).hexdigest():  # ours has our own times in it
        raise DoneBefore(f"{result.job.recording} was done by another worker meanwhile")
    return stored


def _written(result: Result, name: str, path: Path) -> bytes:
    return writers.FORMATS[name].write(result, path)


@options.command("transcribe")
@click.argument("named", metavar="AUDIO...", nargs=-1, required=True)
@click.option(
    "-o",
    "--output-dir",
    metavar="DIR|s3://BUCKET/PREFIX",
    default=STANDARD_OUTPUT,
    show_default="standard output",
    help="Where results go: one file for each recording and format.",
)
@options.format_option(default=())
@click.option("--timeline", "timed", is_flag=True, help="Say what the start of the process spent its seconds on.")
@options.model_options
@options.decoding_options
def transcribe(  # noqa: PLR0913 - one for each option
    named: tuple[str, ...],
    output_dir: str,
    formats: tuple[str, ...],
    spec: ModelSpec,
    decoding: Decoding,
    *,
    timed: bool,
) -> None:
    """Transcribe files, folders or s3:// addresses.

    A folder, or an s3:// prefix, means all recordings in it. Without -o the text is printed to standard output, and
    nothing else is: what is going on is said on standard error.

    \b
    Examples:
      run-transcription transcribe talk.mp3
      run-transcription transcribe talks/ -o texts -f srt -f json
      run-transcription transcribe s3://bucket/talk.mp3 -o s3://bucket/texts --language de
    """
    printed = output_dir == STANDARD_OUTPUT
    formats = formats or (("txt",) if printed else options.DEFAULT_FORMATS)
    if printed and (len(formats) > 1 or formats == ("png",)):
        raise click.UsageError(f"{' '.join(formats)} can't be printed: say with -o DIR where the files go.")
    options.refuse_unused(decoding, formats)
    if not printed:
        storage.require_writable(output_dir)
    jobs = jobs_for(named, output_dir)
    failures = _all_refused(jobs)
    if not failures:
        timeline = Timeline()
        handle = timeline.watch(optimized_loader.load(spec, timeline=timeline))
        decoding = handle.engine.check(decoding)  # a code for each language, and what this model can't do
        deliver = _print if printed else process

        def one(job: Job, progress: Progress) -> Result:
            result = deliver(job, handle, decoding, formats, progress)
            timeline.mark("first transcript")
            return result

        failures = _transcribe_each(jobs, one)
        for line in timeline.lines() if timed else ():
            display.say(line)
    if failures:
        for recording, reason in failures.items():
            display.say(f"FAILED {options.one_line(f'{recording}: {reason}')}")
        display.say(f"{len(failures)} of {len(jobs)} recordings failed")
        sys.exit(1)


def jobs_for(named: Sequence[str], output: str) -> list[Job]:
    """Return a job for each recording meant by what was named; results go below `output`, or to standard output."""
    found = recordings.find(named)
    if output == STANDARD_OUTPUT:
        return [Job(recording, STANDARD_OUTPUT) for recording in found]
    names = recordings.names(found)
    return [Job(recording, storage.join(output, name)) for recording, name in zip(found, names, strict=True)]


def _transcribe_each(jobs: Sequence[Job], deliver: Callable[[Job, Progress], Result]) -> dict[str, str]:
    """Transcribe all jobs, whatever becomes of one of them; return what failed, by recording, and why."""
    failures = {}
    for number, job in enumerate(jobs, start=1):
        label = options.one_line(f"[{number}/{len(jobs)}] {job.recording}" if len(jobs) > 1 else job.recording)
        try:
            with display.progress(label) as progress:
                result = deliver(job, progress)
        except TranscriptionError as error:
            failures[job.recording] = _reason(error)
        else:
            if result.error is None:
                display.say(f"{label}: {_summary(result)}")
            else:
                failures[job.recording] = f"{result.error.code}: {result.error.message}"
    return failures


def _print(
    job: Job, handle: ModelHandle, decoding: Decoding, formats: Sequence[str], progress: Progress | None = None
) -> Result:
    """Do as `process` does, with standard output in the place of a file."""
    with downloads.local_copy(job.recording) as path:
        result = transcribe_file(path, job, handle, decoding, progress)
        sys.stdout.buffer.write(_written(result, formats[0], path))
        sys.stdout.buffer.flush()  # finished results are kept, whatever comes next
        return result


def _summary(result: Result) -> str:
    """Say in one line what a finished recording gave and cost, and what is doubtful in it."""
    assert result.transcript is not None  # noqa: S101 - COMPLETED has one
    seconds, timing = result.transcript.duration, result.timing
    stages = ", ".join(f"{name} {getattr(timing, name):.2f}" for name in ("decode", "features", "encode", "generate"))
    where = ", ".join(options.one_line(file.address) for file in result.files.values())
    line = f"{seconds:.1f} s in {timing.wall:.2f} s (RTFx {seconds / timing.wall:.1f}; {stages})"
    return (f"{line} → {where}" if where else line) + _doubts(result.transcript)


def _doubts(transcript: Transcript) -> str:
    """Say why a person should look at a text, or that there is none."""
    if not transcript.segments and transcript.quality.coverage is None:
        return "; no speech was found"
    reasons = ", ".join(reason.replace("_", " ") for reason in transcript.quality.reasons)
    return f"; a person should look: {reasons}" if reasons else ""


def _all_refused(jobs: Sequence[Job]) -> dict[str, str]:
    """Return why each recording can't be transcribed, and nothing if one may: then the model is worth loading."""
    refusals = {}
    for job in jobs:
        try:
            _try_to_open(job.recording)
        except TranscriptionError as error:
            refusals[job.recording] = _reason(error)
        else:
            return {}
    return refusals


def _reason(error: TranscriptionError) -> str:
    return f"{error.code}: {error}" if isinstance(error, Rejected) else str(error)


def _try_to_open(recording: str) -> None:
    """Decode the first block of a local file; ask S3 only whether the object is there."""
    if not storage.is_s3(recording):
        with audio.open_recording(Path(recording)) as reader:
            next(reader.blocks(), None)
    elif not storage.exists(recording):
        raise Rejected("not_found", "there is no such object")


if __name__ == "__main__":
    transcribe()
