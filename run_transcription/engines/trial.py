"""Try one way to load a model: seconds, memory, and what it makes of the golden clip; and say it of all of them."""

from __future__ import annotations

import gc
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from run_transcription.engines import byte_mover, golden
from run_transcription.errors import ModelNotLoaded
from run_transcription.records import ModelFacts, ModelHandle


@dataclass(frozen=True, slots=True)
class Floor:
    """How long a model's bytes take when nothing is done with them; the page cache holds them from then on."""

    size: int  # bytes
    seconds: float


@dataclass(frozen=True, slots=True)
class Trial:
    """What became of one strategy; without a model `facts` is None, and `reason` says why."""

    strategy: str
    seconds: float
    reason: str | None = None
    facts: ModelFacts | None = None
    memory: int = 0  # bytes of private memory that it added
    first_seconds: float = 0.0  # of the golden clip
    heard: golden.Golden | None = None
    different: str | None = None  # from what it should have heard


def floor(paths: Sequence[Path]) -> Floor:
    """Read files twice, and take the time of the second reading."""
    byte_mover.read_ahead(paths)
    began = time.perf_counter()
    size = byte_mover.read_ahead(paths)
    return Floor(size, time.perf_counter() - began)


def attempt(strategy: str, load: Callable[[], ModelHandle], wanted: golden.Golden | None) -> Trial:
    """Load a model, and let it hear the golden clip; `wanted` is what it should hear."""
    gc.collect()
    before, began = private_memory(), time.perf_counter()
    try:
        handle = load()
    except ModelNotLoaded as error:
        return Trial(strategy, time.perf_counter() - began, reason=str(error))
    seconds, memory = time.perf_counter() - began, private_memory() - before
    began = time.perf_counter()
    heard = golden.hear(handle.engine)
    different = golden.difference(heard, wanted) if wanted is not None else None
    return Trial(strategy, seconds, None, handle.engine.facts, memory, time.perf_counter() - began, heard, different)


def problems(trials: Sequence[Trial], require: str | None) -> list[str]:
    """Return what is wrong with trials, the first that worked being the winner; nothing where all is well."""
    found = [f"{trial.strategy} hears something else: {trial.different}" for trial in trials if trial.different]
    winner = next((trial.strategy for trial in trials if trial.facts is not None), None)
    if winner is None:
        found.append("no strategy can load the model")
    elif require not in (None, winner):
        reason = next((trial.reason for trial in trials if trial.strategy == require), None)
        found.append(f"{winner} wins, not {require}: {reason}")
    return found


def table(trials: Sequence[Trial], floor: Floor) -> str:
    """Return a line for each trial, and one for the floor."""
    lines = [f"{'strategy':<10} {'seconds':>8} {'GB/s':>7} {'of floor':>9} {'memory':>9} {'golden':>8}  result"]
    for trial in trials:
        if trial.facts is None:
            lines.append(f"{trial.strategy:<10} {'-':>8} {'-':>7} {'-':>9} {'-':>9} {'-':>8}  {trial.reason}")
            continue
        rate, share = floor.size / trial.seconds / 1e9, floor.seconds / trial.seconds
        result = f"{trial.facts.dtype} on {trial.facts.device}, {trial.different or 'golden result right'}"
        numbers = f"{trial.seconds:>8.2f} {rate:>7.2f} {share:>9.1%} {trial.memory / 1e6:>6.0f} MB"
        lines.append(f"{trial.strategy:<10} {numbers} {trial.first_seconds:>6.2f} s  {result}")
    rate = floor.size / floor.seconds / 1e9
    lines.append(f"{'floor':<10} {floor.seconds:>8.2f} {rate:>7.2f} {1:>9.1%}  {floor.size / 1e6:.1f} MB merely read")
    return "\n".join(lines)


def as_json(trials: Sequence[Trial], floor: Floor) -> str:
    """Return all of it as one JSON object."""
    return json.dumps({"floor": asdict(floor), "strategies": [asdict(trial) for trial in trials]}, indent=2)


def private_memory() -> int:
    """Return this process's private memory in bytes, the page cache not counted; 0 where the system doesn't say."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:")), 0)
