"""Recordings whose channels are transcribed each by itself, such as calls with a speaker on each."""

from __future__ import annotations

import itertools
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

import numpy as np

from run_transcription import audio
from run_transcription.audit import Quality
from run_transcription.records import Transcript

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

    from run_transcription.decoding import Channels
    from run_transcription.records import AudioFacts, Samples

SAME = 1e-4  # power of the difference of two channels over their own: 40 dB below, as codecs leave it


class Recording(Protocol):
    """A recording being decoded, as audio.AudioReader is."""

    @property
    def seconds(self) -> float:
        """Seconds spent decoding so far."""

    @property
    def duration_hint(self) -> float | None:
        """The length in seconds that the container claims, where it can be true."""

    @property
    def facts(self) -> AudioFacts:
        """What decoding found; complete after the last block."""

    @property
    def kept(self) -> tuple[int, ...] | None:
        """The channels that come out each by itself, counted from 0; None where they are mixed."""


@contextmanager
def opened(path: Path, channels: Channels, step: Callable[[], None] = lambda: None) -> Iterator[audio.AudioReader]:
    """Open a recording as `audio.open_recording` does, mixed or split; `step` is called while it is looked through."""
    kept = distinct(path, step) if channels == "split" else None
    with audio.open_recording(path, kept) as reader:
        yield reader


def distinct(path: Path, step: Callable[[], None] = lambda: None) -> tuple[int, ...]:
    """Return the channels of a recording, counted from 0, that are not the same as one before; reads all of it."""
    with audio.open_recording(path) as reader:
        count = reader.facts.channels
    products = np.zeros((count, count))
    with audio.open_recording(path, range(count)) as reader:
        for block in reader.blocks():
            line = block.astype(np.float64)
            products += line @ line.T
            step()
    power = np.diag(products)
    apart = power[:, None] + power[None, :] - 2 * products
    same = apart <= SAME * np.maximum(power[:, None], power[None, :])
    return tuple(number for number in range(count) if not same[number, :number].any())


def separated(blocks: Iterable[Samples], count: int) -> list[Iterator[Samples]]:
    """Return a stream of float32 [samples] for each of some channels, from one stream of [channels, samples].

    What one of them is ahead of the others is held in memory.
    """

    def only(stream: Iterator[Samples], number: int) -> Iterator[Samples]:
        return (block[number] for block in stream)

    return [only(stream, number) for number, stream in enumerate(itertools.tee(blocks, count))]


def together(parts: Sequence[Transcript], kept: Sequence[int], speech: Sequence[int]) -> Transcript:
    """Return one transcript of channels in order of time; `speech` is how much each of them has, in samples.

    The language is that of the channel with most speech.
    """
    segments = [
        replace(segment, channel=number + 1)
        for part, number in zip(parts, kept, strict=True)
        for segment in part.segments
    ]
    most = max(range(len(parts)), key=lambda place: speech[place])
    return replace(
        parts[most],
        segments=tuple(sorted(segments, key=lambda segment: (segment.start, segment.channel or 0))),
        truncated_chunks=sum(part.truncated_chunks for part in parts),
        quality=_quality([part.quality for part in parts], speech, [_tokens(part) for part in parts]),
    )


def _quality(parts: Sequence[Quality], speech: Sequence[int], tokens: Sequence[int]) -> Quality:
    return Quality(
        coverage=_mean([part.coverage for part in parts], speech),
        uncovered=tuple(sorted((span for part in parts for span in part.uncovered), key=lambda span: span.start)),
        retried_rows=sum(part.retried_rows for part in parts),
        confidence=_mean([part.confidence for part in parts], tokens),
        needs_review=any(part.needs_review for part in parts),
        reasons=tuple(dict.fromkeys(reason for part in parts for reason in part.reasons)),
        reduced_batch_size=min((part.reduced_batch_size for part in parts if part.reduced_batch_size), default=None),
    )


def _mean(values: Sequence[float | None], weights: Sequence[int]) -> float | None:
    """Return the weighted mean of the values that are there."""
    known = [(value, weight) for value, weight in zip(values, weights, strict=True) if value is not None and weight]
    return sum(value * weight for value, weight in known) / sum(weight for _, weight in known) if known else None


def _tokens(transcript: Transcript) -> int:
    return sum(len(segment.tokens) for segment in transcript.segments)
