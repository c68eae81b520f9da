"""What the start of a process spends its seconds on, counted from the moment that the system made it."""

from __future__ import annotations

import os
import time
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from run_transcription.records import Batch, Chunk, Decoding, Engine, ModelFacts, ModelHandle, Tokenizer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from run_transcription.records import Samples

_IMPORTED = time.perf_counter()


@dataclass(frozen=True, slots=True)
class Stage:
    """A part of a process's start: seconds after that start, and how many it took."""

    name: str
    start: float
    seconds: float


class Timeline:
    """Collects stages, from any thread; seconds count from the start of the process."""

    def __init__(self) -> None:
        """Begin without a stage."""
        self.began = process_start()
        self.stages: list[Stage] = []

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Note when the block began and how long it took; also where it raises."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.stages.append(Stage(name, began - self.began, time.perf_counter() - began))

    def mark(self, name: str) -> None:
        """Note that something has happened now, if it is the first time."""
        if all(stage.name != name for stage in self.stages):
            self.stages.append(Stage(name, time.perf_counter() - self.began, 0.0))

    def watch(self, handle: ModelHandle) -> ModelHandle:
        """Return a handle whose engine's first call is a stage."""
        self.mark("can generate")
        return replace(handle, engine=Watched(handle.engine, self))

    def lines(self) -> list[str]:
        """Return a line for each stage in the order of their beginning; some go on side by side."""
        ordered = sorted(self.stages, key=lambda stage: stage.start)
        rows = [(stage.name, stage.start, stage.start + stage.seconds, stage.seconds) for stage in ordered]
        lines = [f"{name:<22} {start:8.2f} {end:8.2f} {seconds:8.2f}" for name, start, end, seconds in rows]
        return [f"{'stage':<22} {'from':>8} {'to':>8} {'seconds':>8}", *lines]


class Watched:
    """An engine whose first call is a stage of the timeline; a `records.Engine`."""

    def __init__(self, engine: Engine, timeline: Timeline) -> None:
        """Stand in for an engine."""
        self.facts: ModelFacts = engine.facts
        self.tokenizer: Tokenizer = engine.tokenizer
        self._engine = engine
        self._timeline = timeline
        self._called = False

    def check(self, decoding: Decoding) -> Decoding:
        """Do as the engine does."""
        return self._engine.check(decoding)

    def transcribe(self, windows: Sequence[Samples], decoding: Decoding) -> Batch:
        """Do as the engine does."""
        if self._called:
            return self._engine.transcribe(windows, decoding)
        self._called = True
        with self._timeline.stage("first call"):
            return self._engine.transcribe(windows, decoding)

    def transcribe_sequentially(
        self, samples: Samples, decoding: Decoding, reached: Callable[[float], None]
    ) -> tuple[tuple[Chunk, ...], Batch]:
        """Do as the engine does."""
        return self._engine.transcribe_sequentially(samples, decoding, reached)


def process_start() -> float:
    """Return when this process began, on the clock of time.perf_counter; elsewhere than on Linux when it came here."""
    try:
        ticks = int(Path("/proc/self/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[19])
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, AttributeError):
        return _IMPORTED
    return time.perf_counter() - age
