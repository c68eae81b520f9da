"""The golden clip: a few seconds that every way to load a model must transcribe alike."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from run_transcription import quality, tokens
from run_transcription.engines import hardware
from run_transcription.records import Decoding

if TYPE_CHECKING:
    from collections.abc import Mapping

    from run_transcription.records import Chunk, Engine, Samples

CLIP = Path(__file__).parent.parent / "demo" / "recordings" / "call-signs.mp3"
SECONDS = 10.0  # of it, cut where it is quiet
TOLERANCE = 0.2  # seconds between two devices or dtypes


@dataclass(frozen=True, slots=True)
class Golden:
    """What a model makes of the golden clip, and where: the measure for every other way to load it."""

    clip_sha256: str
    device: str  # the name of the very processor: another one may add in another order
    attention: str
    dtype: str
    tokens: tuple[int, ...]
    words: tuple[str, ...]
    times: tuple[tuple[float, float], ...]  # start and end of each segment


def hear(engine: Engine) -> Golden:
    """Return what an engine makes of the clip."""
    chunk, samples = _clip()
    row = engine.transcribe([samples], Decoding(batch_size=1)).rows[0]
    text = engine.tokenizer.decode(row.tokens)
    segments = tokens.segments(row, chunk, engine.tokenizer, quality.compression_ratio(text))
    facts = engine.facts
    times = tuple((segment.start, segment.end) for segment in segments)
    where = (hardware.name(facts.device), facts.attention, facts.dtype)
    return Golden(_clip_sha256(), *where, row.tokens, tuple(text.split()), times)


def from_json(said: Mapping[str, Any]) -> Golden:
    """Return one that was written down as json."""
    return Golden(
        said["clip_sha256"],
        said["device"],
        said["attention"],
        said["dtype"],
        tuple(said["tokens"]),
        tuple(said["words"]),
        tuple((start, end) for start, end in said["times"]),
    )


def difference(found: Golden, kept: Golden) -> str | None:
    """Say in what two differ, None where they are alike.

    On one device, with one attention and in one dtype every token counts; across them words count, and times within
    TOLERANCE.
    """
    if found.clip_sha256 != kept.clip_sha256:
        return "they heard different clips"
    if (found.device, found.attention, found.dtype) == (kept.device, kept.attention, kept.dtype):
        return None if found.tokens == kept.tokens else _first("token", found.tokens, kept.tokens)
    if found.words != kept.words:
        return _first("word", found.words, kept.words)
    ours, theirs = ([time for span in golden.times for time in span] for golden in (found, kept))
    if len(ours) != len(theirs) or any(abs(a - b) > TOLERANCE for a, b in zip(ours, theirs, strict=True)):
        return f"the segments' times are not within {TOLERANCE} s: {found.times} and {kept.times}"
    return None


def _first(what: str, found: tuple[object, ...], kept: tuple[object, ...]) -> str:
    """Name the first place at which two sequences part."""
    both = enumerate(zip(found, kept, strict=False))
    place = next((i for i, (ours, theirs) in both if ours != theirs), min(len(found), len(kept)))
    ours, theirs = (repr(row[place]) if place < len(row) else "nothing" for row in (found, kept))
    return f"{what} {place} is {ours} instead of {theirs}"


def _clip() -> tuple[Chunk, Samples]:
    from run_transcription import audio, chunking, vad

    with audio.open_recording(CLIP) as reader:
        passage = next(chunking.passages(vad.Ear(reader.blocks(), vad.loud, 0.5).heard(), SECONDS))
        return passage.chunk, passage.samples


def _clip_sha256() -> str:
    return hashlib.sha256(CLIP.read_bytes()).hexdigest()
