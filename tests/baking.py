"""What tests and benchmark of the bake share: templates of one's own, and a bake on an isolated machine."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from isolated_machine import ROOT, Machine

if TYPE_CHECKING:
    from emulated_ec2 import Account

REGION = "eu-west-1"


@dataclass
class Bakery:
    """An account, a copy of the templates that may be changed, and an environment in which `bake` works on them."""

    account: Account
    templates: Path
    environment: dict[str, str]

    def command(self, *options: str | Path, made_on: Machine | None = None, model: str = "demo") -> list[str]:
        """Return the command line of a bake."""
        words = [sys.executable, "-m", "run_transcription", "bake", "--templates", self.templates, "--region", REGION]
        words += [
            "--model",
            model,
            "--dtype",
            "float32",
            "--on-demand",
            *(made_on.variables() if made_on else []),
            *options,
        ]
        return [str(word) for word in words]

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

    def spoil(self, script: str, line: str) -> None:
        """Add a line to the end of a script."""
        path = self.templates / "provisioners" / f"{script}.sh"
        path.write_text(path.read_text() + line + "\n")


def bakery(folder: Path, account: Account) -> Bakery:
    """Make a bakery in a folder, with a base image in the account."""
    templates = folder / "packer"
    shutil.copytree(ROOT / "packer", templates)
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


def pin(templates: Path, image: str, name: str) -> None:
    """Pin the base image."""
    path = templates / "release.pkrvars.hcl"
    text = re.sub(r'(base_image_id\s*=) ""', rf'\1 "{image}"', path.read_text())
    path.write_text(re.sub(r'(base_image_name\s*=) ""', rf'\1 "{name}"', text))


def report(done: subprocess.CompletedProcess[str]) -> dict:
    """Return what a bake printed; say what it said where it failed."""
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
