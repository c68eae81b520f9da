"""Try one way to load a model: seconds, memory, and what it makes of the golden clip; and say it of all of them."""

from __future__ import annotations

import gc
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from run_transcription.engines import byte_mover, golden
from run_transcription.errors import ModelNotLoaded, TranscriptionError
from run_transcription.records import ModelFacts, ModelHandle

SMALL = 100_000_000  # bytes


@dataclass(frozen=True, slots=True)
class Floor:
    """How long a strategy's files take when nothing is done with their bytes; from then on they are in memory."""

    size: int  # bytes
    seconds: float


@dataclass(frozen=True, slots=True)
class Trial:
    """What became of one strategy; without a model `facts` is None, and `reason` says why."""

    strategy: str
    seconds: float
    floor: Floor
    reason: str | None = None
    facts: ModelFacts | None = None
    memory: int = 0  # bytes that it added, in private memory and on the GPU
    first_seconds: float = 0.0  # of the golden clip
    heard: golden.Golden | None = None
    verdict: str = ""  # what the golden clip says of it
    sound: bool = True  # False: it heard something else, or nothing


def floor(paths: Sequence[Path]) -> Floor:
    """Read files twice, and take the time of the second reading."""
    byte_mover.read_ahead(paths)
    began = time.perf_counter()
    size = byte_mover.read_ahead(paths)
    return Floor(size, time.perf_counter() - began)


def attempt(strategy: str, load: Callable[[], ModelHandle], wanted: golden.Golden | None, floor: Floor) -> Trial:
    """Load a model, and let it hear the golden clip; `wanted` is what it should hear, None where nothing says it."""
    gc.collect()
    before, began = _memory(), time.perf_counter()
    try:
        handle = load()
    except ModelNotLoaded as error:
        return Trial(strategy, time.perf_counter() - began, floor, reason=str(error))
    seconds, memory = time.perf_counter() - began, max(0, _memory() - before)
    loaded = Trial(strategy, seconds, floor, None, handle.engine.facts, memory)
    began = time.perf_counter()
    try:
        heard = golden.hear(handle.engine)
    except (TranscriptionError, RuntimeError) as error:  # the latter from CUDA's libraries
        return replace(loaded, verdict=f"can't decode: {' '.join(str(error).split())}", sound=False)
    loaded = replace(loaded, first_seconds=time.perf_counter() - began, heard=heard)
    if wanted is None:
        return replace(loaded, verdict="golden result, with nothing to compare it with")
    different = golden.difference(heard, wanted)
    verdict = "golden result right" if different is None else f"hears something else: {different}"
    return replace(loaded, verdict=verdict, sound=different is None)


def problems(trials: Sequence[Trial], require: str | None) -> list[str]:
    """Return what is wrong with trials, the first that worked being the winner; nothing where all is well."""
    found = [f"{trial.strategy} {trial.verdict}" for trial in trials if not trial.sound]
    winner = winner_of(trials)
    if winner is None:
        found.append("no strategy can load the model")
    elif require not in (None, winner):
        reason = next((trial.reason for trial in trials if trial.strategy == require), None)
        found.append(f"{winner} wins, not {require}: {reason}")
    return found


def table(trials: Sequence[Trial]) -> str:
    """Return a line for each trial; its floor is the time in which its files can merely be read from memory."""
    lines = [f"{'strategy':<10} {'seconds':>8} {'GB/s':>7} {'of floor':>9} {'memory':>9} {'golden':>8}  result"]
    for trial in trials:
        if trial.facts is None:
            lines.append(f"{trial.strategy:<10} {'-':>8} {'-':>7} {'-':>9} {'-':>9} {'-':>8}  {trial.reason}")
            continue
        result = f"{trial.facts.dtype} on {trial.facts.device}, {trial.verdict}"
        numbers = f"{trial.seconds:>8.2f} {_speed(trial)} {trial.memory / 1e6:>6.0f} MB"
        lines.append(f"{trial.strategy:<10} {numbers} {trial.first_seconds:>6.2f} s  {result}")
    return "\n".join(lines)


def _speed(trial: Trial) -> str:
    """Return GB/s and the share of the floor; of a small file they would only tell how threads are started."""
    if trial.floor.size < SMALL:
        return f"{'-':>7} {'-':>9}"
    return f"{trial.floor.size / trial.seconds / 1e9:>7.2f} {trial.floor.seconds / trial.seconds:>9.1%}"


def winner_of(trials: Sequence[Trial]) -> str | None:
    """Return the first strategy that loaded the model, which is the one that is used."""
    return next((trial.strategy for trial in trials if trial.facts is not None), None)


def as_json(trials: Sequence[Trial], model: str, problems: Sequence[str]) -> str:
    """Return all of it as one JSON object."""
    said = {"model": model, "winner": winner_of(trials), "problems": problems}
    return json.dumps({**said, "strategies": [asdict(trial) for trial in trials]}, indent=2)


def _memory() -> int:
    """Return the bytes in use: private memory, and the GPU's, where there is one."""
    import torch

    return private_memory() + (torch.cuda.memory_allocated() if torch.cuda.is_available() else 0)


def private_memory() -> int:
    """Return this process's private memory in bytes, the page cache not counted; 0 where the system doesn't say."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:")), 0)
