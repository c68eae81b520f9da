"""Seconds of sound a second: ours beside transformers, faster-whisper, openai-whisper and whisper.cpp, and the limit.

usage: python benchmarks/throughput.py [--quick] [--out FILE] [--shapes tiny ...] [--systems ours ...] [--rounds 3]

All decode models of true shapes that say the same fixed number of tokens a window (fixed_tokens.py), greedily, from an
mp3 file of synthetic speech to its text. Each system has a process of its own; they take turns, with the same threads.
Where a text is not the window's text, again and again, the row says so. Of ours 3 % of the windows, chosen by hash, are
decoded again at temperature 0.2; the others decode nothing again.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
import zlib
from dataclasses import asdict
from pathlib import Path

import common
import fixed_tokens
import limit
import rivals
from common import Bar, Row

PACKAGES = ("torch", "transformers", "ctranslate2", "faster-whisper", "openai-whisper", "pywhispercpp")
MINUTES = {"tiny": 10.0, "small": 4.0, "turbo": 2.0}
AGAIN = 3  # per cent of the windows
OURS = "ours"
SAME_DTYPE = "generate, batched, one call"


def main() -> None:
    """Measure, print a table, and write the record."""
    options = _options()
    if options.child:
        print(json.dumps(child(options)))
        return
    rows: list[Row] = []
    bars: list[Bar] = []
    with tempfile.TemporaryDirectory(prefix="throughput-") as scratch:
        for shape in options.shapes:
            folder = fixed_tokens.make(shape, options.tokens, Path(scratch) / shape)
            rivals.prepare(folder)
            found = rounds(shape, folder, options)
            more = measured(shape, found, options)
            rows += more
            bars += judge(shape, found)
            _write(rows, bars, options)


def rounds(shape: str, folder: Path, options: argparse.Namespace) -> dict[str, list[dict]]:
    """Let all systems have their turn in each round, beginning with another one each time."""
    recording = speech(folder.parent / f"{shape}.mp3", options.minutes or MINUTES.get(shape, 2.0))
    found: dict[str, list[dict]] = {name: [] for name in options.systems}
    for number in range(options.rounds):
        start = number % len(options.systems)
        for name in options.systems[start:] + options.systems[:start]:
            if found[name] and "error" in found[name][0]:
                continue
            words = ["--child", name, "--folder", str(folder), "--recording", str(recording)]
            words += ["--batch-size", str(options.batch_size), "--threads", str(options.threads)]
            words += ["--dtype", options.dtype, "--tokens", str(options.tokens)]
            found[name].append(common.child([sys.executable, __file__, *words]))
            print(f"{shape} {number} {name}: {found[name][-1]}", file=sys.stderr, flush=True)
    return found


def child(options: argparse.Namespace) -> dict[str, object]:
    """Transcribe in this process: a first recording that is not counted, then the whole one."""
    import torch

    torch.set_num_threads(options.threads)
    job = rivals.Job(Path(options.folder), options.batch_size, options.dtype, options.threads)
    if options.child == OURS:
        _again()
    transcribe = rivals.SYSTEMS[options.child](job)
    recording = Path(options.recording)
    transcribe(recording.with_suffix(".short.mp3"))
    began = time.perf_counter()
    done = transcribe(recording)
    recording.with_suffix(".txt").write_text(done.text, encoding="utf-8")
    seconds = time.perf_counter() - began
    windows, odd = counted(done.text, expected(Path(options.folder), options.tokens))
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


def measured(shape: str, found: dict[str, list[dict]], options: argparse.Namespace) -> list[Row]:
    """Return a row for each system: RTFx, windows, tokens a second, memory, share of the limit."""
    rates = limit.measure(options.dtype, options.threads)
    best = limit.rtfx(shape, options.tokens, options.batch_size, options.dtype, rates)
    length = 60 * (options.minutes or MINUTES.get(shape, 2.0))
    rows = []
    for name, runs in found.items():
        labels = {"shape": shape, "system": name}
        done = [run for run in runs if "seconds" in run]
        if not done:
            rows.append(common.row(labels, [], str(runs[0]["error"])))
            continue
        seconds = [run["seconds"] for run in done]
        median = statistics.median(seconds)
        stages = {f"{stage}_s": round(value, 2) for stage, value in done[0]["stages"].items()}
        more = {
            "RTFx": round(length / median, 1),
            "windows": done[0]["windows"],
            "odd": done[0]["odd"],
            "tokens_s": round(done[0]["windows"] * options.tokens / median),
            "MB": round(max(run["memory"] for run in done) / 1e6),
            "limit_share": round(length / median / best, 2),
        }
        rows.append(common.row(labels, seconds, None, **more, **stages))
    rows.append(
        common.row({"shape": shape, "system": "limit"}, [length / best], None, RTFx=round(best, 1), **asdict(rates))
    )
    return rows


def judge(shape: str, found: dict[str, list[dict]]) -> list[Bar]:
    """Hold ours against the fastest peer in float32 and against transformers' batched generate, round by round."""
    times = {name: [run.get("seconds") for run in runs] for name, runs in found.items()}
    peers = [name for name in times if name != OURS and not name.startswith("generate") and "int8" not in name]
    bars = []
    for what, names in (("the best peer in float32", peers), (SAME_DTYPE, [SAME_DTYPE])):
        fastest = [
            min(filter(None, each), default=None) for each in zip(*(times.get(n, []) for n in names), strict=False)
        ]
        ratios = [a / b for a, b in zip(times.get(OURS, []), fastest, strict=False) if a and b]
        bars.append(common.at_most(f"{shape}: time of ours over {what}", ratios, 1 / 1.25))
    return bars


