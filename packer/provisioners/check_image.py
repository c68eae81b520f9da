"""Fail where an image is not what its locks say, can't run its CUDA or ship its logs, is too full, or keeps a secret.

usage: python check_image.py FOLDER   (what was brought: the locks)

MINIMUM_DRIVER, LOG_AGENT and MINIMUM_FREE_GIGABYTES are read from the environment.
"""

from __future__ import annotations

import importlib.util
import os
import re
import runpy
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

HOMES = [Path("/root"), *Path("/home").glob("*")]
# files that a builder has and an image must not, below a home folder
PRIVATE = (
    *(".bash_history", ".python_history", ".zsh_history", ".netrc", ".git-credentials", ".pypirc"),
    *(".aws", ".azure", ".cache/huggingface", ".cache/pip", ".config/gcloud", ".config/gh", ".docker", ".huggingface"),
    *(".ssh/authorized_keys", ".ssh/id_rsa", ".ssh/id_ed25519", ".ssh/id_ecdsa"),
)
SEARCHED = (*HOMES, *map(Path, ("/etc/transcribe.env", "/etc/environment", "/etc/profile.d", "/etc/systemd/system")))
SEARCHED_TOO = tuple(map(Path, ("/opt/transcribe", "/var/tmp", "/var/lib/cloud", "/tmp")))  # noqa: S108 - the image's
SECRETS = re.compile(
    rb"\bhf_[A-Za-z0-9]{30,}|\b(?:AKIA|ASIA)[A-Z0-9]{16}\b|\bgh[pousr]_[A-Za-z0-9]{36}|\bxox[bp]-[0-9A-Za-z-]{20,}"
    rb"|-----BEGIN (?:[A-Z]+ )?PRIVATE KEY-----\s+[A-Za-z0-9+/=]{40}"
)
LARGEST = 4 << 20  # bytes: what is larger is a library or a model
PACKAGES = "/site-packages/"  # what was installed by hash holds nothing of the builder


def main() -> None:
    """Run all checks, and name everything that is wrong."""
    brought = Path(sys.argv[1])
    problems = [*versions(brought), *driver(), *agent(), *space(), *private_files(), *secrets(brought), *logs()]
    for problem in problems:
        print(problem, file=sys.stderr)
    if problems:
        sys.exit(f"this is no image to keep: {len(problems)} checks failed")
    print("versions, driver, log agent, disk and secrets are in order")


def versions(brought: Path) -> list[str]:
    """Compare what is installed with the locks; a build of torch may add +cpu to its version."""
    torch = locked(brought / "torch-cuda.lock")
    if os.environ["TORCH_SOURCE"] != "lock":
        torch = {"torch": torch["torch"]}
    wanted = {**locked(brought / "worker.lock"), **torch}
    found = {name: installed(name) for name in wanted}
    return [
        f"{name} is installed in {found[name]} instead of {version}"
        for name, version in wanted.items()
        if (found[name] or "").partition("+")[0] != version
    ]


def locked(path: Path) -> dict[str, str]:
    """Return the versions of a lock by name, of the lines that are meant for this Python and system."""
    from pip._vendor.packaging.markers import Marker

    lines = re.findall(r"^([A-Za-z0-9._-]+)==([^\s;\\]+)(?: ; ([^\\]+?))? \\$", path.read_text("utf-8"), re.MULTILINE)
    return {name: version for name, version, marker in lines if not marker or Marker(marker).evaluate()}


def installed(name: str) -> str | None:
    """Return the version of a package that is here."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def driver() -> list[str]:
    """Compare NVIDIA's driver with what torch's CUDA wants; a torch without CUDA wants none."""
    cuda = cuda_of_torch()
    if cuda is None:
        print("this torch has no CUDA: no driver is looked for")
        return []
    found, wanted = driver_version(), int(os.environ["MINIMUM_DRIVER"])
    if found is None:
        return [f"there is no NVIDIA driver, and torch is built for CUDA {cuda}"]
    major = int(found.partition(".")[0])
    return [f"the driver {found} is too old for CUDA {cuda}: it wants {wanted}"] if major < wanted else []


def cuda_of_torch() -> str | None:
    """Return the CUDA that torch is built for, by its own note: to import torch for that would take seconds."""
    torch = importlib.util.find_spec("torch")
    if torch is None or torch.origin is None:
        return None  # `versions` says that it is lacking
    cuda: str | None = runpy.run_path(str(Path(torch.origin).with_name("version.py")))["cuda"]
    return cuda


def driver_version() -> str | None:
    """Ask the module on disk, not the running one: a builder without a GPU has only that."""
    modinfo = shutil.which("modinfo") or "/usr/sbin/modinfo"
    try:
        asked = subprocess.run([modinfo, "-F", "version", "nvidia"], capture_output=True, text=True, check=False)
    except OSError:
        return None
    return asked.stdout.strip() or None


def agent() -> list[str]:
    """Look for the program that ships the workers' log and metrics: the stack's user data can only start it."""
    program = os.environ["LOG_AGENT"]
    if not program:
        print("LOG_AGENT is empty: this image ships no log")
        return []
    return [] if os.access(program, os.X_OK) else [f"there is no {program} to ship the workers' log"]


def agent_version() -> str | None:
    """Return the version that the CloudWatch agent keeps beside its programs."""
    note = Path(os.environ["LOG_AGENT"]).with_name("CWAGENT_VERSION") if os.environ["LOG_AGENT"] else None
    return note.read_text(encoding="utf-8").strip() if note and note.is_file() else None


def space() -> list[str]:
    """Compare the free disk with what recordings and logs want."""
    free, wanted = shutil.disk_usage("/opt/transcribe").free / 1e9, float(os.environ["MINIMUM_FREE_GIGABYTES"])
    return [f"{free:.1f} GB of disk are free instead of {wanted:g}"] if free < wanted else []


def private_files() -> list[str]:
    """Name what a builder has in its homes, and the host keys that all its images would share."""
    found = [home / name for home in HOMES for name in PRIVATE if (home / name).exists()]
    found += Path("/etc/ssh").glob("ssh_host_*_key")
    return [f"{path} belongs to the builder" for path in found]


def secrets(brought: Path) -> list[str]:
    """Name the files in which a token or a private key stands, never the token."""
    found = []
    for path in [file for root in (*SEARCHED, *SEARCHED_TOO) for file in files(root)]:
        if path.is_relative_to(brought) or PACKAGES in str(path):
            continue
        if path.stat().st_size <= LARGEST and SECRETS.search(path.read_bytes()):
            found.append(f"{path} holds a secret")
    return found


def files(root: Path) -> list[Path]:
    """Return a file, or all files below a folder; links lead to what is looked at anyway."""
    if root.is_file():
        return [root]
    return [path for path in root.rglob("*") if path.is_file() and not path.is_symlink()]


def logs() -> list[str]:
    """Name logs that hold more than a service wrote since they were emptied, which is minutes ago."""
    return [f"{path} was not emptied" for path in files(Path("/var/log")) if path.stat().st_size > 1 << 16]


if __name__ == "__main__":
    main()
