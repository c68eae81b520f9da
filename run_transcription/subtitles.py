"""Segments → the cues of srt and vtt, cut as openai/whisper cuts them, or as captions."""

from __future__ import annotations

import heapq
import re
from collections import defaultdict
from dataclasses import replace
from typing import TYPE_CHECKING

from run_transcription.captions import Cue, captions

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from run_transcription.records import Decoding, Segment, Word

ENDLESS = 1000  # characters, or words: more than any line has
PAUSE = 3.0  # seconds from one word to the next, over which lines are not joined


def cues(segments: Sequence[Segment], decoding: Decoding) -> Iterator[Cue]:
    """Yield the cues in order of time, those of each channel by themselves.

    `-->` in a text becomes `->`, since it would begin another one.
    """
    channels: defaultdict[int | None, list[Segment]] = defaultdict(list)
    for segment in segments:
        channels[segment.channel].append(segment)
    lines = [_cues(line, decoding) for line in channels.values()]
    for cue in heapq.merge(*lines, key=lambda cue: cue.start):
        yield replace(cue, text=cue.text.replace("-->", "->"))


def _cues(segments: Sequence[Segment], decoding: Decoding) -> Iterator[Cue]:
    if not segments[0].words:
        yield from (Cue(segment.start, segment.end, segment.text.strip()) for segment in segments)
    elif decoding.captions:
        yield from captions([word for segment in segments for word in segment.words])
    else:
        for words in _cut(segments, decoding):
            if decoding.highlight_words:
                yield from _highlighted(words)
            else:
                yield Cue(words[0].start, words[-1].end, _text(words))


def _cut(segments: Sequence[Segment], decoding: Decoding) -> Iterator[list[Word]]:
    """Yield the words of each cue; those that begin a line behind the first have a line end before them.

    A segment begins a cue, and so do some words in it; only where both a line's width and their number are given,
    segments run on, and a long pause or a full cue begins one.
    """
    runs_on = decoding.max_line_width is not None and decoding.max_line_count is not None
    width, group = decoding.max_line_width or ENDLESS, decoding.max_words_per_line or ENDLESS
    most = decoding.max_line_count
    cue: list[Word] = []
    length, lines, before = 0, 1, segments[0].words[0].start
    for segment in segments:
        for place, word in enumerate(segment.words):
            pause = runs_on and word.start - before > PAUSE
            apart = not runs_on and bool(cue) and place % group == 0
            before = word.start
            if length and length + len(word.word) <= width and not pause and not apart:
                cue.append(word)
                length += len(word.word)
                continue
            text = word.word.strip()
            if apart or (cue and most is not None and (pause or lines >= most)):
                yield cue
                cue, lines = [], 1
            elif length:
                lines += 1
                text = f"\n{text}"
            cue.append(replace(word, word=text))
            length = len(text.strip())
    if cue:
        yield cue


def _highlighted(words: Sequence[Word]) -> Iterator[Cue]:
    """Yield a cue for each word, in which it is underlined, and one for each moment between two."""
    last, plain = words[0].start, _text(words)
    for place, word in enumerate(words):
        if _milliseconds(last) != _milliseconds(word.start):
            yield Cue(last, word.start, plain)
        marked = re.sub(r"^(\s*)(.*)$", r"\1<u>\2</u>", word.word)
        yield Cue(word.start, word.end, f"{_text(words[:place])}{marked}{_text(words[place + 1 :])}")
        last = word.end


def _text(words: Sequence[Word]) -> str:
    return "".join(word.word for word in words)


def _milliseconds(seconds: float) -> int:
    return round(1000 * seconds)
