"""Features → what the encoder makes of them, also of windows that are shorter than the model's own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch.nn import functional
from transformers.modeling_outputs import BaseModelOutput

if TYPE_CHECKING:
    import torch
    from transformers import WhisperForConditionalGeneration


def encode(model: WhisperForConditionalGeneration, features: torch.Tensor) -> BaseModelOutput:
    """Return the encoder's states [rows, frames / 2, width] for features [rows, mels, frames].

    transformers refuses windows that are not full; the arithmetic is the same, with the first positions only.
    """
    encoder = model.model.encoder
    features = features.to(model.dtype)
    if features.shape[-1] == model.config.max_source_positions * 2:
        return encoder(features)
    x = functional.gelu(encoder.conv1(features))
    x = functional.gelu(encoder.conv2(x)).permute(0, 2, 1)
    x = x + encoder.embed_positions.weight[: x.shape[1]]
    for layer in encoder.layers:
        x = layer(x, None)
    return BaseModelOutput(last_hidden_state=encoder.layer_norm(x))
