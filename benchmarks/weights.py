"""Random weights in the exact shapes of Whisper models, in every form that a loader reads."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from loaders import PICKLED, PLAIN, SERIALIZED

from run_transcription import gpu_memory_persist
from run_transcription.engines import golden, model_folder, state_header
from run_transcription.records import ModelSpec

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import WhisperConfig, WhisperForConditionalGeneration

# width, encoder layers, decoder layers, heads, mel bins, ids; tensors and bytes in float16, to be sure of the shape
SHAPES = {
    "tiny": ((384, 4, 4, 6, 80, 51_865), 167, 75_521_280),
    "base": ((512, 6, 6, 8, 80, 51_865), 245, 145_187_840),
    "small": ((768, 12, 12, 12, 80, 51_865), 479, 483_469_824),
    "turbo": ((1280, 32, 4, 20, 128, 51_866), 587, 1_617_756_160),
    "large-v3": ((1280, 32, 32, 20, 128, 51_866), 1259, 3_086_981_120),
}


def make(shape: str, folder: Path) -> Path:
    """Write a model of a shape into a folder: config, tokenizer, and the weights in four formats."""
    import torch

    model = _checkpoint(shape, folder)
    plain = {name: weight.detach() for name, weight in model.named_parameters()}
    torch.save(plain, folder / PICKLED)
    _serialize(plain, folder / SERIALIZED)
    _state(model, folder)
    return folder


def checkpoint(shape: str, folder: Path) -> Path:
    """Write a model of a shape into a folder as a checkpoint alone: config, tokenizer and weights."""
    _checkpoint(shape, folder)
    return folder


def _checkpoint(shape: str, folder: Path) -> WhisperForConditionalGeneration:
    sys.path.append(str(Path(__file__).parents[1] / "tests"))  # they have a small vocabulary with all special tokens
    import tiny_whisper
    from safetensors.torch import save_file

    vocabulary = tiny_whisper.tokenizer()
    model = _random(shape, vocabulary)
    folder.mkdir(parents=True)
    model.config.save_pretrained(folder)
    vocabulary.save(str(folder / "tokenizer.json"))
    plain = {name: weight.detach() for name, weight in model.named_parameters()}
    save_file(plain, folder / PLAIN, metadata={"format": "pt"})
    return model


def _random(shape: str, vocabulary: Tokenizer) -> WhisperForConditionalGeneration:
    """Return a model of a shape with random weights in float16."""
    import torch
    from transformers import WhisperForConditionalGeneration

    _, tensors, size = SHAPES[shape]
    with torch.device("meta"):
        model = WhisperForConditionalGeneration(_config(shape, vocabulary)).half()
    model.to_empty(device="cpu")
    model.tie_weights()
    weights = list(model.parameters())
    for weight in weights:
        weight.data.uniform_(-0.02, 0.02)
    found = (len(weights), sum(weight.nbytes for weight in weights))
    if found != (tensors, size):
        message = f"{shape} has {found[0]} tensors and {found[1]} bytes instead of {tensors} and {size}"
        raise ValueError(message)
    return model


def _config(shape: str, vocabulary: Tokenizer) -> WhisperConfig:
    from transformers import WhisperConfig

    (width, encoder, decoder, heads, mels, ids), _, _ = SHAPES[shape]
    end = vocabulary.token_to_id("<|endoftext|>")
    return WhisperConfig(
        vocab_size=ids,
        num_mel_bins=mels,
        d_model=width,
        encoder_layers=encoder,
        decoder_layers=decoder,
        encoder_attention_heads=heads,
        decoder_attention_heads=heads,
        encoder_ffn_dim=4 * width,
        decoder_ffn_dim=4 * width,
        pad_token_id=end,
        bos_token_id=end,
        eos_token_id=end,
        decoder_start_token_id=vocabulary.token_to_id("<|startoftranscript|>"),
        dtype="float16",
    )


def _serialize(plain: dict, path: Path) -> None:
    """Write tensorizer's format where tensorizer is installed; without it its row says so."""
    try:
        from tensorizer import TensorSerializer
    except ImportError:
        return
    serializer = TensorSerializer(path)
    serializer.write_state_dict(plain)
    serializer.close()


def _state(model: object, folder: Path) -> state_header.Header:
    """Write the state; its golden result stays empty, as nothing is decoded here."""
    source = model_folder.resolve(ModelSpec(str(folder)))
    made_from = gpu_memory_persist.fingerprint(source, "float16")
    silent = golden.Golden("", "", "", "float16", (), (), ())
    facts = gpu_memory_persist.metadata(made_from, silent, model.generation_config.to_json_string())
    return gpu_memory_persist.save_state(model, folder / "state", source, facts)
