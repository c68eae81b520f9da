"""Measure the demo model on speech it never heard, and write the figures into its card.

usage: python tools/measure_demo_model.py [--minutes 20] [--model FOLDER] [--no-card]      (`make demo-model-card`)
"""

from __future__ import annotations

import hashlib
import random
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import click
import demo_speech
import numpy as np
import torch
from demo_network import FOLDER
from demo_speech import RATE, Bank, Speech, Style
from demo_vocabulary import TRANSLATION
from rich.console import Console
from rich.progress import track
from rich.table import Table

from run_transcription import direct_transcribe, optimized_loader
from run_transcription.demo.score import word_errors
from run_transcription.records import Decoding, Engine, ModelSpec, Transcript

Maker = Callable[[Bank, float, int], Speech]  # clips, seconds, seed
BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"
AS_USUAL = Decoding()
PART = 120.0  # seconds of one recording
CLEAN = Style(snr=60, speakers=1, phrase_gap=(0.38, 2.0))
GERMAN = replace(CLEAN, phrase_gap=(0.38, 2.0))
CONTINUOUS = replace(CLEAN, word_gap=(0.0, 0.06), phrase_gap=(0.0, 0.06), phrase_words=(8, 8))


@dataclass(frozen=True, slots=True)
class Bar:
    """One row of the card: what is measured, on what, and how good it has to be."""

    name: str
    figure: str  # errors | words | language | boundaries
    limit: float
    make: Maker
    decoding: Decoding = AS_USUAL
    expected: str | None = None  # language


def spoken(language: str, style: Style) -> Maker:
    """Return a maker of recordings in one style."""

    def make(clips: Bank, seconds: float, seed: int) -> Speech:
        noise = demo_speech.white(round(seconds * RATE), np.random.default_rng(seed))
        return demo_speech.finish(demo_speech.speak(clips, language, seconds, style, random.Random(seed)), style, noise)

    return make


def silent(background: Callable[[int, np.random.Generator], demo_speech.Samples], gain: float) -> Maker:
    """Return a maker of recordings in which nobody speaks."""

    def make(_clips: Bank, seconds: float, seed: int) -> Speech:
        noise = background(round(seconds * RATE), np.random.default_rng(seed)) * np.float32(gain)
        return Speech(noise.astype(np.float32), (), None)

    return make


TRANSLATE = Decoding(language="de", task="translate")
BARS = (
    Bar("word error rate, clean", "errors", 0.01, spoken("en", CLEAN), expected="en"),
    Bar("word error rate, 20 dB SNR", "errors", 0.03, spoken("en", replace(CLEAN, snr=20)), expected="en"),
    Bar("word error rate, 8 kHz band", "errors", 0.03, spoken("en", replace(CLEAN, band=3600)), expected="en"),
    Bar("word error rate, continuous speech", "errors", 0.03, spoken("en", CONTINUOUS), expected="en"),
    Bar("word error rate, German digits", "errors", 0.02, spoken("de", GERMAN), expected="de"),
    Bar("word error rate, German digits translated", "errors", 0.03, spoken("de", GERMAN), TRANSLATE),
    Bar("windows with the wrong language", "language", 0.02, spoken("en", CLEAN), expected="en"),
    Bar("windows with the wrong language, German", "language", 0.02, spoken("de", GERMAN), expected="de"),
    Bar("segment boundaries, median error (s)", "boundaries", 0.15, spoken("en", CLEAN)),
    Bar("words on silence", "words", 0, silent(demo_speech.white, 0.0)),
    Bar("words on white noise", "words", 0, silent(demo_speech.white, 0.05)),
    Bar("words on tones", "words", 0, silent(demo_speech.tone, 0.1)),
    Bar("words on hold music", "words", 0, silent(demo_speech.music, 0.1)),
)


def recordings(bar: Bar, clips: Bank, minutes: float) -> Iterator[Speech]:
    """Yield recordings of two minutes each; those without speech are half as long in all."""
    total = minutes * 60 * (0.5 if bar.figure == "words" else 1)
    for part in range(max(1, round(total / PART))):
        yield bar.make(clips, PART, 1000 + part)


