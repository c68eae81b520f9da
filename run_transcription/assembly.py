"""Rows → transcript: put the text of passages together, join their seams, and look for speech that has none."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from run_transcription import chunking, coverage, languages, quality, seams, tokens
from run_transcription.audit import Quality, Span
from run_transcription.batches import Decoder
from run_transcription.hearing import Passage, Region
from run_transcription.records import (
    SAMPLE_RATE,
    Chunk,
    Decoding,
    Engine,
    Row,
    Segment,
    Transcript,
)

if TYPE_CHECKING:
    from run_transcription.records import Samples

WHOLE = 0.995  # share of the speech that has to have text; below it a person should look
SURE = 0.5  # confidence below which words are not put in, and a person should look
ASIDE = 4 * SAMPLE_RATE  # heard beside speech without text when it is decoded once more
AROUND_SEAM = 15 * SAMPLE_RATE  # the window in which a seam is decoded once more
AT_A_CHANGE = 5.0  # seconds of a chunk where the language changes

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class _Part:
    """A passage with its text."""

    passage: Passage
    row: Row
    segments: tuple[Segment, ...]


@dataclass(slots=True)
class Assembly:
    """A recording half done: what is finished, and the last passage, whose seam may still be to come."""

    engine: Engine
    decoding: Decoding
    decoder: Decoder
    segments: list[Segment] = field(default_factory=list)
    speech: list[Region] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)  # of passages and of what was decoded beside them
    voiced: list[Row] = field(default_factory=list)  # of passages with text
    truncated: int = 0
    doubtful_seams: int = 0
    last: _Part | None = None

    def add(self, batch: Sequence[Passage]) -> tuple[tuple[Chunk, Row], ...]:
        """Decode passages and what has to be decoded beside them; return all rows that were used."""
        rows = self.decoder.rows({passage.chunk: passage.samples for passage in batch})
        batch = self._cut_at_changes(batch, rows)
        rows |= self.decoder.rows({each.chunk: each.samples for each in batch if each.chunk not in rows})
        parts = [_Part(passage, rows[passage.chunk], self._said(passage.chunk, rows)) for passage in batch]
        rows |= self._find_lost(parts)
        line = [self.last, *parts] if self.last is not None else parts
        rows |= self._join(line)
        if self.decoding.condition_on_previous_text:
            for part in parts:
                self.decoder.go_on_from("".join(each.text for each in part.segments), part.row.temperature)
        for part in parts:
            self.speech += part.passage.speech
            self.voiced += [part.row] if part.segments else []
            self.truncated += _broke_off(part.row, part.passage.chunk) if part.segments else 0
        for part in line[:-1]:
            self.segments += part.segments
        self.last = line[-1]
        self.rows += rows.values()
        return tuple(rows.items())

    def take(self, passed: Sequence[tuple[Chunk, Row]], speech: Sequence[Region]) -> None:
        """Take the segments of the long-form algorithm, which has judged and joined them itself."""
        tokenizer = self.engine.tokenizer
        for chunk, row in passed:
            if text := tokenizer.decode(row.tokens).strip():
                self.segments.append(tokens.whole(row, chunk, tokenizer, quality.compression_ratio(text)))
                self.voiced.append(row)
        self.speech += speech

    def transcript(self, duration: float) -> Transcript:
        """Return what was written, with the audit of it."""
        segments = [*self.segments, *(self.last.segments if self.last else ())]
        language, probability = languages.vote(self.voiced) if self.voiced else (self.decoding.language, 0.0)
        said = tuple(_within(segments, duration))
        transcript = Transcript(language, probability, self.decoding.task, duration, said, self.truncated)
        return replace(transcript, quality=self._audit(transcript))

    def _said(self, chunk: Chunk, rows: Mapping[Chunk, Row]) -> tuple[Segment, ...]:
        """Return what was said in one chunk: nothing where the row is not to be trusted."""
        row = rows[chunk]
        if quality.is_silence(row, self.decoding):
            return ()
        ratio = quality.compression_ratio(self.engine.tokenizer.decode(row.tokens).strip())
        return tuple(tokens.segments(row, chunk, self.engine.tokenizer, ratio))

    def _cut_at_changes(self, batch: Sequence[Passage], rows: Mapping[Chunk, Row]) -> list[Passage]:
        """Return passages, shorter ones where the language changes: each is decoded in a single one."""
        if self.decoding.language is not None:
            return [*batch]
        before = self.last.row.language if self.last is not None and self.last.segments else None
        found = [rows[each.chunk] for each in batch]
        heard = [row.language if self.decoder.speaks(row) else None for row in found]
        changing = languages.at_changes([before, *heard])
        return [
            piece
            for place, each in enumerate(batch, start=1)
            for piece in (chunking.cut_again(each, AT_A_CHANGE) if place in changing else [each])
        ]

    def _find_lost(self, parts: Sequence[_Part]) -> dict[Chunk, Row]:
        """Decode speech without text once more, with other cuts, and put what was said there in its place."""
        lost = [
            (part, region, _aside(region, part.passage.chunk))
            for part in parts
            for region in coverage.uncovered(part.passage.speech, part.segments)
        ]
        windows = {chunk: _samples(part, chunk) for part, _, chunk in lost if chunk != part.passage.chunk}
        rows = self.decoder.rows(windows)
        for part, region, chunk in lost:
            if chunk in rows:
                span = Span(region.start / SAMPLE_RATE, region.end / SAMPLE_RATE)
                sure = tuple(each for each in self._said(chunk, rows) if each.confidence >= SURE)
                part.segments = _merged(part.segments, seams.missing(part.segments, sure, span, self.engine.tokenizer))
        return rows

    def _join(self, line: Sequence[_Part]) -> dict[Chunk, Row]:
        """Join neighbours that overlap; where they don't agree, by what is heard in a window around the seam."""
        pairs = [(a, b) for a, b in itertools.pairwise(line) if b.passage.chunk.start < a.passage.chunk.end]
        tokenizer = self.engine.tokenizer
        doubtful = []
        for left, right in pairs:
            joined = seams.join(left.segments, right.segments, _overlap(left, right), tokenizer)
            if joined.agree:
                left.segments, right.segments = joined.left, joined.right
            else:
                doubtful.append((left, right, _window(left, right)))
        rows = self.decoder.rows({chunk: _both(left, right, chunk) for left, right, chunk in doubtful})
        for left, right, chunk in doubtful:
            between = self._said(chunk, rows)
            before = seams.join(left.segments, between, _span(chunk.start, left.passage.chunk.end), tokenizer)
            after = seams.join(before.right, right.segments, _span(right.passage.chunk.start, chunk.end), tokenizer)
            if before.agree and after.agree:
                left.segments, right.segments = (*before.left, *after.left), after.right
            else:
                self.doubtful_seams += 1
                joined = seams.join(left.segments, right.segments, _overlap(left, right), tokenizer)
                left.segments, right.segments = joined.left, joined.right
        return rows

    def _audit(self, transcript: Transcript) -> Quality:
        speech = coverage.merged(self.speech)
        left = coverage.uncovered(speech, transcript.segments)
        share = 1 - coverage.length(left) / coverage.length(speech) if speech else None
        confidence = _confidence(transcript.segments)
        failing = sorted({name for row in self.voiced for name in self.decoder.failing(row)})
        doubts = {
            "speech_without_text": share is not None and share < WHOLE,
            "low_confidence": confidence is not None and confidence < SURE,
            "sides_of_a_seam_differ": self.doubtful_seams > 0,
            "language_in_doubt": self._language_in_doubt(transcript),
        }
        reasons = (*(name for name, doubt in doubts.items() if doubt), *failing)
        uncovered = tuple(_span(region.start, region.end) for region in left)
        retried = sum(row.attempts > 1 for row in self.rows)
        return Quality(share, uncovered, retried, confidence, bool(reasons), reasons)

    def _language_in_doubt(self, transcript: Transcript) -> bool:
        threshold = self.decoding.language_detection_threshold
        return self.decoding.language is None and bool(self.voiced) and transcript.language_probability < threshold


