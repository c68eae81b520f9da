"""Where somebody speaks: listen to a recording in blocks of strips, and turn probabilities of speech into regions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from run_transcription.hearing import Heard, Region
from run_transcription.records import SAMPLE_RATE

if TYPE_CHECKING:
    from run_transcription.records import Samples

FRAME = 512  # samples: one probability of speech every 32 ms, as Silero VAD gives them
STRIP = 500 * FRAME  # 16 s
STRIPS = 64  # listened to at once: a block of 17 minutes
BLOCK = STRIPS * STRIP

HYSTERESIS = 0.15  # speech goes on until its probability is so much below the threshold
SILENCE = round(0.1 * SAMPLE_RATE)  # a shorter pause doesn't end a region
SPEECH = round(0.1 * SAMPLE_RATE)  # a shorter region is a click

SMOOTHED = 7  # frames: loudness is looked at over 0.2 s
FAINT = 1e-8  # power below -80 dB is silence
NEARLY = 2.0  # within 3 dB of the quietest place …
FAR_BELOW = 0.01  # … and 20 dB below what is loud: a pause

# the next strips of a recording, float32 [strips, samples] → probability of speech [strips, samples / FRAME]
Detector = Callable[["Samples"], "Samples"]


class Ear:
    """Listens to a recording that arrives in blocks of any size; what it hears does not depend on their size."""

    def __init__(self, blocks: Iterable[Samples], detector: Detector, threshold: float) -> None:
        """Listen with a detector that has heard nothing yet; from the threshold on, a probability is speech."""
        self.samples = 0  # heard so far
        self._blocks = blocks
        self._detector = detector
        self._threshold = threshold

    def heard(self) -> Iterator[Heard]:
        """Yield blocks of 17 minutes, the last one shorter; each is kept by nobody but the caller."""
        regions = Regions(self._threshold)
        for buffer, length in _gathered(self._blocks):
            start, self.samples = self.samples, self.samples + length
            frames = -(-length // FRAME)
            strip = min(frames * FRAME, STRIP)  # what is shorter than one costs less
            strips = buffer[: -(-length // strip) * strip].reshape(-1, strip)
            found = self._detector(strips).reshape(-1)[:frames]
            ended = regions.feed(found.tolist())
            yield Heard(start, buffer[:length], _within(ended, regions.open, start, self.samples))


def _gathered(blocks: Iterable[Samples]) -> Iterator[tuple[Samples, int]]:
    """Gather blocks of BLOCK samples, zeros behind the last one; also yield how many of them are filled."""
    buffer, filled = np.empty(0, np.float32), 0
    for block in blocks:
        taken = 0
        while taken < len(block):
            if not filled:
                buffer = np.zeros(BLOCK, np.float32)  # memory is taken as it is filled
            part = block[taken : taken + BLOCK - filled]
            buffer[filled : filled + len(part)] = part
            taken, filled = taken + len(part), filled + len(part)
            if filled == BLOCK:
                filled = 0
                yield buffer, BLOCK
    if filled:
        yield buffer, filled


def _within(ended: Sequence[Region], still_open: int | None, start: int, end: int) -> tuple[Region, ...]:
    """Return what of the regions lies in a block; the one that goes on ends with the block."""
    all_of_them = [*ended, *([] if still_open is None else [Region(still_open, end)])]
    return tuple(
        Region(max(region.start, start), min(region.end, end))
        for region in all_of_them
        if region.end > start and region.start < end
    )


class Regions:
    """Turns a stream of probabilities into regions, by the rule of silero-vad's `get_speech_timestamps`."""

    def __init__(self, threshold: float, silence: int = SILENCE, speech: int = SPEECH) -> None:
        """Take the shortest pause and the shortest region in samples."""
        self.open: int | None = None  # where the region began that has not ended
        self._pause: int | None = None  # where it may have ended
        self._at = 0
        self._threshold = threshold
        self._until = max(threshold - HYSTERESIS, 0.01)
        self._silence = silence
        self._speech = speech

    def feed(self, probabilities: Iterable[float]) -> list[Region]:
        """Return the regions that ended among these probabilities."""
        ended = []
        for probability in probabilities:
            if probability >= self._threshold:
                self.open = self._at if self.open is None else self.open
                self._pause = None
            elif probability < self._until and self.open is not None:
                self._pause = self._at if self._pause is None else self._pause
                if self._at - self._pause >= self._silence:
                    ended.append(Region(self.open, self._pause))
                    self.open = self._pause = None
            self._at += FRAME
        return [region for region in ended if region.end - region.start > self._speech]


def loud(strips: Samples) -> Samples:
    """Tell where strips are not quiet, as a `Detector` does: 1 or 0 for each frame.

    A frame is quiet where 0.2 s around it have hardly more power than the quietest place of all strips, and far less
    than what is loud in them; or next to none. So nothing that could be a voice is ever quiet, and noise often is not.
    """
    frames = strips.reshape(len(strips), -1, FRAME)
    power = np.einsum("ijk,ijk->ij", frames, frames, dtype=np.float64, optimize=False) / FRAME
    kernel = np.full(SMOOTHED, 1 / SMOOTHED)
    smooth = np.stack([np.convolve(np.pad(row, SMOOTHED // 2, "edge"), kernel, mode="valid") for row in power])
    sounding = smooth[smooth > FAINT]
    if not sounding.size:
        return np.zeros(power.shape, np.float32)
    quiet = min(NEARLY * float(sounding.min()), FAR_BELOW * float(np.percentile(sounding, 90)))
    return (smooth > max(FAINT, quiet)).astype(np.float32)
