"""The ways to load a model that benchmarks/loading.py compares: each gives a model that can generate."""

from __future__ import annotations

import mmap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from run_transcription import gpu_memory_persist
from run_transcription.engines import assemble, state_reader
from run_transcription.engines.byte_mover import THREADS, Lane, Memory, Moving, Nowhere
from run_transcription.timeline import Timeline

if TYPE_CHECKING:
    import torch
    from transformers import WhisperForConditionalGeneration

PLAIN, PICKLED, SERIALIZED, STATE = "model.safetensors", "model.bin", "model.tensors", "state/state.safetensors"


@dataclass(frozen=True, slots=True)
class Way:
    """A row of the table, and the file that it reads."""

    name: str
    file: str
    load: Callable[[Path, str], WhisperForConditionalGeneration | None]


def ours(folder: Path, device: str, *, checked: bool = True) -> WhisperForConditionalGeneration:
    """Load the state, as the strategy gpu_state does."""
    state = state_reader.open_state(folder / "state")
    with state_reader.Reading(state, gpu=device != "cpu", checked=checked) as reading:
        return gpu_memory_persist.finish(reading, device, "sdpa", Timeline())


def unchecked(folder: Path, device: str) -> WhisperForConditionalGeneration:
    """Load the state without a look at its checksums."""
    return ours(folder, device, checked=False)


def from_pretrained(folder: Path, device: str) -> WhisperForConditionalGeneration:
    """Let transformers do it."""
    import torch
    from transformers import WhisperForConditionalGeneration

    found = WhisperForConditionalGeneration.from_pretrained(folder, dtype=torch.float16, local_files_only=True)
    return found.to(device)


def torch_load(folder: Path, device: str, *, mapped: bool = False) -> WhisperForConditionalGeneration:
    """Unpickle a state dict."""
    import torch

    tensors = torch.load(folder / PICKLED, map_location="cpu" if mapped else device, mmap=mapped, weights_only=True)
    return _model(folder, {name: tensor.to(device) for name, tensor in tensors.items()})


def torch_load_mapped(folder: Path, device: str) -> WhisperForConditionalGeneration:
    """Unpickle a state dict whose tensors stay in the mapped file."""
    return torch_load(folder, device, mapped=True)


def safetensors(folder: Path, device: str) -> WhisperForConditionalGeneration:
    """Map the file with its own library."""
    from safetensors.torch import load_file

    return _model(folder, load_file(folder / PLAIN, device=device))


def fastsafetensors(folder: Path, device: str) -> WhisperForConditionalGeneration:
    """Read with fastsafetensors' threads, without GPU direct storage."""
    from fastsafetensors import SafeTensorsFileLoader, SingleGroup

    loader = SafeTensorsFileLoader(SingleGroup(), device=device, nogds=True)
    loader.add_filenames({0: [str(folder / PLAIN)]})
    buffers = loader.copy_files_to_device()
    model = _model(folder, {name: buffers.get_tensor(name) for name in loader.get_keys()})
    model.kept = (loader, buffers)  # the tensors are views of theirs
    return model


def runai(folder: Path, device: str) -> WhisperForConditionalGeneration:
    """Read with Run:ai's streamer; a tensor it gives is valid until the next, so it is copied."""
    from runai_model_streamer import SafetensorsStreamer

    with SafetensorsStreamer() as streamer:
        streamer.stream_file(str(folder / PLAIN))
        tensors = {name: tensor.clone().to(device) for name, tensor in streamer.get_tensors()}
    return _model(folder, tensors)


def tensorizer(folder: Path, device: str) -> WhisperForConditionalGeneration:
    """Read tensorizer's own format."""
    from tensorizer import TensorDeserializer

    with TensorDeserializer(folder / SERIALIZED, device=device) as found:
        return _model(folder, dict(found.items()))


def disk_floor(folder: Path, device: str) -> None:  # noqa: ARG001 - a Way's signature
    """Read the file with all threads into a reused buffer: as fast as it comes."""
    _floor(folder, lambda _: [Nowhere() for _ in range(THREADS)])


def memory_floor(folder: Path, device: str) -> None:  # noqa: ARG001
    """Read the file into one fresh allocation of huge pages, and make nothing of it."""
    _floor(folder, lambda size: [Memory(size)] * THREADS)


def ring_floor(folder: Path, device: str) -> None:
    """Read the file through reused slots into one fresh allocation; on a GPU the slots are pinned."""
    import torch

    from run_transcription.engines.ring import rings

    _floor(folder, lambda size: rings(torch.empty(size, dtype=torch.uint8, device=device)))


def touch(model: WhisperForConditionalGeneration) -> float:
    """Look at every page of every parameter, so that a mapped file is read as well."""
    found = 0.0
    for parameter in model.parameters():
        found += float(_bytes(parameter)[:: mmap.PAGESIZE].sum())
    return found


WAYS = (
    Way("disk floor", STATE, disk_floor),
    Way("memory floor", STATE, memory_floor),
    Way("ring floor", STATE, ring_floor),
    Way("ours", STATE, ours),
    Way("ours, unchecked", STATE, unchecked),
    Way("from_pretrained", PLAIN, from_pretrained),
    Way("torch.load", PICKLED, torch_load),
    Way("torch.load, mmap", PICKLED, torch_load_mapped),
    Way("safetensors", PLAIN, safetensors),
    Way("fastsafetensors", PLAIN, fastsafetensors),
    Way("runai streamer", PLAIN, runai),
    Way("tensorizer", SERIALIZED, tensorizer),
)
FLOORS = tuple(way.name for way in WAYS[:3])


def _floor(folder: Path, lanes: Callable[[int], Sequence[Lane]]) -> None:
    with state_reader.open_state(folder / "state") as state:
        Moving(state.file.fileno(), state.extent(checked=False), lanes(state.header.size)).wait()


def _model(folder: Path, tensors: dict[str, torch.Tensor]) -> WhisperForConditionalGeneration:
    return assemble.assemble(folder, tensors, "sdpa")


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    import torch

    return tensor.detach().reshape(-1).view(torch.uint8)
