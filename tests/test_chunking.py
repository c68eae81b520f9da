"""chunking: a stream of samples is cut where it is quiet, and nothing is lost or doubled."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from run_transcription.chunking import chunks, quiet_cut
from run_transcription.records import SAMPLE_RATE, Chunk

RNG = np.random.default_rng(3)


def noise(seconds: float) -> np.ndarray:
    """Return white noise as float32 [samples]."""
    return (0.1 * RNG.standard_normal(round(seconds * SAMPLE_RATE))).astype(np.float32)


def parted(samples: np.ndarray, cuts: list[float]) -> list[np.ndarray]:
    """Split samples into blocks at shares of their length."""
    return np.split(samples, sorted(round(cut * len(samples)) for cut in cuts))


@given(
    seconds=st.floats(0, 4),
    limit=st.floats(0.001, 2),
    cuts=st.lists(st.floats(0, 1), max_size=12),
    pauses=st.lists(st.tuples(st.floats(0, 1), st.floats(0, 0.3)), max_size=4),
    seed=st.integers(0, 99),
)
def test_chunks_cover_the_recording(
    seconds: float, limit: float, cuts: list[float], pauses: list[tuple[float, float]], seed: int
) -> None:
    """Whatever the sound and however it comes in blocks: no gap, no overlap, none too long, always the same chunks."""
    samples = np.random.default_rng(seed).standard_normal(round(seconds * SAMPLE_RATE)).astype(np.float32)
    for start, length in pauses:
        samples[round(start * len(samples)) :][: round(length * SAMPLE_RATE)] = 0.0
    if len(samples) / SAMPLE_RATE > 400 * limit:
        samples = samples[: round(400 * limit * SAMPLE_RATE)]
    found = list(chunks(parted(samples, cuts), limit))
    edges = [0, *(chunk.end for chunk, _ in found)]
    assert [chunk.start for chunk, _ in found] == edges[:-1]
    assert edges[-1] == len(samples)
    assert all(0 < chunk.end - chunk.start <= max(1, limit * SAMPLE_RATE) for chunk, _ in found)
    np.testing.assert_array_equal(np.concatenate([samples[:0], *(part for _, part in found)]), samples)
    assert [chunk for chunk, _ in found] == [chunk for chunk, _ in chunks([samples], limit)]


def test_cut_lies_in_the_pause() -> None:
    """A pause of 300 ms near the end of a window is where it is cut, in its middle."""
    samples = noise(40)
    samples[25 * SAMPLE_RATE : round(25.3 * SAMPLE_RATE)] *= 0.001
    first, second = (chunk for chunk, _ in chunks([samples]))
    assert 25.08 <= first.end / SAMPLE_RATE <= 25.22
    assert second == Chunk(first.end, len(samples))


def test_the_later_of_two_like_pauses_is_taken() -> None:
    """Long chunks are few chunks: of two pauses equally quiet the later one is cut."""
    samples = noise(40)
    for second in (22, 28):
        samples[second * SAMPLE_RATE :][:8000] = 0.0
    assert 28.1 <= quiet_cut(samples[: 30 * SAMPLE_RATE]) / SAMPLE_RATE <= 28.45


def test_a_pause_early_in_the_window_is_no_place_to_cut() -> None:
    """Only the last third is looked at: a pause at 5 s must not make a chunk of 5 s."""
    samples = noise(40)
    samples[5 * SAMPLE_RATE : 6 * SAMPLE_RATE] = 0.0
    assert quiet_cut(samples[: 30 * SAMPLE_RATE]) >= 20 * SAMPLE_RATE


def test_thirty_seconds_are_one_chunk_and_one_sample_more_are_two() -> None:
    """A recording that just fits is not cut; the sample beyond goes into a second chunk."""
    samples = noise(30.1)
    full = 30 * SAMPLE_RATE
    assert [chunk for chunk, _ in chunks([samples[:full]])] == [Chunk(0, full)]
    assert len(list(chunks([samples[: full + 1]]))) == 2


@pytest.mark.parametrize("blocks", [[], [np.empty(0, np.float32)]])
def test_nothing_gives_no_chunk(blocks: list[np.ndarray]) -> None:
    """A recording without samples has no chunks, not an empty one."""
    assert list(chunks(blocks)) == []


def test_chunks_come_while_the_recording_is_still_read() -> None:
    """The first chunk is out when 31 s were read, not when a recording of hours has ended."""
    read = 0

    def endless() -> Iterator[np.ndarray]:
        nonlocal read
        while True:
            read += 1
            yield noise(1)

    stream = chunks(endless())
    for number in range(1, 6):
        next(stream)
        assert read <= 30 * number + 1


def test_samples_of_a_chunk_stay_as_they_were() -> None:
    """A chunk's samples are its own: reading on does not write over them."""
    samples = noise(70)
    parts = list(chunks([samples]))
    for chunk, part in parts:
        np.testing.assert_array_equal(part, samples[chunk.start : chunk.end])