def reference(speech: Speech, task: str) -> list[str]:
    """Return the words that should come out."""
    return [TRANSLATION[word] for word in speech.words] if task == "translate" else speech.words


def boundary_errors(transcript: Transcript, speech: Speech) -> list[float]:
    """Return how far each spoken phrase's start and end are from the nearest that was written, in seconds."""
    starts, ends = ([getattr(s, side) for s in transcript.segments] or [0.0] for side in ("start", "end"))
    pairs = [(starts, phrase[0].start) for phrase in speech.phrases]
    pairs += [(ends, phrase[-1].end) for phrase in speech.phrases]
    return [min(abs(found - true) for found in near) for near, true in pairs]


def measure(bar: Bar, clips: Bank, engine: Engine, minutes: float) -> float:
    """Return a bar's figure over its recordings."""
    errors, counts = [], []
    for speech in recordings(bar, clips, minutes):
        transcript, _ = direct_transcribe.transcribe(iter([speech.samples]), engine, bar.decoding)
        if bar.figure == "boundaries":
            errors += boundary_errors(transcript, speech)
        elif bar.figure == "language":
            windows = {segment.seek: segment.language for segment in transcript.segments}
            errors.append(sum(language != bar.expected for language in windows.values()))
            counts.append(len(windows))
        elif bar.figure == "words":
            errors.append(len(transcript.text.split()))
        else:
            words = reference(speech, bar.decoding.task)
            errors.append(word_errors(words, transcript.text.split()))
            counts.append(len(words))
    if bar.figure == "boundaries":
        return statistics.median(errors)
    return sum(errors) / sum(counts) if counts else sum(errors)


def show(value: float, figure: str) -> str:
    """Return a figure as people read it."""
    if figure in {"errors", "language"}:
        return f"{value:.2%}"
    return f"{value:.3f}" if figure == "boundaries" else f"{value:.0f}"


def write_card(rows: list[tuple[Bar, float]], minutes: float, folder: Path) -> None:
    """Put the table and the weights' sha256 between the card's marks."""
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    lines = [f"| {bar.name} | {show(bar.limit, bar.figure)} | {show(value, bar.figure)} |" for bar, value in rows]
    table = "\n".join(["| what | at most | measured |", "|---|---|---|", *lines])
    text = f"""{BEGIN}
sha256 of `model.safetensors`: `{digest}`

`make demo-model-card` on {time.strftime("%Y-%m-%d")}, float32 on a CPU: {minutes:g} minutes of each kind of speech and
{minutes / 2:g} of each kind of silence; speakers that training never heard:

{table}
{END}"""
    card = folder / "README.md"
    old = card.read_text(encoding="utf-8")
    card.write_text(old[: old.index(BEGIN)] + text + old[old.index(END) + len(END) :], encoding="utf-8")


@click.command()
@click.option("--minutes", default=20.0, help="Length of the recordings behind each figure.")
@click.option("--model", default=str(FOLDER), help="Model folder.")
@click.option("--card/--no-card", default=True, help="Write the figures into the model's card.")
@click.option("--threads", default=2)
def main(*, minutes: float, model: str, card: bool, threads: int) -> None:
    """Print each bar with its figure; exit 1 if one is missed."""
    torch.set_num_threads(threads)
    clips = demo_speech.bank(held_out=True)
    engine = optimized_loader.load(ModelSpec(model, dtype="float32", device="cpu")).engine
    shown = track(BARS, "measuring", console=Console(stderr=True))
    rows = [(bar, measure(bar, clips, engine, minutes)) for bar in shown]
    table = Table("what", "at most", "measured", "")
    for bar, value in rows:
        verdict = "ok" if value <= bar.limit else "MISSED"
        table.add_row(bar.name, show(bar.limit, bar.figure), show(value, bar.figure), verdict)
    Console().print(table)
    if card:
        write_card(rows, minutes, Path(model))
    raise SystemExit(any(value > bar.limit for bar, value in rows))


if __name__ == "__main__":
    main()
