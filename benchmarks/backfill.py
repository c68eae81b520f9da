"""Interrupt a backfill of many recordings twice, and count what it has sent and how much memory that took.

usage: python benchmarks/backfill.py [--quick] [--out FILE]  (--quick: 400 and 2,000 recordings, not 2,000 and 20,000)

The program itself runs, as a process, against the stack on the embedded S3 and SQS.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import common

from run_transcription import aws, backfill, changes, fleet_report, names, stacks
from run_transcription.demo.emulator import REGION, emulated

SIZES, QUICK = (2_000, 20_000), (400, 2_000)
DONE_EACH = 40  # one recording of so many has its result
# signals, and the share of all recordings that are sent by then; None: the run that ends by itself
RUNS = (("until Ctrl-C", signal.SIGINT, 0.2), ("until SIGTERM", signal.SIGTERM, 0.6), ("to the end", None, 1.0))
THREADS = 8
MORE_MB = 3.0  # that ten times the recordings may take: all their addresses would take more


@dataclass(frozen=True)
class Outcome:
    """What came of a backfill of so many recordings."""

    size: int
    rows: list[common.Row]
    peak: float  # MB, the highest of the runs
    lost: int
    doubled: int
    needless: int  # sent though they had a result


def main() -> None:
    """Measure each size on a stack of its own, write the record, and fail where anything was lost or sent twice."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    outcomes = []
    for size in QUICK if chosen.quick else SIZES:
        with tempfile.TemporaryDirectory(prefix="transcribe-backfill-") as folder, emulated(Path(folder)):
            outcomes.append(measure(size))
        print(outcomes[-1], flush=True)
    made = record(outcomes)
    print(common.write(made, chosen.out, quick=chosen.quick))
    if any(bar.verdict == "missed" for bar in made.bars):
        sys.exit("the backfill is not what it should be: see the record")


def measure(size: int) -> Outcome:
    """Put recordings there, some with a result; send the others in three runs, and count what is in the queue."""
    aws.s3().create_bucket(Bucket="calls")
    given = {"MaxWorkers": "0", "AttachedBuckets": "calls"}
    changes.carry_out(changes.prepare("bench", REGION, given), lambda _event: None)
    stack = stacks.find("bench", REGION)
    keys = [f"old/{number:06}.wav" for number in range(size)]
    done = keys[::DONE_EACH]
    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(lambda key: _put("calls", key), keys))
        list(pool.map(lambda key: _put(stack.bucket, _result_of(stack, key)), done))
    rows, peaks = [], []
    for name, number, share in RUNS:
        seconds, peak = _run(stack, size, number, round(share * size))
        peaks.append(peak)
        sent = fleet_report.queue("backfill", stack.backfill_url, REGION).waiting
        figures = {"in_queue": sent, "peak_mb": round(peak, 1)}
        rows.append(common.row({"recordings": str(size), "run": name}, [seconds], **figures))
    found = _received(stack)
    wanted = set(keys) - set(done)
    return Outcome(
        size,
        rows,
        max(peaks),
        lost=len(wanted - found.keys()),
        doubled=sum(count - 1 for count in found.values()),
        needless=len(found.keys() - wanted),
    )


def record(outcomes: list[Outcome]) -> common.Record:
    """Put the outcomes into the form of all benchmarks."""
    counts = {
        "recordings that were not sent": sum(each.lost for each in outcomes),
        "recordings that were sent twice": sum(each.doubled for each in outcomes),
        "recordings that were sent though they had a result": sum(each.needless for each in outcomes),
    }
    bars = [common.at_most(name, [float(value)], 0.0) for name, value in counts.items()]
    few, many = outcomes[0], outcomes[-1]
    bars.append(common.at_most(f"MB that {many.size} take over {few.size}", [many.peak - few.peak], MORE_MB))
    conditions: dict[str, object] = {"one of so many has its result": DONE_EACH, "page": 1000}
    rows = [row for each in outcomes for row in each.rows]
    return common.record("backfill", conditions, rows, bars, ["boto3", "ministack"])


def _run(stack: stacks.Stack, size: int, number: signal.Signals | None, sent: int) -> tuple[float, float]:
    """Run the program until so many messages are in the queue, or to its end; return seconds and its peak in MB."""
    command = [sys.executable, "-m", "run_transcription", "backfill", "s3://calls/old/", "--stack", stack.name]
    environment = os.environ | {"PYTHONPATH": str(common.ROOT)}
    began, peak, struck = time.perf_counter(), 0.0, False
    command += ["--region", REGION, "--outstanding", str(3 * size)]
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    while process.poll() is None:
        peak = max(peak, _peak(process.pid))
        if number and not struck and fleet_report.queue("b", stack.backfill_url, REGION).waiting >= sent:
            process.send_signal(number)
            struck = True
        time.sleep(0.02)
    said = process.communicate()[1]
    if process.returncode != (130 if number else 0):
        sys.exit(f"the backfill ended with status {process.returncode}: {said}")
    return time.perf_counter() - began, peak


def _peak(pid: int) -> float:
    """Return the most memory that a process has had so far, in MB; 0 where it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith("VmHWM:")), 0.0)


def _put(bucket: str, key: str) -> None:
    aws.s3().put_object(Bucket=bucket, Key=key, Body=b"x")


def _result_of(stack: stacks.Stack, key: str) -> str:
    root = f"s3://{stack.bucket}"
    return f"{names.results_of(root, key)}{'0' * 16}/transcript.json".removeprefix(f"{root}/")


def _received(stack: stacks.Stack) -> Counter[str]:
    """Empty the queue, and count the keys in it."""
    found: Counter[str] = Counter()
    ask = {"QueueUrl": stack.backfill_url, "MaxNumberOfMessages": backfill.AT_ONCE, "WaitTimeSeconds": 0}
    while messages := aws.sqs(REGION).receive_message(**ask).get("Messages"):
        found.update(json.loads(each["Body"])["key"] for each in messages)
        entries = [{"Id": each["MessageId"], "ReceiptHandle": each["ReceiptHandle"]} for each in messages]
        aws.sqs(REGION).delete_message_batch(QueueUrl=stack.backfill_url, Entries=entries)
    return found


if __name__ == "__main__":
    main()
