"""Words lost, doubled and invented: ours beside transformers and faster-whisper, on recordings put together from words.

usage: python benchmarks/quality.py [--quick] [--out FILE] [--systems ours ...]

Each recording's words and times are known, since espeak-ng says them one by one (speakers that the demo model's
training never heard). All systems decode with the same weights, in float32, greedily, in English.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
import tempfile
import time
import types
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import common
import endurance
import numpy as np
import scenes
from scenes import Speech, demo_speech
from transcribers import Text, Transcriber, same_tokens, systems

from run_transcription import chunking, coverage, direct_transcribe, optimized_loader, vad
from run_transcription.demo.score import aligned, word_errors, words
from run_transcription.records import SAMPLE_RATE as RATE
from run_transcription.records import Decoding, Engine, ModelSpec

PACKAGES = ("torch", "transformers", "ctranslate2", "faster-whisper", "silero-vad")
OURS = "ours"
GREEDY = Decoding(language="en")
AROUND = 12.0  # seconds on both sides of a seam in the window that has none there
SHARED = 4.0  # seconds behind the beginning of a chunk that the one before may have heard, too


@dataclass(frozen=True, slots=True)
class Score:
    """What a system made of one scene."""

    errors: int
    words: int
    lost: int
    doubled: int
    at_seams: int
    boundary: float | None  # median error of phrases' starts and ends, in seconds
    coverage: float | None
    written: int


def main() -> None:
    """Measure, print a table, and write the record."""
    options = _options()
    clips = scenes.small_bank() if options.quick else demo_speech.bank(held_out=True)
    share = 0.15 if options.quick else 1.0
    rows: list[common.Row] = []
    with tempfile.TemporaryDirectory(prefix="quality-") as scratch:
        for name, make in systems(Path(scratch)).items():
            if name not in options.systems and options.systems:
                continue
            rows += _rows(name, make, clips, share)
        bars = [*judge(rows), *judge_seams(clips, share), *judge_voice(clips, share)]
        bars += judge_tokens(Path(scratch), clips)
        bars += judge_memory(Path(scratch), clips, quick=options.quick)
    conditions = {"quick": options.quick, "model": "demo", "dtype": "float32", "share": share}
    record = common.record("quality", conditions, rows, bars, PACKAGES)
    path = common.write(record, options.out, quick=options.quick)
    for row in rows:
        print(row.labels, row.median, row.more, row.error or "")
    for bar in bars:
        print(f"{bar.verdict:<20} {bar.name}: {bar.value} (at most {bar.limit:.3g})")
    print(f"written to {path}")


def _rows(name: str, make: object, clips: demo_speech.Bank, share: float) -> list[common.Row]:
    try:
        transcribe: Transcriber = make()  # type: ignore[operator]
        transcribe(np.zeros(16_000, np.float32) + 1e-3)  # the first call is slower than all others
    except Exception as error:  # noqa: BLE001 - a peer that fails is a row that says so
        return [common.row({"recording": scene.name, "system": name}, [], str(error)) for scene in scenes.SPEECH]
    made = []
    for scene in (*scenes.SPEECH, *scenes.SILENCE):
        print(f"{name}: {scene.name}", file=sys.stderr)
        made.append(_row(name, scene, transcribe, scenes.recordings(scene, clips, share)))
    return made


def _row(name: str, scene: scenes.Scene, transcribe: Transcriber, recordings: list[Speech]) -> common.Row:
    labels = {"recording": scene.name, "system": name}
    began, scores = time.perf_counter(), []
    seconds = 0.0
    for speech in recordings:
        began = time.perf_counter()
        try:
            found = transcribe(speech.samples)
        except Exception as error:  # noqa: BLE001 - its own words are what there is to say
            return common.row(labels, [], f"{type(error).__name__}: {error}")
        seconds += time.perf_counter() - began
        scores.append(score(speech, found))
    total = Counter({"errors": 0})
    for each in scores:
        total.update(errors=each.errors, words=each.words, lost=each.lost, doubled=each.doubled)
        total.update(at_seams=each.at_seams, written=each.written)
    length = sum(len(speech.samples) for speech in recordings) / demo_speech.RATE
    boundaries = [each.boundary for each in scores if each.boundary is not None]
    coverages = [each.coverage for each in scores if each.coverage is not None]
    return common.row(
        labels,
        [seconds],
        word_error_rate=round(total["errors"] / total["words"], 4) if total["words"] else None,
        lost=total["lost"],
        doubled=total["doubled"],
        at_seams=total["at_seams"] if name == OURS else None,
        boundary_error=round(statistics.median(boundaries), 3) if boundaries else None,
        words_on_silence=total["written"] if not total["words"] else None,
        coverage=round(min(coverages), 4) if coverages else None,
        rtfx=round(length / seconds, 1),
    )


def score(speech: Speech, found: Text) -> Score:
    """Hold a text against the words that were said."""
    said, written = [spoken for phrase in speech.phrases for spoken in phrase], words(found.text)
    wanted = [spoken.word for spoken in said]
    lost, doubled = moved(said, written)
    return Score(
        word_errors(wanted, written),
        len(wanted),
        len(lost),
        len(doubled),
        sum(any(0 <= time - seam <= SHARED for seam in found.seams) for time in (*lost, *doubled)),
        boundary_error(speech, found),
        found.quality.coverage if found.quality else None,
        len(written),
    )


def moved(said: Sequence[demo_speech.Spoken], written: Sequence[str]) -> tuple[list[float], list[float]]:
    """Return when words were said that are lost, and when those before which there is one too many."""
    pairs = aligned([spoken.word for spoken in said], written)
    middles = [(spoken.start + spoken.end) / 2 for spoken in said]
    lost = [middles[i] for i, j in pairs if i is not None and j is None]
    more = [sum(i is not None for i, _ in pairs[:place]) for place, (each, _) in enumerate(pairs) if each is None]
    return lost, [middles[min(place, len(said) - 1)] if said else 0.0 for place in more]


def seam_errors(speech: Speech, text: str, engine: Engine) -> int:
    """Count words lost or doubled in the overlaps of chunks, beyond those of one window that has no seam there."""
    from run_transcription.engines.silero import Silero

    said = [spoken for phrase in speech.phrases for spoken in phrase]
    heard = vad.Ear([speech.samples], Silero(), GREEDY.vad_threshold).heard()
    chunks = [passage.chunk for passage in chunking.passages(heard)]
    seams = [(b.start / RATE, a.end / RATE) for a, b in itertools.pairwise(chunks) if b.start < a.end]
    lost, doubled = moved(said, words(text))
    count = 0
    for start, end in seams:
        first, last = max(0.0, start - AROUND), min(end + AROUND, len(speech.samples) / RATE)
        row = engine.transcribe([speech.samples[round(first * RATE) : round(last * RATE)]], GREEDY).rows[0]
        inside = [spoken for spoken in said if first <= spoken.start and spoken.end <= last]
        alone = moved(inside, words(engine.tokenizer.decode(row.tokens)))
        ours, theirs = (sum(start <= time <= end for time in (*both[0], *both[1])) for both in ((lost, doubled), alone))
        count += max(0, ours - theirs)
    return count


def boundary_error(speech: Speech, found: Text) -> float | None:
    """Return the median distance of phrases' starts and ends from the nearest that were written."""
    if not found.spans or not speech.phrases:
        return None
    starts, ends = zip(*found.spans, strict=True)
    far = [min(abs(start - phrase[0].start) for start in starts) for phrase in speech.phrases]
    far += [min(abs(end - phrase[-1].end) for end in ends) for phrase in speech.phrases]
    return statistics.median(far)


