"""Seconds of sound a second: ours beside transformers, faster-whisper, openai-whisper and whisper.cpp, and the limit.

usage: python benchmarks/throughput.py [--quick] [--out FILE] [--shapes tiny ...] [--loads 1000x4 ...] [--rounds 3]

All decode models of true shapes that say the same fixed number of tokens a window (fixed_tokens.py), greedily, from mp3
files of synthetic speech to their text. Each system has a process of its own; they take turns, with the same threads.
How often a window's text stands in what a system wrote is counted, and how many letters are something else; of the
pipeline, which cuts overlaps out, how many windows were decoded, and how many of them have another length. Of ours
3 % of the windows, chosen by hash, are decoded again at temperature 0.2; nothing else is decoded again.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import sys
import tempfile
import time
import zlib
from dataclasses import asdict
from pathlib import Path
from typing import Any

import common
import fixed_tokens
import limit
import loads
import rivals
import verdicts
from common import Row
from loads import Load

PACKAGES = ("torch", "transformers", "ctranslate2", "faster-whisper", "openai-whisper", "pywhispercpp")
SECONDS = {"tiny": 600.0, "small": 180.0}  # of the one long recording; 120 of all others
AGAIN = 3  # per cent of the windows
Found = dict[str, list[dict[str, Any]]]


def main() -> None:
    """Measure, print a table, and write the record."""
    options = _options()
    if options.child:
        print(json.dumps(child(options)))
        return
    rows: list[Row] = []
    bars: list[common.Bar] = []
    for shape in options.shapes:
        for load in options.loads or [Load(1, SECONDS.get(shape, 120.0))]:
            with tempfile.TemporaryDirectory(prefix="throughput-", dir=options.folder) as scratch:
                folder = fixed_tokens.make(shape, load.tokens, Path(scratch) / shape)
                rivals.prepare(folder)
                loads.record(load, Path(scratch) / "recordings")
                found = rounds(shape, load, Path(scratch), options)
            rows += measured(shape, load, found, options)
            bars += verdicts.judge(shape, load, found)
            _write(rows, bars, options)


def rounds(shape: str, load: Load, scratch: Path, options: argparse.Namespace) -> Found:
    """Let all systems have their turn in each round, in another order each time; what fails first is left out."""
    systems = [system for system in rivals.SYSTEMS if system.label in options.systems]
    if load.seconds >= loads.WINDOW:  # where no window is short
        systems = [system for system in systems if system.name != verdicts.SHORT]
    found: Found = {system.label: [] for system in systems}
    words = ["--folder", str(scratch), "--shapes", shape, "--loads", f"{load.files}x{load.seconds:g}"]
    words += ["--batch-size", str(options.batch_size), "--threads", str(options.threads)]
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    for number in range(options.rounds):
        for system in random.Random(number).sample(systems, len(systems)):
            runs = found[system.label]
            if runs and "error" in runs[0]:
                continue
            runs.append(common.child([sys.executable, __file__, "--child", system.label, *words]))
            print(f"{shape} {load.name} {number} {system.label}: {runs[-1]}", file=sys.stderr, flush=True)
    return found


def child(options: argparse.Namespace) -> dict[str, object]:
    """Transcribe in this process: first a recording that is not counted, then all others."""
    import torch

    torch.set_num_threads(options.threads)
    (shape,), (load,), scratch = options.shapes, options.loads, Path(options.folder)
    system = next(system for system in rivals.SYSTEMS if system.label == options.child)
    if system.name in {verdicts.OURS, verdicts.SHORT}:
        _again()
    transcribe = system.make(rivals.Job(scratch / shape, options.batch_size, system.dtype, options.threads))
    recordings = scratch / "recordings"
    transcribe([recordings / "warm.mp3"])
    paths = sorted(path for path in recordings.glob("*.mp3") if path.stem.isdigit())
    began = time.perf_counter()
    done = transcribe(paths)
    (scratch / "all.txt").write_text(done.text, encoding="utf-8")
    seconds = time.perf_counter() - began
    windows, odd = counted(done.text, expected(scratch / shape, load.tokens))
    if done.lengths is not None:
        windows, odd = len(done.lengths), sum(length != load.tokens - 2 for length in done.lengths)
    return {"seconds": seconds, "windows": windows, "odd": odd, "stages": done.stages, "memory": _peak()}


def counted(text: str, window: str) -> tuple[int, int]:
    """Return how often the window's text stands in a text, and how many characters are something else."""
    plain, window = "".join(text.split()), "".join(window.split())
    count = plain.count(window)
    return count, len(plain) - count * len(window)


