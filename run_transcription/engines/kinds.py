"""The engines beside torch: a row for each, and what each one's module does.

An engine is a file here, a row of KINDS, its name in `records.ENGINES`, and an extra of pyproject.toml by that name.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from importlib import metadata
from typing import TYPE_CHECKING, Protocol, cast

from run_transcription.errors import ModelNotLoaded

if TYPE_CHECKING:
    from pathlib import Path

    from run_transcription.records import Engine, ModelFacts


@dataclass(frozen=True, slots=True)
class Kind:
    """Where an engine comes from: the package that it needs, and our module for it."""

    package: str
    module: str


KINDS = {
    "ctranslate2": Kind("ctranslate2", "run_transcription.engines.ctranslate2_engine"),
}


class Maker(Protocol):
    """What the module of an engine does; each raises TranscriptionError with the library's own words."""

    def dtype(self, wanted: str, device: str) -> str:
        """Resolve `auto`; raise ModelNotLoaded for a dtype that the engine or this device has not."""

    def convert(self, checkpoint: Path, folder: Path, dtype: str) -> None:
        """Make the engine's own files of a checkpoint, in a folder that is not there yet."""

    def open_artefact(self, folder: Path, facts: ModelFacts) -> Engine:
        """Return the engine of an artefact's folder, on the device and in the dtype of `facts`."""


def maker(engine: str) -> Maker:
    """Return the module of an engine; raise ModelNotLoaded where it is not installed."""
    require_installed(engine)
    return cast("Maker", importlib.import_module(KINDS[engine].module))


def require_installed(engine: str) -> None:
    """Raise ModelNotLoaded where an engine is not installed, without importing it."""
    if engine in KINDS and version(engine) is None:
        raise ModelNotLoaded(f"--engine {engine} is not installed: pip install 'run-transcription[{engine}]'")


def version(engine: str) -> str | None:
    """Return the version of an engine's package, None where it is not installed."""
    try:
        return metadata.version(KINDS[engine].package)
    except metadata.PackageNotFoundError:
        return None
