"""Join the texts of two chunks that overlap, at a place where their words agree in time and text."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from run_transcription import tokens
from run_transcription.audit import Span

if TYPE_CHECKING:
    from run_transcription.records import Segment, Tokenizer
    from run_transcription.tokens import TimedWord

APART = 1.0  # seconds: word times inside a segment are a guess, but no worse than this
AROUND = 1.0  # seconds on both sides of a seam in which all words have to agree; fewer where the overlap is short
EDGE = 0.25  # seconds at both ends of an overlap in which a word may be cut off
STEP = 0.25  # seconds between places that are looked at

Segments = tuple["Segment", ...]


@dataclass(frozen=True, slots=True)
class Joined:
    """Two chunks' segments, each cut off at the seam; and whether their words agree there."""

    left: Segments
    right: Segments
    agree: bool


@dataclass(frozen=True, slots=True)
class _Place:
    """A word of a chunk: which segment it is in."""

    segment: int
    word: TimedWord

    @property
    def plain(self) -> str:
        return re.sub(r"[^\w]|_", "", self.word.text.casefold())


def join(left: Segments, right: Segments, overlap: Span, tokenizer: Tokenizer) -> Joined:
    """Cut two chunks' segments at the place nearest to the middle of their overlap where their words agree.

    Where they agree nowhere they are cut behind a word that both have, where most of its neighbours are alike, too;
    without such a word in the middle, by time.
    """
    ours, theirs = _places(left, tokenizer), _places(right, tokenizer)
    pairs = _pairs(ours, theirs, overlap)
    around = min(AROUND, (overlap.end - overlap.start) / 2 - EDGE)
    seam = next((time for time in _times(overlap, around) if _agree((ours, theirs), pairs, time, around)), None)
    middle = (overlap.start + overlap.end) / 2
    if not pairs:
        last, first = (sum(place.word.middle < middle for place in side) for side in (ours, theirs))
    elif seam is None:
        last, first = (place + 1 for place in _anchor(ours, theirs, pairs, middle))
    else:  # a pair's two words have not quite the same times: both go to the same side
        before = [pair for pair in pairs if _time(ours, theirs, pair) < seam]
        last, first = (before[-1][0] + 1, before[-1][1] + 1) if before else pairs[0]
    kept = _kept(left, ours[:last], tokenizer), _kept(right, theirs[first:], tokenizer)
    return Joined(*_in_order(*kept), seam is not None)


def missing(segments: Segments, found: Segments, span: Span, tokenizer: Tokenizer) -> Segments:
    """Return of what was found in a span the words that are not among the segments' already, near in time."""
    ours, theirs = _places(segments, tokenizer), _places(found, tokenizer)
    known = {pair[1] for pair in _pairs(ours, theirs, Span(span.start - APART, span.end + APART))}
    places = [place for i, place in enumerate(theirs) if i not in known and span.start <= place.word.middle < span.end]
    return _kept(found, places, tokenizer)


def _places(segments: Segments, tokenizer: Tokenizer) -> list[_Place]:
    return [_Place(i, word) for i, segment in enumerate(segments) for word in tokens.words(segment, tokenizer)]


def _kept(segments: Segments, places: Sequence[_Place], tokenizer: Tokenizer) -> Segments:
    """Return the segments that some of their words make: one for each run of words without a gap."""
    starts = [
        i
        for i, (before, place) in enumerate(zip([None, *places], places, strict=False))
        if before is None or (before.segment, before.word.last) != (place.segment, place.word.first)
    ]
    runs = [places[start:end] for start, end in pairwise([*starts, len(places)])]
    return tuple(tokens.part(segments[run[0].segment], [each.word for each in run], tokenizer) for run in runs)


def _times(overlap: Span, around: float) -> list[float]:
    """Return where a seam may be, the middle first; nowhere in an overlap that holds hardly a word."""
    if around < EDGE:
        return []
    middle = (overlap.start + overlap.end) / 2
    steps = int(max(0.0, (overlap.end - overlap.start) / 2 - EDGE - around / 2) / STEP)
    return sorted((middle + step * STEP for step in range(-steps, steps + 1)), key=lambda time: abs(time - middle))


def _pairs(ours: Sequence[_Place], theirs: Sequence[_Place], overlap: Span) -> list[tuple[int, int]]:
    """Return which words of the overlap are the same on both sides: as many as can be, and as near in time."""
    near = [
        [i for i, place in enumerate(side) if overlap.start - EDGE <= place.word.middle <= overlap.end + EDGE]
        for side in (ours, theirs)
    ]
    best: list[list[tuple[float, tuple[tuple[int, int], ...]]]] = [[(0.0, ())] * (len(near[1]) + 1)]
    for i in near[0]:
        row = [best[-1][0]]
        for column, j in enumerate(near[1], start=1):
            score, chain = best[-1][column - 1]
            apart = abs(ours[i].word.middle - theirs[j].word.middle)
            same = ours[i].plain == theirs[j].plain and apart < APART
            joined = [(score + 1 - apart / (4 * APART), (*chain, (i, j)))] if same else []
            row.append(max(best[-1][column], row[-1], *joined, key=lambda each: each[0]))
        best.append(row)
    return list(best[-1][-1][1])


def _time(ours: Sequence[_Place], theirs: Sequence[_Place], pair: tuple[int, int]) -> float:
    return (ours[pair[0]].word.middle + theirs[pair[1]].word.middle) / 2


def _anchor(
    ours: Sequence[_Place], theirs: Sequence[_Place], pairs: Sequence[tuple[int, int]], middle: float
) -> tuple[int, int]:
    """Return of the words in the longest runs that both sides have the one nearest to the middle."""
    starts = [0, *(i for i, (a, b) in enumerate(pairwise(pairs), 1) if (b[0] - a[0], b[1] - a[1]) != (1, 1))]
    runs = [pairs[start:end] for start, end in pairwise([*starts, len(pairs)])]
    longest = max(map(len, runs))
    best = [pair for run in runs if len(run) == longest for pair in run]
    return min(best, key=lambda pair: abs(_time(ours, theirs, pair) - middle))


def _agree(
    both: tuple[Sequence[_Place], Sequence[_Place]], pairs: Sequence[tuple[int, int]], time: float, around: float
) -> bool:
    """Tell whether around a time each word of one side is one of the other, and next to it the same words follow."""
    sides = [{i for i, place in enumerate(side) if abs(place.word.middle - time) <= around} for side in both]
    paired = [{pair[side] for pair in pairs} for side in (0, 1)]
    if not (sides[0] <= paired[0] and sides[1] <= paired[1]):
        return False
    near = [pair for pair in pairs if pair[0] in sides[0] or pair[1] in sides[1]]
    return all(b[0] - a[0] == 1 and b[1] - a[1] == 1 for a, b in pairwise(near))


def _in_order(left: Segments, right: Segments) -> tuple[Segments, Segments]:
    """Let the left side end no later than the right side begins."""
    if not left or not right or left[-1].end <= right[0].start:
        return left, right
    time = round(min(max((left[-1].end + right[0].start) / 2, left[-1].start), right[0].end), 3)
    last, first = tokens.within(left[-1], left[-1].start, time), tokens.within(right[0], time, right[0].end)
    return (*left[:-1], last), (first, *right[1:])
