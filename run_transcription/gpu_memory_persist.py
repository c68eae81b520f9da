"""The state of a model on disk: its tensors as the device will hold them, in one file that is read straight through.

A state is a folder: `state.safetensors` and, beside it, the model's small files (config, tokenizer). The file is a
strictly valid safetensors file: the header padded so that the data begins at a multiple of 4096 bytes, the tensors in
the order of their use, in their final dtype, tied ones once. Its metadata have the fingerprint of what it was made
from, a checksum of each 16 MiB of data, and one of the header itself.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING

import click

from run_transcription import options
from run_transcription.engines import model_folder
from run_transcription.engines.state_header import CHUNK, Entry, Header, digest, read_header, write_header
from run_transcription.errors import TranscriptionError, Unavailable
from run_transcription.records import Fingerprint, ModelFolder, ModelSpec

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch
    from transformers import WhisperForConditionalGeneration

FORMAT_VERSION = "1"
STATE_FILE = "state.safetensors"


def state_folder(spec: ModelSpec, source: ModelFolder | None) -> Path:
    """Return where the state of a model lies: under home, by the model's id."""
    name = source.id if source is not None else spec.model
    return model_folder.home(spec) / "gpu_state" / name.replace("/", "--")


def fingerprint(source: ModelFolder, dtype: str) -> Fingerprint:
    """Return what a state of this model in this dtype is made from; reads all of the weights once."""
    return Fingerprint(
        format_version=FORMAT_VERSION,
        model_id=source.id,
        revision=source.revision,
        content_sha256=model_folder.sha256(model_folder.weight_files(source.path)),
        config_sha256=_config_sha256(source.path),
        dtype=dtype,
    )


def preload_gpu_model(source: ModelFolder, folder: Path, dtype: str = "float16") -> Header:
    """Make the state of a model in a folder, and read it back: it is there in whole, or the old one stays."""
    from run_transcription.engines.assemble import mapped_model

    model = mapped_model(source.path, dtype, "sdpa")
    return save_state(model, folder, fingerprint(source, dtype), source.path)


def save_state(model: WhisperForConditionalGeneration, folder: Path, made_from: Fingerprint, source: Path) -> Header:
    """Write a model's state under a temporary name, compare it with the model, and only then give it its name."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as workshop:
            new = Path(workshop) / "new"
            _write_folder(new, model, made_from, source)
            if folder.exists():
                folder.rename(Path(workshop) / "old")
            new.rename(folder)
    except OSError as error:
        raise TranscriptionError(f"the state {folder} could not be written: {error.strerror or error}") from error
    return read_header(folder / STATE_FILE)


def _write_folder(folder: Path, model: WhisperForConditionalGeneration, made_from: Fingerprint, source: Path) -> None:
    folder.mkdir()
    for path in model_folder.small_files(source):
        shutil.copyfile(path, folder / path.name)
    tensors = _tensors(model)
    _write(folder / STATE_FILE, tensors, made_from, model.generation_config.to_json_string())
    _compare(folder / STATE_FILE, tensors)


def read_fingerprint(folder: Path) -> Fingerprint:
    """Return what the state in a folder was made from. Raises Unavailable where there is no state."""
    return _fingerprint(_header(folder))


def load_state(
    folder: Path, wanted: Fingerprint | None, device: str, attention: str = "sdpa"
) -> WhisperForConditionalGeneration:
    """Return the model of a state, its parameters being views of one allocation on the device.

    Every byte is checked before a tensor is used. `wanted` None takes whatever the state was made from. Raises
    Unavailable where there is no state or it was made from something else, TranscriptionError where it is damaged.
    """
    from run_transcription.engines.assemble import assemble, generation_config

    header = _header(folder)
    made_from = _fingerprint(header)
    if wanted is not None:
        require_same(made_from, wanted)
    if made_from.config_sha256 != _config_sha256(folder):
        raise TranscriptionError(
            f"the state in {folder} is damaged: the small files beside it are not those that it was made with"
        )
    data = _read(folder / STATE_FILE, header).to(device)
    model = assemble(folder, {entry.name: _view(data, entry) for entry in header.tensors}, attention)
    model.generation_config = generation_config(json.loads(header.metadata["generation_config"]))
    return model


def require_same(found: Fingerprint, wanted: Fingerprint) -> None:
    """Raise Unavailable with the first field in which a state is not the wanted one; a wanted "" is any."""
    for field in fields(Fingerprint):
        has, want = getattr(found, field.name), getattr(wanted, field.name)
        if want not in ("", has):
            raise Unavailable(f"the state has another {field.name}: {has} instead of {want}")


def _config_sha256(folder: Path) -> str:
    """Return the sha256 of config, tokenizer and whatever else lies beside the weights."""
    return model_folder.sha256(model_folder.small_files(folder))


def _header(folder: Path) -> Header:
    if not (folder / STATE_FILE).is_file():
        raise Unavailable(f"no state in {folder}")
    return read_header(folder / STATE_FILE)


def _fingerprint(header: Header) -> Fingerprint:
    """Take the fingerprint's fields out of the metadata; an older format may lack some."""
    return Fingerprint(**{field.name: header.metadata.get(field.name, "") for field in fields(Fingerprint)})


