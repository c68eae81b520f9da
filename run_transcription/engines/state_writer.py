"""Write a state's file: tensors in the order of their use, checksums, and a comparison of what was written."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from run_transcription.engines.byte_mover import CHUNK
from run_transcription.engines.state_header import digest, read_header, write_header
from run_transcription.engines.state_reader import STATE_FILE, Reading, open_state, view
from run_transcription.errors import TranscriptionError
from run_transcription.timeline import Timeline

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from transformers import WhisperForConditionalGeneration


def tensors_of(model: WhisperForConditionalGeneration) -> dict[str, torch.Tensor]:
    """Return parameters in the order of their use (modules are registered in it), each that is shared only once."""
    return {name: parameter.detach().contiguous().cpu() for name, parameter in model.named_parameters()}


def write(path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> None:
    """Write tensors in two passes over the header: its checksums are known only when the data are written."""
    with path.open("w+b") as file:
        write_header(file, metadata, tensors, [])
        checksums = []
        for chunk in _chunks(tensors):
            checksums.append(digest(chunk))
            file.write(chunk)
        file.seek(0)
        write_header(file, metadata, tensors, checksums)


def compare(folder: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Read a state with the library's own reader and with ours, and raise where a bit differs."""
    from safetensors import safe_open

    with Reading(open_state(folder), gpu=False) as reading:
        ours = reading.tensor("cpu", Timeline())
    path = folder / STATE_FILE
    header = read_header(path)
    with safe_open(path, framework="pt") as official:
        if not set(official.keys()) == {entry.name for entry in header.tensors} == set(tensors):
            raise TranscriptionError(f"{path} has not the tensors that were written; is the disk sound?")
        for entry in header.tensors:
            wanted = _bytes(tensors[entry.name])
            if not all(wanted.equal(_bytes(read)) for read in (official.get_tensor(entry.name), view(ours, entry))):
                raise TranscriptionError(f"{path}: {entry.name} was not read as it was written; is the disk sound?")


@contextmanager
def replacing(folder: Path, mark: str = STATE_FILE) -> Iterator[Path]:
    """Lend the path of a new folder, which takes the place of `folder` when the block has ended well.

    One at a time: a second one waits. Whatever one that was killed has left beside the folder is removed. Raises
    TranscriptionError where something else stands in its place: what may be replaced has the file `mark`.
    """
    folder = require_place(folder, mark)
    with _locked(folder.parent):
        prefix = f".{folder.name}-"
        for left in folder.parent.glob(f"{prefix}*"):
            shutil.rmtree(left)
        with tempfile.TemporaryDirectory(prefix=prefix, dir=folder.parent) as workshop:
            new = Path(workshop) / "new"
            new.mkdir()
            yield new
            for path in (*new.rglob("*"), new):
                _to_disk(path)
            _exchange(new, folder, Path(workshop) / "old")
            _to_disk(folder.parent)


def require_place(folder: Path, mark: str = STATE_FILE) -> Path:
    """Return where a state's folder goes, links followed, once it is known that it can be written there.

    Raises TranscriptionError where it can't, or where something stands that is no state: nothing else is replaced.
    """
    place = folder.resolve()
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=place.parent).close()
        foreign = place.exists() and not (place / mark).exists() and (not place.is_dir() or any(place.iterdir()))
    except OSError as error:
        raise TranscriptionError(
            f"the state {folder} could not be written: {error.strerror}: {error.filename or place.parent}"
        ) from error
    if foreign:
        raise TranscriptionError(f"{place} is in the way of a state, and is none: move it elsewhere")
    return place


def _exchange(new: Path, folder: Path, old: Path) -> None:
    """Give `new` the name of `folder`, which is put away as `old`, and back where that fails."""
    if folder.exists():
        folder.rename(old)
    try:
        new.rename(folder)
    except BaseException:
        if old.exists():
            old.rename(folder)
        raise


def _to_disk(path: Path) -> None:
    """Wait until a file or a folder's list of names is on the disk, so that a power cut can't take it."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold a folder for this process alone; the system lets it go when the process ends, however it ends."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _chunks(tensors: Mapping[str, torch.Tensor]) -> Iterator[bytes]:
    """Give the bytes of all tensors, one after the other, in pieces of CHUNK."""
    pending = bytearray()
    for tensor in tensors.values():
        data = _bytes(tensor).numpy().data
        for start in range(0, len(data), CHUNK):
            pending += data[start : start + CHUNK]
            while len(pending) >= CHUNK:
                yield bytes(pending[:CHUNK])
                del pending[:CHUNK]
    if pending:
        yield bytes(pending)


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.reshape(-1).view(torch.uint8)
