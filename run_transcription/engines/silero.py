"""Silero VAD on many strips at once: the network of the `silero-vad` package, with the weights that lie in it.

Of the network only a small LSTM goes from frame to frame, and it remembers for minutes: it runs through the recording
in one go. All before it is done for all frames of some strips at once, where the package's own code takes one frame
after the other. The package's imports would need torchaudio, so only its model's file is opened; the weights that lie
beside it as safetensors are those of an older version.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import cache
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
AT_ONCE = 4  # strips: about 20 MB for their spectra
CELL = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")

State = tuple[torch.Tensor, torch.Tensor]


class Silero:
    """Tells the probability of speech in each frame of one recording; a `vad.Detector`.

    It runs on the CPU, so that it hears the same everywhere.
    """

    def __init__(self) -> None:
        """Begin with silence, and with nothing to remember."""
        self._network = _network()
        self._before = torch.zeros(CONTEXT)
        self._state: State | None = None

    def __call__(self, strips: Samples) -> Samples:
        """Return the probability of speech [strips, frames] in the next strips, float32 [strips, frames × 512]."""
        return _thread().submit(self._hear, strips).result()

    def _hear(self, strips: Samples) -> Samples:
        with torch.inference_mode():
            seen = [self._seen(torch.tensor(strips[i : i + AT_ONCE])) for i in range(0, len(strips), AT_ONCE)]
            found, self._state = self._network.remember(torch.cat(seen), self._state)
        probabilities: Samples = found.reshape(len(strips), -1).numpy()
        return probabilities

    def _seen(self, strips: torch.Tensor) -> torch.Tensor:
        """Return what each frame looks like by itself: [frames, features]."""
        line = torch.cat([self._before, strips.reshape(-1)])
        self._before = line[-CONTEXT:]
        return self._network.see(line.unfold(0, CONTEXT + FRAME, FRAME))


class _Network:
    """The network's weights and its two halves."""

    def __init__(self, weights: dict[str, torch.Tensor]) -> None:
        self._stft = weights["_model.stft.forward_basis_buffer"]
        names = [f"_model.encoder.{i}.reparam_conv" for i in range(len(STRIDES))]
        self._layers = [
            (weights[f"{name}.weight"], weights[f"{name}.bias"], stride)
            for name, stride in zip(names, STRIDES, strict=True)
        ]
        self._last = weights["_model.decoder.decoder.2.weight"][:, :, 0], weights["_model.decoder.decoder.2.bias"]
        cell = {name: weights[f"_model.decoder.rnn.{name}"] for name in CELL}
        self._memory = torch.nn.LSTM(cell["weight_ih"].shape[1], cell["weight_hh"].shape[1])
        self._memory.load_state_dict({f"{name}_l0": weight for name, weight in cell.items()})

    def see(self, frames: torch.Tensor) -> torch.Tensor:
        """Return features [frames, features] of frames with their context [frames, samples]."""
        mirrored = functional.pad(frames[:, None], (0, CONTEXT), "reflect")
        spectrum = functional.conv1d(mirrored, self._stft, stride=STRIDE)
        x = (spectrum[:, :BINS].square() + spectrum[:, BINS:].square()).sqrt()
        for weight, bias, stride in self._layers:
            x = functional.conv1d(x, weight, bias, stride=stride, padding=1).relu()
        return x[:, :, 0]

    def remember(self, seen: torch.Tensor, state: State | None) -> tuple[torch.Tensor, State]:
        """Return the probability of speech [frames] after what was seen, and what is remembered of it."""
        remembered, state = self._memory(seen, state)
        return functional.linear(remembered.relu(), *self._last).sigmoid()[:, 0], state


@cache
def _thread() -> ThreadPoolExecutor:
    """Return the thread that listens, one for all recordings, in which torch uses one core.

    In each other thread memory that torch has let go of would stay, some 20 kB for every recording; and steps as small
    as these take three times as long on two cores.
    """
    threads, alone = torch.get_num_threads(), ThreadPoolExecutor(1, "silero")
    alone.submit(torch.get_num_threads).result()  # at its first use a thread takes the number that was set last …
    alone.submit(torch.set_num_threads, 1).result()
    torch.set_num_threads(threads)  # … so that threads made later take this one again
    return alone


@cache
def _network() -> _Network:
    return _Network(torch.jit.load(str(_file()), map_location="cpu").state_dict())  # type: ignore[no-untyped-call]


def _file() -> Path:
    """Return the package's model; raises TranscriptionError where the package is not installed."""
    spec = find_spec("silero_vad")
    if spec is None or spec.origin is None:
        raise TranscriptionError("the package silero-vad is not installed: install it, or use --no-vad")
    return Path(spec.origin).parent / MODEL
