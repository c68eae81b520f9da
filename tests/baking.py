"""What tests and benchmark of the bake share: templates of one's own, and a bake on an isolated machine."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import boto3
from isolated_machine import ROOT, Machine

from run_transcription import bake_parts

if TYPE_CHECKING:
    from emulated_ec2 import Account

REGION = "eu-west-1"
TOKEN = "hf_" + "PlantedTokenThatMustNotStay0123456"
PLANTED = {
    "HF_TOKEN": TOKEN,
    "GITHUB_TOKEN": "ghp_" + "p1AnTeD" * 5 + "x",
    "AWS_SECRET_ACCESS_KEY": "planted-secret-of-aws",
}
# what the scripts change on their machine, and must not change on this one
OUTSIDE = [
    *map(Path, ("/etc/passwd", "/etc/group", "/etc/shadow", "/etc/fstab", "/etc/machine-id", "/etc/transcribe.env")),
    *map(Path, ("/opt", "/etc/ssh", "/etc/systemd/system", "/var/lib/apt/lists")),
    Path.home() / ".ssh",
]
BILL = "mkdir -p /opt/transcribe && echo {} >/opt/transcribe/manifest.json"
numbers = itertools.count()


@dataclass
class Bakery:
    """An account, a copy of the templates that may be changed, and an environment in which `bake` works on them."""

    account: Account
    templates: Path
    environment: dict[str, str]

    def command(self, *options: str | Path, made_on: Machine | None = None) -> list[str]:
        """Return the command line of a bake."""
        words = [sys.executable, "-m", "run_transcription", "bake", "--templates", self.templates, "--region", REGION]
        words += ["--model", "demo", "--dtype", "float32", "--on-demand"]
        return [str(word) for word in (*words, *(made_on.variables() if made_on else []), *options)]

    def bake(self, *options: str | Path, made_on: Machine | None = None, **environment: str):
        """Run a bake to its end."""
        return subprocess.run(
            self.command(*options, made_on=made_on),
            env=self.environment | environment,
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
            stdin=subprocess.DEVNULL,
        )

    def without(self, *scripts: str) -> Bakery:
        """Return a bakery whose build leaves scripts out: a failure of a later step needs no minutes before it."""
        folder = self.templates.with_name(f"{self.templates.name}-without-{'-'.join(scripts)}")
        shutil.copytree(self.templates, folder)
        build = folder / "build.pkr.hcl"
        lines = [line for line in build.read_text().splitlines() if not any(f"/{name}.sh" in line for name in scripts)]
        build.write_text("\n".join(lines) + "\n")
        return Bakery(self.account, folder, self.environment)

    def hollow(self, **lines: str) -> Bakery:
        """Return a bakery whose scripts do nothing, or one line: what fails beside them needs no minutes of theirs.

        A script is named with _ for -; what the real ones write for the driver is there.
        """
        folder = self.templates.with_name(f"{self.templates.name}-hollow-{next(numbers)}")
        shutil.copytree(self.templates, folder)
        found = {path.stem.replace("-", "_"): path for path in (folder / "provisioners").glob("*.sh")}
        for name, line in {**dict.fromkeys(found, "true"), "write_bill": BILL, **lines}.items():
            found[name].write_text(f"#!/bin/bash\n{line}\n")
        return Bakery(self.account, folder, self.environment)

    def spoil(self, script: str, line: str) -> None:
        """Add a line to the end of a script."""
        path = self.templates / "provisioners" / f"{script}.sh"
        path.write_text(path.read_text() + line + "\n")


def bakery(folder: Path, account: Account) -> Bakery:
    """Make a bakery in a folder, with a base image of the account pinned."""
    templates = folder / "packer"
    shutil.copytree(ROOT / "packer", templates)
    (base,) = client(account).describe_images(Owners=["amazon"])["Images"]
    bake_parts.pin_base(templates, base["ImageId"], base["Name"])
    ours = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "TRANSCRIBE_", "HF_"))},
        "AWS_ENDPOINT_URL_EC2": account.endpoint,
        "AWS_ENDPOINT_URL_SSM": account.endpoint,
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "AWS_EC2_METADATA_DISABLED": "true",
        "NO_PROXY": "127.0.0.1",
        "no_proxy": "127.0.0.1",
        "OMP_NUM_THREADS": "1",
    }
    return Bakery(account, templates, ours)


def client(account: Account):
    """Call the emulated EC2 past its watch."""
    keys = {"aws_access_key_id": "testing", "aws_secret_access_key": "testing"}
    return boto3.client("ec2", region_name=REGION, endpoint_url=f"http://{account.moto}", **keys)


def report(done: subprocess.CompletedProcess[str]) -> dict:
    """Return what a bake printed; say what it said where it failed."""
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def leftovers(ec2) -> list[str]:
    """Return what runs or stands in the account that only an unfinished bake would have left there."""
    groups = [group for found in ec2.describe_instances()["Reservations"] for group in found["Instances"]]
    running = [each["InstanceId"] for each in groups if each["State"]["Name"] not in ("terminated", "shutting-down")]
    keys = [key["KeyName"] for key in ec2.describe_key_pairs()["KeyPairs"]]
    security = [each["GroupName"] for each in ec2.describe_security_groups()["SecurityGroups"]]
    templates = [each["LaunchTemplateName"] for each in ec2.describe_launch_templates()["LaunchTemplates"]]
    return running + keys + templates + [name for name in security if name != "default"]


def content(path: Path) -> bytes | list[str] | None:
    """Return what is in a file, which files are in a folder, or that there is neither."""
    if path.is_dir():
        return sorted(each.name for each in path.iterdir())
    return path.read_bytes() if path.exists() else None


def interrupt(command: list[str], baker: Bakery, ec2, number: int, when: Callable[[str], bool]) -> tuple:
    """Start a bake and send it a signal after the line for which `when` holds.

    Give its exit status, and what stood in the account then and at the end.
    """
    process = subprocess.Popen(
        command, env=baker.environment, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    for line in process.stderr:
        if when(line):
            break
    stood = leftovers(ec2)
    os.kill(process.pid, number)
    process.communicate(timeout=60)
    return process.returncode, stood, leftovers(ec2)
