"""Where each token's part of a window begins → when it was said: no word goes on in a pause."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import numpy as np

from run_transcription.records import SAMPLE_RATE

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from run_transcription.records import Samples

FRAME = 320  # samples: the encoder's positions are 20 ms apart
AROUND = 50  # positions, a second, on both sides of one that is quiet or loud beside them
QUIET = 10**-2.6  # power over the loudest place around, 26 dB below it

Span = tuple[float, float]


def frames_in(window: Samples) -> int:
    """Return how many positions of the encoder a window has, one at least."""
    return max(1, -(-len(window) // FRAME))


def spans(row: Sequence[int], begins: Sequence[int], window: Samples, end_of_text: int) -> tuple[Span, ...]:
    """Return when each id of a row begins and ends, in seconds; a timestamp stands where the text behind it begins.

    `begins` are positions: of each id of the text, and of what comes after the last one.
    """
    frames = frames_in(window)
    audible = _audible(window, frames)
    found: list[Span] = []
    for begin, after in itertools.pairwise([*begins, frames]):
        heard = np.flatnonzero(audible[begin:after])
        # what nothing is heard of, such as a mark in a pause, belongs to the word before it
        end = begin + int(heard[-1]) + 1 if len(heard) else begin
        found.append((_seconds(begin), _seconds(end) if len(heard) or not found else found[-1][1]))
    places = itertools.accumulate((token < end_of_text for token in row), initial=0)
    return tuple(
        found[place] if token < end_of_text else (found[place][0],) * 2
        for token, place in zip(row, places, strict=False)
    )


def _audible(window: Samples, frames: int) -> npt.NDArray[np.bool_]:
    """Tell for each frame whether it is heard beside what is loud around it: words don't go on in pauses."""
    padded = np.zeros(frames * FRAME, np.float32)
    padded[: len(window)] = window[: len(padded)]
    power = np.square(padded.reshape(frames, FRAME)).mean(axis=1)
    around = np.pad(power, AROUND, mode="edge")
    loudest = np.lib.stride_tricks.sliding_window_view(around, 2 * AROUND + 1).max(axis=1)
    heard: npt.NDArray[np.bool_] = power > QUIET * loudest
    return heard


def _seconds(frame: int) -> float:
    return round(frame * FRAME / SAMPLE_RATE, 2)
