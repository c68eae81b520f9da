"""How memory grows: with the length of one recording, and with the number of recordings in one process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import common
import numpy as np

BLOCK = 30  # seconds
FILES = 200


def main() -> None:
    """Measure in this process, which was started for it, and print what was found."""
    what, amount = sys.argv[1], float(sys.argv[2])
    print(json.dumps(long_recording(amount) if what == "long" else many(int(amount))))


def long_recording(minutes: float) -> dict[str, object]:
    """Return the peak of memory in MB while a recording of so many minutes is decoded from a file."""
    from run_transcription import audio, direct_transcribe

    engine, decoding = _engine()
    with audio.open_recording(Path(os.environ["ENDURANCE_FILE"])) as reader:
        done, timing = direct_transcribe.transcribe(reader.blocks(), engine, decoding)
    if abs(done.duration - 60 * minutes) > 1:
        sys.exit(f"{done.duration} s are not {minutes} minutes")
    return {"mb": peak(), "seconds": timing.wall, "words": len(done.text.split())}


def many(files: int) -> dict[str, object]:
    """Return the resident memory in MB after each of so many recordings of 5 to 40 seconds."""
    from run_transcription import direct_transcribe

    engine, decoding = _engine()
    samples = np.load(os.environ["ENDURANCE_FILE"] + ".npy")
    sizes = []
    for i in range(files):
        start = (i * 7919) % (len(samples) - 40 * 16_000)
        part = samples[start : start + (5 + i * 7 % 36) * 16_000]
        direct_transcribe.transcribe(iter([part]), engine, decoding)
        sizes.append(resident())
    return {"mb": sizes}


def _engine() -> tuple[object, object]:
    from run_transcription import optimized_loader
    from run_transcription.records import Decoding, ModelSpec

    spec = ModelSpec("demo", dtype="float32", device="cpu")
    return optimized_loader.load(spec).engine, Decoding(language="en", temperature_increment_on_fallback=0.0)


def peak() -> float:
    """Return the most memory that this program had, in MB; getrusage would count what its parent had at the fork."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith("VmHWM:"))


def resident() -> float:
    """Return the memory of this process, in MB."""
    pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def measure(what: str, amount: float, file: Path) -> dict[str, object]:
    """Measure in a process of its own."""
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(common.ROOT), os.environ.get("PYTHONPATH", "")]),
        "ENDURANCE_FILE": str(file),
    }
    command = [sys.executable, __file__, what, str(amount)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    found: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return found


def write_recording(path: Path, samples: np.ndarray, minutes: float) -> Path:
    """Write a wav of 16-bit samples that repeats some minutes as often as needed."""
    import wave

    data = (np.clip(samples, -1, 1) * 32767).astype("<i2").tobytes()
    left = round(minutes * 60 * 16_000) * 2
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16_000)
        while left:
            file.writeframes(data[:left])
            left -= min(left, len(data))
    return path


def slope(sizes: list[float], last: int = 150) -> float:
    """Return by which share of its mean memory grows with each recording, over the last ones."""
    tail = np.array(sizes[-last:])
    return float(np.polyfit(np.arange(len(tail)), tail, 1)[0] / tail.mean())


if __name__ == "__main__":
    main()
