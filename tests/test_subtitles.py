"""subtitles and captions: the bytes of openai/whisper in every layout, and cues that people can read."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from golden.make_golden import LAYOUTS
from hypothesis import given, settings
from hypothesis import strategies as st
from test_writers import completed, segment, written

from run_transcription import captions
from run_transcription.records import Decoding, Word
from run_transcription.subtitles import cues

GOLDEN = Path(__file__).parent / "golden"


def spoken(words, **changes):
    """Return a segment of words."""
    text = "".join(word.word for word in words)
    return segment(text, words[0].start, words[-1].end, words=tuple(words), **changes)


def talk(seed, seconds=60.0, pace=0.35):
    """Return a segment of words of many lengths, with pauses and marks, at about one word for each `pace` seconds."""
    choose, at, words = random.Random(seed), 0.0, []  # noqa: S311 - chance without secrets
    while at < seconds:
        length = choose.randint(1, 11)
        mark = choose.choices(("", ",", ".", "?", ";"), (12, 2, 2, 0.3, 0.3))[0]
        end = at + pace * choose.uniform(0.4, 1.0) * (0.5 + length / 8)
        words.append(Word(f" {'x' * length}{mark}", round(at, 2), round(end, 2), 0.9))
        at = end + choose.choices((0.02, 0.4, 2.5), (20, 3, 1))[0]
    return spoken(words)


@pytest.mark.parametrize("extension", ["srt", "vtt"])
@pytest.mark.parametrize("name", LAYOUTS)
def test_bytes_of_words_are_those_of_openai_whisper(name, extension):
    """With word times, subtitles in every layout equal what openai-whisper's own writers made of the same words."""
    found = json.loads((GOLDEN / "words.json").read_text(encoding="utf-8"))
    segments = [spoken([Word(**word) for word in each["words"]]) for each in found]
    options = Decoding(word_timestamps=True, **LAYOUTS[name])
    result = completed(*segments)
    assert written(extension, replace(result, options=options)) == (GOLDEN / f"words-{name}.{extension}").read_bytes()


def test_an_arrow_in_a_word_begins_no_cue():
    """`-->` would be read as times."""
    line = spoken([Word(" a", 0, 1, 1), Word(" -->", 1, 2, 1), Word(" b", 2, 3, 1)])
    for options in ({}, {"highlight_words": True}, {"captions": True}):
        assert not [cue for cue in cues([line], Decoding(word_timestamps=True, **options)) if "-->" in cue.text]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([0.35, 1.5]))
def test_captions_keep_their_limits(seed, pace):
    """Two lines of 42 characters, 1 to 7 s, 17 characters a second; each word once, in order, and no two at a time."""
    line = talk(seed, pace=pace)
    found = captions.captions(line.words)
    assert " ".join(" ".join(cue.text.split("\n")) for cue in found).split() == line.text.split()
    assert all(len(cue.text.split("\n")) <= 2 for cue in found)
    assert max(len(part) for cue in found for part in cue.text.split("\n")) <= 42
    assert all(before.end <= after.start + 1e-6 for before, after in pairwise(found))
    lengths = [cue.end - cue.start for cue in found]
    assert max(lengths) <= 7 + 1e-6
    room = [after.start - before.start for before, after in pairwise(found)]
    for cue, length, until in zip(found, lengths, [*room, 99.0], strict=True):
        slow = len(cue.text) / length <= captions.PACE + 1e-6 and length >= 1 - 1e-6
        assert slow or length >= until - 1e-6, "a cue ends early though nothing comes behind it"


def test_captions_of_slow_speech_can_be_read():
    """Where people speak at an ordinary pace every cue is shown for at least 1 s and can be read in time."""
    found = captions.captions(talk(7, 300.0, 0.6).words)
    in_time = [len(cue.text) / (cue.end - cue.start) <= captions.PACE + 1e-6 for cue in found]
    assert sum(in_time) >= 0.98 * len(in_time)
    assert sum(cue.end - cue.start >= 1 - 1e-6 for cue in found) >= 0.98 * len(found)


def test_captions_are_cut_at_sentences_and_clauses():
    """A cut behind a mark is taken before one in the middle of a clause."""
    text = (
        "When the rain had stopped at last, the whole town went out. Nobody stayed at home, not even the mayor himself."
    )
    at, words = 0.0, []
    for word in text.split():
        words.append(Word(f" {word}", at, at + 0.3, 1.0))
        at += 0.32
    found = [cue.text for cue in captions.captions(words)]
    assert [cue.replace("\n", " ") for cue in found] == [
        "When the rain had stopped at last, the whole town went out.",
        "Nobody stayed at home, not even the mayor himself.",
    ]
    assert found[0].split("\n")[0].endswith("last,")


def test_a_word_longer_than_a_line_is_kept():
    """Nothing is left out for the limits."""
    words = [Word(" " + "x" * 100, 0.0, 1.0, 1.0), Word(" y", 1.0, 1.2, 1.0)]
    assert "".join("".join(cue.text.split()) for cue in captions.captions(words)) == "x" * 100 + "y"


def test_a_word_that_takes_long_is_shown_no_longer_than_a_cue():
    """Where a word is sung, or its end was not found, its cue ends after 7 s."""
    (sung, after) = captions.captions([Word(" a", 0.0, 20.0, 1.0), Word(" b", 20.0, 20.3, 1.0)])
    assert (sung.start, sung.end) == (0.0, 7.0)
    assert after.start >= 19.5


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({}, ["a b", "c", "d"]),
        ({"max_line_width": 20, "max_line_count": 2}, ["a b d", "c"]),
        ({"highlight_words": True}, ["<u>a</u> b", "<u>c</u>", "a <u>b</u>", "<u>d</u>"]),
        ({"captions": True}, ["a b d", "c"]),
    ],
)
def test_channels_have_cues_of_their_own(options, wanted):
    """Words of two speakers are in no layout mixed into one cue, and cues come in order of time."""
    one = spoken([Word(" a", 0.0, 0.5, 1.0), Word(" b", 0.5, 1.0, 1.0)], channel=1)
    other = spoken([Word(" c", 0.2, 0.7, 1.0)], channel=2)
    again = spoken([Word(" d", 1.2, 1.7, 1.0)], channel=1)
    found = [*cues([one, other, again], Decoding(word_timestamps=True, **options))]
    assert [cue.text for cue in found] == wanted
    assert [cue.start for cue in found] == sorted(cue.start for cue in found)
