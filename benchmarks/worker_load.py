"""Measure what a worker costs beside the model, and how busy it keeps the model.

usage: python benchmarks/worker_load.py [--quick] [--out FILE]     (--quick: 200 tiny jobs instead of 2000)
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import common

sys.path.insert(0, str(common.ROOT / "tests"))

from faults import speech

from run_transcription import optimized_loader, storage, worker
from run_transcription.demo.emulator import Stack, emulated, make_stack
from run_transcription.engines.trial import private_memory
from run_transcription.errands import Desk, Shift
from run_transcription.interruption import Stop
from run_transcription.leases import Heart, Keeper
from run_transcription.records import (
    Batch,
    Decoding,
    Engine,
    ModelHandle,
    ModelSpec,
    Row,
    Timing,
)
from run_transcription.sources import SqsSource

if TYPE_CHECKING:
    from run_transcription.records import Samples

CPU_SECONDS = 0.030  # of overhead, from the receipt of a message to its deletion
BUSY = 0.9
GROWTH = 20e6  # bytes of private memory that may come beside noise
HALF_SECOND = 8000  # samples


@dataclass(frozen=True)
class Silent:
    """The model stubbed: it hears nothing, and costs nothing."""

    engine: Engine

    @property
    def facts(self) -> object:
        """Those of the model."""
        return self.engine.facts

    @property
    def tokenizer(self) -> object:
        """That of the model."""
        return self.engine.tokenizer

    def check(self, decoding: Decoding) -> Decoding:
        """Take whatever comes."""
        return decoding

    def transcribe(self, windows: list[Samples], _decoding: Decoding) -> Batch:
        """Hear nothing, at once."""
        return Batch(tuple(Row((), None, 0.0, 1.0, -5.0) for _ in windows), Timing())


def main() -> None:
    """Measure both, and write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    jobs, recordings = (200, 12) if chosen.quick else (2000, 40)
    with tempfile.TemporaryDirectory(prefix="transcribe-bench-") as name, emulated(Path(name)):
        folder = Path(name)
        handle = optimized_loader.load(ModelSpec("demo", device="cpu", dtype="float32", home=folder / "home"))
        tiny = tiny_jobs(handle, folder, jobs)
        busy = real_jobs(handle, folder, recordings)
    rows = [tiny, busy]
    bars = [
        common.at_most(
            "CPU seconds beside the model, a job", [float(str(tiny.more["cpu_seconds_a_job"]))], CPU_SECONDS
        ),
        common.at_most("growth of private memory, bytes", [float(str(tiny.more["growth_bytes"]))], GROWTH),
        common.at_most("share of the wall in which the model is idle", [1 - float(str(busy.more["busy"]))], 1 - BUSY),
    ]
    conditions: dict[str, object] = {"tiny jobs": jobs, "real recordings": recordings, "formats": "json"}
    made = common.record("worker_load", conditions, rows, bars, ["boto3", "ministack", "torch", "transformers"])
    print(json.dumps([row.more for row in rows], indent=1))
    print(common.write(made, chosen.out, quick=chosen.quick))


def tiny_jobs(handle: ModelHandle, folder: Path, count: int) -> common.Row:
    """Send many recordings of half a second through a worker whose model costs nothing."""
    stack = make_stack("tiny")
    path = speech.write(folder / "tiny.wav", speech.samples()[:HALF_SECOND])
    for number in range(count):
        storage.upload(path, f"s3://{stack.bucket}/uploads/{number}.wav")
    silent = ModelHandle(Silent(handle.engine), handle.load)  # type: ignore[arg-type]
    memory: list[int] = []
    before = resource.getrusage(resource.RUSAGE_SELF)
    wall = serve(silent, stack, folder, memory)
    after = resource.getrusage(resource.RUSAGE_SELF)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    settled = memory[len(memory) // 4]  # the first quarter fills pools and caches
    more = {"cpu_seconds_a_job": round(cpu / count, 5), "growth_bytes": max(0, memory[-1] - settled)}
    return common.row({"jobs": f"{count} of half a second, the model stubbed"}, [wall], **more)


def real_jobs(handle: ModelHandle, folder: Path, count: int) -> common.Row:
    """Send real recordings through a worker, and add up the seconds of its model."""
    stack, sound = make_stack("real"), speech.samples()
    length = min(len(sound), 60 * 16_000)
    for number in range(count):
        start = (number * 7919) % (len(sound) - length + 1)
        path = speech.write(folder / "real.wav", sound[start : start + length])
        storage.upload(path, f"s3://{stack.bucket}/uploads/{number}.wav")
    spent: list[float] = []

    @dataclass(frozen=True)
    class Timed(Silent):
        def transcribe(self, windows: list[Samples], decoding: Decoding) -> Batch:
            """Note how long the model takes."""
            began = time.perf_counter()
            batch = self.engine.transcribe(windows, decoding)
            spent.append(time.perf_counter() - began)
            ends.append(time.perf_counter())
            return batch

    ends: list[float] = []
    timed = ModelHandle(Timed(handle.engine), handle.load)  # type: ignore[arg-type]
    serve(timed, stack, folder, [])
    wall = ends[-1] - ends[0] + spent[0]  # from the first batch to the last: neither start nor the last poll
    return common.row({"jobs": f"{count} of a minute, the demo model"}, [wall], busy=round(sum(spent) / wall, 4))


def serve(handle: ModelHandle, stack: Stack, folder: Path, memory: list[int]) -> float:
    """Run a worker until nothing is left; return the seconds that took. Memory is noted after each job."""
    scratch = folder / f"scratch-{stack.bucket}"
    scratch.mkdir()
    desk = Desk(handle, Decoding(), ("json",), buckets=frozenset({stack.bucket}))
    shift = Shift(desk, scratch, Stop(), Heart())
    note = shift.journal.job
    shift.journal.job = lambda entry: (note(entry), memory.append(private_memory()))  # type: ignore[method-assign, assign, func-returns-value]
    began = time.perf_counter()
    out, sys.stdout = sys.stdout, open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115 - a device
    try:
        with Keeper() as keeper:
            worker.work(shift, SqsSource(stack.queue_url, keeper), worker.Terms(once=True))
    finally:
        sys.stdout = out
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
