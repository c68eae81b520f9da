"""A vocabulary for tests in which each token is a word: the id 7 is " w7"."""

from __future__ import annotations

from dataclasses import dataclass

from run_transcription.records import Segment

END, BEGIN = 1000, 1010


@dataclass
class Words:
    """Ids below 1000 are words, ids from 1010 on are timestamps."""

    timestamp_begin: int = BEGIN
    end_of_text: int = END

    def decode(self, ids):
        return "".join(f" w{i}" for i in ids if i < END)


def segment(start, end, *ids, confidence=0.9, language="en"):
    """Return a segment of these words, between its two timestamps."""
    text = Words().decode(ids)
    tokens = (BEGIN, *ids, BEGIN + 50)
    return Segment(start, end, text, tokens, 0, 0.0, -0.1, 1.0, 0.0, language, confidence)


def ids(segments):
    """Return the words of segments."""
    return [token for each in segments for token in each.tokens if token < END]
