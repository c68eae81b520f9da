"""Hand recordings to a worker: upload them to its bucket, and wait for the results if asked to."""

from __future__ import annotations

import os
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from run_transcription import asked, display, names, options, recordings, results, storage
from run_transcription.errors import TranscriptionError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from run_transcription.records import Given

LOOK_SECONDS = 0.5  # between two looks for a result


@dataclass(frozen=True, slots=True)
class Parcel:
    """A local recording, and the key that it gets."""

    path: Path
    key: str


@dataclass(frozen=True, slots=True)
class Sent:
    """An uploaded recording, and which one it is: the same content in a bucket without versions is the same job."""

    key: str
    version: str | None  # version id, or eTag in a bucket without versions
    given: Given = ()


@dataclass(frozen=True, slots=True)
class Outcome:
    """The json that a worker wrote about a recording."""

    key: str
    address: str
    error: str | None = None  # None: transcribed


@options.command("submit")
@click.argument("audio", metavar="AUDIO...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--bucket", type=options.BucketName(), required=True, help="Bucket whose events a worker gets.")
@click.option("--prefix", default=names.UPLOADS, help="What each key begins with.")
@click.option("--wait", is_flag=True, help="End when all results are there; exit status 1 if a recording failed.")
@click.option("-o", "--output-dir", "output", metavar="s3://BUCKET/PREFIX", help="Where --wait looks: the worker's -o.")
@options.format_option(default=())
@options.given_options
def submit(  # noqa: PLR0913 - one for each option
    audio: tuple[Path, ...],
    *,
    bucket: str,
    prefix: str,
    output: str | None,
    formats: tuple[str, ...],
    given: Given,
    wait: bool,
) -> None:
    """Upload recordings to the bucket that a worker serves.

    Prints the key of each. What lies in a folder keeps its path in there. Options of decoding and formats go with each
    recording as its metadata; what is left out is the worker's choice.

    \b
    Examples:
      run-transcription submit talk.mp3 --bucket my-bucket --wait
      run-transcription submit talk.mp3 --bucket my-bucket --language de --initial-prompt "Jörg, Groß-Gerau"
    """
    root = f"{storage.SCHEME}{bucket}"
    output = output or root
    given = asked.merged(given, (("formats", ",".join(formats)),) if formats else ())
    asked.as_metadata(given)  # what is too much is said before anything is uploaded
    parcels = pack(audio, prefix)
    sent = [_send_and_print(parcel, root, given) for parcel in parcels]
    if wait:
        display.say(f"waiting for what a worker of the bucket writes below {output.rstrip('/')}/results/")
        failed = [outcome for outcome in wait_for(sent, output) if not _said_well(outcome)]
        if failed:
            raise TranscriptionError(f"{len(failed)} of {len(sent)} recordings could not be transcribed")


def pack(audio: Iterable[Path], prefix: str) -> list[Parcel]:
    """Return what to upload: files by their name, and what lies in a folder by its path in there.

    Raises TranscriptionError, before anything is uploaded, for what isn't there, for a name that can't be a key, and
    for two of the same key.
    """
    parcels: dict[str, Parcel] = {}
    for path, name in _named(audio):
        key = prefix + name
        if any("\ud800" <= letter <= "\udfff" for letter in key):
            raise TranscriptionError(f"{path}: its name is no UTF-8, as the keys of S3 are: rename it first")
        if (other := parcels.get(key)) is not None:
            raise TranscriptionError(f"{path} and {other.path} would both be {key}: submit one with another --prefix")
        parcels[key] = Parcel(path, key)
    return list(parcels.values())


def send(parcel: Parcel, root: str, progress: Callable[[int], None], given: Given = ()) -> Sent:
    """Upload one recording with its options; `progress` gets the bytes of each step."""
    address = f"{root}/{parcel.key}"
    storage.upload(parcel.path, address, progress, asked.as_metadata(given))
    return Sent(parcel.key, storage.version(address), given)


def wait_for(sent: Iterable[Sent], output: str) -> Iterator[Outcome]:
    """Yield what became of each recording, as soon as it is known."""
    open_ones = list(sent)
    while open_ones:
        still_open = []
        for one in open_ones:
            outcome = _outcome_of(one, output)
            if outcome is None:
                still_open.append(one)
            else:
                yield outcome
        open_ones = still_open
        if open_ones:
            time.sleep(LOOK_SECONDS)


def _outcome_of(sent: Sent, output: str) -> Outcome | None:
    """Return what became of a recording, None until that is known: older uploads have results too."""
    for address in results.documents(output, sent.key):
        found = results.read(address)
        if (found.version, found.given) == (sent.version, sent.given):
            return Outcome(sent.key, address, found.error)
    return None


def _said_well(outcome: Outcome) -> bool:
    """Say what became of a recording, and tell whether it is transcribed."""
    what = f"failed: {outcome.error}" if outcome.error else "done"
    display.say(options.one_line(f"{outcome.key} {what} → {outcome.address}"))
    return outcome.error is None


def _named(audio: Iterable[Path]) -> Iterator[tuple[Path, str]]:
    for path in audio:  # os.path knows no errors: a Path raises one for a name that is too long
        if os.path.isdir(path):  # noqa: PTH112
            for found in recordings.find([str(path)]):
                yield Path(found), Path(found).relative_to(path).as_posix()
        elif os.path.isfile(path):  # noqa: PTH113
            yield path, path.name
        else:
            raise TranscriptionError(f"there is no file {path}")


def _send_and_print(parcel: Parcel, root: str, given: Given) -> Sent:
    with _progress(parcel) as advance:
        sent = send(parcel, root, advance, given)
    click.echo(parcel.key)
    return sent


@contextmanager
def _progress(parcel: Parcel) -> Iterator[Callable[[int], None]]:
    """Show how much is uploaded: a bar on a terminal, one line elsewhere."""
    if not sys.stderr.isatty():
        yield lambda _sent: None
        display.say(options.one_line(f"uploaded {parcel.path}"))
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True, redirect_stdout=False) as bars:
        task = bars.add_task(escape(options.one_line(str(parcel.path))), total=parcel.path.stat().st_size)
        yield lambda sent: bars.advance(task, sent)
