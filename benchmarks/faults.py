"""Run worker processes while everything around them fails, and count what came of it.

usage: python benchmarks/faults.py [--quick] [--seed N] [--out FILE]     (--quick: 40 recordings instead of 300)
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import common

sys.path.insert(0, str(common.ROOT / "tests"))

from faults.run import CORRUPT, POISON, Counts, Plan, run

from run_transcription.demo.emulator import emulated

QUICK = Plan(recordings=40, strikes=6)


def main() -> None:
    """Carry out a plan, write its record, and fail where a recording was lost, done twice or done wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--seed", type=int, default=Plan.seed)
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    plan = replace(QUICK if chosen.quick else Plan(), seed=chosen.seed)
    print(f"seed {plan.seed}: {plan.recordings} recordings, {plan.workers} workers, {plan.strikes} strikes", flush=True)
    with tempfile.TemporaryDirectory(prefix="transcribe-faults-") as folder, emulated(Path(folder)):
        counts = run(plan, Path(folder), "faults")
    print(counts)
    print(common.write(record(plan, counts), chosen.out, quick=chosen.quick))
    if not counts.clean:
        sys.exit("not every recording has exactly one right result")


def record(plan: Plan, counts: Counts) -> common.Record:
    """Put the counts into the form of all benchmarks."""
    conditions: dict[str, object] = {
        "seed": plan.seed,
        "recordings": plan.recordings,
        "messages": counts.messages,
        "workers": plan.workers,
        "share of S3 requests that fail": plan.share,
        "strikes": dict(counts.strikes),
        "not struck": dict(counts.not_struck),
        "S3 faults": dict(counts.s3_faults),
        "starts of workers": counts.starts,
        "poison": len(POISON),
    }
    row = common.row({"run": "from the first worker's start to the empty queue"}, [counts.seconds])
    wanted = {
        "recordings without a result": len(counts.lost),
        "recordings with more than one": len(counts.double),
        "results with other words": len(counts.different),
        "failures beside the corrupt recordings'": abs(counts.failures - CORRUPT),
        "dead letters that are no poison": len(counts.strange_dead_letters),
        "poison that is not in the dead letters": len(POISON) - counts.dead_letters,
        "messages left in the queue": sum(counts.left),
    }
    bars = [common.at_most(name, [float(value)], 0.0) for name, value in wanted.items()]
    return common.record("faults", conditions, [row], bars, ["boto3", "ministack", "torch", "transformers"])


if __name__ == "__main__":
    main()
