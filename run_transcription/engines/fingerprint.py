"""What the state of a model, or its artefact, was made from."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

from run_transcription.engines import model_folder
from run_transcription.errors import TranscriptionError, Unavailable
from run_transcription.records import ModelFolder, ModelSpec


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """What the state of a model was made from: a state fits where every field is the wanted one."""

    format_version: str
    model_id: str
    revision: str
    content_sha256: str  # of the weights' files as they were before the cast to dtype
    config_sha256: str
    dtype: str


def fingerprint(source: ModelFolder, dtype: str, format_version: str) -> Fingerprint:
    """Return what a state of this model in this dtype is made from; reads all of the weights once."""
    return Fingerprint(
        format_version=format_version,
        model_id=source.id,
        revision=source.revision,
        content_sha256=model_folder.sha256(model_folder.weight_files(source.path)),
        config_sha256=config_sha256(source.path),
        dtype=dtype,
    )


def wanted(spec: ModelSpec, source: ModelFolder | None, format_version: str) -> Fingerprint:
    """Return what a state must have been made from; "" where it may be anything, as when only the state is here."""
    return Fingerprint(
        format_version=format_version,
        model_id=source.id if source is not None else spec.model,
        revision=source.revision if source is not None else spec.revision or "",
        content_sha256="",  # the revision stands for it: a commit, or a hash of the folder's content
        config_sha256="",
        dtype="" if spec.dtype == "auto" else spec.dtype,
    )


def config_sha256(folder: Path) -> str:
    """Return the sha256 of config, tokenizer and whatever else lies beside the weights."""
    try:
        return model_folder.sha256(model_folder.small_files(folder))
    except OSError as error:
        raise TranscriptionError(f"{error.filename} could not be read: {error.strerror}") from error


def require_same(found: Fingerprint, wanted: Fingerprint) -> None:
    """Raise Unavailable with the first field in which a state is not the wanted one; a wanted "" is any."""
    for field in fields(Fingerprint):
        has, want = getattr(found, field.name), getattr(wanted, field.name)
        if want not in ("", has):
            raise Unavailable(f"the state has another {field.name}: {has} instead of {want}")
