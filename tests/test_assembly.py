"""assembly: rows become a transcript, in which seams are joined and speech without text is looked for again."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from letters import BEGIN, Words, ids

from run_transcription import chunking
from run_transcription.assembly import Assembly
from run_transcription.batches import Decoder
from run_transcription.errors import OutOfMemory
from run_transcription.hearing import Heard, Region
from run_transcription.records import SAMPLE_RATE, Batch, Decoding, ModelFacts, Row, Timing

EDGE = 3.0  # seconds at both ends of a window


def speech(seconds):
    """Return a recording in which somebody says a word each half second without a pause, and the words.

    In the middle of a word its number stands in the samples.
    """
    words = list(range(int(2 * seconds)))
    samples = np.zeros(int(seconds * SAMPLE_RATE), np.float32)
    samples[[round((word / 2 + 0.25) * SAMPLE_RATE) for word in words]] = [(word + 1) / 1000 for word in words]
    return samples, words


def well(heard, _seconds):
    """Hear each word as it was said."""
    return heard


def badly_at_edges(heard, seconds):
    """Hear other words in the first and in the last seconds of a window."""
    return [(at, word + 400 * (at < EDGE) + 200 * (at > seconds - EDGE)) for at, word in heard]


@dataclass
class Listener:
    """An engine that hears the words that stand in the samples, well or badly."""

    hear: object = well
    logprob: float = -0.1
    calls: list[list[float]] = field(default_factory=list)  # seconds of the windows of each batch

    facts = ModelFacts("listener", "0", "cpu", "float32", "sdpa")
    tokenizer = Words()

    def transcribe(self, windows, _decoding):
        self.calls.append([len(window) / SAMPLE_RATE for window in windows])
        return Batch(tuple(map(self.row, windows)), Timing())

    def row(self, window):
        heard = [(place / SAMPLE_RATE, round(1000 * float(window[place])) - 1) for place in np.flatnonzero(window)]
        tokens = [
            token
            for at, word in self.hear(heard, len(window) / SAMPLE_RATE)
            for token in (BEGIN + round((at - 0.24) * 50), word, BEGIN + round((at + 0.24) * 50))
        ]
        return Row(
            tuple(max(token, BEGIN) if token > 1000 else token for token in tokens), "en", 1.0, 0.0, self.logprob
        )


def assembled(samples, engine, size=8, finished=None, *, vad=True):
    """Return the transcript of speech without a pause, and the rows of each batch."""
    decoding = Decoding(batch_size=size, compression_ratio_threshold=99, vad=vad)  # numbers in order compress well
    work = Assembly(engine, decoding, Decoder(engine, decoding, finished or {}))
    passages = chunking.passages([Heard(0, samples, (Region(0, len(samples)),))])
    batches = iter(lambda: tuple(itertools.islice(passages, size)), ())
    rows = [work.add(batch) for batch in batches]
    return work.transcript(len(samples) / SAMPLE_RATE), rows


def test_neighbours_that_agree_are_joined():
    """Each word comes out once, and nothing is decoded twice."""
    samples, words = speech(100)
    engine = Listener()
    found, _ = assembled(samples, engine)
    assert ids(found.segments) == words
    assert len(engine.calls) == 1
    assert not found.quality.needs_review


def test_a_seam_whose_sides_differ_is_heard_once_more():
    """Where both sides heard other words, a window of its own over the seam says which: no word is lost or doubled."""
    samples, words = speech(100)
    engine = Listener(badly_at_edges)
    found, _ = assembled(samples, engine)
    inside = [word for word in words if EDGE <= word / 2 < 100 - EDGE]
    assert [word for word in ids(found.segments) if EDGE <= word % 200 / 2 < 100 - EDGE] == inside
    assert len(found.segments) == len(words)
    windows, again = engine.calls
    assert len(again) == len(windows) - 1
    assert "sides_of_a_seam_differ" not in found.quality.reasons


@pytest.mark.parametrize("third", [400, 0, 200, None], ids=["as neither", "as the left", "as the right", "nothing"])
def test_a_seam_that_nothing_decides_is_said(third):
    """Where the window over it does not agree with both sides, they are cut by time, and a person should look."""
    samples, words = speech(50)
    other = iter((0, 200, third))  # what both sides and the window hear in the place of each word

    def otherwise(heard, _seconds):
        more = next(other)
        return [] if more is None else [(at, word + more) for at, word in heard]

    engine = Listener(otherwise)
    found, _ = assembled(samples, engine)
    assert [len(call) for call in engine.calls] == [2, 1]
    assert [word % 200 for word in ids(found.segments)] == words
    assert [word // 200 for word in ids(found.segments)] == sorted(word // 200 for word in ids(found.segments))
    assert found.quality.needs_review
    assert found.quality.reasons == ("sides_of_a_seam_differ",)


@pytest.mark.parametrize("hear", [well, badly_at_edges])
def test_a_chain_of_seams_may_be_longer_than_a_batch(hear):
    """Neighbours in two batches are joined as in one, also by a later try that takes over some batches' rows."""
    samples, _ = speech(200)
    whole, rows = assembled(samples, Listener(hear), size=2)
    assert len(rows) > 3
    for size in (1, 3, 8):
        assert assembled(samples, Listener(hear), size=size)[0] == whole
    engine = Listener(hear)
    assert assembled(samples, engine, 2, dict(itertools.chain.from_iterable(rows[:2])))[0] == whole
    assert sum(map(len, engine.calls)) == sum(map(len, rows[2:]))


