"""Greedy decoding with the arithmetic of transformers' Whisper decoder, and little around it.

`generate` prepares each step anew: a mask, positions, a cache that grows by copying itself. On a CPU that costs as much
as the step of a small model. Here keys and values have their place from the beginning, and only the last position of
the prompt is turned into scores. What is computed, and in which order, is what `WhisperDecoderLayer.forward` computes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional
from transformers import EncoderDecoderCache
from transformers.cache_utils import DynamicCache

if TYPE_CHECKING:
    from transformers import WhisperForConditionalGeneration
    from transformers.generation.logits_process import LogitsProcessorList
    from transformers.modeling_outputs import BaseModelOutput

    from run_transcription.engines.choosing import Chooser


def applies(model: WhisperForConditionalGeneration) -> bool:
    """Tell whether this is the faster way: on a GPU it was not measured, and there `generate` decodes."""
    return bool(model.device.type == "cpu" and model.config._attn_implementation == "sdpa")  # noqa: SLF001


def decode(
    model: WhisperForConditionalGeneration,
    encoded: BaseModelOutput,
    prompts: torch.Tensor,
    rules: LogitsProcessorList,
    chooser: Chooser,
) -> torch.Tensor:
    """Return ids [rows, prompt and text] as `generate` gives them: behind a row's end of text stands nothing else.

    The chooser looks at what the rules have left.
    """
    limit = model.config.max_target_positions
    steps = _Steps(model, encoded, prompts, limit)
    ids, scores = prompts, steps.first
    alive = torch.ones(len(prompts), 1, dtype=torch.bool, device=prompts.device)
    while True:
        chooser(ids, rules(ids, scores.float()))
        token = torch.where(alive, chooser.chosen[:, None], chooser.end_of_text)
        alive &= token != chooser.end_of_text
        ids = torch.cat([ids, token], dim=1)
        if ids.shape[1] >= limit or not alive.any():
            return ids
        scores = steps.after(token)


class _Steps:
    """The decoder after a prompt: one token of each row at a time."""

    def __init__(
        self, model: WhisperForConditionalGeneration, encoded: BaseModelOutput, prompts: torch.Tensor, limit: int
    ) -> None:
        self._model = model
        self._decoder = model.model.decoder
        cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
        out = model.model(encoder_outputs=encoded, decoder_input_ids=prompts, past_key_values=cache, use_cache=True)
        self.first = model.proj_out(out.last_hidden_state[:, -1])
        self._at = prompts.shape[1]
        self._heard = [(layer.keys, layer.values) for layer in cache.cross_attention_cache.layers]
        own = cache.self_attention_cache.layers
        self._written = [(_roomy(layer.keys, limit), _roomy(layer.values, limit)) for layer in own]

    def after(self, token: torch.Tensor) -> torch.Tensor:
        """Return the scores [rows, vocabulary] of what follows a token [rows, 1]."""
        decoder = self._decoder
        x = decoder.embed_tokens(token[:, 0]) + decoder.embed_positions.weight[self._at]
        for layer, written, heard in zip(decoder.layers, self._written, self._heard, strict=True):
            x = x + self._own_attention(layer.self_attn, layer.self_attn_layer_norm(x), written)
            attention = layer.encoder_attn
            query = _query(attention, layer.encoder_attn_layer_norm(x))
            x = x + _attended(attention, query, *heard)
            x = x + layer.fc2(layer.activation_fn(layer.fc1(layer.final_layer_norm(x))))
        self._at += 1
        scores: torch.Tensor = self._model.proj_out(decoder.layer_norm(x))
        return scores

    def _own_attention(
        self, attention: Any, x: torch.Tensor, written: tuple[torch.Tensor, torch.Tensor]
    ) -> torch.Tensor:
        keys, values = written
        keys[:, :, self._at] = attention.k_proj(x).view(len(x), attention.num_heads, -1)
        values[:, :, self._at] = attention.v_proj(x).view(len(x), attention.num_heads, -1)
        until = self._at + 1
        return _attended(attention, _query(attention, x), keys[:, :, :until], values[:, :, :until])


def _query(attention: Any, x: torch.Tensor) -> torch.Tensor:
    """Return queries [rows, heads, 1, dimensions], scaled here as Whisper's are."""
    query: torch.Tensor = attention.q_proj(x) * attention.scaling
    return query.view(len(x), attention.num_heads, 1, -1)


def _attended(attention: Any, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Attend to all positions: in float32 as `generate` does, to the bit.

    In half precision torch's kernel takes ten times as long for one query as two matrix products.
    """
    if query.dtype == torch.float32:
        found = functional.scaled_dot_product_attention(query, keys, values, scale=1.0)
    else:
        found = (query @ keys.transpose(2, 3)).softmax(dim=-1, dtype=torch.float32).to(query.dtype) @ values
    projected: torch.Tensor = attention.out_proj(found.reshape(len(query), -1))
    return projected


def _roomy(filled: torch.Tensor, limit: int) -> torch.Tensor:
    """Return keys or values [rows, heads, positions, dimensions] with room for all positions."""
    rows, heads, positions, dimensions = filled.shape
    room = filled.new_empty(rows, heads, limit, dimensions)
    room[:, :, :positions] = filled
    return room
