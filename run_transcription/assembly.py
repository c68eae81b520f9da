"""Rows → transcript: put the text of passages together, join their seams, and look for speech that has none."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from run_transcription import chunking, coverage, languages, quality, seams, tokens
from run_transcription.audit import Quality, Reason, Span
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
    """A recording half done: what is finished, and the last passage, whose seam may still be to come.

    Neighbours that overlap may be in two batches, as a chain of them may be longer than any. That changes nothing: no
    row depends on the others of its batch, and they are joined once both are there.
    """

    engine: Engine
    decoding: Decoding
    decoder: Decoder
    segments: list[Segment] = field(default_factory=list)
    speech: list[Region] = field(default_factory=list)
    voiced: list[Row] = field(default_factory=list)  # of passages with text
    retried: int = 0  # rows that were decoded more than once
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
        self.retried += sum(row.attempts > 1 for row in rows.values())
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
        """Decode speech without text once more, with other cuts, and put what was said there in its place.

        What is only known to be loud is heard by itself, and only in a chunk with other text: in a noise between words
        the model hears words, and in some tones, too.
        """
        aside = ASIDE if self.decoding.vad else coverage.COLLAR
        lost = [
            (part, region, chunk)
            for part in parts
            if self.decoding.vad or part.segments
            for region in coverage.stretches(coverage.uncovered(part.passage.speech, part.segments), part.segments)
            for chunk in _aside(region, part.passage, aside)
        ]
        rows = self.decoder.rows({chunk: _samples(part, chunk) for part, _, chunk in lost})
        for part, region, chunk in lost:
            gap = _gap(region, part.segments)
            sure = tuple(each for each in self._said(chunk, rows) if each.confidence >= SURE)
            part.segments = _merged(part.segments, seams.missing(part.segments, sure, gap, self.engine.tokenizer))
        return rows

    def _join(self, line: Sequence[_Part]) -> dict[Chunk, Row]:
        """Join neighbours that overlap; where they don't agree, by what is heard in a window around the seam."""
        pairs = [(a, b) for a, b in itertools.pairwise(line) if b.passage.chunk.start < a.passage.chunk.end]
        doubtful = [(a, b, _window(a, b)) for a, b in pairs if not self._joined(a, b).agree]
        rows = self.decoder.rows({window: _both(a, b, window) for a, b, window in doubtful})
        for left, right in pairs:
            joined = self._joined(left, right)
            if not joined.agree and (window := _window(left, right)) in rows:
                joined = self._joined_by(left, right, window, rows) or joined
            self.doubtful_seams += not joined.agree
            left.segments, right.segments = joined.left, joined.right
        return rows

    def _joined(self, left: _Part, right: _Part) -> seams.Joined:
        overlap = _span(right.passage.chunk.start, left.passage.chunk.end)
        return seams.join(left.segments, right.segments, overlap, self.engine.tokenizer)

    def _joined_by(self, left: _Part, right: _Part, window: Chunk, rows: Mapping[Chunk, Row]) -> seams.Joined | None:
        """Join two parts by what was heard in a window over their seam; None where that differs, too."""
        between, tokenizer = self._said(window, rows), self.engine.tokenizer
        before = seams.join(left.segments, between, _span(window.start, left.passage.chunk.end), tokenizer)
        after = seams.join(before.right, right.segments, _span(right.passage.chunk.start, window.end), tokenizer)
        agree = before.agree and after.agree
        return seams.Joined((*before.left, *after.left), after.right, agree=True) if agree else None

    def _audit(self, transcript: Transcript) -> Quality:
        speech = coverage.merged(self.speech)
        left = coverage.uncovered(speech, transcript.segments)
        share = 1 - coverage.length(left) / coverage.length(speech) if speech else None
        confidence = _confidence(transcript.segments)
        failing = sorted({name for row in self.voiced for name in self.decoder.failing(row)})
        doubts: dict[Reason, bool] = {
            "speech_without_text": share is not None and share < WHOLE,
            "low_confidence": confidence is not None and confidence < SURE,
            "sides_of_a_seam_differ": self.doubtful_seams > 0,
            "language_in_doubt": self._language_in_doubt(transcript),
        }
        reasons = (*(name for name, doubt in doubts.items() if doubt), *failing)
        uncovered = tuple(_span(region.start, region.end) for region in left)
        return Quality(share, uncovered, self.retried, confidence, bool(reasons), reasons, self.decoder.reduced)

    def _language_in_doubt(self, transcript: Transcript) -> bool:
        threshold = self.decoding.language_detection_threshold
        return self.decoding.language is None and bool(self.voiced) and transcript.language_probability < threshold


def _confidence(segments: Sequence[Segment]) -> float | None:
    """Return the mean of the segments' confidences, weighted by their tokens."""
    count = sum(len(segment.tokens) for segment in segments)
    return sum(each.confidence * len(each.tokens) for each in segments) / count if count else None


def _span(start: int, end: int) -> Span:
    return Span(round(start / SAMPLE_RATE, 3), round(end / SAMPLE_RATE, 3))


def _gap(region: Region, segments: Sequence[Segment]) -> Span:
    """Return the stretch between the texts before and behind speech without one: the audit leaves a collar at both."""
    start, end, collar = (samples / SAMPLE_RATE for samples in (region.start, region.end, coverage.COLLAR + 1))
    before = (segment.end for segment in segments if start - collar <= segment.end <= start)
    behind = (segment.start for segment in segments if end <= segment.start <= end + collar)
    return Span(max(before, default=start), min(behind, default=end))


def _aside(region: Region, passage: Passage, most: int) -> list[Chunk]:
    """Return a window around lost speech, inside its chunk and cut elsewhere; two where it fills the chunk."""
    chunk = passage.chunk
    aside = min(most, (chunk.end - chunk.start) // 8)
    window = Chunk(max(region.start - aside, chunk.start), min(region.end + aside, chunk.end))
    if window != chunk:
        return [window]
    third = (chunk.end - chunk.start) // 3
    cut = chunk.start + chunking.quietest(passage.samples, third, 2 * third)
    return [Chunk(chunk.start, cut), Chunk(cut, chunk.end)]


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
