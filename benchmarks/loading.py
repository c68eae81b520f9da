"""Loading a model: ours beside transformers, torch, safetensors and three fast loaders, cold and warm, with floors.

usage: python benchmarks/loading.py [--quick] [--out FILE] [--shapes turbo ...] [--ways ours ...] [--rounds 7]

Weights are random, in the exact shapes of the models. Each load is a fresh process that has imported everything
before the clock starts. A cold one reads a copy of its own, of which no page is in memory (that is checked); a warm
one a file that has just been read. The seconds end when a model that can generate stands and each page was touched.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import common
import residency
from loaders import FLOORS, STATE, WAYS, Way, touch
from weights import SHAPES, make

from run_transcription.engines import byte_mover, trial
from run_transcription.timeline import Timeline

MIB = 1 << 20
RING = 64 * MIB  # as ring.py takes it; on a CPU nothing of it is used
PACKAGES = ("torch", "transformers", "safetensors", "xxhash", "fastsafetensors", "runai-model-streamer", "tensorizer")


def main() -> None:
    """Measure, print a table, and write the record."""
    options = _options()
    if options.child:
        print(json.dumps(child(options.child, Path(options.folder), options.device)))
        return
    rows: list[common.Row] = []
    bars: list[common.Bar] = []
    for shape in options.shapes:
        with tempfile.TemporaryDirectory(prefix="loading-", dir=options.folder) as scratch:
            folder = make(shape, Path(scratch) / shape)
            for cold in (False, True):
                found = rounds(folder, options, cold=cold)
                rows += [_row(shape, way, cold, found[way.name]) for way in WAYS if way.name in options.ways]
                bars += judge(shape, found, folder, cold=cold)
            rows.append(start := start_of(shape, folder, options))
            bars.append(judge_start(shape, start, rows))
    conditions = {"rounds": options.rounds, "device": options.device, "quick": options.quick, "dtype": "float16"}
    record = common.record("loading", conditions, rows, bars, PACKAGES)
    path = common.write(record, options.out, quick=options.quick)
    print(table(record))
    print(f"written to {path}")


def rounds(folder: Path, options: argparse.Namespace, *, cold: bool) -> dict[str, list[dict[str, object]]]:
    """Let all ways have their turn in each round, beginning with another one each time; what fails once is left out."""
    ways = [way for way in WAYS if way.name in options.ways]
    found: dict[str, list[dict[str, object]]] = {way.name: [] for way in WAYS}
    for number in range(options.rounds):
        for way in ways[number % len(ways) :] + ways[: number % len(ways)]:
            if found[way.name] and "error" in found[way.name][0]:
                continue
            found[way.name].append(one(folder, way, options.device, cold=cold))
            print(f"{folder.name} {'cold' if cold else 'warm'} {number} {way.name}", file=sys.stderr)
    return found


def one(folder: Path, way: Way, device: str, *, cold: bool) -> dict[str, object]:
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


def child(name: str, folder: Path, device: str) -> dict[str, object]:
    """Load in this process, all imports done before the clock starts."""
    import torch
    from transformers import WhisperForConditionalGeneration

    from run_transcription.engines import torch_engine  # noqa: F401 - what the loader imports too

    timeline = Timeline()
    timeline.mark("imports")
    if name == "start":
        return {"seconds": timeline.stages[0].start, "model": WhisperForConditionalGeneration.__name__}
    way = next(way for way in WAYS if way.name == name)
    _import_peer(name)
    if device == "cuda":
        torch.empty(1, device="cuda")
    before, began = trial.private_memory(), time.perf_counter()
    model = way.load(folder, device)
    if model is not None:
        touch(model)
    if device == "cuda":
        torch.cuda.synchronize()
    seconds = time.perf_counter() - began
    return {"seconds": seconds, "memory": trial.private_memory() - before}


def start_of(shape: str, folder: Path, options: argparse.Namespace) -> common.Row:
    """Start processes that load the state as the worker does; the imports alone are measured beside them."""
    home = folder.parent / "home"
    (home / "gpu_state").mkdir(parents=True)
    (home / "gpu_state" / folder.name).symlink_to(folder / "state")
    program = (
        "import sys, json, pathlib\n"
        "from run_transcription.optimized_loader import load, ModelSpec\n"
        "from run_transcription.timeline import Timeline\n"
        "t = Timeline()\n"
        "h = load(ModelSpec(sys.argv[1], device=sys.argv[2], home=pathlib.Path(sys.argv[3])), timeline=t)\n"
        "t.mark('can generate'); assert h.load.strategy == 'gpu_state', h.load\n"
        "print(json.dumps({s.name: [s.start, s.seconds] for s in t.stages}))\n"
    )
    starts, imports, stages = [], [], []
    for _ in range(options.rounds):
        byte_mover.read_ahead([folder / STATE])
        said = _run([sys.executable, "-c", program, str(folder), options.device, str(home)])
        if "error" in said:
            return common.row({"shape": shape, "way": "process start", "cache": "warm"}, [], str(said["error"]))
        stages.append(said)
        starts.append(said["can generate"][0])
        imports.append(_started("start", folder, options.device)["seconds"])
    labels = {"shape": shape, "way": "process start", "cache": "warm"}
    return common.row(labels, starts, imports=imports, stages=stages)


def judge(shape: str, found: dict[str, list[dict[str, object]]], folder: Path, *, cold: bool) -> list[common.Bar]:
    """Hold ours against the floors and the peers of the same round."""
    times = {name: [float(each["seconds"]) for each in runs if "seconds" in each] for name, runs in found.items()}
    ours = times["ours"]
    if cold:
        floor = times["disk floor"]
        slower = [mine / least for mine, least in zip(ours, floor, strict=False)]
        return [common.at_most(f"{shape} cold: over the disk floor", slower, 1 / 0.85, floor)]
    floors = [min(pair) for pair in zip(times["memory floor"], times["ring floor"], strict=False)]
    peers = {way.name for way in WAYS if way.private and not way.name.startswith("ours")} - set(FLOORS)
    fastest = [min(each) for each in zip(*(times[name] for name in peers if times[name]), strict=False)]
    size = (folder / STATE).stat().st_size
    allowed = size + RING + 64 * MIB
    memory = [float(each["memory"]) / allowed for each in found["ours"] if "memory" in each]
    ratio = {
        "over the memory floor": (ours, floors, 1.3),
        "over the fastest peer in private memory": (ours, fastest, 1.0),
        "over ours unchecked": (ours, times["ours, unchecked"], 1.15),
    }
    made = [
        common.at_most(f"{shape} warm: {name}", [a / b for a, b in zip(above, below, strict=False)], limit, floors)
        for name, (above, below, limit) in ratio.items()
    ]
    return [*made, common.at_most(f"{shape} warm: private memory over weights, ring and 64 MiB", memory, 1.0)]


def judge_start(shape: str, start: common.Row, rows: list[common.Row]) -> common.Bar:
    """Allow the start of a process a second more than its imports or the load, whichever is longer."""
    load = next((row.median for row in rows if row.labels == {"shape": shape, "way": "ours", "cache": "warm"}), None)
    least = [max(each, load or 0.0) for each in start.more.get("imports", [])]
    late = [mine - floor for mine, floor in zip(start.seconds, least, strict=False)]
    return common.at_most(f"{shape} warm: process start, seconds over imports or load", late, 1.0)


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


def _row(shape: str, way: Way, cold: bool, runs: list[dict[str, object]]) -> common.Row:  # noqa: FBT001
    labels = {"shape": shape, "way": way.name, "cache": "cold" if cold else "warm"}
    error = next((str(run["error"]) for run in runs if "error" in run), None)
    done = [run for run in runs if "seconds" in run]
    return common.row(labels, [float(run["seconds"]) for run in done], error, memory=[run["memory"] for run in done])


def _other(name: str, way: Way) -> bool:
    """Tell whether a file is another way's weights, which need not be copied."""
    large = {Path(each.file).name for each in WAYS} | {"state"}
    return name in large - {Path(way.file).name, Path(way.file).parts[0]}


def _started(name: str, folder: Path, device: str) -> dict[str, object]:
    return _run([sys.executable, __file__, "--child", name, "--folder", str(folder), "--device", device])


def _run(command: list[str]) -> dict[str, object]:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(common.ROOT), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        return {"error": " ".join(done.stderr.strip().splitlines()[-1:]) or f"status {done.returncode}"}
    said: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return said


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
