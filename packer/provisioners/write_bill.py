"""Write the bill of materials of an image: packages, model, state and what it was made from, with hashes.

usage: python write_bill.py FOLDER   (what was brought: the locks, and what the loading was like)
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import sys
from importlib import metadata
from pathlib import Path

from check_image import agent_version, driver_version

from run_transcription import storage
from run_transcription.engines import model_folder
from run_transcription.engines.state_reader import STATE_FILE
from run_transcription.records import ModelSpec

HOME = storage.IMAGE_HOME


def main() -> None:
    """Write /opt/transcribe/manifest.json."""
    brought = Path(sys.argv[1])
    state = model_folder.state_folder(ModelSpec(os.environ["MODEL"])) / STATE_FILE
    loading = json.loads((brought / "load.json").read_text(encoding="utf-8"))["strategies"]
    bill = {
        "format": 1,
        "base_image": {"id": os.environ["BASE_IMAGE_ID"], "name": os.environ["BASE_IMAGE_NAME"]},
        "system": system(),
        "python": platform.python_version(),
        "driver": driver_version(),
        "log_agent": agent_version(),
        "packages": {each.name: each.version for each in sorted(metadata.distributions(), key=lambda one: one.name)},
        "locks": {path.name: sha256(path) for path in sorted(brought.glob("*.lock"))},
        "wheel": next({"name": path.name, "sha256": sha256(path)} for path in brought.glob("*.whl")),
        "model": json.loads((HOME / "models" / "model.json").read_text(encoding="utf-8")),
        "state": {"path": str(state), "size": state.stat().st_size, "sha256": sha256(state)},
        "loading": {each["strategy"]: round(each["seconds"], 3) for each in loading},
    }
    (HOME / "manifest.json").write_text(json.dumps(bill, indent=1) + "\n", encoding="utf-8")
    print(f"{len(bill['packages'])} packages, a state of {bill['state']['size'] / 1e6:.1f} MB")


def system() -> str:
    """Return the name of the distribution."""
    return platform.freedesktop_os_release().get("PRETTY_NAME", platform.platform())


def sha256(path: Path) -> str:
    """Return the sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


if __name__ == "__main__":
    main()
