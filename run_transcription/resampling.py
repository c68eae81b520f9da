"""Channels of any rate → 16 kHz, each by itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

import av
import numpy as np

from run_transcription.records import SAMPLE_RATE

if TYPE_CHECKING:
    from run_transcription.records import Samples


class Resampler:
    """Brings the channels of one rate to 16 kHz; its memory joins what it gets piece by piece."""

    def __init__(self, rate: int, channels: int) -> None:
        """Begin with silence; the rate is in Hz."""
        self.rate = rate
        self._each = [av.AudioResampler("flt", "mono", SAMPLE_RATE) for _ in range(channels)]

    def __call__(self, channels: Samples) -> Samples:
        """Return float32 [channels, samples at 16 kHz] of float32 [channels, samples]."""
        return self._through([self._frame(channel) for channel in channels])

    def end(self) -> Samples:
        """Return the last milliseconds, which would stay in the filter."""
        return self._through([None] * len(self._each))

    def _frame(self, channel: Samples) -> av.AudioFrame:
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(channel)[None], format="flt", layout="mono")
        frame.sample_rate = self.rate
        return frame

    def _through(self, frames: list[av.AudioFrame | None]) -> Samples:
        return np.stack([_samples(each, frame) for each, frame in zip(self._each, frames, strict=True)])


def _samples(resampler: av.AudioResampler, frame: av.AudioFrame | None) -> Samples:
    parts = [part.to_ndarray()[0] for part in resampler.resample(frame) if part is not None]
    return np.concatenate(parts) if parts else np.empty(0, np.float32)
