"""Recordings for a fault run: pieces of the demo's own, each with another content, and keys that are hard to carry."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import wave
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from run_transcription import audio, demo
from run_transcription.records import SAMPLE_RATE

SPEECH = Path(demo.__file__).parent / "recordings" / "night-watch.ogg"
LONG_EVERY = 10  # one in so many recordings has several chunks
ODD = ("a b+c", "100%20 %", "é ü ñ", "🎧", "x&y=z;#?", "line\nend", "'q' \"q\"", "plain")


def samples() -> np.ndarray:
    """Return the demo's longest recording as 16-bit samples."""
    with audio.open_recording(SPEECH) as reader:
        return (np.concatenate(list(reader.blocks())).clip(-1, 1) * 32767).astype("<i2")


def make(folder: Path, count: int, seed: int) -> list[Path]:
    """Write so many recordings: mostly a few seconds, some of several chunks."""
    chance, speech = random.Random(seed), samples()
    folder.mkdir(parents=True)
    paths = []
    for number in range(count):
        seconds = chance.uniform(65, 80) if number % LONG_EVERY == LONG_EVERY - 1 else chance.uniform(2, 5)
        length = int(seconds * SAMPLE_RATE)
        start = chance.randrange(len(speech) - length)
        paths.append(write(folder / f"{number:04d}.wav", speech[start : start + length]))
    return paths


def write(path: Path, sound: np.ndarray) -> Path:
    """Write 16-bit samples as a wav file."""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SAMPLE_RATE)
        file.writeframes(sound.tobytes())
    return path


def key(number: int) -> str:
    """Return the key of a recording."""
    return f"uploads/{ODD[number % len(ODD)]}/{number:04d}.wav"


@contextmanager
def undisturbed(folder: Path, out: Path, home: Path) -> Iterator[Callable[[], dict[str, str]]]:
    """Run the program once over a folder's recordings, undisturbed; the function waits for the texts, by name."""
    command = [sys.executable, "-m", "run_transcription", "transcribe", str(folder), "-o", str(out), "-f", "json"]
    command += ["--model", "demo", "--dtype", "float32", "--batch-size", "1"]
    environment = os.environ | {"TRANSCRIBE_HOME": str(home), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def texts() -> dict[str, str]:
        if process.wait():
            raise subprocess.CalledProcessError(process.returncode, command)
        return {path.stem: json.loads(path.read_text())["text"] for path in out.glob("*.json")}

    try:
        yield texts
    finally:
        process.kill()
        process.wait()
