"""Options that come with one recording, as text: in a job's `options`, or in the metadata of its object.

Metadata are ASCII, so values are percent-encoded UTF-8 there: `x-amz-meta-transcribe-initial-prompt: J%C3%B6rg`.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote

from run_transcription.errors import TranscriptionError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from run_transcription.records import Given

PREFIX = "transcribe-"  # behind S3's own x-amz-meta-
MOST_BYTES = 2048  # of names and values that S3 keeps with an object
UNREADABLE = "\ufffd"  # what is no text holds it, and whoever reads the option refuses it


def from_job(options: Mapping[str, Any]) -> Given:
    """Return the `options` of a job as text, lists with commas."""
    return _in_order({name: as_text(value) for name, value in options.items()})


def from_metadata(metadata: Mapping[str, str]) -> Given:
    """Return what an object's metadata ask for; whatever else stands there is not ours."""
    ours = {name.lower().removeprefix(PREFIX): text for name, text in metadata.items() if is_ours(name)}
    return _in_order({name: unquote(text, errors="replace") for name, text in ours.items()})


def as_metadata(given: Given) -> dict[str, str]:
    """Return options as an object's metadata; raises TranscriptionError where S3 would not take so much."""
    metadata = {PREFIX + name: quote(text, safe=",.:/") for name, text in given}  # HTTP would trim spaces
    size = sum(len(name) + len(text) for name, text in metadata.items())
    if size > MOST_BYTES:
        longest = max(metadata, key=lambda name: len(metadata[name])).removeprefix(PREFIX)
        raise TranscriptionError(
            f"the options have {size} bytes, and S3 keeps {MOST_BYTES} with an object: shorten --{longest}"
        )
    return metadata


def merged(first: Given, second: Given) -> Given:
    """Return the options of both; where both have one, the second's."""
    return _in_order(dict(first) | dict(second))


def as_text(value: Any) -> str:
    """Return a value of JSON or of the command line as the command line takes it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (str, int, float)):
        return str(value)
    if isinstance(value, (list, tuple)) and not any(isinstance(each, (list, tuple, dict)) for each in value):
        return ",".join(map(as_text, value))
    return UNREADABLE + json.dumps(value)


def is_ours(name: str) -> bool:
    """Tell whether the name of a metadatum is one of an option."""
    return name.lower().startswith(PREFIX)


def _in_order(options: Mapping[str, str]) -> Given:
    return tuple(sorted((name.replace("_", "-"), text) for name, text in options.items()))