def judge(rows: list[common.Row]) -> list[common.Bar]:
    """Hold ours against all others in each row."""
    bars = []
    mine = {row.labels["recording"]: row.more for row in rows if row.labels["system"] == OURS and row.seconds}
    for scene in scenes.SPEECH:
        rates = [
            row.more["word_error_rate"]
            for row in rows
            if row.labels["recording"] == scene.name and row.labels["system"] != OURS and row.seconds
        ]
        if scene.name in mine:
            over = mine[scene.name]["word_error_rate"] - min(rates, default=1.0)
            bars.append(common.at_most(f"{scene.name}: word error rate over the best other's", [over], 0.0))
            uncovered = 1 - (mine[scene.name]["coverage"] or 0.0)
            bars.append(common.at_most(f"{scene.name}: speech without text", [uncovered], 0.005))
    if "no pauses" in mine:
        bars.append(common.at_most("no pauses: words lost or doubled at seams", [mine["no pauses"]["at_seams"]], 0))
    silent = [mine[scene.name]["words_on_silence"] for scene in scenes.SILENCE if scene.name in mine]
    return [*bars, common.at_most("words on silence, noise, tones and hold music", [sum(silent)], 0)]


def judge_seams(clips: demo_speech.Bank, share: float) -> list[common.Bar]:
    """Tell what the joining costs from what the model has wrong in the same place without a seam."""
    engine = optimized_loader.load(ModelSpec("demo", dtype="float32", device="cpu")).engine
    scene = next(scene for scene in scenes.SPEECH if scene.name == "no pauses")
    (speech,) = scenes.recordings(scene, clips, share)
    found, _ = direct_transcribe.transcribe([speech.samples], engine, GREEDY)
    count = seam_errors(speech, found.text, engine)
    return [common.at_most("no pauses: of these, beyond what one window over the seam has wrong", [count], 0)]


