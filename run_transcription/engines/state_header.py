"""The header of a state: safetensors' own, padded, with checksums of the data and of itself in its metadata."""

from __future__ import annotations

import hashlib
import json
import os
import struct
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any

from run_transcription.engines.byte_mover import CHUNK
from run_transcription.errors import TranscriptionError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import torch

ALIGNMENT = 4096  # where data may begin: a page, and a block of the disk
LENGTH = struct.Struct("<Q")  # of the header, before it
HEADER_LIMIT = 100_000_000  # bytes; safetensors' own
DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_NAMES = {torch_name: name for name, torch_name in DTYPES.items()}
_BLANK = "0" * 64


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor: torch's name of its dtype, and its bytes counted from where the data begin."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Header:
    """What a state says of itself, found to be consistent with the file's size."""

    metadata: Mapping[str, str]
    tensors: tuple[Entry, ...]
    checksums: tuple[str, ...]
    data_start: int
    size: int  # bytes of data
    chunk: int  # bytes of data under one checksum


def digest(data: bytes | memoryview) -> str:
    """Return the xxh3-64 of a chunk: it finds damage at 10 GB/s; who may write here is the file system's matter."""
    import xxhash

    return str(xxhash.xxh3_64_hexdigest(data))


def write_header(
    file: IO[bytes], metadata: Mapping[str, str], tensors: Mapping[str, torch.Tensor], checksums: Sequence[str]
) -> None:
    """Write a header; with no checksums yet, one of the same length in which they are blank."""
    table, end = {}, 0
    for name, tensor in tensors.items():
        start, end = end, end + tensor.nbytes
        dtype = _NAMES[str(tensor.dtype).removeprefix("torch.")]
        table[name] = {"dtype": dtype, "shape": list(tensor.shape), "data_offsets": [start, end]}
    hashes = checksums or ["0" * 16] * -(-end // CHUNK)
    described = dict(metadata) | {"chunk_bytes": str(CHUNK), "chunk_xxh3": " ".join(hashes), "header_sha256": _BLANK}
    text = json.dumps({"__metadata__": described, **table}, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-(LENGTH.size + len(text)) % ALIGNMENT)
    whole = LENGTH.pack(len(text)) + text
    file.write(whole.replace(_field(_BLANK), _field(hashlib.sha256(whole).hexdigest())))


def read_header(path: Path) -> Header:
    """Return a state's header. Raises TranscriptionError where it is damaged or the file has another length."""
    try:
        with path.open("rb") as file:
            return header_of(file, path)
    except OSError as error:
        raise TranscriptionError(f"the state in {path} could not be read: {error.strerror}") from error


def header_of(file: IO[bytes], path: Path) -> Header:
    """Return the header of an open state; `path` is for messages."""
    try:
        return _parse(file)
    except OSError as error:
        raise TranscriptionError(f"the state in {path} could not be read: {error.strerror}") from error
    except (ValueError, LookupError, TypeError, AttributeError, struct.error) as error:
        reason = str(error) if type(error) is ValueError else "its header is none"  # not those of json and utf-8
        raise TranscriptionError(f"the state in {path} is damaged: {reason}") from error


def _parse(file: IO[bytes]) -> Header:
    there = os.fstat(file.fileno()).st_size
    prefix = _read(file, LENGTH.size)
    length = LENGTH.unpack(prefix)[0]
    if length > min(HEADER_LIMIT, there):
        raise ValueError(f"its header would be {length} bytes long")
    text = _read(file, length)
    document: dict[str, Any] = json.loads(text)
    metadata: dict[str, str] = document.pop("__metadata__")
    blank = (prefix + text).replace(_field(metadata["header_sha256"]), _field(_BLANK))
    if hashlib.sha256(blank).hexdigest() != metadata["header_sha256"]:
        raise ValueError("its header does not have its checksum")
    entries = tuple(
        Entry(name, DTYPES[said["dtype"]], tuple(said["shape"]), *said["data_offsets"])
        for name, said in document.items()
    )
    start, size = LENGTH.size + length, entries[-1].end
    if there != start + size:
        raise ValueError(f"it has {there} bytes instead of {start + size}")
    checksums, chunk = tuple(metadata["chunk_xxh3"].split()), int(metadata["chunk_bytes"])
    if chunk < 1 or len(checksums) != -(-size // chunk):
        raise ValueError(f"it has {len(checksums)} checksums for {size} bytes")
    return Header(metadata, entries, checksums, start, size, chunk)


def _read(file: IO[bytes], length: int) -> bytes:
    """Return so many bytes, fewer only at the end: an unbuffered file may give them in several parts."""
    parts, left = [], length
    while left and (part := file.read(left)):
        parts.append(part)
        left -= len(part)
    return b"".join(parts)


def _field(digest_of_header: str) -> bytes:
    return f'"header_sha256":"{digest_of_header}"'.encode()
