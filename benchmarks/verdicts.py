"""The bars of throughput.py: ours against its peers round by round, and what is not the model's time."""

from __future__ import annotations

from typing import Any

import common
from loads import WINDOW, Load

OURS, SHORT, UNIQUE = "ours", "ours --short-windows", "generate, batched, one call"
PEERS = ("pipeline", "faster-whisper", "faster-whisper batched", "openai-whisper", "whisper.cpp")
AROUND = {"tiny": 0.20, "small": 0.05}  # of the wall time: decode, VAD, features, text and writing
Found = dict[str, list[dict[str, Any]]]
Times = list[float | None]


def judge(shape: str, load: Load, found: Found) -> list[common.Bar]:
    """Hold ours against the best peers; no bar for the shapes that have none."""
    if shape not in AROUND:
        return []
    from run_transcription.engines import hardware

    native = hardware.dtype("auto", "cpu")
    own = times(found, OURS, native)
    where = f"{shape}, {load.name}"
    if load.seconds < WINDOW:
        peer, brief = fastest(found, PEERS), times(found, SHORT, native)
        bars = [_bar(f"{where}: time over the best peer's", own, peer, 2.0)]
        return [*bars, _bar(f"{where}, --short-windows: time over the best peer's", brief, peer, 4.0)]
    dtypes, factor = (None, 1.8) if native == "bfloat16" else ("float32", 1.25)
    bars = [_bar(f"{where}: time over the best peer's", own, fastest(found, PEERS, dtypes), factor)]
    for dtype in dict.fromkeys(("float32", native)):
        peer = times(found, UNIQUE, dtype)
        bars.append(_bar(f"{where}: time over batched generate's, {dtype}", times(found, OURS, dtype), peer, 1.25))
    shares = [around(run) for run in found.get(f"{OURS}, {native}", []) if "stages" in run]
    return [*bars, common.at_most(f"{where}: share of what is not encoder or decoder", shares, AROUND[shape])]


def times(found: Found, name: str, dtype: str) -> Times:
    """Return a system's seconds in each round."""
    return [run.get("seconds") for run in found.get(f"{name}, {dtype}", [])]


def fastest(found: Found, names: tuple[str, ...], dtype: str | None = None) -> Times:
    """Return the shortest time of each round among systems, in one dtype or in any."""
    chosen = [runs for label, runs in found.items() if _is_one_of(label, names, dtype)]
    rounds = max(map(len, chosen), default=0)
    each = [[runs[i]["seconds"] for runs in chosen if i < len(runs) and "seconds" in runs[i]] for i in range(rounds)]
    return [min(seconds, default=None) for seconds in each]


def around(run: dict[str, Any]) -> float:
    """Return the share of a run's time that is neither encoder nor decoder."""
    return 1 - (run["stages"]["encoder"] + run["stages"]["decoder"]) / run["seconds"]


def _is_one_of(label: str, names: tuple[str, ...], dtype: str | None) -> bool:
    name, _, own = label.rpartition(", ")
    return name in names and dtype in {None, own}


def _bar(name: str, ours: Times, theirs: Times, factor: float) -> common.Bar:
    ratios = [a / b for a, b in zip(ours, theirs, strict=False) if a and b]
    return common.at_most(name, ratios, 1 / factor)
