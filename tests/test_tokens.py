"""Tests of run_transcription.tokens and run_transcription.quality."""

import math
from dataclasses import dataclass, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from run_transcription import quality, tokens
from run_transcription.records import Chunk, Decoding, Row

WINDOW = Chunk(0, 480_000)
END, BEGIN = 100, 110  # ids below END are letters, ids from BEGIN on are timestamps


@dataclass
class Letters:
    """A vocabulary in which each id below 100 is a letter."""

    timestamp_begin: int = BEGIN
    end_of_text: int = END

    def decode(self, ids):
        return "".join(chr(0x4E00 + i) for i in ids if i < END)


def at(seconds):
    """Return the timestamp of a time."""
    return BEGIN + round(seconds / 0.02)


def cut(*ids, chunk=WINDOW):
    """Return the segments of a row as (start, end, ids of text)."""
    row = Row(tuple(ids), "en", 0.9, 0.1, -0.2)
    found = tokens.segments(row, chunk, Letters(), 1.5)
    return [(each.start, each.end, [token for token in each.tokens if token < END]) for each in found]


def test_pairs_of_timestamps_part_the_row():
    """Two timestamps in a row end one segment and begin the next, pauses between them included."""
    assert cut(at(0), 1, 2, at(2.5), at(3), 3, at(4.2)) == [(0, 2.5, [1, 2]), (3, 4.2, [3])]


def test_a_pair_at_the_end_makes_no_empty_segment():
    """openai/whisper would decode on from such a pair; there is nothing behind it in a chunk decoded once."""
    assert cut(at(0), 1, at(2), at(2)) == [(0, 2, [1])]


def test_text_behind_the_last_pair_is_kept():
    """openai/whisper drops it and decodes again from the pair: here that would lose it."""
    assert cut(at(0), 1, at(2), at(2.4), 2, 3) == [(0, 2, [1]), (2.4, 30, [2, 3])]


def test_without_timestamps_the_whole_chunk_is_one_segment():
    """The segment is as long as the chunk, not as its padded window."""
    assert cut(1, 2, 3, chunk=Chunk(16_000, 80_000)) == [(1, 5, [1, 2, 3])]


def test_a_single_closing_timestamp_ends_the_segment():
    """A timestamp at the end says that nothing was said after it."""
    assert cut(1, 2, at(3.3)) == [(0, 3.3, [1, 2])]


def test_one_segment_begins_at_its_own_timestamp():
    """Speech after a pause begins when the model says so, not at the beginning of the chunk."""
    assert cut(at(0.8), 1, at(3)) == [(0.8, 3, [1])]


def test_a_closing_zero_is_no_end():
    """<|0.00|> after text can't be its end: the chunk's end is taken, as openai/whisper does."""
    assert cut(at(0), 1, at(0)) == [(0, 30, [1])]


def test_recording_time_and_seek():
    """Times count from the beginning of the recording, `seek` in frames of 10 ms."""
    row = Row((at(1), 1, at(2)), "de", 0.9, 0.1, -0.2, 0.4)
    (segment,) = tokens.segments(row, Chunk(16_000 * 3600, 16_000 * 3630), Letters(), 1.5)
    assert (segment.start, segment.end, segment.seek) == (3601, 3602, 360_000)
    assert (segment.language, segment.temperature, segment.avg_logprob) == ("de", 0.4, -0.2)
    assert (segment.no_speech_prob, segment.compression_ratio) == (0.1, 1.5)


@pytest.mark.parametrize("ids", [(), (at(0),), (at(0), at(30)), (at(1), at(1), at(2))])
def test_no_text_is_no_segment(ids):
    """A row of timestamps alone, as from silence, gives nothing."""
    assert cut(*ids) == []


@st.composite
def rows(draw):
    """Draw rows as Whisper's timestamp rules allow them: times never decrease, and stand in pairs or at the ends."""
    clock, ids = 0, []
    for _ in range(draw(st.integers(0, 6))):
        clock += draw(st.integers(0, 200))
        ids.append(BEGIN + clock)
        ids += draw(st.lists(st.integers(0, END - 1), min_size=1, max_size=5))
        clock += draw(st.integers(1, 200))
        ids.append(BEGIN + clock)
    ids = ids[1:] if ids and draw(st.booleans()) else ids
    return ids[:-1] if draw(st.booleans()) else ids


