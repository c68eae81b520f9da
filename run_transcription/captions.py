"""Cues that people can read in time: two short lines, cut at sentences, clauses and pauses, shown long enough.

The limits are those that broadcasters work by. No word is left out for them: where somebody speaks faster than can be
read, or a single word is longer than a line, that cue is over its limit, or shorter than a second.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from run_transcription.records import Word

WIDTH, LINES = 42, 2  # characters in a line, lines in a cue
SHORTEST, LONGEST = 1.0, 7.0  # seconds
PACE = 17.0  # characters a second
PAUSE = 1.5  # seconds without a word, over which no cue goes
LEAD = 0.5  # seconds that a cue may come before its first word, to be there long enough
SENTENCE, CLAUSE = (".", "?", "!", "…", "。", "？", "！"), (",", ";", ":", "–", "—", "、", "，", "；", "：")

# what a place to cut costs: the fewer cues the better, but not at any price
CUE, ELSEWHERE, AT_CLAUSE, AT_PAUSE, IN_HASTE = 1.0, 3.0, 1.0, 0.3, 2.0
BREATH = 0.3  # seconds without a word that are a pause
UNEVEN = 0.02  # a character that one line has more than the other


@dataclass(frozen=True, slots=True)
class Cue:
    """Text to show from start to end, in seconds."""

    start: float
    end: float
    text: str


def captions(words: Sequence[Word]) -> list[Cue]:
    """Return the cues of words that are said one after the other."""
    return _timed(_cut(words))


def lines_of(text: str) -> tuple[str, float]:
    """Return a cue's text on one line or two, and what the cut between them costs."""
    if len(text) <= WIDTH:
        return text, 0.0
    cuts = [place for place, letter in enumerate(text) if letter == " "]
    cuts = cuts or [place for place in range(1, len(text)) if len(text) > WIDTH]
    pairs = [(text[:place].rstrip(), text[place:].lstrip()) for place in cuts]
    costs = [(_cut_cost(first) / 3 + UNEVEN * abs(len(first) - len(second)), first, second) for first, second in pairs]
    fitting = [each for each in costs if max(len(each[1]), len(each[2])) <= WIDTH]
    cost, first, second = min(fitting or costs)
    return f"{first}\n{second}", cost


def _cut(words: Sequence[Word]) -> list[list[Word]]:
    """Return words in cues: of all ways to cut them, the one that costs least."""
    costs, ends = [0.0] * (len(words) + 1), [0] * len(words)
    for first in reversed(range(len(words))):
        costs[first] = float("inf")
        for last in range(first + 1, len(words) + 1):
            if last > first + 1 and not _fits(words[first:last]):
                break
            cost = costs[last] + _cost(words[first:last], words[last] if last < len(words) else None)
            if cost < costs[first]:
                costs[first], ends[first] = cost, last
    cues, first = [], 0
    while first < len(words):
        cues.append([*words[first : ends[first]]])
        first = ends[first]
    return cues


def _fits(words: Sequence[Word]) -> bool:
    text = _text(words)
    wide = len(text) > WIDTH and max(map(len, lines_of(text)[0].split("\n"))) > WIDTH
    pause = any(after.start - before.end > PAUSE for before, after in itertools.pairwise(words[-2:]))
    return not wide and not pause and words[-1].end - words[0].start <= LONGEST


def _cost(words: Sequence[Word], after: Word | None) -> float:
    text = _text(words)
    until = min(words[0].start + LONGEST, float("inf") if after is None else after.start)
    haste = max(0.0, _needed(text) - (until - words[0].start))
    pause = after is None or after.start - words[-1].end >= BREATH
    cut = min(_cut_cost(text), AT_PAUSE if pause else ELSEWHERE)
    return CUE + cut + IN_HASTE * haste + lines_of(text)[1]


def _cut_cost(text: str) -> float:
    """Return what it costs to cut behind a text."""
    marks = text.rstrip("\"'”’»)]")
    return 0.0 if marks.endswith(SENTENCE) else AT_CLAUSE if marks.endswith(CLAUSE) else ELSEWHERE


def _timed(cues: Sequence[Sequence[Word]]) -> list[Cue]:
    """Let each cue stay for as long as its text needs, as far as its neighbours leave room."""
    made: list[Cue] = []
    for words, after in itertools.zip_longest(cues, cues[1:]):
        text = _text(words)
        start, said, needed = words[0].start, words[-1].end, _needed(text)
        room = after[0].start if after else float("inf")
        end = min(max(said, start + needed), start + LONGEST, room)
        early = max(0.0, min(LEAD, needed - (end - start)))
        start = max(start - early, made[-1].end if made else 0.0)
        made.append(Cue(start, max(end, start), lines_of(text)[0]))
    return made


def _needed(text: str) -> float:
    return min(LONGEST, max(SHORTEST, len(text) / PACE))


def _text(words: Sequence[Word]) -> str:
    return "".join(word.word for word in words).strip()
