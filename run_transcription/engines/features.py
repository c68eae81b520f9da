"""Windows of samples → Whisper's log-mel features, in batches and on the model's device."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch

from run_transcription.records import SAMPLE_RATE

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from run_transcription.records import Samples

FFT = 400  # samples in a frame: 25 ms
HOP = 160  # samples between frames: 10 ms

# Slaney's mel scale: linear below 1000 Hz, 15 mel there, then logarithmic, 27 mel for a factor of 6.4
_LINEAR_HZ = 200.0 / 3.0
_KNEE_HZ = 1000.0
_KNEE_MEL = _KNEE_HZ / _LINEAR_HZ
_LOG_STEP = math.log(6.4) / 27.0


def mel_filters(mels: int) -> npt.NDArray[np.float32]:
    """Return triangular filters over the bins of a spectrum, each of unit area: [mels, FFT / 2 + 1].

    The same as `librosa.filters.mel(sr=16000, n_fft=400, n_mels=mels)`, with which Whisper was trained.
    """
    top = _KNEE_MEL + math.log(SAMPLE_RATE / 2 / _KNEE_HZ) / _LOG_STEP
    edges = _hertz(np.linspace(0.0, top, mels + 2))
    bins = np.linspace(0.0, SAMPLE_RATE / 2, FFT // 2 + 1)
    rising = (bins - edges[:-2, None]) / np.diff(edges)[:-1, None]
    falling = (edges[2:, None] - bins) / np.diff(edges)[1:, None]
    area = 2.0 / (edges[2:] - edges[:-2])
    return (np.maximum(0.0, np.minimum(rising, falling)) * area[:, None]).astype(np.float32)


def _hertz(mel: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.where(mel < _KNEE_MEL, mel * _LINEAR_HZ, _KNEE_HZ * np.exp(_LOG_STEP * (mel - _KNEE_MEL)))


class LogMel:
    """Log-mel features of one model's window; holds the filters on its device."""

    def __init__(self, mels: int, frames: int, device: torch.device) -> None:
        """Make the filters; `frames` of 10 ms are in a full window."""
        self.samples = frames * HOP  # in a full window: 480,000 for 30 s
        self._filters = torch.from_numpy(mel_filters(mels)).to(device)
        self._hann = torch.hann_window(FFT, device=device)

    def __call__(self, windows: Sequence[Samples], *, short: bool = False) -> torch.Tensor:
        """Return float32 features [windows, mels, frames], equal to WhisperFeatureExtractor's within 1e-4.

        Samples are padded with zeros, which is silence; a zero among log-mel features would not be. `short` pads to the
        longest window and a second more, in whole seconds, and not to a full one.
        """
        length = min(self.samples, _whole_seconds(windows)) if short else self.samples
        spectrum = torch.stft(self._padded(windows, length), FFT, HOP, window=self._hann, return_complex=True)
        power = spectrum[..., :-1].abs().square().contiguous()
        log = (self._filters @ power).clamp(min=1e-10).log10()
        loudest = log.amax(dim=(1, 2), keepdim=True)
        return (log.maximum(loudest - 8.0) + 4.0) / 4.0  # 80 dB of range, about -1 … 1.5

    def _padded(self, windows: Sequence[Samples], length: int) -> torch.Tensor:
        batch = np.zeros((len(windows), length), dtype=np.float32)
        for row, window in zip(batch, windows, strict=True):
            row[: len(window)] = window  # a longer window raises here: numpy's message names both lengths
        return torch.from_numpy(batch).to(self._filters.device)


def _whole_seconds(windows: Sequence[Samples]) -> int:
    """Return the samples of the whole seconds that hold the longest window and one second more."""
    return SAMPLE_RATE * (-(-max(map(len, windows)) // SAMPLE_RATE) + 1)
