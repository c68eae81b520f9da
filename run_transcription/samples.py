"""Decoded samples of any type and any number of channels → mono float32."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import numpy as np

from run_transcription.records import SAMPLE_RATE

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    import numpy.typing as npt

    from run_transcription.records import Samples

CANCELLED = 0.01  # power of the mix over the mean power of its channels: -20 dB
LOUDEST = 1e6  # a float sample above it is no sound; its square would still fit into float32


def as_float(samples: npt.NDArray[Any]) -> Samples:
    """Return samples of any integer or float type as float32, integers scaled to [-1, 1)."""
    if samples.dtype.kind == "f":
        return samples.astype(np.float32, copy=False)
    half = 2.0 ** (8 * samples.dtype.itemsize - 1)
    numbers: npt.NDArray[Any] = samples.astype(np.float32 if half <= 2**15 else np.float64)
    return np.asarray(numbers / half - (samples.dtype.kind == "u"), np.float32)


def without_nonsense(samples: Samples) -> tuple[Samples, int]:
    """Set samples that are NaN, infinite or beyond all sound to zero, and count them."""
    nonsense = ~(np.abs(samples) <= LOUDEST)
    count = int(np.count_nonzero(nonsense))
    return (np.where(nonsense, np.float32(0), samples) if count else samples), count


def mixed(channels: Samples) -> tuple[Samples, str]:
    """Average float32 [channels, samples]; where the average has cancelled out, take the loudest channel.

    Returns the mono samples, and "average" or "channel N", counted from 1.
    """
    if len(channels) == 1:
        return np.ascontiguousarray(channels[0]), "average"
    mix = channels.mean(axis=0, dtype=np.float32)
    powers = [float(np.dot(channel, channel)) for channel in channels]
    if float(np.dot(mix, mix)) >= CANCELLED * sum(powers) / len(powers):
        return mix, "average"
    loudest = int(np.argmax(powers))
    return np.ascontiguousarray(channels[loudest]), f"channel {loudest + 1}"


def separate(channels: Samples, kept: Sequence[int]) -> Samples:
    """Return some of float32 [channels, samples], counted from 0; a single one stands for all, a lacking one is 0."""
    if len(channels) == 1:
        return np.repeat(channels, len(kept), axis=0)
    silence = np.zeros(channels.shape[1], np.float32)
    return np.stack([channels[number] if number < len(channels) else silence for number in kept])


def clipped(blocks: Iterable[Samples], clips: Sequence[float]) -> Iterator[Samples]:
    """Silence what lies outside of clips in blocks of float32 [… samples] at 16 kHz.

    Clips are start, end, start, … in seconds; a last start goes to the end, and without any, all stays as it is.
    """
    edges = [round(second * SAMPLE_RATE) for second in clips]
    spans = list(zip(edges[::2], [*edges[1::2], sys.maxsize], strict=False))
    start = 0
    for block in blocks:
        end = start + block.shape[-1]
        if spans and not any(first <= start and end <= last for first, last in spans):
            silent = np.zeros_like(block)
            for first, last in spans:
                part = slice(min(max(first - start, 0), end - start), min(max(last - start, 0), end - start))
                silent[..., part] = block[..., part]
            block = silent  # noqa: PLW2901 - the same block, as it is heard
        yield block
        start = end