def judge_voice(clips: demo_speech.Bank, share: float) -> list[common.Bar]:
    """Listen with many strips and with the package's single stream, in turns."""
    import torch

    from run_transcription.engines.silero import Silero

    sys.modules.setdefault("torchaudio", types.ModuleType("torchaudio"))  # the package imports it, for files only
    import silero_vad

    samples = np.concatenate([scenes.recordings(scene, clips, share)[0].samples for scene in scenes.SPEECH])
    ours, theirs, model = [], [], silero_vad.load_silero_vad()
    same = {"min_speech_duration_ms": 100, "min_silence_duration_ms": 100, "speech_pad_ms": 0}
    for _ in range(3):
        began = time.perf_counter()
        ear = vad.Ear([samples], Silero(), 0.5)
        # a region that goes on in the next block is one
        found = coverage.merged([region for block in ear.heard() for region in block.speech])
        ours.append(time.perf_counter() - began)
        began = time.perf_counter()
        expected = silero_vad.get_speech_timestamps(torch.from_numpy(samples), model, **same)
        theirs.append(time.perf_counter() - began)
    far = [1e9]
    if len(found) == len(expected):
        edges = [(r.start - e["start"], r.end - e["end"]) for r, e in zip(found, expected, strict=True)]
        far = [max(abs(each) for pair in edges for each in pair) / vad.SAMPLE_RATE]
    return [
        common.at_most(
            "listening: seconds over those of silero-vad's own code",
            [a / b for a, b in zip(ours, theirs, strict=True)],
            0.2,
        ),
        common.at_most("listening: farthest edge of a region from its own (s)", far, 0.1),
    ]


def judge_tokens(scratch: Path, clips: demo_speech.Bank) -> list[common.Bar]:
    """Compare the greedy ids of single windows."""
    speech = scenes.SPEECH[0].make(clips, 300.0, 7).samples
    size = 30 * demo_speech.RATE
    different = same_tokens(scratch, [speech[start : start + size] for start in range(0, len(speech) - size + 1, size)])
    return [common.at_most(f"windows whose tokens are not {name}'s", [count], 0) for name, count in different.items()]


def judge_memory(scratch: Path, clips: demo_speech.Bank, *, quick: bool) -> list[common.Bar]:
    """Decode a long and a short recording, and many, each in a process of its own."""
    speech = scenes.SPEECH[0].make(clips, 600.0, 3).samples
    file = scratch / "recording.wav"
    np.save(f"{file}.npy", speech)
    lengths, peaks = (10, 40 if quick else 600), []
    for minutes in lengths:
        endurance.write_recording(file, speech, minutes)
        peaks.append(endurance.measure("long", minutes, file)["mb"])
    many = endurance.measure("many", 60 if quick else endurance.FILES, file)["mb"]
    growth = endurance.slope(many, 40 if quick else 150)
    return [
        common.at_most(f"MB that {lengths[1]} minutes take over {lengths[0]}", [peaks[1] - peaks[0]], 300),
        common.at_most("growth of memory with each recording, per cent", [100 * growth], 0.05),
    ]


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few minutes in all")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--systems", nargs="+", default=[], help="only these")
    return parser.parse_args()


if __name__ == "__main__":
    main()
