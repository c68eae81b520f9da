"""Whisper token ids → segments in recording time; pure, and shared by the engines."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import TYPE_CHECKING

from run_transcription.records import SAMPLE_RATE, Chunk, Row, Segment, Tokenizer, Word

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

TIMESTAMP_SECONDS = 0.02  # one timestamp token: two frames of 10 ms, as the encoder halves their number
FRAME_SAMPLES = 160  # 10 ms; `seek` is counted in these
WITHOUT_SPACES = frozenset({"zh", "ja", "th", "lo", "my", "yue"})  # written without spaces: each sign is a word
CLOSING = frozenset("\"'.。,，!！?？:：”)]}、")  # marks that belong to the word before them
HALF_A_SIGN = "\ufffd"  # what a token decodes to that holds only some bytes of a sign


def segments(row: Row, chunk: Chunk, tokenizer: Tokenizer, compression_ratio: float) -> list[Segment]:
    """Cut a row at its timestamps and put the pieces at recording time; pieces without text are left out.

    The rule is openai/whisper's: two timestamps in a row end one segment and begin the next; without such a pair the
    whole row is one segment, up to its last timestamp or to the end of the chunk. Two things differ, as a chunk is
    decoded once and never again from its last timestamp: text after the last pair is kept, up to the end of the chunk,
    and a row that is one segment begins at its own first timestamp, not at the beginning of the chunk.
    """
    pieces = _pieces(row.tokens, tokenizer)
    ends = [*accumulate(map(len, pieces))]
    rows = [
        replace(
            row,
            tokens=piece,
            logprobs=row.logprobs[end - len(piece) : end],
            times=row.times[end - len(piece) : end],
        )
        for piece, end in zip(pieces, ends, strict=True)
    ]
    found = (_segment(piece, chunk, tokenizer, compression_ratio) for piece in rows)
    return [segment for segment in found if segment.text.strip()]


def whole(row: Row, chunk: Chunk, tokenizer: Tokenizer, compression_ratio: float) -> Segment:
    """Return a row as one segment that is as long as its chunk, whatever its timestamps say."""
    whole_of_it = (0.0, (chunk.end - chunk.start) / SAMPLE_RATE)
    return _segment(row, chunk, tokenizer, compression_ratio, whole_of_it)


def confidence(logprobs: Sequence[float]) -> float:
    """Return the geometric mean of probabilities that are given by their logarithms; 0 for none."""
    return round(math.exp(min(0.0, sum(logprobs) / len(logprobs))), 4) if logprobs else 0.0


def spoken(segment: Segment) -> tuple[Word, ...]:
    """Return the words of a segment; where their times are not known, its own are shared out among them by letters.

    Their probability is then the segment's confidence.
    """
    if segment.words:
        return segment.words
    rate = (segment.end - segment.start) / max(1, len(segment.text))  # seconds a letter
    return tuple(
        Word(found[0], segment.start + found.start(1) * rate, segment.start + found.end() * rate, segment.confidence)
        for found in re.finditer(r"\s*(\S+)", segment.text)
    )


@dataclass(frozen=True, slots=True)
class TimedWord:
    """A word of a segment: its tokens from `first` to before `last`, and about when it was said."""

    text: str
    start: float
    end: float
    first: int
    last: int

    @property
    def middle(self) -> float:
        """The time that it is looked for at."""
        return (self.start + self.end) / 2


def words(segment: Segment, tokenizer: Tokenizer) -> list[TimedWord]:
    """Return the words of a segment at their times; where those are not known, its time is shared out by letters."""
    found = _grouped(segment.tokens, segment.language, tokenizer)
    if segment.words:
        return [
            TimedWord(text, word.start, word.end, first, last)
            for (text, first, last), word in zip(found, segment.words, strict=True)
        ]
    letters = [0, *accumulate(len(text) for text, *_ in found)]
    rate = (segment.end - segment.start) / max(1, letters[-1])  # seconds a letter
    return [
        TimedWord(text, segment.start + begin * rate, segment.start + end * rate, first, last)
        for (text, first, last), begin, end in zip(found, letters[:-1], letters[1:], strict=True)
    ]


def _grouped(tokens: Sequence[int], language: str | None, tokenizer: Tokenizer) -> list[tuple[str, int, int]]:
    """Return the text of each word, and where its tokens begin and end."""
    found: list[tuple[str, int, int]] = []
    for text, first, last in _signs(tokens, tokenizer):
        if found and not _apart(found[-1][0], text, language):
            found[-1] = (found[-1][0] + text, found[-1][1], last)
        else:
            found.append((text, first, last))
    return found


def _apart(before: str, text: str, language: str | None) -> bool:
    """Tell whether a sign begins a word: also without a space in some languages, but for what is Latin in them.

    A translation from one of them is all Latin.
    """
    latin = before[-1:].isascii() and text[:1].isascii()
    return text.startswith(" ") or (language in WITHOUT_SPACES and text not in CLOSING and not latin)


def _signs(tokens: Sequence[int], tokenizer: Tokenizer) -> list[tuple[str, int, int]]:
    """Return the text of the shortest runs of tokens that are whole signs, and where each run begins and ends."""
    found, first = [], None
    for place, token in enumerate(tokens):
        if token >= tokenizer.end_of_text:
            continue
        first = place if first is None else first
        text = tokenizer.decode(tokens[first : place + 1])
        if not text.endswith(HALF_A_SIGN):
            found.append((text, first, place + 1))
            first = None
    return found if first is None else [*found, (tokenizer.decode(tokens[first:]), first, len(tokens))]


def part(segment: Segment, kept: Sequence[TimedWord], tokenizer: Tokenizer) -> Segment:
    """Return a segment with only some neighbouring words of it."""
    if (kept[0].first, kept[-1].last) == _text_span(segment, tokenizer):
        return segment
    ids = segment.tokens[kept[0].first : kept[-1].last]
    start, end = round(kept[0].start, 3), round(kept[-1].end, 3)
    before = [first for _, first, _ in _grouped(segment.tokens, segment.language, tokenizer)].index(kept[0].first)
    timed = segment.words[before : before + len(kept)]
    return replace(segment, start=start, end=end, tokens=ids, text=tokenizer.decode(ids), words=timed)


def within(segment: Segment, start: float, end: float) -> Segment:
    """Return a segment between two times, and its words with it."""
    timed = tuple(
        replace(word, start=min(max(word.start, start), end), end=min(max(word.end, start), end))
        for word in segment.words
    )
    return replace(segment, start=start, end=end, words=timed)


def _text_span(segment: Segment, tokenizer: Tokenizer) -> tuple[int, int]:
    places = [place for place, token in enumerate(segment.tokens) if token < tokenizer.end_of_text]
    return places[0], places[-1] + 1


def _pieces(tokens: Sequence[int], tokenizer: Tokenizer) -> list[tuple[int, ...]]:
    """Cut between the two timestamps of each pair."""
    times = [token >= tokenizer.timestamp_begin for token in tokens]
    cuts = [i for i in range(1, len(tokens)) if times[i - 1] and times[i]]
    return [tuple(tokens[start:end]) for start, end in zip([0, *cuts], [*cuts, len(tokens)], strict=True)]


def _segment(
    row: Row, chunk: Chunk, tokenizer: Tokenizer, compression_ratio: float, span: tuple[float, float] | None = None
) -> Segment:
    start, end = span or _span(row.tokens, (chunk.end - chunk.start) / SAMPLE_RATE, tokenizer.timestamp_begin)
    offset = chunk.start / SAMPLE_RATE
    return Segment(
        start=round(offset + start, 3),
        end=round(offset + end, 3),
        text=tokenizer.decode([token for token in row.tokens if token < tokenizer.end_of_text]),
        tokens=row.tokens,
        seek=chunk.start // FRAME_SAMPLES,
        temperature=row.temperature,
        avg_logprob=row.avg_logprob,
        compression_ratio=compression_ratio,
        no_speech_prob=row.no_speech_prob,
        language=row.language,
        confidence=confidence(row.logprobs or (row.avg_logprob,)),
        words=tuple(_timed_words(row, (start, end), offset, tokenizer)) if row.times else (),
    )


def _timed_words(row: Row, span: tuple[float, float], offset: float, tokenizer: Tokenizer) -> Iterator[Word]:
    """Yield the words of a row inside its span, in seconds of the recording that are so far behind the chunk's."""
    for text, first, last in _grouped(row.tokens, row.language, tokenizer):
        said = row.times[first][0], row.times[last - 1][1]
        start, end = (min(max(time, span[0]), span[1]) for time in said)
        chances = [math.exp(min(0.0, logprob)) for logprob in row.logprobs[first:last]]
        probability = round(sum(chances) / len(chances), 4) if chances else 0.0
        yield Word(text, round(offset + start, 3), round(offset + end, 3), probability)


def _span(piece: Sequence[int], seconds: float, timestamp_begin: int) -> tuple[float, float]:
    """Return start and end within a chunk of so many seconds; what is missing is the chunk's own start or end.

    A window is padded to 30 s, so a timestamp may lie after the end of a shorter chunk: it is set to that end.
    """
    times = [min((token - timestamp_begin) * TIMESTAMP_SECONDS, seconds) for token in piece if token >= timestamp_begin]
    start = times[0] if times and piece[0] >= timestamp_begin else 0.0
    ended = times and piece[-1] >= timestamp_begin and times[-1] > 0
    return start, max(start, times[-1] if ended else seconds)
