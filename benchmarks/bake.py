"""Measure a bake by its steps: the first one, and one that starts from its image.

usage: python benchmarks/bake.py [ROUNDS]       (as root, with packer and sshd: make tools; three rounds, all kept)
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import boto3
import common
from baking import REGION, bakery, pin, report
from emulated_ec2 import account
from isolated_machine import machine

ROUNDS = 3
SHORTEST = 0.1  # seconds: a step that never takes as long has no row


def main() -> None:
    """Bake twice in each round, the second time from the first one's image, and write the record."""
    rounds = int(sys.argv[1]) if sys.argv[1:] else ROUNDS
    taken: dict[tuple[str, str], list[float]] = defaultdict(list)
    loads, reused = [], []
    for _ in range(rounds):
        loads.append(round(os.getloadavg()[0], 2))  # others on the machine lengthen a step as nothing else does
        first, again = one_round()
        reused.append(again["reused_image"] == first["ami"])
        for name, made in (("first", first), ("again", again)):
            for step, seconds in (*made["seconds"].items(), ("all", made["total_seconds"])):
                taken[name, step].append(seconds)
    rows = [
        common.row({"bake": name, "step": step}, seconds)
        for (name, step), seconds in taken.items()
        if max(seconds) >= SHORTEST
    ]
    conditions = {
        "model": "demo",
        "dtype": "float32",
        "rounds": rounds,
        "load_at_start": loads,
        "reused": reused,
        "state_bytes": first["state"]["size"],
        "packer": first["packer"],
        "threads": 1,
    }
    made = common.record("bake", conditions, rows, [], ("torch", "transformers", "moto"))
    print(common.write(made, None, quick=False))


def one_round() -> tuple[dict, dict]:
    """Return the reports of a bake and of one that starts from its image, in an account of their own."""
    with tempfile.TemporaryDirectory(prefix="bake-") as scratch, account(Path(scratch)) as emulated:
        baker = bakery(Path(scratch), emulated)
        keys = {"aws_access_key_id": "testing", "aws_secret_access_key": "testing"}
        ec2 = boto3.client("ec2", region_name=REGION, endpoint_url=emulated.endpoint, **keys)
        images = ec2.describe_images(Owners=["amazon"])["Images"]
        base = next(image for image in images if image["RootDeviceName"] == "/dev/sda1")
        pin(baker.templates, base["ImageId"], base["Name"])
        with machine(Path(scratch) / "first") as built:
            first = report(baker.bake(made_on=built))
        with machine(Path(scratch) / "again", Path(scratch) / "first") as built:
            return first, report(baker.bake(made_on=built))


if __name__ == "__main__":
    main()