def speech(path: Path, minutes: float) -> Path:
    """Write synthetic speech that hardly pauses as mp3, and its first 20 seconds beside it."""
    import random

    import av
    import scenes
    from scenes import demo_speech

    style = demo_speech.Style(snr=40, phrase_gap=(0.2, 0.6))
    made = demo_speech.speak(scenes.small_bank(), "en", minutes * 60, style, random.Random(7))
    samples = demo_speech.finish(made, style, None).samples
    for file, part in ((path, samples), (path.with_suffix(".short.mp3"), samples[: 20 * demo_speech.RATE])):
        with av.open(str(file), "w") as container:
            stream = container.add_stream("libmp3lame", rate=demo_speech.RATE, layout="mono")
            frame = av.AudioFrame.from_ndarray(part[None], format="fltp", layout="mono")
            frame.sample_rate = demo_speech.RATE
            for packet in (*stream.encode(frame), *stream.encode(None)):
                container.mux(packet)
    return path


def _again() -> None:
    """Let 3 % of the windows, by hash, fail at temperature 0, and nothing else."""
    from run_transcription import quality

    def failing(row, text, decoding):  # noqa: ANN001, ANN202, ARG001 - quality.failing's signature
        chosen = zlib.crc32(repr(row.no_speech_prob).encode()) % 100 < AGAIN
        return ("avg_logprob",) if chosen and row.temperature == 0 else ()

    quality.failing = failing


def _peak() -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) * 1024


def _write(rows: list[Row], bars: list[Bar], options: argparse.Namespace) -> None:
    conditions = {
        name: getattr(options, name) for name in ("rounds", "batch_size", "tokens", "dtype", "threads", "quick")
    }
    record = common.record("throughput", conditions, rows, bars, PACKAGES)
    path = common.write(record, options.out, quick=options.quick)
    for row in record.rows:
        print(f"{row.labels['shape']:<8} {row.labels['system']:<30} {row.median or row.error} {row.more}")
    for bar in record.bars:
        print(f"{bar.verdict:<20} {bar.name}: {bar.value} (at most {bar.limit:.3g})")
    print(f"written to {path}", flush=True)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two minutes of tiny, one round")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--shapes", nargs="+", choices=list(fixed_tokens.SHAPES), default=["tiny", "small", "turbo"])
    parser.add_argument("--systems", nargs="+", choices=list(rivals.SYSTEMS), default=list(rivals.SYSTEMS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--minutes", type=float, help="of the recording; by shape otherwise")
    parser.add_argument("--tokens", type=int, default=100)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    for hidden in ("--child", "--folder", "--recording"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.quick:
        options.shapes, options.rounds, options.minutes = ["tiny"], 1, 2.0
    return options


if __name__ == "__main__":
    main()
