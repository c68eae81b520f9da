"""What a bake brings to its builder: the packer/ folder, the worker's wheel, the locks; and a release's pins."""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import sys
from pathlib import Path

from run_transcription.errors import TranscriptionError

CHECKOUT = Path(__file__).parents[1]
LOCKS = ("worker.lock", "torch-cuda.lock")
RELEASE = "release.pkrvars.hcl"
PROJECT = ("pyproject.toml", "README.md", "LICENSE")
MODERN = ("plugins.pkr.hcl", "variables.pkr.hcl", "source.pkr.hcl", "build.pkr.hcl")
COMPATIBLE = ("variables.pkr.hcl", "compat/source.pkr.hcl", "build.pkr.hcl")
# the scripts whose work is kept where an image of ours is the source
LAYER_SCRIPTS = ("prepare-builder.sh", "mount-state-volume.sh", "install-python.sh", "install-dependencies.sh")
_PIN = re.compile(r'^(\w+)\s*=\s*"?([^"\n#]*?)"?\s*$', re.MULTILINE)


def require_checkout(templates: Path) -> None:
    """Raise TranscriptionError where a file of packer/ is lacking: an installed package has no such folder."""
    lacking = [name for name in (*MODERN, COMPATIBLE[1], RELEASE, *LOCKS) if not (templates / name).is_file()]
    if lacking:
        raise TranscriptionError(f"{templates} lacks {', '.join(lacking)}: a bake wants a checkout of this repository")


def pins(templates: Path) -> dict[str, str]:
    """Return what a release pins, by name of variable."""
    return dict(_PIN.findall((templates / RELEASE).read_text(encoding="utf-8")))


def variable_names(templates: Path) -> set[str]:
    """Return the names of the variables that the templates have."""
    return set(re.findall(r'^variable "(\w+)"', (templates / MODERN[1]).read_text(encoding="utf-8"), re.MULTILINE))


def pin_base(templates: Path, image_id: str, name: str) -> None:
    """Write id and name of the base image into the release's variables."""
    path = templates / RELEASE
    text = path.read_text(encoding="utf-8")
    for key, value in (("base_image_id", image_id), ("base_image_name", name)):
        text = re.sub(rf'^({key}\s*=\s*)"[^"]*"', rf'\g<1>"{value}"', text, flags=re.MULTILINE)
    path.write_text(text, encoding="utf-8")


def steps(templates: Path) -> list[str]:
    """Return the names of the scripts in the order in which a build runs them."""
    return re.findall(r"/provisioners/([a-z-]+)\.sh", (templates / "build.pkr.hcl").read_text(encoding="utf-8"))


def write_templates(templates: Path, folder: Path, *, modern: bool) -> None:
    """Copy the templates that a packer knows into a folder of their own."""
    folder.mkdir()
    for name in MODERN if modern else COMPATIBLE:
        shutil.copyfile(templates / name, folder / Path(name).name)


def write_parts(templates: Path, folder: Path) -> None:
    """Put together what is brought to the builder, but for the wheel."""
    for name in ("provisioners", "rootfs"):
        shutil.copytree(templates / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in LOCKS:
        shutil.copyfile(templates / name, folder / name)


def make_wheel(folder: Path) -> None:
    """Build the worker's wheel from a copy: what an older build left in the checkout must not get in."""
    source = folder / "source"
    shutil.copytree(
        CHECKOUT / "run_transcription", source / "run_transcription", ignore=shutil.ignore_patterns("__pycache__")
    )
    for name in PROJECT:
        shutil.copyfile(CHECKOUT / name, source / name)
    # the hook that pip would call, without pip's seconds around it
    program = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"
    command = [sys.executable, "-c", program, str(folder)]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True, check=False)
    shutil.rmtree(source)
    if done.returncode:
        raise TranscriptionError(f"the wheel can't be built: {' '.join(done.stderr.split())[-500:]}; run make setup")


def layer(templates: Path, base_image: str, torch_source: str, state_gigabytes: int) -> str:
    """Return 16 hex digits that are the same where the installed packages would be."""
    digest = hashlib.sha256(f"{base_image}\0{torch_source}\0{state_gigabytes}\0".encode())
    for path in (*(templates / "provisioners" / name for name in LAYER_SCRIPTS), *(templates / name for name in LOCKS)):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def commit() -> str:
    """Return the commit of this checkout, with + where something is not committed; "unknown" without git."""
    if shutil.which("git") is None:
        return "unknown"
    head, changes = (
        subprocess.run(["git", "-C", str(CHECKOUT), *words], capture_output=True, text=True, check=False)  # noqa: S607
        for words in (("rev-parse", "HEAD"), ("status", "--porcelain"))
    )
    return head.stdout.strip() + ("+" if changes.stdout.strip() else "") if head.returncode == 0 else "unknown"
