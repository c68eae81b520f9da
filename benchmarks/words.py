"""Word times: how far from where the words were said, and what they cost beside a run without.

usage: python benchmarks/words.py [--quick] [--out FILE] [--rounds N]

The words and their times are known, since espeak-ng says them one by one (speakers that the demo model's training never
heard). The demo model in float32 on a CPU, in English; runs with and without word times take turns.
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import replace
from difflib import SequenceMatcher
from pathlib import Path

import common
import scenes
from scenes import Speech, demo_speech

from run_transcription import direct_transcribe, optimized_loader
from run_transcription.records import Decoding, ModelSpec, Transcript

PACKAGES = ("torch", "transformers")
PLAIN = Decoding(language="en")
TIMED = replace(PLAIN, word_timestamps=True)
KINDS = ("conversation", "no pauses", "8 kHz", "10 dB SNR", "long gaps")
SECONDS, FACTOR = 0.1, 1.3  # at most


def main() -> None:
    """Measure, print, and write the record."""
    options = _options()
    clips = scenes.small_bank() if options.quick else demo_speech.bank(held_out=True)
    engine = optimized_loader.load(ModelSpec("demo", dtype="float32", device="cpu")).engine
    rows, ratios, all_errors = [], [], []
    for scene in (each for each in scenes.SPEECH if each.name in KINDS):
        speech, *_ = scenes.recordings(scene, clips, 0.2 if options.quick else 1.0)
        spent: dict[Decoding, list[float]] = {PLAIN: [], TIMED: []}
        for number in range(options.rounds + 1):
            for decoding, seconds in spent.items():
                began = time.perf_counter()
                found, _ = direct_transcribe.transcribe([speech.samples], engine, decoding)
                if number:  # the first round is slower than all others
                    seconds.append(time.perf_counter() - began)
        errors = boundary_errors(speech, found)
        all_errors += errors
        ratios += [b / a for a, b in zip(spent[PLAIN], spent[TIMED], strict=True)]
        rows.append(common.row({"recording": scene.name, "run": "without word times"}, spent[PLAIN]))
        rows.append(
            common.row(
                {"recording": scene.name, "run": "with word times"},
                spent[TIMED],
                boundaries=len(errors),
                median_error=round(statistics.median(errors), 3),
                ninth_decile=round(statistics.quantiles(errors, n=10)[-1], 3),
            )
        )
    bars = [
        common.at_most("boundaries of words: median error (s)", all_errors, SECONDS),
        common.at_most("time over that of a run without", ratios, FACTOR),
    ]
    conditions = {"quick": options.quick, "model": "demo", "dtype": "float32", "rounds": options.rounds}
    path = common.write(common.record("words", conditions, rows, bars, PACKAGES), options.out, quick=options.quick)
    for row in rows:
        print(row.labels, row.median, row.more)
    for bar in bars:
        print(f"{bar.verdict:<20} {bar.name}: {bar.value} (at most {bar.limit:.3g})")
    print(f"written to {path}")


def boundary_errors(speech: Speech, found: Transcript) -> list[float]:
    """Return how far starts and ends of words are from where they were said, of all words that were heard right."""
    said = [spoken for phrase in speech.phrases for spoken in phrase]
    heard = [word for segment in found.segments for word in segment.words]
    lines = [spoken.word for spoken in said], [word.word.strip() for word in heard]
    errors = []
    for block in SequenceMatcher(None, *lines, autojunk=False).get_matching_blocks():
        for i in range(block.size):
            wanted, got = said[block.a + i], heard[block.b + i]
            errors += [abs(got.start - wanted.start), abs(got.end - wanted.end)]
    return errors


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a minute in all")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    return parser.parse_args()


if __name__ == "__main__":
    main()