@given(rows(), st.integers(0, 10**9), st.integers(1, 480_000))
def test_no_text_is_lost_and_times_stay_in_the_chunk(ids, start, length):
    """All text comes out once and in order; segments follow one another inside their chunk, however short it is."""
    found = cut(*ids, chunk=Chunk(start, start + length))
    assert [token for *_, text in found for token in text] == [token for token in ids if token < END]
    times = [time for begin, end, _ in found for time in (begin, end)]
    assert times == sorted(times)
    assert all(start / 16_000 - 0.001 <= time <= (start + length) / 16_000 + 0.001 for time in times)


def test_compression_ratio_is_that_of_openai():
    """Bytes over zlib's bytes of the text: a loop is over the threshold of 2.4, a sentence under it; empty is 0."""
    assert quality.compression_ratio("thank you " * 30) > 2.4
    assert quality.compression_ratio("The birch canoe slid on the smooth planks.") < 1.2
    assert quality.compression_ratio("é") == pytest.approx(2 / 10)  # bytes count, not letters
    assert quality.compression_ratio("") == 0


def test_silence_needs_both_signs():
    """A row is dropped where no speech is likely and the model unsure; one of the two is not enough."""
    sure = Row((1,), "en", 1.0, no_speech_prob=0.99, avg_logprob=-0.3)
    assert quality.is_silence(replace(sure, avg_logprob=-1.2), Decoding())
    assert not quality.is_silence(sure, Decoding())
    assert not quality.is_silence(replace(sure, no_speech_prob=0.5, avg_logprob=-1.2), Decoding())
    assert quality.failing(replace(sure, avg_logprob=-1.2), "a text", Decoding()) == ()


def test_a_segment_is_as_sure_as_its_own_tokens():
    """Confidence is the geometric mean of the segment's token probabilities, not of the row's."""
    ids = (at(0), 1, 2, at(2), at(3), 3, at(4))
    row = Row(ids, "en", 0.9, 0.1, -0.4, logprobs=(0, -0.2, -0.6, 0, 0, -1.5, 0))
    first, second = tokens.segments(row, WINDOW, Letters(), 1.5)
    assert first.confidence == pytest.approx(math.exp(-0.2), abs=1e-4)
    assert second.confidence == pytest.approx(math.exp(-0.5), abs=1e-4)
    (untold,) = tokens.segments(replace(row, tokens=(at(0), 1, at(2)), logprobs=()), WINDOW, Letters(), 1.5)
    assert untold.confidence == pytest.approx(math.exp(-0.4), abs=1e-4)


def test_words_are_never_cut_inside_a_sign():
    """Words begin at spaces, and a sign of several tokens is not parted; Chinese has a word for each sign."""
    spoken = replace(cut_segment("ab cd é".encode()), language="en")
    assert [(word.text, word.first, word.last) for word in tokens.words(spoken, WideBytes())] == [
        ("ab", 1, 3),
        (" cd", 3, 6),
        (" é", 6, 9),
    ]
    chinese = replace(cut_segment("你好".encode()), language="zh")
    first, second = tokens.words(chinese, WideBytes())
    assert (first.text, second.text, first.end) == ("你", "好", pytest.approx(1))
    mixed = replace(cut_segment("你go, ok好".encode()), language="zh")  # as is a translation: it stays Latin
    assert [word.text for word in tokens.words(mixed, WideBytes())] == ["你", "go,", " ok", "好"]
    (kept,) = (tokens.part(chinese, [second], WideBytes()),)
    assert (kept.text, kept.start, kept.end, len(kept.tokens)) == ("好", 1, 2, 3)


@dataclass
class WideBytes:
    """A vocabulary in which each byte is a token."""

    timestamp_begin: int = 300
    end_of_text: int = 256

    def decode(self, ids):
        return bytes(i for i in ids if i < 256).decode("utf-8", "replace")


def cut_segment(data):
    """Return a segment of two seconds that says these bytes."""
    row = Row((300, *data, 400), "en", 0.9, 0.1, -0.2)
    return tokens.segments(row, Chunk(0, 32_000), WideBytes(), 1.0)[0]
