"""What a model is to an engine other than torch: an artefact, as torch has its state.

A folder with the model's small files (config, tokenizer), completed; `model/`, which only the engine can read; and a
manifest, written last: the engine, the fingerprint of what the artefact was made from, what it makes of the golden
clip, and size and checksum of every file. It lies in the home folder, or wherever --model names it.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

from run_transcription.engines import byte_mover, golden
from run_transcription.engines.fingerprint import Fingerprint
from run_transcription.engines.model_folder import MANIFEST
from run_transcription.errors import TranscriptionError, Unavailable

if TYPE_CHECKING:
    from collections.abc import Mapping

MODEL = "model"  # the folder that is the engine's own
FORMAT_VERSION = "1"
REMEDY = "to make it anew: run-transcription convert"
_READ = 1 << 20  # bytes


@dataclass(frozen=True, slots=True)
class Artefact:
    """What a manifest says."""

    engine: str
    made_from: Fingerprint
    stamps: str  # sizes and times of the files that it was made of; "" where a commit names them
    heard: golden.Golden
    files: Mapping[str, str]  # by path in the folder: size and checksum

    @property
    def size(self) -> int:
        """The bytes of all its files."""
        return sum(int(said.split()[0]) for said in self.files.values())


def read(folder: Path, engine: str) -> Artefact:
    """Return an engine's artefact. Raises Unavailable where there is none, TranscriptionError where it is damaged."""
    path = folder / MANIFEST
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
        made_from = Fingerprint(**{field.name: str(said["made_from"][field.name]) for field in fields(Fingerprint)})
        found = Artefact(
            str(said["engine"]), made_from, str(said["stamps"]), golden.from_json(said["heard"]), dict(said["files"])
        )
    except FileNotFoundError as error:
        raise Unavailable(f"no model for {engine} in {folder}: run-transcription convert makes it") from error
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise TranscriptionError(f"{path} is damaged ({type(error).__name__}); {REMEDY}") from error
    if found.engine != engine:
        raise TranscriptionError(f"{folder} was made for --engine {found.engine}")
    return found


def write(folder: Path, engine: str, made_from: Fingerprint, stamps: str, heard: golden.Golden) -> Artefact:
    """Write the manifest of a folder whose other files are all there."""
    files = {str(path.relative_to(folder)): _said(path) for path in sorted(folder.rglob("*")) if path.is_file()}
    made = Artefact(engine, made_from, stamps, heard, files)
    (folder / MANIFEST).write_text(json.dumps(asdict(made), indent=2, ensure_ascii=False), encoding="utf-8")
    return made


def verify(folder: Path, found: Artefact) -> None:
    """Read every file with several threads, and raise TranscriptionError for one that is not what was written."""
    byte_mover.read_ahead([folder / name for name in found.files])
    for name, said in found.files.items():
        path = folder / name
        try:
            if Path(name).is_absolute() or ".." in Path(name).parts or _said(path) != said:
                raise TranscriptionError(f"{path} is damaged: it is not what convert has written; {REMEDY}")
        except OSError as error:
            raise TranscriptionError(f"{path} could not be read: {error.strerror}; {REMEDY}") from error


def _said(path: Path) -> str:
    """Return a file's size and xxh3-64."""
    import xxhash

    digest, size = xxhash.xxh3_64(), 0
    with path.open("rb") as file:
        while block := file.read(_READ):
            digest.update(block)
            size += len(block)
    return f"{size} {digest.hexdigest()}"
