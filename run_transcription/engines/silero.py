"""Silero VAD on many strips at once: the network of the `silero-vad` package, with the weights that lie in it.

Of the network only one LSTM cell goes from frame to frame; all before it is done for all frames of some strips at
once. The package's own code decodes one frame after the other. Its imports would need torchaudio, so only its model's
file is opened; the older weights that lie beside it as safetensors are those of another version.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from run_transcription.errors import TranscriptionError
from run_transcription.vad import FRAME

if TYPE_CHECKING:
    from run_transcription.records import Samples

MODEL = "data/silero_vad.jit"
CONTEXT = 64  # samples before a frame that are seen with it; as many behind it are mirrored
STFT, STRIDE = 256, 128  # samples
BINS = STFT // 2 + 1
STRIDES = (1, 2, 2, 1)  # of the four convolutions
AT_ONCE = 8  # strips: about 40 MB for their spectra


class Silero:
    """Tells the probability of speech in each frame of many strips; a `vad.Detector`."""

    def __init__(self) -> None:
        """Read the weights from the installed package; it runs on the CPU, so that it hears the same everywhere."""
        weights = torch.jit.load(str(_file()), map_location="cpu").state_dict()
        self._stft = weights["_model.stft.forward_basis_buffer"]
        names = [f"_model.encoder.{i}.reparam_conv" for i in range(len(STRIDES))]
        self._layers = [
            (weights[f"{name}.weight"], weights[f"{name}.bias"], stride)
            for name, stride in zip(names, STRIDES, strict=True)
        ]
        self._last = weights["_model.decoder.decoder.2.weight"][:, :, 0], weights["_model.decoder.decoder.2.bias"]
        cell = {name: weights[f"_model.decoder.rnn.{name}"] for name in _CELL}
        self._memory = torch.nn.LSTM(cell["weight_ih"].shape[1], cell["weight_hh"].shape[1], batch_first=True)
        self._memory.load_state_dict({f"{name}_l0": weight for name, weight in cell.items()})

    def __call__(self, strips: Samples) -> Samples:
        """Return the probability of speech [strips, frames] in float32 strips [strips, frames × 512]."""
        with torch.inference_mode():
            parts = [strips[i : i + AT_ONCE] for i in range(0, len(strips), AT_ONCE)]
            seen = torch.cat([self._seen(torch.tensor(part)) for part in parts])
            remembered, _ = self._memory(seen)
            weight, bias = self._last
            found: Samples = functional.linear(remembered.relu(), weight, bias).sigmoid()[..., 0].numpy()
        return found

    def _seen(self, strips: torch.Tensor) -> torch.Tensor:
        """Return what each frame looks like by itself: [strips, frames, features]."""
        frames = functional.pad(strips, (CONTEXT, 0)).unfold(1, CONTEXT + FRAME, FRAME)
        rows, count, _ = frames.shape
        each = functional.pad(frames.reshape(rows * count, 1, -1), (0, CONTEXT), "reflect")
        spectrum = functional.conv1d(each, self._stft, stride=STRIDE)
        x = (spectrum[:, :BINS].square() + spectrum[:, BINS:].square()).sqrt()
        for weight, bias, stride in self._layers:
            x = functional.conv1d(x, weight, bias, stride=stride, padding=1).relu()
        return x.reshape(rows, count, -1)


_CELL = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


def _file() -> Path:
    spec = find_spec("silero_vad")
    if spec is None or spec.origin is None:
        raise TranscriptionError("the package silero-vad is not installed: install it, or use --no-vad")
    return Path(spec.origin).parent / MODEL
