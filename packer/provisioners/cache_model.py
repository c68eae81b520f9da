"""Fetch a model into the image at its revision, and write down what it is: id, revision, source and licence."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path

from run_transcription import storage
from run_transcription.engines import model_folder
from run_transcription.errors import TranscriptionError
from run_transcription.records import ModelFolder, ModelSpec

FACTS = storage.IMAGE_HOME / "models" / "model.json"
HUB = "https://huggingface.co"


def main() -> None:
    """Fetch the model that MODEL and MODEL_REVISION name."""
    spec = ModelSpec(os.environ["MODEL"], os.environ.get("MODEL_REVISION") or None)
    try:
        found = model_folder.resolve(spec)
    except TranscriptionError as error:
        sys.exit(str(error))
    if spec.revision is not None and found.revision != spec.revision:
        sys.exit(f"{spec.model} came at revision {found.revision} instead of {spec.revision}")
    facts = {"id": found.id, "revision": found.revision, **origin(spec, found)}
    FACTS.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    (storage.IMAGE_HOME / "default_model").write_text(found.id + "\n", encoding="utf-8")
    remember_commit(found)
    print(f"{found.id} at {found.revision}, licence {facts['licence'] or 'not known'}")


def origin(spec: ModelSpec, found: ModelFolder) -> dict[str, str | None]:
    """Return where the model is from, and its licence as its card says."""
    if spec.model == "demo":
        return {"source": "the package run_transcription", "licence": "MIT"}
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    try:
        card = Path(hf_hub_download(spec.model, "README.md", revision=found.revision)).read_text(encoding="utf-8")
    except EntryNotFoundError:
        card = ""
    licence = re.search(r"\A---\n(?:.*\n)*?licen[sc]e:\s*(\S+)", card)
    return {"source": f"{HUB}/{found.id}/tree/{found.revision}", "licence": licence[1] if licence else None}


def remember_commit(found: ModelFolder) -> None:
    """Let the commit be the model's `main` in this image: without --revision, too, it is found with no network."""
    references = found.path.parent.parent / "refs"
    if found.path.parent.name == "snapshots":
        references.mkdir(exist_ok=True)
        (references / "main").write_text(found.revision, encoding="utf-8")


if __name__ == "__main__":
    main()
