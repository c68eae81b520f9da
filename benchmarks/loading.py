"""Loading a model: ours beside transformers, torch, safetensors and three fast loaders, cold and warm, with floors.

usage: python benchmarks/loading.py [--quick] [--out FILE] [--shapes turbo ...] [--ways ours ...] [--rounds 7]

Weights are random, in the exact shapes of the models. Each load is a fresh process that has imported everything
before the clock starts. A cold one reads a copy of its own, of which no page is in memory (that is checked); a warm
one a file that has just been read. The seconds end when a model that can generate stands and each page was touched.
Memory as large as will be used is touched and given back before the clock starts: on a virtual machine that hands
free memory to its host the first touch waits for the host, for a second or three, whoever loads. The
shape that the bars are about and the demo model have all rounds, the others three; the record is written after each.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import common
import residency
import starts
from loaders import FLOORS, STATE, WAYS, Way, touch
from weights import SHAPES, make

from run_transcription.engines import byte_mover, trial

MIB = 1 << 20
RING = 64 * MIB  # as ring.py takes it; on a CPU nothing of it is used
BARRED, OTHERS_ROUNDS = "turbo", 3
Runs = list[dict[str, Any]]  # of one way, in the order of the rounds: its seconds and memory, or its error
Found = dict[str, Runs]
Times = list[float | None]
PACKAGES = ("torch", "transformers", "safetensors", "xxhash", "fastsafetensors", "runai-model-streamer", "tensorizer")


def main() -> None:
    """Measure, print a table, and write the record."""
    options = _options()
    if options.child:
        print(json.dumps(child(options.child, Path(options.folder), options.device)))
        return
    rows: list[common.Row] = []
    bars: list[common.Bar] = []
    for shape in [*options.shapes, "demo"]:
        with tempfile.TemporaryDirectory(prefix="loading-", dir=options.folder) as scratch:
            more = of_demo(Path(scratch), options) if shape == "demo" else of_shape(shape, Path(scratch), options)
        rows, bars = rows + more[0], bars + more[1]
        _write(rows, bars, options)


def of_shape(shape: str, scratch: Path, options: argparse.Namespace) -> tuple[list[common.Row], list[common.Bar]]:
    """Measure one shape, warm, cold, and from the start of the process."""
    fewer = options.rounds if shape == BARRED else min(options.rounds, OTHERS_ROUNDS)
    options = argparse.Namespace(**vars(options) | {"rounds": fewer})
    rows: list[common.Row] = []
    bars: list[common.Bar] = []
    folder = make(shape, scratch / shape)
    for cold in (False, True):
        found = rounds(folder, options, cold=cold)
        rows += [_row(shape, way, cold, found[way.name]) for way in WAYS if way.name in options.ways]
        bars += judge(shape, found, folder, options, cold=cold)
    home = starts.home_of(folder, scratch / "home")
    rows.append(start := starts.measure(shape, starts.Start(str(folder), home), options))
    bars.append(starts.judge(start, warm_load(shape, rows)))
    return rows, bars


def of_demo(scratch: Path, options: argparse.Namespace) -> tuple[list[common.Row], list[common.Bar]]:
    """Measure the demo model from the start of the process to its first transcript."""
    start = starts.measure("demo", starts.of_demo(scratch), options)
    return [start], [starts.judge(start, load=None)]


def _write(rows: list[common.Row], bars: list[common.Bar], options: argparse.Namespace) -> None:
    """Print and write what is measured by now: a run of an hour may be ended early."""
    fewer = min(options.rounds, OTHERS_ROUNDS)
    conditions = {
        "rounds": options.rounds,
        "rounds of other shapes": fewer,
        "device": options.device,
        "quick": options.quick,
        "dtype": "float16",
    }
    name = "loading" if options.device == "cpu" else f"loading-{options.device}"
    record = common.record(name, conditions, rows, bars, PACKAGES)
    path = common.write(record, options.out, quick=options.quick)
    print(table(record))
    print(f"written to {path}", flush=True)


def rounds(folder: Path, options: argparse.Namespace, *, cold: bool) -> Found:
    """Let all ways have their turn in each round, in another order each time: a cold one feels what ran before it.

    What fails in the first round is left out of the others.
    """
    ways = [way for way in WAYS if way.name in options.ways]
    found: Found = {way.name: [] for way in WAYS}
    for number in range(options.rounds):
        for way in random.Random(number).sample(ways, len(ways)):
            if found[way.name] and "error" in found[way.name][0]:
                continue
            found[way.name].append(one(folder, way, options.device, cold=cold))
            print(f"{folder.name} {'cold' if cold else 'warm'} {number} {way.name}", file=sys.stderr)
    return found


def one(folder: Path, way: Way, device: str, *, cold: bool) -> dict[str, Any]:
    """Load once in a fresh process, and return what it says, or the error that it ended with."""
    if not cold:
        byte_mover.read_ahead([folder / way.file])
        return _started(way.name, folder, device)
    with tempfile.TemporaryDirectory(prefix="cold-", dir=folder.parent) as scratch:
        copy = Path(scratch) / folder.name
        shutil.copytree(folder, copy, ignore=lambda _, names: [name for name in names if _other(name, way)])
        if not residency.evict(copy / way.file):
            return {"error": "the file system keeps the file in memory"}
        return _started(way.name, copy, device)


def child(name: str, folder: Path, device: str) -> dict[str, Any]:
    """Load in this process, all imports done before the clock starts."""
    import torch
    from transformers import WhisperForConditionalGeneration  # noqa: F401 - the imports are not the load

    from run_transcription.engines import torch_engine  # noqa: F401

    way = next(way for way in WAYS if way.name == name)
    _import_peer(name)
    if device == "cuda":
        torch.empty(1, device="cuda")
    common.make_memory_ready(2 * (folder / way.file).stat().st_size)
    before, began = trial.private_memory(), time.perf_counter()
    model = way.load(folder, device)
    if model is not None:
        touch(model)
    if device == "cuda":
        torch.cuda.synchronize()
    seconds = time.perf_counter() - began
    return {"seconds": seconds, "memory": trial.private_memory() - before}


def judge(shape: str, found: Found, folder: Path, options: argparse.Namespace, *, cold: bool) -> list[common.Bar]:
    """Hold ours against the floors and the peers of the same round."""
    times = {name: [run.get("seconds") for run in runs] for name, runs in found.items()}
    ours = times["ours"]
    if cold:
        floor = times["disk floor"]
        unchecked = ("over ours unchecked", ratios(ours, times["ours, unchecked"]), 1.15)
        bars = [("over the disk floor", ratios(ours, floor), 1 / 0.85), unchecked]
        return [common.at_most(f"{shape} cold: {what}", values, limit, present(floor)) for what, values, limit in bars]
    size = (folder / STATE).stat().st_size
    floors = fastest([times["memory floor"], times["ring floor"]])
    peers = [way.name for way in WAYS if way.name not in FLOORS and not way.name.startswith("ours")]
    private = [name for name in peers if statistics.median(memories(found[name]) or [0]) > size / 2]
    allowed = RING + 64 * MIB + (size if options.device == "cpu" else 0)
    memory = [each / allowed for each in memories(found["ours"])]
    name = "over weights, ring and 64 MiB" if options.device == "cpu" else "over ring and 64 MiB"
    bars = [
        ("over the memory floor", ratios(ours, floors), 1.3),
        ("over the fastest peer in private memory", ratios(ours, fastest([times[peer] for peer in private])), 1.0),
        ("over ours unchecked", ratios(ours, times["ours, unchecked"]), 1.15),
    ]
    made = [common.at_most(f"{shape} warm: {what}", values, limit, present(floors)) for what, values, limit in bars]
    made.append(common.at_most(f"{shape} warm: private memory {name}", memory, 1.0))
    if options.device == "cuda":
        made.append(common.at_most(f"{shape} warm: seconds", present(ours), 1.0))
    return made


def ratios(above: Times, below: Times) -> list[float]:
    """Return the ratio of each round in which both were measured."""
    return [a / b for a, b in zip(above, below, strict=False) if a is not None and b is not None]


def fastest(ways: list[Times]) -> Times:
    """Return the shortest time of each round."""
    return [min(present(times), default=None) for times in zip(*ways, strict=False)]


def present(times: Iterable[float | None]) -> list[float]:
    """Leave out the rounds in which nothing was measured."""
    return [time for time in times if time is not None]


def memories(runs: Runs) -> list[float]:
    """Return the private memory of each run, in bytes."""
    return [run["memory"] for run in runs if "memory" in run]


def warm_load(shape: str, rows: list[common.Row]) -> float | None:
    """Return the median of our own warm loads of a shape."""
    return next((row.median for row in rows if row.labels == {"shape": shape, "way": "ours", "cache": "warm"}), None)


def table(record: common.Record) -> str:
    """Return the rows as a table for people."""
    lines = [
        f"{'shape':<10} {'cache':<6} {'way':<18} {'median s':>9} {'shortest':>9} {'longest':>9} {'private MB':>11}"
    ]
    for row in record.rows:
        where = f"{row.labels['shape']:<10} {row.labels['cache']:<6} {row.labels['way']:<18}"
        if not row.seconds:
            lines.append(f"{where} {row.error}")
            continue
        memory = row.more.get("memory")
        private = f"{statistics.median(memory) / 1e6:>11.0f}" if memory else ""
        lines.append(f"{where} {row.median:>9.3f} {min(row.seconds):>9.3f} {max(row.seconds):>9.3f} {private}")
    lines += [f"{bar.verdict:<20} {bar.name}: {bar.value} (at most {bar.limit:.3g})" for bar in record.bars]
    return "\n".join(lines)


def _row(shape: str, way: Way, cold: bool, runs: Runs) -> common.Row:  # noqa: FBT001
    labels = {"shape": shape, "way": way.name, "cache": "cold" if cold else "warm"}
    error = next((str(run["error"]) for run in runs if "error" in run), None)
    done = [run for run in runs if "seconds" in run]
    return common.row(labels, [float(run["seconds"]) for run in done], error, memory=[run["memory"] for run in done])


def _other(name: str, way: Way) -> bool:
    """Tell whether a file is another way's weights, which need not be copied."""
    large = {Path(each.file).name for each in WAYS} | {"state"}
    return name in large - {Path(way.file).name, Path(way.file).parts[0]}


def _started(name: str, folder: Path, device: str) -> dict[str, Any]:
    return common.child([sys.executable, __file__, "--child", name, "--folder", str(folder), "--device", device])


def _import_peer(name: str) -> None:
    """Import what a way needs, since no way's imports are its load."""
    import importlib

    module = {"runai streamer": "runai_model_streamer", "safetensors": "safetensors.torch"}.get(name, name)
    if name in {"fastsafetensors", "runai streamer", "tensorizer", "safetensors"}:
        importlib.import_module(module)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tiny shape and two rounds")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--shapes", nargs="+", choices=list(SHAPES), default=["turbo", "small", "large-v3"])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--ways", nargs="+", choices=[way.name for way in WAYS], default=[way.name for way in WAYS])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--folder", help="where gigabytes of weights are made, and removed again")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.quick:
        options.shapes, options.rounds = ["tiny"], 2
    return options


if __name__ == "__main__":
    main()