def expected(folder: Path, tokens: int) -> str:
    """Return the text of one window."""
    from tokenizers import Tokenizer

    vocabulary = Tokenizer.from_file(str(folder / "tokenizer.json"))
    return str(vocabulary.decode(fixed_tokens.said(vocabulary, tokens)[1:-2]))


def measured(shape: str, load: Load, found: Found, options: argparse.Namespace) -> list[Row]:
    """Return a row for each system: RTFx, windows, tokens a second, memory, share of the limit of its dtype.

    That of int8 is told of bfloat16's limit.
    """
    work = limit.Work(shape, load.tokens, options.batch_size)
    rates = {dtype: limit.measure(dtype, options.threads) for dtype in ("float32", "bfloat16")}
    filled = min(load.seconds, limit.WINDOW_SECONDS)
    best = {dtype: limit.rtfx(work, dtype, rate, filled) for dtype, rate in rates.items()}
    rows = []
    for label, runs in found.items():
        dtype = label.rpartition(", ")[2]
        labels = {"shape": shape, "recordings": load.name, "system": label}
        done = [run for run in runs if "seconds" in run]
        error = next((str(run["error"]) for run in runs if "error" in run), None)
        more = _figures(done, load, best.get(dtype, best["bfloat16"])) if done else {}
        rows.append(common.row(labels, [run["seconds"] for run in done], error, **more))
    for dtype, rate in rates.items():
        labels = {"shape": shape, "recordings": load.name, "system": f"limit, {dtype}"}
        rows.append(common.row(labels, [load.total / best[dtype]], None, RTFx=round(best[dtype], 1), **asdict(rate)))
    return rows


def _figures(done: list[dict[str, Any]], load: Load, best: float) -> dict[str, object]:
    median = statistics.median(run["seconds"] for run in done)
    stages = {name: statistics.median(run["stages"][name] for run in done) for name in done[0]["stages"]}
    return {
        "RTFx": round(load.total / median, 1),
        "files_s": round(load.files / median, 2),
        "windows": done[0]["windows"],
        "odd": max(run["odd"] for run in done),
        "tokens_s": round(done[0]["windows"] * load.tokens / median),
        "MB": round(max(run["memory"] for run in done) / 1e6),
        "limit_share": round(load.total / median / best, 2),
        **{f"{name}_s": round(value, 2) for name, value in stages.items()},
    }


def _again() -> None:
    """Let 3 % of the windows, by hash, fail at temperature 0, and nothing else."""
    from run_transcription import quality

    def failing(row, text, decoding):  # noqa: ANN001, ANN202, ARG001 - quality.failing's signature
        chosen = zlib.crc32(repr(row.no_speech_prob).encode()) % 100 < AGAIN
        return ("logprob",) if chosen and row.temperature == 0 else ()

    quality.failing = failing


def _peak() -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) * 1024


def _write(rows: list[Row], bars: list[common.Bar], options: argparse.Namespace) -> None:
    """Print and write what is measured by now."""
    conditions = {name: getattr(options, name) for name in ("rounds", "batch_size", "threads", "quick")}
    record = common.record("throughput", conditions, rows, bars, PACKAGES)
    path = common.write(record, options.out, quick=options.quick)
    for row in record.rows:
        print(" | ".join(row.labels.values()), row.median or row.error, row.more)
    for bar in record.bars:
        print(f"{bar.verdict:<20} {bar.name}: {bar.value} (at most {bar.limit:.3g})")
    print(f"written to {path}", flush=True)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    labels = [system.label for system in rivals.SYSTEMS]
    parser.add_argument("--quick", action="store_true", help="two minutes of tiny, one round")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--shapes", nargs="+", choices=list(fixed_tokens.SHAPES), default=["tiny", "small", "turbo"])
    parser.add_argument("--systems", nargs="+", choices=labels, default=labels, metavar="SYSTEM")
    parser.add_argument("--loads", nargs="+", type=Load.parsed, metavar="FILESxSECONDS", help="else one, by shape")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--folder", help="where models and recordings are made, and removed again")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.quick:
        options.shapes, options.rounds, options.loads = ["tiny"], 1, [Load(1, 120.0)]
    return options


if __name__ == "__main__":
    main()