def test_a_batch_that_did_not_fit_stands_in_the_result(monkeypatch):
    """Where memory had room for fewer windows, nothing is lost, and the audit tells how many were decoded at a time."""

    class Cramped(Listener):
        def transcribe(self, windows, decoding):
            if len(windows) > 2:
                raise OutOfMemory("no room")
            return super().transcribe(windows, decoding)

    monkeypatch.setattr("run_transcription.batches._safe_sizes", {})
    samples, words = speech(100)
    assert assembled(samples, Listener())[0].quality.reduced_batch_size is None
    found, _ = assembled(samples, Cramped())
    assert (ids(found.segments), found.quality.reduced_batch_size) == (words, 2)


def only_short(heard, seconds):
    """Hear nothing at all in a long window."""
    return [] if seconds > 20 else heard


def test_a_chunk_without_text_is_heard_in_parts():
    """Speech that fills its chunk and got no text is decoded again, cut elsewhere, and its words are put in."""
    samples, words = speech(25)
    engine = Listener(only_short)
    found, _ = assembled(samples, engine)
    assert ids(found.segments) == words
    assert (engine.calls[0], len(engine.calls[1])) == ([25.0], 2)
    assert found.quality.coverage == 1


def test_a_hole_in_a_chunk_is_heard_again():
    """Speech without text between other text is decoded with what lies around it, and only its own words are put in."""
    samples, words = speech(25)

    def with_a_hole(heard, seconds):
        return [(at, word) for at, word in heard if seconds < 20 or not 10 < at < 14]

    engine = Listener(with_a_hole)
    found, _ = assembled(samples, engine)
    assert ids(found.segments) == words
    assert engine.calls[1] < [13.0]


def test_a_text_that_ends_too_early_is_gone_on_with():
    """Where the model stopped writing, all that was said afterwards is heard in one window, pauses in it or not."""
    samples, words = speech(25)
    pauses = tuple(Region(start * SAMPLE_RATE, start * SAMPLE_RATE + 13_000) for start in range(25))

    def only_the_beginning(heard, seconds):
        return [(at, word) for at, word in heard if seconds < 20 or at < 8]

    engine = Listener(only_the_beginning)
    work = Assembly(engine, Decoding(), Decoder(engine, Decoding(compression_ratio_threshold=99), {}))
    work.add(tuple(chunking.passages([Heard(0, samples, pauses)])))
    assert ids(work.transcript(25.0).segments) == words
    assert [len(call) for call in engine.calls] == [1, 1]


def test_what_is_only_loud_is_heard_by_itself():
    """Without VAD a stretch without text is heard without the words beside it; a chunk without any is left alone."""
    samples, words = speech(25)

    def with_a_hole(heard, seconds):
        return [(at, word) for at, word in heard if seconds < 20 or not 10 < at < 14]

    engine = Listener(with_a_hole)
    found, _ = assembled(samples, engine, vad=False)
    assert ids(found.segments) == words
    assert engine.calls[1] == [pytest.approx(4, abs=0.1)]
    engine = Listener(only_short)
    found, _ = assembled(samples, engine, vad=False)
    assert (found.segments, len(engine.calls)) == ((), 1)
    assert found.quality.reasons == ("speech_without_text",)


def test_words_that_the_model_is_unsure_of_are_not_put_in():
    """What stays without text is said, and a person should look."""
    samples, _ = speech(25)
    found, _ = assembled(samples, Listener(only_short, logprob=-0.8))
    assert found.segments == ()
    assert found.quality.coverage == 0
    assert [(span.start, span.end) for span in found.quality.uncovered] == [(0, 25)]
    assert found.quality.reasons == ("speech_without_text",)
    assert found.quality.needs_review


@settings(deadline=None, max_examples=50)
@given(
    rows=st.lists(st.lists(st.integers(0, 20) | st.integers(BEGIN, BEGIN + 1500), max_size=20), min_size=1, max_size=9),
    seconds=st.integers(1, 130),
    logprob=st.sampled_from([-0.1, -3.0]),
)
def test_times_never_go_back(rows, seconds, logprob):
    """Whatever the model writes, at seams and where text is put in too: times are in order and end with the sound."""
    turns = itertools.cycle(rows)

    class Babbler(Listener):
        def row(self, _window):
            return Row(tuple(next(turns)), "en", 1.0, 0.0, self.logprob)

    found, _ = assembled(speech(seconds)[0], Babbler(logprob=logprob), size=2)
    times = [time for each in found.segments for time in (each.start, each.end)]
    assert times == sorted(times)
    assert all(0 <= time <= seconds for time in times)
    assert all(each.text.strip() for each in found.segments)
