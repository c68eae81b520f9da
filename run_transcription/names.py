"""Names that are the same everywhere: where the results of a recording lie below an output address."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from typing import TYPE_CHECKING

from run_transcription.errors import Rejected
from run_transcription.records import Job

if TYPE_CHECKING:
    from collections.abc import Sequence

    from run_transcription.records import Decoding, Given, ModelFacts
    from run_transcription.uploads import Upload

UPLOADS = "uploads/"  # the prefix that triggers, unless told otherwise
OWN_PREFIXES = ("results/", "failed/", "work/")  # what lies there was written by us
LONGEST_KEY = 1024  # bytes that S3 takes
LONGEST_FOLDER = 255  # bytes of one name that file systems take
ROOM = 100  # bytes for all that a name has beside the key: prefix, identity, file


def identity(upload: Upload, model: ModelFacts, decoding: Decoding, formats: Sequence[str], refused: Given = ()) -> str:
    """Return 16 hex digits that differ for another content, another model or other options, those `refused` too.

    Engine and dtype count too: a fleet of unlike machines must not mix two texts in one result.
    """
    content = [upload.root.removeprefix("s3://"), upload.key, upload.version]
    facts = [*content, model.revision, model.engine, model.dtype, asdict(decoding), sorted(formats)]
    return hashlib.sha256(_bytes(json.dumps([*facts, *refused], sort_keys=True))).hexdigest()[:16]


def results_of(output: str, key: str) -> str:
    """Return the address below which all results of a key lie, one folder for each identity."""
    return f"{output.rstrip('/')}/results/{_as_path(output, key)}/"


def failed_of(output: str, key: str) -> str:
    """Return the address below which all failures of a key lie, one file for each identity."""
    return f"{output.rstrip('/')}/failed/{_as_path(output, key)}/"


def work_of(output: str, identity: str) -> str:
    """Return the address of what a try that was broken off has left for the next one."""
    return f"{output.rstrip('/')}/work/{identity}/rows.json"


def check_key(key: str) -> None:
    """Refuse a key that is made to be something else than a name: raises Rejected("refused_key")."""
    parts = key.split("/")
    if "\0" in key or any(part in {".", ".."} for part in parts):
        raise Rejected("refused_key", "the key leads out of its folder: upload it under another name")
    if any(part.startswith("-") for part in parts):
        raise Rejected("refused_key", "the key looks like an option, as it begins with -: upload it under another name")


def job_for(upload: Upload, output: str, identity: str) -> Job:
    """Return the job of an upload whose results go below an output address."""
    return Job(
        recording=upload.address,
        results=f"{results_of(output, upload.key)}{identity}/transcript",
        failed=f"{failed_of(output, upload.key)}{identity}.json",
        version_id=upload.version_id,
        identity=identity,
        version=upload.version,
        sequencer=upload.sequencer,
        options=upload.options,
    )


def _as_path(output: str, key: str) -> str:
    """Return a key as it stands in a path, or its sha256 where it is too long or would lead out of the folder."""
    parts = key.split("/")
    fits = len(_bytes(f"{output}/{key}")) + ROOM <= LONGEST_KEY
    plain = all(part not in {"", ".", ".."} and len(_bytes(part)) <= LONGEST_FOLDER for part in parts)
    return key if fits and plain and "\0" not in key else hashlib.sha256(_bytes(key)).hexdigest()


def _bytes(text: str) -> bytes:
    """Encode also what is no text: file names may hold any bytes, and JSON may hold half a character."""
    return text.encode("utf-8", "surrogatepass")
