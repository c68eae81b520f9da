"""Put weights that lie in memory into a Whisper model, without copying or initialising anything."""

from __future__ import annotations

import itertools
import json
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from run_transcription.engines.model_folder import weight_files
from run_transcription.errors import TranscriptionError, Unavailable

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from transformers import GenerationConfig, WhisperConfig, WhisperForConditionalGeneration

_NAMED = 3  # tensors named in a message
making = threading.Lock()  # transformers sets torch's default dtype meanwhile: two at once would leave theirs behind


def mapped_model(folder: Path, dtype: str, attention: str) -> WhisperForConditionalGeneration:
    """Return a folder's model on the CPU with its safetensors mapped: pages are read when they are first used.

    A tensor that is not stored in dtype becomes a copy. Raises Unavailable where the folder has no safetensors.
    """
    from safetensors.torch import load_file

    files = weight_files(folder)
    if not files:
        raise Unavailable(f"{folder} has no weights in safetensors form")
    wanted = getattr(torch, dtype)
    tensors: dict[str, torch.Tensor] = {}
    with errors_told(folder):
        for file in files:
            tensors |= {name: tensor.to(wanted) for name, tensor in load_file(file).items()}
    return assemble(folder, tensors, attention)


@contextmanager
def errors_told(folder: Path) -> Iterator[None]:
    """Say in one line what the libraries find wrong with a checkpoint."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        raise TranscriptionError(f"{folder} can't be loaded: {' '.join(str(error).split())}") from error


def assemble(folder: Path, tensors: Mapping[str, torch.Tensor], attention: str) -> WhisperForConditionalGeneration:
    """Return the model of a folder's config.json whose parameters are these very tensors, ready to generate."""
    model = empty_model(folder, next(iter(tensors.values())).dtype, attention)
    fill(model, tensors, folder)
    return model


def empty_model(folder: Path, dtype: torch.dtype, attention: str) -> WhisperForConditionalGeneration:
    """Return the model of a folder's config.json on the `meta` device, where it takes no memory."""
    from transformers import WhisperForConditionalGeneration
    from transformers.initialization import no_init_weights  # half the time went into values that nobody sees

    config = read_config(folder)
    with making, no_init_weights(), torch.device("meta"):
        model: WhisperForConditionalGeneration = WhisperForConditionalGeneration._from_config(  # noqa: SLF001
            config, dtype=dtype, attn_implementation=attention
        )
    model.generation_config = read_generation_config(folder, config)
    return model.eval()


def fill(model: WhisperForConditionalGeneration, tensors: Mapping[str, torch.Tensor], folder: Path) -> None:
    """Make tensors the parameters of an empty model, tied ones tied again, with nothing left on `meta`.

    Raises TranscriptionError where they don't fit the model.
    """
    modules = dict(model.named_modules())
    empty = dict(model.named_parameters(remove_duplicate=False))
    wrong = []
    for name, tensor in tensors.items():
        module, _, parameter = name.rpartition(".")
        if name not in empty:
            wrong.append(f"{name} too many")
        elif empty[name].shape != tensor.shape:
            wrong.append(f"{name} of shape {list(tensor.shape)} instead of {list(empty[name].shape)}")
        else:  # what load_state_dict(assign=True) does, in half the time
            modules[module].register_parameter(parameter, torch.nn.Parameter(tensor, requires_grad=False))
    model.tie_weights()
    everything = itertools.chain(model.named_parameters(), model.named_buffers())
    wrong += [f"no {name}" for name, tensor in everything if tensor.is_meta and name not in tensors]
    if wrong:
        more = f" and {len(wrong) - _NAMED} more" if len(wrong) > _NAMED else ""
        raise TranscriptionError(
            f"the weights in {folder} do not fit its config.json: {', '.join(wrong[:_NAMED])}{more}"
        )


def read_config(folder: Path) -> WhisperConfig:
    """Return a folder's config.json. Raises TranscriptionError where it is not a Whisper model's."""
    from transformers import WhisperConfig

    try:
        document = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except ValueError as error:
        raise TranscriptionError(f"{folder / 'config.json'} is not JSON: {error}") from error
    if document.get("model_type") != "whisper":
        raise TranscriptionError(f"{folder} is no Whisper model: config.json says {document.get('model_type')!r}")
    return WhisperConfig.from_dict(document)


def read_generation_config(folder: Path, config: WhisperConfig) -> GenerationConfig:
    """Return a folder's generation_config.json; where there is none, what config.json says of generation."""
    from transformers import GenerationConfig

    path = folder / "generation_config.json"
    if not path.exists():
        return GenerationConfig.from_model_config(config)
    return generation_config(json.loads(path.read_text(encoding="utf-8")))


def generation_config(document: Mapping[str, Any]) -> GenerationConfig:
    """Return the generation config of its json.

    One that was saved from a model's config bears a mark, at which transformers would make it anew from the config
    and lose what only this file has, such as the languages: the mark is taken off.
    """
    from transformers import GenerationConfig

    return GenerationConfig.from_dict({name: value for name, value in document.items() if name != "_from_model_config"})