def _confidence(segments: Sequence[Segment]) -> float | None:
    """Return the mean of the segments' confidences, weighted by their tokens."""
    count = sum(len(segment.tokens) for segment in segments)
    return sum(each.confidence * len(each.tokens) for each in segments) / count if count else None


def _span(start: int, end: int) -> Span:
    return Span(round(start / SAMPLE_RATE, 3), round(end / SAMPLE_RATE, 3))


def _overlap(left: _Part, right: _Part) -> Span:
    return _span(right.passage.chunk.start, left.passage.chunk.end)


def _aside(region: Region, chunk: Chunk) -> Chunk:
    """Return a window around lost speech, inside its chunk and cut elsewhere."""
    aside = min(ASIDE, (chunk.end - chunk.start) // 8)
    return Chunk(max(region.start - aside, chunk.start), min(region.end + aside, chunk.end))


def _window(left: _Part, right: _Part) -> Chunk:
    """Return a window around the seam of two passages."""
    a, b = left.passage.chunk, right.passage.chunk
    middle, half = (b.start + a.end) // 2, min(AROUND_SEAM, b.end - a.start) // 2
    return Chunk(max(middle - half, a.start), min(middle + half, b.end))


def _samples(part: _Part, chunk: Chunk) -> Samples:
    start = part.passage.chunk.start
    return part.passage.samples[chunk.start - start : chunk.end - start]


def _both(left: _Part, right: _Part, chunk: Chunk) -> Samples:
    """Return the samples of a window that lies over a seam."""
    seam = left.passage.chunk.end
    ours, theirs = _samples(left, Chunk(chunk.start, seam)), _samples(right, Chunk(min(seam, chunk.end), chunk.end))
    return np.concatenate([ours[: chunk.end - chunk.start], theirs])


def _merged(segments: Sequence[Segment], found: Sequence[Segment]) -> tuple[Segment, ...]:
    """Put segments among others where they belong in time; their times give way."""
    line = sorted([*segments, *found], key=lambda segment: segment.start)
    nexts = [segment.start for segment in line[1:]] + [float("inf")] * bool(line)
    return tuple(
        tokens.within(segment, segment.start, max(segment.start, min(segment.end, after)))
        if segment in found
        else segment
        for segment, after in zip(line, nexts, strict=True)
    )


def _within(segments: Iterable[Segment], duration: float) -> Iterator[Segment]:
    """Yield segments whose times never go back, and end with the recording."""
    now = 0.0
    for segment in segments:
        start = min(max(segment.start, now), duration)
        now = min(max(segment.end, start), duration)
        yield segment if (start, now) == (segment.start, segment.end) else tokens.within(segment, start, now)


def _broke_off(row: Row, chunk: Chunk) -> bool:
    """Tell whether a chunk's text is only its beginning, and warn of it."""
    if not row.complete:
        span = f"{chunk.start / SAMPLE_RATE:.2f} s to {chunk.end / SAMPLE_RATE:.2f} s"
        logger.warning("the text from %s breaks off: it is longer than the model can write", span)
    return not row.complete
