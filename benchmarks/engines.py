"""Every engine in every dtype that runs here: size, time to load, speed, memory and words heard wrong.

usage: python benchmarks/engines.py [--quick] [--out FILE] [--rounds N] [--models demo tiny base small]

The demo model hears speech whose words are known, since espeak-ng says them one by one (speakers that its training
never heard); models in the exact shapes of tiny, base and small, with random weights, write the longest text there is
for windows of noise. Each row is a process of its own. Beside them stands faster-whisper's batched pipeline, on the
same model, dtype and settings.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import common
import numpy as np
import weights

PACKAGES = ("torch", "transformers", "ctranslate2", "faster-whisper")
DTYPES = {"torch": ("float32", "bfloat16"), "ctranslate2": ("float32", "int8")}
MODELS = ("demo", "tiny", "base", "small")
SECONDS = 300  # of speech
WINDOWS = 4  # of noise, in one batch
POINTS, SHARE = 0.005, 0.30  # that int8 may lose in word error rate, and its size over that of float32


def main() -> None:
    """Measure, print, and write the record."""
    options = _options()
    if options.one:
        print(json.dumps(_one(json.loads(options.one))))
        return
    rows: list[common.Row] = []
    with tempfile.TemporaryDirectory(prefix="engines-") as scratch:
        speech = _speech(Path(scratch), options.quick)
        for model in options.models:
            folder = "demo" if model == "demo" else str(weights.checkpoint(model, Path(scratch) / model))
            for engine, dtypes in (*DTYPES.items(), ("faster-whisper", DTYPES["ctranslate2"])):
                if engine != "faster-whisper" or model == "demo":
                    rows += [
                        _row(model, engine, dtype, folder, speech, Path(scratch), options.rounds) for dtype in dtypes
                    ]
    conditions = {"quick": options.quick, "device": "cpu", "rounds": options.rounds, "speech_seconds": SECONDS}
    path = common.write(
        common.record("engines", conditions, rows, _bars(rows), PACKAGES), options.out, quick=options.quick
    )
    for row in rows:
        print(row.labels, row.median, row.more, row.error or "")
    for bar in _bars(rows):
        print(f"{bar.verdict:<20} {bar.name}: {bar.value} (at most {bar.limit:.3g})")
    print(f"written to {path}")


def _row(  # noqa: PLR0913, PLR0917 - what a row is of, and where its files go
    model: str, engine: str, dtype: str, folder: str, speech: Path, scratch: Path, rounds: int
) -> common.Row:
    print(f"{model}: {engine} {dtype}", file=sys.stderr)
    asked = {"model": folder, "engine": engine, "dtype": dtype, "speech": str(speech), "rounds": rounds}
    command = [sys.executable, __file__, "--one", json.dumps(asked | {"home": str(scratch / "home")})]
    found = common.child(command)
    labels = {"model": model, "engine": engine, "dtype": dtype}
    return common.row(labels, found.pop("seconds", []), found.pop("error", None), **found)


def _one(asked: dict[str, Any]) -> dict[str, Any]:
    """Measure one row, in this process."""
    speech = dict(np.load(asked["speech"], allow_pickle=False))
    transcribe, facts = (_faster_whisper if asked["engine"] == "faster-whisper" else _ours)(asked)
    if asked["model"] != "demo":
        return facts | {"seconds": _timed(transcribe, asked["rounds"])}
    texts: list[str] = []
    seconds = _timed(lambda: texts.append(transcribe(speech["samples"])), asked["rounds"])
    from run_transcription.demo.score import word_errors, words

    said = str(speech["words"]).split()
    wrong = word_errors(said, words(texts[-1])) / len(said)
    rtfx = len(speech["samples"]) / 16_000 / sorted(seconds)[len(seconds) // 2]
    return facts | {"seconds": seconds, "rtfx": round(rtfx, 1), "word_error_rate": round(wrong, 4)}


def _timed(act: Any, rounds: int) -> list[float]:
    """Return the seconds of each round; the first one, which is slower than all others, is left out."""
    spent = []
    for _ in range(rounds + 1):
        began = time.perf_counter()
        act()
        spent.append(time.perf_counter() - began)
    return spent[1:]


def _ours(asked: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    from run_transcription import convert, direct_transcribe, gpu_memory_persist, optimized_loader
    from run_transcription.engines import model_folder, trial
    from run_transcription.records import Decoding, ModelSpec

    home = Path(asked["home"]) / asked["dtype"]
    spec = ModelSpec(asked["model"], device="cpu", dtype=asked["dtype"], engine=asked["engine"], home=home)
    source, folder = optimized_loader.resolve(spec), model_folder.state_folder(spec)
    if asked["engine"] == "torch":
        gpu_memory_persist.preload_gpu_model(source, folder, asked["dtype"])
    else:
        convert.make(source, folder, asked["engine"], asked["dtype"], "cpu")
    size = sum(path.stat().st_size for path in folder.rglob("*.*") if path.suffix not in {".json", ".txt"})
    began, before = time.perf_counter(), trial.private_memory()
    handle = optimized_loader.load(spec)
    facts = {"size_mb": round(size / 1e6, 1), "load_s": round(time.perf_counter() - began, 3)}
    facts |= {"memory_mb": round((trial.private_memory() - before) / 1e6)}
    plain = replace(Decoding(language="en"), temperature_increment_on_fallback=0.0)
    if asked["model"] == "demo":
        return lambda samples: direct_transcribe.transcribe(iter([samples]), handle.engine, plain)[0].text, facts
    rng = np.random.default_rng(0)
    windows = [(rng.standard_normal(480_000) * 0.1).astype(np.float32) for _ in range(WINDOWS)]
    return lambda: handle.engine.transcribe(windows, plain), facts


def _faster_whisper(asked: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    from faster_whisper import BatchedInferencePipeline, WhisperModel
    from transcribers import converted

    folder = converted(Path(asked["home"]), asked["dtype"])
    began = time.perf_counter()
    model = WhisperModel(str(folder), device="cpu", compute_type=asked["dtype"])
    facts = {"load_s": round(time.perf_counter() - began, 3)}
    system = BatchedInferencePipeline(model)
    greedy = {"beam_size": 1, "temperature": 0.0, "without_timestamps": False, "batch_size": 8, "language": "en"}

    def transcribe(samples: Any) -> str:
        return "".join(each.text for each in system.transcribe(samples, **greedy)[0])

    return transcribe, facts


def _speech(scratch: Path, quick: bool) -> Path:  # noqa: FBT001 - the option's value
    """Write recordings whose words are known into one file."""
    import scenes
    from scenes import demo_speech

    clips = scenes.small_bank() if quick else demo_speech.bank(held_out=True)
    made = scenes.SPEECH[0].make(clips, 60 if quick else SECONDS, 100)
    said = " ".join(spoken.word for phrase in made.phrases for spoken in phrase)
    path = scratch / "speech.npz"
    np.savez(path, samples=made.samples, words=np.array(said))
    return path


def _bars(rows: list[common.Row]) -> list[common.Bar]:
    found = {(row.labels["model"], row.labels["engine"], row.labels["dtype"]): row for row in rows}

    def more(engine: str, dtype: str, name: str, model: str = "demo") -> float:
        return float(str(found[model, engine, dtype].more.get(name, "nan")))

    bars = [common.at_most("rows that did not run", [float(sum(row.error is not None for row in rows))], 0)]
    for model in dict.fromkeys(row.labels["model"] for row in rows if row.labels["model"] != "demo"):
        share = more("ctranslate2", "int8", "size_mb", model) / more("ctranslate2", "float32", "size_mb", model)
        bars.append(common.at_most(f"{model}: size of int8 over float32", [share], SHARE))
    if not any(row.labels["model"] == "demo" for row in rows):
        return bars
    lost = more("ctranslate2", "int8", "word_error_rate") - more("torch", "float32", "word_error_rate")
    bars.append(common.at_most("int8: word error rate lost", [lost], POINTS))
    for dtype in DTYPES["ctranslate2"]:
        ours, theirs = (found["demo", engine, dtype].seconds for engine in ("ctranslate2", "faster-whisper"))
        ratios = [a / b for a, b in zip(ours, theirs, strict=False)]
        bars.append(common.at_most(f"{dtype}: our time over faster-whisper's, batched", ratios, 1.0))
    return bars


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="some minutes in all")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
