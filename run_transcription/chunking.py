"""Cut what was heard into passages of at most 30 s: in pauses, or with an overlap where nobody pauses."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from run_transcription.hearing import Heard, Passage, Region
from run_transcription.records import SAMPLE_RATE, Chunk

if TYPE_CHECKING:
    from run_transcription.records import Samples

MARGIN = round(0.4 * SAMPLE_RATE)  # of what is not speech, before and behind speech: soft sounds are in it
LONG_SILENCE = 5 * SAMPLE_RATE  # is not decoded
PAUSE = round(0.2 * SAMPLE_RATE)  # the shortest one that is no gap inside a word
OVERLAP = 4 * SAMPLE_RATE  # at a seam; for short chunks a quarter of them
HOP = SAMPLE_RATE // 100  # 10 ms: loudness is looked at in steps of it …
SMOOTHED = 6  # … over 60 ms, the gap between two words


def passages(heard: Iterable[Heard], max_seconds: float = 30.0) -> Iterator[Passage]:
    """Yield passages that together hold all speech; neighbours overlap where speech had no pause to cut in.

    Memory stays at one block and one passage, and where it is cut does not depend on the blocks.
    """
    limit = max(4, int(max_seconds * SAMPLE_RATE))
    ahead = limit + LONG_SILENCE + SAMPLE_RATE  # what lies so far ahead has no part in where a passage ends
    tape = _Tape(np.empty(0, np.float32), 0, 0)
    speech: list[Region] = []
    for block in heard:
        speech = _joined(speech, block.speech)
        tape = tape.followed_by(block, speech[0].start if speech else block.start + len(block.samples))
        while speech and speech[0].start + ahead <= tape.end:
            passage, speech, tape = _next(speech, tape, limit)
            yield passage
    while speech:
        passage, speech, tape = _next(speech, tape, limit)
        yield passage


def cut_again(passage: Passage, max_seconds: float) -> list[Passage]:
    """Return a passage in shorter ones, cut by the same rules."""
    start = passage.chunk.start
    heard = Heard(0, passage.samples, tuple(Region(each.start - start, each.end - start) for each in passage.speech))
    return [
        Passage(
            Chunk(each.chunk.start + start, each.chunk.end + start),
            each.samples,
            tuple(Region(region.start + start, region.end + start) for region in each.speech),
        )
        for each in passages([heard], max_seconds)
    ]


@dataclass(frozen=True, slots=True)
class _Tape:
    """Samples of the recording that may still be needed: the first one's place, and where the last passage ended."""

    samples: Samples
    start: int
    cut: int

    @property
    def end(self) -> int:
        return self.start + len(self.samples)

    def followed_by(self, block: Heard, wanted: int) -> _Tape:
        """Go on with a block; let go of what lies before the first sample wanted and its margin."""
        start = max(self.start, min(wanted - MARGIN, self.end))
        kept = self.samples[start - self.start :]
        return _Tape(np.concatenate([kept, block.samples]) if len(kept) else block.samples, start, self.cut)

    def between(self, chunk: Chunk) -> Samples:
        return self.samples[chunk.start - self.start : chunk.end - self.start].copy()


def _next(speech: list[Region], tape: _Tape, limit: int) -> tuple[Passage, list[Region], _Tape]:
    """Cut the next passage off: return it, the speech that it does not hold, and where it ended."""
    start = max(speech[0].start - MARGIN, tape.cut, tape.start)
    cut = _cut(speech, start, limit, tape)
    chunk = Chunk(start, min(cut.end, tape.end))
    rest = [Region(max(region.start, cut.next), region.end) for region in speech if region.end > cut.next]
    held = tuple(
        Region(max(region.start, chunk.start), min(region.end, chunk.end))
        for region in speech
        if region.start < chunk.end and region.end > chunk.start
    )
    return Passage(chunk, tape.between(chunk), held), rest, _Tape(tape.samples, tape.start, cut.floor)


@dataclass(frozen=True, slots=True)
class _Cut:
    """Where a passage ends, which speech is left for the next, and before which sample that can't begin."""

    end: int
    next: int
    floor: int


def _cut(speech: Sequence[Region], start: int, limit: int, tape: _Tape) -> _Cut:
    """Choose where a passage ends: at a long silence, in the longest pause of its last third, or anywhere at all."""
    reach = start + limit
    run = _run(speech)
    if run[-1].end <= reach:
        end = min(run[-1].end + MARGIN, reach)
        return _Cut(end, run[-1].end, end)
    pauses = [
        (after.start - before.end, before.end, after.start)
        for before, after in itertools.pairwise(run)
        if start + 2 * limit // 3 <= after.start and before.end <= reach and after.start - before.end >= PAUSE
    ]
    if pauses:
        _, silent, spoken = max(pauses)
        end = min(silent + MARGIN, (silent + spoken) // 2, reach)
        return _Cut(end, silent, end)
    half = min(OVERLAP // 2, limit // 8)
    seam = start + quietest(tape.between(Chunk(start, reach)), 2 * limit // 3, limit - half)
    return _Cut(seam + half, seam - half, seam - half)


def _run(speech: Sequence[Region]) -> Sequence[Region]:
    """Return the regions up to the first long silence."""
    for count, (before, after) in enumerate(itertools.pairwise(speech), start=1):
        if after.start - before.end >= LONG_SILENCE:
            return speech[:count]
    return speech


def _joined(speech: list[Region], more: Sequence[Region]) -> list[Region]:
    """Append regions; one that goes on where the last ended goes on with it."""
    if speech and more and more[0].start <= speech[-1].end:
        return [*speech[:-1], Region(speech[-1].start, more[0].end), *more[1:]]
    return [*speech, *more]


def quietest(samples: Samples, first: int, last: int) -> int:
    """Return the place from first to last where float32 [samples] are quietest over 60 ms; the later of two alike."""
    hops = (last - first) // HOP
    if hops < SMOOTHED:
        return (first + last) // 2
    power = np.einsum("ij,ij->i", *[samples[first : first + hops * HOP].reshape(hops, HOP)] * 2, dtype=np.float64)
    smooth = np.convolve(power, np.ones(SMOOTHED), mode="valid")
    place = len(smooth) - 1 - int(np.argmin(smooth[::-1]))
    return first + (place + SMOOTHED // 2) * HOP
