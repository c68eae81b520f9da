"""Make the demo recordings, their reference texts and manifest.json in run_transcription/demo/recordings/.

usage: python tools/make_demo_recordings.py        (espeak-ng)
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable
from dataclasses import asdict, dataclass

import av
import demo_speech
import numpy as np
from demo_speech import RATE, ROOT, Speech, Style

FOLDER = ROOT / "run_transcription" / "demo" / "recordings"
TALK = Style(snr=45, gain=(0.5, 0.9))


@dataclass(frozen=True, slots=True)
class Demo:
    """One line of the manifest: what is said in a file, and how it is to be transcribed."""

    file: str
    reference: str
    language: str | None
    task: str = "transcribe"


def talk(clips: demo_speech.Bank, language: str, seconds: float, seed: int, style: Style = TALK) -> Speech:
    """Return one speaker's words with a quiet background."""
    speech = demo_speech.speak(clips, language, seconds, style, random.Random(seed))
    noise = demo_speech.white(len(speech.samples), np.random.default_rng(seed))
    return demo_speech.finish(speech, style, noise)


def pause(seconds: float) -> Speech:
    """Return silence."""
    return Speech(np.zeros(round(seconds * RATE), np.float32), (), None)


def encode(name: str, speech: Speech, codec: str, bit_rate: int, rate: int = RATE) -> None:
    """Write samples to a file whose container its name tells."""
    with av.open(str(FOLDER / name), "w") as container:
        stream = container.add_stream(codec, rate=rate, layout="mono", bit_rate=bit_rate)
        resampler = av.AudioResampler(stream.format, "mono", rate)
        frame = av.AudioFrame.from_ndarray((speech.samples * 32767).astype(np.int16)[None], format="s16", layout="mono")
        frame.sample_rate = RATE
        for resampled in (*resampler.resample(frame), *resampler.resample(None)):
            for packet in stream.encode(resampled):
                container.mux(packet)
        for packet in stream.encode(None):
            container.mux(packet)


def write(name: str, parts: Iterable[Speech], codec: str, bit_rate: int, rate: int = RATE) -> Demo:
    """Write one recording with its reference beside it."""
    speech = demo_speech.join(parts)
    encode(name, speech, codec, bit_rate, rate)
    reference = " ".join(speech.words)
    (FOLDER / name).with_suffix(".txt").write_text(reference + "\n", encoding="utf-8")
    return Demo(name, reference, speech.language)


def main() -> None:
    """Write all recordings: speakers that the model was not trained on."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    clips = demo_speech.bank(held_out=True)
    watch = Style(snr=40, gain=(0.4, 0.9), speakers=3, phrase_gap=(0.5, 3.0))
    two = [talk(clips, "en", 26, 3), pause(4), talk(clips, "de", 24, 4)]
    rows = [
        write("call-signs.mp3", [talk(clips, "en", 24, 1)], "libmp3lame", 32_000),
        write("ziffern.m4a", [talk(clips, "de", 18, 0)], "aac", 32_000),
        write("night-watch.ogg", [talk(clips, "en", 34, 30 + i, watch) for i in range(4)], "libopus", 16_000, 48_000),
        write("two-languages.ogg", two, "libopus", 16_000, 48_000),
    ]
    manifest = json.dumps([asdict(row) for row in rows], indent=2, ensure_ascii=False)
    (FOLDER / "manifest.json").write_text(manifest + "\n", encoding="utf-8")
    total = sum(path.stat().st_size for path in FOLDER.iterdir())
    print(f"{len(rows)} recordings, {total / 1000:.0f} kB, in {FOLDER.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
