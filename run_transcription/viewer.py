"""A page for one transcript: it plays the recording, follows it in the text, and asks nobody for anything."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import os
import posixpath
import re
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from run_transcription import tokens

if TYPE_CHECKING:
    from run_transcription.records import Job, Result, Segment, Transcript

TEMPLATE = Path(__file__).with_name("viewer.html")
S3 = "s3://"


def page(result: Result) -> bytes:
    """Return the page of a result, UTF-8.

    What comes from outside stands in it as JSON that can't end its script element, and is only ever shown as text.
    """
    transcript, title = result.transcript, result.job.recording.rpartition("/")[2]
    data = {"title": title, "audio": address_of(result.job), **(_content(transcript) if transcript else {})}
    language = _written_in(transcript, transcript.language) if transcript else None
    parts = {"language": html.escape(language or "und"), "title": html.escape(title), "data": _inside_script(data)}
    text = re.sub(r"\{\{(\w+)\}\}", lambda place: parts[place[1]], _template())
    return text.encode(errors="replace")  # a file name may hold what is no text


def address_of(job: Job) -> str:
    """Return where the page finds the recording, relative to itself; nothing where they have no place in common."""
    recording, results = job.recording, job.results
    if recording.startswith(S3) != results.startswith(S3):
        return ""
    if not recording.startswith(S3):
        path = os.path.relpath(Path(recording).absolute(), Path(results).absolute().parent)
        return quote(path.replace(os.sep, "/"), errors="surrogateescape")
    (bucket, _, key), (other, _, below) = (text.removeprefix(S3).partition("/") for text in (recording, results))
    plain = bucket == other and posixpath.normpath(f"/{key}") == f"/{key}"
    return quote(posixpath.relpath(key, posixpath.dirname(below)), errors="replace") if plain else ""


def _content(transcript: Transcript) -> dict[str, Any]:
    quality = transcript.quality
    return {
        "segments": [
            _segment(segment) | {"language": _written_in(transcript, segment.language)}
            for segment in transcript.segments
        ],
        "uncovered": [[span.start, span.end] for span in quality.uncovered],
        "reasons": list(quality.reasons),
    }


def _segment(segment: Segment) -> dict[str, Any]:
    words = [[word.word, round(word.start, 3), round(word.probability, 3)] for word in tokens.spoken(segment)]
    return {"start": segment.start, "end": segment.end, "channel": segment.channel, "words": words}


def _written_in(transcript: Transcript, spoken: str | None) -> str | None:
    """Return the language of text, for who reads it aloud: a translation is English."""
    return "en" if transcript.task == "translate" else spoken


def _inside_script(data: dict[str, Any]) -> str:
    text = json.dumps(data, allow_nan=False)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


@cache
def _template() -> str:
    """Return the page without content; its policy allows its own style and program by their hashes, and no others."""
    text = TEMPLATE.read_text(encoding="utf-8")
    for name, element in (("style", r"<style>(.*?)</style>"), ("script", r"<script>(.*?)</script>")):
        found = re.search(element, text, re.DOTALL)
        assert found is not None  # noqa: S101 - the file is our own
        digest = base64.b64encode(hashlib.sha256(found[1].encode()).digest()).decode()
        text = text.replace(f"{{{{{name}}}}}", f"'sha256-{digest}'")
    return text