def _tensors(model: WhisperForConditionalGeneration) -> dict[str, torch.Tensor]:
    """Return parameters in the order of their use (modules are registered in it), each that is shared only once."""
    return {name: parameter.detach().contiguous().cpu() for name, parameter in model.named_parameters()}


def _write(path: Path, tensors: dict[str, torch.Tensor], made_from: Fingerprint, generation_config: str) -> None:
    """Write tensors in two passes over the header: its checksums are known only when the data are written."""
    metadata = asdict(made_from) | {"generation_config": generation_config, "chunk_bytes": str(CHUNK)}
    with path.open("w+b") as file:
        write_header(file, metadata, tensors, [])
        checksums = []
        for chunk in _chunks(tensors):
            checksums.append(digest(chunk))
            file.write(chunk)
        file.seek(0)
        write_header(file, metadata, tensors, checksums)
        file.flush()
        os.fsync(file.fileno())


def _chunks(tensors: dict[str, torch.Tensor]) -> Iterator[bytes]:
    """Give the bytes of all tensors, one after the other, in pieces of CHUNK."""
    pending = bytearray()
    for tensor in tensors.values():
        data = tensor.reshape(-1).view(_bytes()).numpy().data
        for start in range(0, len(data), CHUNK):
            pending += data[start : start + CHUNK]
            while len(pending) >= CHUNK:
                yield bytes(pending[:CHUNK])
                del pending[:CHUNK]
    if pending:
        yield bytes(pending)


def _compare(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Read a state with the library's own reader and with ours, and raise where a bit differs."""
    from safetensors import safe_open

    header = read_header(path)
    ours = _read(path, header)
    with safe_open(path, framework="pt") as official:
        for entry in header.tensors:
            bits = tensors[entry.name].reshape(-1).view(_bytes())
            same = (official.get_tensor(entry.name).reshape(-1).view(_bytes()), ours[entry.start : entry.end])
            if not all(bits.equal(read) for read in same):
                raise TranscriptionError(f"{path}: {entry.name} was not read as it was written; is the disk sound?")


def _read(path: Path, header: Header) -> torch.Tensor:
    """Return all data as uint8 [bytes] in one allocation; raises TranscriptionError at the first wrong checksum."""
    import torch

    data = torch.empty(header.size, dtype=torch.uint8)
    memory = data.numpy().data
    with path.open("rb", buffering=0) as file:
        file.seek(header.data_start)
        for start, checksum in zip(range(0, header.size, CHUNK), header.checksums, strict=True):
            chunk = memory[start : start + CHUNK]
            if file.readinto(chunk) != len(chunk) or digest(chunk) != checksum:
                raise TranscriptionError(f"the state in {path} is damaged at byte {header.data_start + start}")
    return data


def _view(data: torch.Tensor, entry: Entry) -> torch.Tensor:
    import torch

    return data[entry.start : entry.end].view(getattr(torch, entry.dtype)).view(entry.shape)


def _bytes() -> torch.dtype:
    import torch

    return torch.uint8


@options.command("preload")
@options.model_options
def main(spec: ModelSpec) -> None:
    """Make the state of a model, which loads faster than the model; read it back, and report.

    The state has one dtype, float16 unless --dtype says another, and lies in TRANSCRIBE_HOME.
    """
    source = model_folder.resolve(spec)
    import transformers.models.whisper.modeling_whisper  # noqa: F401 - its seconds are not those of saving

    began = time.perf_counter()
    folder = state_folder(spec, source)
    dtype = "float16" if spec.dtype == "auto" else spec.dtype
    header = preload_gpu_model(source, folder, dtype)
    saved = time.perf_counter()
    load_state(folder, None, "cpu")
    loaded = time.perf_counter()
    click.echo(f"state     {folder}")
    click.echo(f"model     {source.id} at {source.revision}")
    click.echo(f"content   {len(header.tensors)} tensors, {header.size / 1e6:.1f} MB, {dtype}")
    click.echo(f"saved     in {saved - began:.2f} s, and compared with the model")
    click.echo(f"verified  in {loaded - saved:.2f} s: every checksum right, every parameter in place")


if __name__ == "__main__":
    main()
