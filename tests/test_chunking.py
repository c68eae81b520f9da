"""chunking: passages hold all speech, are cut in pauses, and overlap only where nobody pauses."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from run_transcription.chunking import LONG_SILENCE, MARGIN, OVERLAP, PAUSE, passages, quietest
from run_transcription.hearing import Heard, Region
from run_transcription.records import SAMPLE_RATE, Chunk

RNG = np.random.default_rng(3)
SOME_NOISE = RNG.standard_normal(99_991).astype(np.float32)


def noise(seconds: float) -> np.ndarray:
    """Return white noise as float32 [samples]."""
    return (0.1 * RNG.standard_normal(round(seconds * SAMPLE_RATE))).astype(np.float32)


def spoken(*spans: tuple[float, float]) -> list[Region]:
    """Return speech at these seconds."""
    return [Region(round(start * SAMPLE_RATE), round(end * SAMPLE_RATE)) for start, end in spans]


def heard(samples: np.ndarray, speech: list[Region], cuts: tuple[float, ...] = ()) -> list[Heard]:
    """Return what is heard of samples, in blocks that end at shares of their length."""
    edges = [0, *sorted(round(cut * len(samples)) for cut in cuts), len(samples)]
    return [
        Heard(
            start,
            samples[start:end],
            tuple(
                Region(max(region.start, start), min(region.end, end))
                for region in speech
                if region.start < end and region.end > start
            ),
        )
        for start, end in pairwise(edges)
    ]


def chunks(samples: np.ndarray, speech: list[Region], limit: float = 30.0) -> list[tuple[float, float]]:
    """Return the chunks' seconds."""
    found = [passage.chunk for passage in passages(heard(samples, speech), limit)]
    return [(chunk.start / SAMPLE_RATE, chunk.end / SAMPLE_RATE) for chunk in found]


@given(
    speech=st.lists(st.tuples(st.floats(0.01, 4), st.floats(0.01, 1.5)), max_size=12),
    silences=st.lists(st.floats(5, 8), max_size=2),
    limit=st.floats(0.5, 2),
    cuts=st.lists(st.floats(0, 1), max_size=6),
    tail=st.floats(0, 8),
)
def test_passages_hold_all_speech(
    speech: list[tuple[float, float]], silences: list[float], limit: float, cuts: list[float], tail: float
) -> None:
    """Whatever is said and however it comes in blocks: all speech is in a passage, none is too long.

    Neighbours overlap only at a seam, where there was no pause to cut in; and the passages are always the same.
    """
    regions, now = [], 0.0
    for place, (length, pause) in enumerate(speech):
        regions += spoken((now, now + length))
        now += length + pause + (silences[place] if place < len(silences) else 0)
    samples = np.resize(SOME_NOISE, round((now + tail) * SAMPLE_RATE))
    found = list(passages(heard(samples, regions, tuple(cuts)), limit))
    assert found_chunks(found) == found_chunks(passages(heard(samples, regions), limit))
    most = int(limit * SAMPLE_RATE)
    covered = np.zeros(len(samples), int)
    for passage in found:
        start, end = passage.chunk.start, passage.chunk.end
        assert 0 < end - start <= most
        np.testing.assert_array_equal(passage.samples, samples[start:end])
        covered[start:end] += 1
    for region in regions:
        assert covered[region.start : region.end].all()
    assert covered.max(initial=0) <= 2
    for before, after in pairwise(found):
        assert before.chunk.start < after.chunk.start
        assert before.chunk.end < after.chunk.end
        shared = before.chunk.end - after.chunk.start
        assert shared <= most // 4
        if shared > 0:
            late = [region for region in before.speech if region.end > before.chunk.start + 2 * most // 3]
            assert all(b.start - a.end < PAUSE for a, b in pairwise(late))


def found_chunks(found) -> list[Chunk]:
    """Return the chunks of passages."""
    return [passage.chunk for passage in found]


def test_it_is_cut_in_the_longest_pause_near_the_end() -> None:
    """Of the pauses in the last third the longest is cut, in its middle where it is short."""
    speech = spoken((0, 22), (22.3, 25), (25.7, 28), (28.4, 40))
    assert chunks(noise(40), speech) == [(0, 25.35), (25.35, 40)]


def test_a_pause_early_in_the_window_is_no_place_to_cut() -> None:
    """Only the last third is looked at: a pause at 5 s must not make a chunk of 5 s."""
    (first, second) = chunks(noise(40), spoken((0, 5), (6, 21), (21.4, 40)))
    assert first == (0, 21.2)
    assert second == (21.2, 40)


def test_long_silences_are_not_decoded() -> None:
    """What nobody speaks in for five seconds is left out, but for a margin around speech; shorter pauses are not."""
    speech = spoken((10, 12), (16, 18), (60, 61))
    margin = MARGIN / SAMPLE_RATE
    assert chunks(noise(100), speech) == [(10 - margin, 18 + margin), (60 - margin, 61 + margin)]
    assert LONG_SILENCE == 5 * SAMPLE_RATE


def test_speech_without_a_pause_overlaps_around_its_quietest_place() -> None:
    """Five minutes of speech: neighbours share four seconds, in whose middle it is quietest."""
    samples = noise(300)
    samples[round(24.97 * SAMPLE_RATE) : round(25.05 * SAMPLE_RATE)] *= 0.1
    found = chunks(samples, spoken((0, 300)))
    assert found[0] == (0, pytest.approx(27, abs=0.05))
    assert all(before[1] - after[0] == pytest.approx(OVERLAP / SAMPLE_RATE) for before, after in pairwise(found))
    assert found[-1][1] == 300
    assert 10 < len(found) <= 17


def test_thirty_seconds_are_one_chunk() -> None:
    """Speech that just fits is not cut; a little more of it is two chunks."""
    assert chunks(noise(30), spoken((0, 30))) == [(0, 30)]
    assert len(chunks(noise(31), spoken((0, 31)))) == 2


@pytest.mark.parametrize("seconds", [0, 3, 100])
def test_where_nobody_speaks_there_is_no_passage(seconds: int) -> None:
    """Neither nothing nor silence is decoded."""
    assert chunks(noise(seconds), []) == []


def test_passages_come_while_the_recording_is_still_read() -> None:
    """The first passage is out soon after a window was heard, not when a recording of hours has ended."""
    read = 0

    def endless():
        nonlocal read
        while True:
            yield Heard(read * SAMPLE_RATE, noise(1), (Region(read * SAMPLE_RATE, (read + 1) * SAMPLE_RATE),))
            read += 1

    stream = passages(endless())
    for number in range(1, 6):
        next(stream)
        assert read <= 30 * number + 8


def test_the_later_of_two_quiet_places_is_taken() -> None:
    """Long chunks are few chunks."""
    samples = noise(30)
    for second in (22, 26):
        samples[second * SAMPLE_RATE :][:2000] = 0.0
    assert 26 <= quietest(samples, 20 * SAMPLE_RATE, 28 * SAMPLE_RATE) / SAMPLE_RATE <= 26.2
