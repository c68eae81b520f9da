"""The form that all benchmarks share: one record of what was measured, where, with what, and every single timing."""

from __future__ import annotations

import json
import mmap
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
SPREAD = 0.25  # a floor that spreads more than this tells nothing


@dataclass(frozen=True, slots=True)
class Row:
    """One thing under one condition: every timing in seconds, in the order of the rounds."""

    labels: dict[str, str]
    seconds: list[float]
    median: float | None
    more: dict[str, object] = field(default_factory=dict)
    error: str | None = None  # why there are no timings, in its own words


@dataclass(frozen=True, slots=True)
class Bar:
    """A value that shall not be above a limit; `verdict` is met, missed or not measurable here."""

    name: str
    value: float | None
    limit: float
    verdict: str


@dataclass(frozen=True, slots=True)
class Record:
    """One run of one benchmark."""

    name: str
    commit: str
    command: str
    machine: dict[str, object]
    versions: dict[str, str]
    conditions: dict[str, object]
    rows: list[Row]
    bars: list[Bar]


def record(
    name: str, conditions: dict[str, object], rows: Sequence[Row], bars: Sequence[Bar], packages: Sequence[str]
) -> Record:
    """Complete what was measured by where and with what."""
    command = " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *_without_paths(sys.argv[1:])])
    versions = {"python": platform.python_version()}
    versions |= {package: version for package in packages if (version := _version(package))}
    return Record(name, _COMMIT, command, machine(), versions, conditions, list(rows), list(bars))


def row(labels: dict[str, str], seconds: Sequence[float], error: str | None = None, **more: object) -> Row:
    """Make a row; its median is that of the timings."""
    rounded = [round(each, 4) for each in seconds]
    return Row(labels, rounded, statistics.median(rounded) if rounded else None, more, error)


def at_most(name: str, values: Sequence[float], limit: float, floor: Sequence[float] = ()) -> Bar:
    """Judge the median of values by a limit; where the floor itself spreads too far nothing is judged."""
    value = statistics.median(values) if values else None
    unsteady = bool(floor) and spread(floor) > SPREAD
    verdict = "not measurable here" if value is None or unsteady else "met" if value <= limit else "missed"
    return Bar(name, None if value is None else round(value, 3), limit, verdict)


def spread(values: Sequence[float]) -> float:
    """Return how far values lie apart: the longest over the median, less the shortest over the median."""
    return (max(values) - min(values)) / statistics.median(values)


def write(made: Record, out: Path | None, *, quick: bool) -> Path:
    """Write a record to benchmarks/results, a quick one beside it under a name that git ignores."""
    path = out or RESULTS / f"{made.name}{'-quick' if quick else ''}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(asdict(made), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return path


def child(command: Sequence[str]) -> dict[str, Any]:
    """Run a program of this checkout, and return the JSON of its last line, or the error that it ended with."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        return {"error": " ".join(done.stderr.strip().splitlines()[-1:]) or f"status {done.returncode}"}
    said: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return said


def make_memory_ready(size: int) -> None:
    """Touch bytes of memory and give them back, so that a virtual machine's host has put real memory behind them."""
    with mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as block:
        if hasattr(mmap, "MADV_HUGEPAGE"):
            block.madvise(mmap.MADV_HUGEPAGE)
        for place in range(0, size, mmap.PAGESIZE):
            block[place] = 1


def commit() -> str:
    """Return the commit of this checkout, and + where something is not committed."""
    git = ["git", "-C", str(ROOT)]
    head = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=False)
    status = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, check=False)
    return head.stdout.strip() + ("+" if status.stdout.strip() else "")


def machine() -> dict[str, object]:
    """Return what the times depend on."""
    cpus = [line for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    memory = next((int(line.split()[1]) for line in _lines("/proc/meminfo") if line.startswith("MemTotal")), 0)
    huge = "".join(_lines("/sys/kernel/mm/transparent_hugepage/enabled"))
    return {
        "cpu": cpus[0].partition(":")[2].strip() if cpus else platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(memory * 1024 / 1e9, 1),
        "system": platform.platform(),
        "huge_pages": huge[huge.find("[") + 1 : huge.find("]")] if "[" in huge else "unknown",
        "gpu": _gpu(),
        "load": os.getloadavg()[0],
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
    }


_COMMIT = commit()  # as it was when the program began, not an hour later


def _without_paths(words: Sequence[str]) -> list[str]:
    """Leave out where files were put, which is a matter of the machine."""
    left = iter(words)
    return [word for word in left if word not in {"--out", "--folder"} or not next(left, "")]


def _gpu() -> str | None:
    if not Path("/dev/nvidiactl").exists():
        return None
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else None


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text(encoding="utf-8").splitlines()
    except OSError:
        return []


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
