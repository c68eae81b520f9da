"""Measure a bake by its steps: the first one, and one that starts from its image; then a boot of the image.

usage: python benchmarks/bake.py [ROUNDS]       (as root, with packer and sshd: make tools; three rounds, all kept)
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import common
from baking import bakery, report
from booting import boot
from emulated_ec2 import account
from isolated_machine import machine

from run_transcription import demo
from run_transcription.demo.emulator import emulated, make_stack

ROUNDS = 3
SHORTEST = 0.1  # seconds: a step that never takes as long has no row
RECORDING = Path(demo.__file__).parent / "recordings" / "night-watch.ogg"
PACKAGES = ("torch", "transformers", "moto")


def main() -> None:
    """Bake twice in each round, the second time from the first one's image, boot that, and write the records."""
    rounds = int(sys.argv[1]) if sys.argv[1:] else ROUNDS
    steps: dict[tuple[str, str], list[float]] = defaultdict(list)
    moments: dict[str, list[float]] = defaultdict(list)
    loads, reused = [], []
    for _ in range(rounds):
        loads.append(round(os.getloadavg()[0], 2))
        first, again, timeline = one_round()
        reused.append(again["reused_image"] == first["ami"])
        for name, made in (("first", first), ("again", again)):
            for step, seconds in (*made["seconds"].items(), ("all", made["total_seconds"])):
                steps[name, step].append(seconds)
        for moment, seconds in timeline.items():
            moments[moment].append(seconds)
    shared = {"model": "demo", "dtype": "float32", "rounds": rounds, "load_at_start": loads, "threads": 1}
    baked = shared | {"reused": reused, "state_bytes": first["state"]["size"], "packer": first["packer"]}
    rows = [
        common.row({"bake": name, "step": step}, seconds)
        for (name, step), seconds in steps.items()
        if max(seconds) >= SHORTEST
    ]
    print(common.write(common.record("bake", baked, rows, [], PACKAGES), None, quick=False))
    rows = [common.row({"since the boot's begin": moment}, seconds) for moment, seconds in moments.items()]
    print(common.write(common.record("boot", shared, rows, [], PACKAGES), None, quick=False))


def one_round() -> tuple[dict, dict, dict[str, float]]:
    """Return the reports of a bake and of one that starts from its image, and the timeline of a boot of the first."""
    with tempfile.TemporaryDirectory(prefix="bake-") as scratch, account(Path(scratch)) as ours:
        folder, baker = Path(scratch), bakery(Path(scratch), ours)
        with machine(folder / "first") as built:
            first = report(baker.bake(made_on=built))
        with machine(folder / "again", folder / "first") as built:
            again = report(baker.bake(made_on=built))
        with emulated(folder), machine(folder / "booted", folder / "first") as instance:
            return first, again, boot(instance, make_stack("boot"), RECORDING).timeline


if __name__ == "__main__":
    main()
