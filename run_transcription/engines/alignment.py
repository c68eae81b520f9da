"""When each token was said: the attention of the alignment heads, seen in one pass over finished text."""

from __future__ import annotations

import itertools
from collections import defaultdict
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional

from run_transcription.engines import warping
from run_transcription.records import SAMPLE_RATE

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from transformers import WhisperForConditionalGeneration

    from run_transcription.engines.vocabulary import Vocabulary
    from run_transcription.records import Samples

FRAME = 320  # samples: the encoder's positions are 20 ms apart
MEDIAN = 7  # positions over which attention is smoothed

Heads = dict[int, list[int]]  # by layer


def heads_of(model: WhisperForConditionalGeneration) -> Heads:
    """Return the heads that look at what is being written: the model's own list, else all of the decoder's second half.

    So does openai/whisper.
    """
    config, named = model.config, getattr(model.generation_config, "alignment_heads", None)
    layers, heads = config.decoder_layers, config.decoder_attention_heads
    found: defaultdict[int, list[int]] = defaultdict(list)
    for layer, head in named or itertools.product(range(layers // 2, layers), range(heads)):
        found[layer].append(head)
    return dict(found)


def token_times(
    model: WhisperForConditionalGeneration,
    encoded: torch.Tensor,
    prompts: torch.Tensor,
    rows: Sequence[Sequence[int]],
    windows: Sequence[Samples],
    vocabulary: Vocabulary,
) -> list[tuple[float, ...]]:
    """Return for each row of ids when each of them begins and the last one ends, in seconds of its window.

    `encoded` is what the encoder made of the windows, [rows, positions, width]; prompts are ids [rows, prompt]. The
    attention is worked out beside the model's own, which stays as fast as it is.
    """
    texts = [[vocabulary.no_timestamps, *(each for each in row if each < vocabulary.end_of_text)] for row in rows]
    longest = max(map(len, texts))
    ids = torch.zeros((len(texts), longest), dtype=prompts.dtype)
    for row, text in zip(ids, texts, strict=True):
        row[: len(text)] = torch.tensor(text, dtype=row.dtype)
    line = torch.cat([prompts, ids.to(prompts.device)], dim=1)
    with watched(model, heads_of(model)) as seen:
        model.model.decoder(input_ids=line, encoder_hidden_states=encoded, use_cache=False)
    begin = prompts.shape[1]  # <|notimestamps|>, the position that writes the first word
    costs = []
    for number, (text, window) in enumerate(zip(texts, windows, strict=True)):
        frames = min(encoded.shape[1], max(1, -(-len(window) // FRAME)))
        weights = torch.cat([layer[number] for layer in seen])[:, begin : begin + len(text), :frames]
        costs.append(-_smooth(weights).mean(dim=0).cpu().numpy())
    begins = [[frame * FRAME / SAMPLE_RATE for frame in frames] for frames in warping.starts(costs)]
    return [_with_timestamps(row, times, vocabulary.end_of_text) for row, times in zip(rows, begins, strict=True)]


def _with_timestamps(row: Sequence[int], times: Sequence[float], end_of_text: int) -> tuple[float, ...]:
    """Return the times of text as those of all ids: a timestamp stands where the text behind it begins."""
    places = itertools.accumulate((token < end_of_text for token in row), initial=0)
    return tuple(round(times[place], 2) for place in places)


@contextmanager
def watched(model: WhisperForConditionalGeneration, heads: Heads) -> Iterator[list[torch.Tensor]]:
    """Collect the cross-attention of some heads, float32 scores [rows, heads, ids, positions] by layer, while it runs."""
    seen: list[torch.Tensor] = []
    hooks = [
        model.model.decoder.layers[layer].encoder_attn.register_forward_pre_hook(
            _watcher(chosen, seen), with_kwargs=True
        )
        for layer, chosen in sorted(heads.items())
    ]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def _watcher(chosen: list[int], seen: list[torch.Tensor]) -> Any:
    def watch(attention: Any, arguments: tuple[torch.Tensor, ...], named: dict[str, Any]) -> None:
        size = attention.head_dim
        rows = torch.cat([torch.arange(head * size, (head + 1) * size) for head in chosen])
        rows = rows.to(attention.q_proj.weight.device)
        query = functional.linear(arguments[0], attention.q_proj.weight[rows], attention.q_proj.bias[rows])
        key = functional.linear(named["key_value_states"], attention.k_proj.weight[rows])
        query, key = (each.view(*each.shape[:-1], len(chosen), size).transpose(1, 2) for each in (query, key))
        seen.append((query * attention.scaling @ key.transpose(2, 3)).float())

    return watch


def _smooth(scores: torch.Tensor) -> torch.Tensor:
    """Return attention of scores [heads, ids, positions], even over the ids and without single peaks."""
    weights = scores.softmax(dim=-1)
    deviation, mean = torch.std_mean(weights, dim=-2, keepdim=True, correction=0)
    even = (weights - mean) / deviation.clamp(min=1e-6)
    half = MEDIAN // 2
    if even.shape[-1] <= half:
        return even
    padded = functional.pad(even, (half, half), mode="reflect")
    return padded.unfold(-1, MEDIAN, 1).median(dim=-1).values
