"""What workers have written about a recording: the json of a result, or that of a failure."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from run_transcription import names, storage
from run_transcription.errors import TranscriptionError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from run_transcription.records import Given, Job

RESULT = re.compile(r"[0-9a-f]{16}/transcript\.json")  # a listing of results/a/ has those of results/a/b/ too
FAILURE = re.compile(r"[0-9a-f]{16}\.json")


@dataclass(frozen=True, slots=True)
class Found:
    """A result or a failure: where its json is, and which content of the recording it is about."""

    address: str
    written: str  # when, in UTC
    status: str
    version: str | None
    sequencer: str | None
    error: str | None  # None: transcribed
    given: Given = ()  # what was asked for with the recording
    recording: str = ""  # the address of what it is about


def documents(output: str, key: str) -> Iterator[str]:
    """Yield the addresses of the documents about a key: a result's is written last, so all of it is there."""
    yield from (object_.address for object_ in _objects(output, key))


def found(output: str, key: str) -> list[Found]:
    """Return all that is known about a key, the oldest upload first; raises TranscriptionError."""
    return sorted((read(each.address, each.written) for each in _objects(output, key)), key=_age)


def read(address: str, written: str = "") -> Found:
    """Return what a document says; raises TranscriptionError where it is none of ours."""
    try:
        document = json.loads(storage.read(address))
        about, error = document["input"], document["error"]
        said = f"{error['code']}: {error['message']}" if error else None
        given = tuple(sorted(about.get("options", {}).items()))
        facts = document["status"], about["version"], about["sequencer"]
        return Found(address, written, *facts, said, given, about["recording"])
    except (ValueError, TypeError, KeyError) as error:
        raise TranscriptionError(f"{address} is no result: {error!r}") from error


def newest(found: Sequence[Found], version: str | None) -> list[Found]:
    """Return those about the version that is there now; where the recording is gone, those about the last one."""
    if version is None:
        version = found[-1].version if found else None
    return [one for one in found if one.version == version]


def recording_of(address: str) -> str:
    """Return the address of the recording that a document is about; raises TranscriptionError."""
    try:
        return str(json.loads(storage.read(address))["input"]["recording"])
    except (ValueError, TypeError, KeyError) as error:
        raise TranscriptionError(f"{address} is no result: {error!r}") from error


def is_done(job: Job) -> bool:
    """Tell whether a job has its result or its failure already."""
    return storage.exists(f"{job.results}.json") or (job.failed is not None and storage.exists(job.failed))


def _objects(output: str, key: str) -> Iterator[storage.Object]:
    for folder, name in ((names.results_of(output, key), RESULT), (names.failed_of(output, key), FAILURE)):
        yield from (each for each in storage.objects(folder) if name.fullmatch(each.address.removeprefix(folder)))


def _age(one: Found) -> tuple[str, str]:
    """Sequencers are compared as text, the shorter one filled up with zeros on its right; without one, time counts."""
    return (one.sequencer or "").upper().ljust(64, "0"), one.written
