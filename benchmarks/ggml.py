"""A checkpoint of transformers in the names of openai-whisper, and as whisper.cpp reads it."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any, BinaryIO

import fixed_tokens
import numpy as np
import numpy.typing as npt

SAMPLE_RATE, BINS, MAGIC, FLOAT32, FLOAT16 = 16_000, 201, 0x67676D6C, 0, 1


def openai_name(name: str) -> str:
    """Return what openai-whisper calls a weight of transformers."""
    for theirs, own in _NAMES:
        name = name.replace(theirs, own)
    return name


# in this order: fc1 and fc2 have to be known before the layer norms behind them
_NAMES = (
    ("model.", ""),
    ("layers", "blocks"),
    ("fc1", "mlp.0"),
    ("fc2", "mlp.2"),
    ("final_layer_norm", "mlp_ln"),
    (".self_attn.q_proj", ".attn.query"),
    (".self_attn.k_proj", ".attn.key"),
    (".self_attn.v_proj", ".attn.value"),
    (".self_attn.out_proj", ".attn.out"),
    (".self_attn_layer_norm", ".attn_ln"),
    (".encoder_attn.q_proj", ".cross_attn.query"),
    (".encoder_attn.k_proj", ".cross_attn.key"),
    (".encoder_attn.v_proj", ".cross_attn.value"),
    (".encoder_attn.out_proj", ".cross_attn.out"),
    (".encoder_attn_layer_norm", ".cross_attn_ln"),
    ("encoder.layer_norm", "encoder.ln_post"),
    ("decoder.layer_norm", "decoder.ln"),
    ("embed_tokens", "token_embedding"),
    ("encoder.embed_positions.weight", "encoder.positional_embedding"),
    ("decoder.embed_positions.weight", "decoder.positional_embedding"),
)


def write_ggml(model: Path, path: Path) -> None:
    """Write a checkpoint in float16: header, mel filters, vocabulary, tensors.

    The order is that of `whisper_model_load` in whisper.cpp. Its convolutions take no float32; biases, norms and
    positions it wants in float32.
    """
    from safetensors.numpy import load_file

    config = config_of(model)
    with path.open("wb") as file:
        _write_header(file, config, model)
        for name, weight in load_file(model / "model.safetensors").items():
            own = openai_name(name)
            data = weight[:, None] if own.endswith(("conv1.bias", "conv2.bias")) else weight
            half = weight.ndim > 1 and "positional_embedding" not in own
            file.write(struct.pack("<3i", data.ndim, len(own), FLOAT16 if half else FLOAT32))
            file.write(struct.pack(f"<{data.ndim}i", *data.shape[::-1]))
            file.write(own.encode() + np.ascontiguousarray(data, dtype="<f2" if half else "<f4").tobytes())


def config_of(model: Path) -> dict[str, Any]:
    """Return config.json."""
    found: dict[str, Any] = json.loads((model / "config.json").read_text(encoding="utf-8"))
    return found


def _write_header(file: BinaryIO, config: dict[str, Any], model: Path) -> None:
    width, mels = config["d_model"], config["num_mel_bins"]
    hears = (config["max_source_positions"], width, config["encoder_attention_heads"], config["encoder_layers"])
    writes = (config["max_target_positions"], width, config["decoder_attention_heads"], config["decoder_layers"])
    file.write(struct.pack("<12i", MAGIC, config["vocab_size"], *hears, *writes, mels, FLOAT16))
    filters = _filters(mels)
    file.write(struct.pack("<2i", *filters.shape) + filters.tobytes())
    words = _words(model)
    file.write(struct.pack("<i", len(words)))
    file.writelines(struct.pack("<i", len(word)) + word for word in words)


def _filters(mels: int) -> npt.NDArray[np.float32]:
    from transformers.audio_utils import mel_filter_bank

    made = mel_filter_bank(BINS, mels, 0.0, 8000.0, SAMPLE_RATE, norm="slaney", mel_scale="slaney")
    return np.ascontiguousarray(made.T, dtype="<f4")


def _words(model: Path) -> list[bytes]:
    """Return the bytes of each plain token; whisper.cpp makes the names of all others itself."""
    from tokenizers import Tokenizer

    vocabulary = Tokenizer.from_file(str(model / "tokenizer.json"))
    byte_of = {letter: byte for byte, letter in enumerate(fixed_tokens.letters())}
    plain = [vocabulary.id_to_token(i) for i in range(fixed_tokens.PLAIN)]
    return [bytes(byte_of[letter] for letter in word) for word in plain]
