"""Measure a bake by its steps: the first one, and one that starts from its image; and the boot of that image.

usage: python benchmarks/bake.py       (as root, with packer and sshd: make tools)
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import boto3
import common
from baking import REGION, bakery, pin, report
from emulated_ec2 import account
from isolated_machine import machine


def main() -> None:
    """Bake twice and write the record."""
    with tempfile.TemporaryDirectory(prefix="bake-") as scratch, account(Path(scratch)) as emulated:
        baker = bakery(Path(scratch), emulated)
        keys = {"aws_access_key_id": "testing", "aws_secret_access_key": "testing"}
        ec2 = boto3.client("ec2", region_name=REGION, endpoint_url=emulated.endpoint, **keys)
        images = ec2.describe_images(Owners=["amazon"])["Images"]
        base = next(image for image in images if image["RootDeviceName"] == "/dev/sda1")
        pin(baker.templates, base["ImageId"], base["Name"])
        with machine(Path(scratch) / "first") as built:
            first = report(baker.bake(made_on=built))
        with machine(Path(scratch) / "second", Path(scratch) / "first") as built:
            second = report(baker.bake(made_on=built))
    rows = [
        common.row({"bake": name, "step": step}, [seconds])
        for name, made in (("first", first), ("again", second))
        for step, seconds in (*made["seconds"].items(), ("all", made["total_seconds"]))
        if seconds >= 0.1
    ]
    conditions = {
        "model": "demo",
        "dtype": "float32",
        "reused": second["reused_image"] == first["ami"],
        "state_bytes": first["state"]["size"],
        "packer": first["packer"],
        "threads": 1,
    }
    packages = ("torch", "transformers", "moto")
    path = common.write(common.record("bake", conditions, rows, [], packages), None, quick=False)
    sys.stdout.write(f"{path}\n")


if __name__ == "__main__":
    main()
