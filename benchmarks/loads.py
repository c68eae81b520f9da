"""Recordings for throughput.py: so many mp3 files of so many seconds, of synthetic speech that hardly pauses."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import scenes
from scenes import demo_speech

RATE = demo_speech.RATE
LONGEST = 600.0  # seconds of speech that are made; what is longer says it again
WINDOW, TOKENS, FEW_TOKENS, WARM = 30.0, 100, 16, 20.0


@dataclass(frozen=True, slots=True)
class Load:
    """So many recordings of so many seconds."""

    files: int
    seconds: float

    @classmethod
    def parsed(cls, text: str) -> Load:
        """Read FILESxSECONDS, such as 1000x4."""
        files, _, seconds = text.partition("x")
        return cls(int(files), float(seconds))

    @property
    def name(self) -> str:
        """Name it in tables."""
        return f"{self.files} × {self.seconds:g} s"

    @property
    def tokens(self) -> int:
        """Return how many tokens a window gives: 100, and 16 where a recording is a short one."""
        return TOKENS if self.seconds >= WINDOW else FEW_TOKENS

    @property
    def total(self) -> float:
        """Return seconds of sound."""
        return self.files * self.seconds


def record(load: Load, folder: Path) -> list[Path]:
    """Write the recordings, and beside them warm.mp3, which is heard before the clock starts."""
    folder.mkdir(parents=True)
    style = demo_speech.Style(snr=40, phrase_gap=(0.2, 0.6))
    length = min(LONGEST, max(WARM, load.total))
    spoken = demo_speech.speak(scenes.small_bank(), "en", length, style, random.Random(7))
    samples = demo_speech.finish(spoken, style, None).samples
    _write(folder / "warm.mp3", samples[: round(min(WARM, load.seconds) * RATE)])
    paths = [folder / f"{number:04}.mp3" for number in range(load.files)]
    for path, part in zip(paths, _parts(samples, load), strict=True):
        _write(path, part)
    return paths


def _parts(samples: scenes.Speech, load: Load) -> Iterator[np.ndarray]:
    """Yield each recording's samples, each beginning where the one before it ended."""
    length, start = round(load.seconds * RATE), 0
    for _ in range(load.files):
        yield np.take(samples, np.arange(start, start + length), mode="wrap")
        start = (start + length) % len(samples)


def _write(path: Path, samples: np.ndarray) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libmp3lame", rate=RATE, layout="mono")
        frame = av.AudioFrame.from_ndarray(samples[None].astype(np.float32), format="fltp", layout="mono")
        frame.sample_rate = RATE
        for packet in (*stream.encode(frame), *stream.encode(None)):
            container.mux(packet)
