"""When each token was said: the attention of the alignment heads, seen in one pass over finished text."""

from __future__ import annotations

import itertools
from collections import defaultdict
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn import functional

from run_transcription.engines import warping
from run_transcription.records import SAMPLE_RATE

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy.typing as npt
    from transformers import WhisperForConditionalGeneration

    from run_transcription.engines.vocabulary import Vocabulary
    from run_transcription.records import Samples

FRAME = 320  # samples: the encoder's positions are 20 ms apart
MEDIAN = 7  # positions over which attention is smoothed
ONSET = 0.2  # of its highest attention, from which on a token is being said
AROUND = 50  # positions, a second, on both sides of one that is quiet or loud beside them
QUIET = 10**-2.6  # power over the loudest place around, 26 dB below it

Heads = dict[int, list[int]]  # by layer
Span = tuple[float, float]
Weights = np.ndarray[tuple[int, ...], np.dtype[np.float32]]  # [ids, positions]


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


def token_times(  # noqa: PLR0913 - the model, and all that it has heard and written
    model: WhisperForConditionalGeneration,
    encoded: torch.Tensor,
    prompts: torch.Tensor,
    rows: Sequence[Sequence[int]],
    windows: Sequence[Samples],
    *,
    vocabulary: Vocabulary,
) -> list[tuple[Span, ...]]:
    """Return for each row of ids when each of them begins and ends, in seconds of its window.

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
    attention, costs = [], []
    for number, (text, window) in enumerate(zip(texts, windows, strict=True)):
        frames = min(encoded.shape[1], max(1, -(-len(window) // FRAME)))
        weights = torch.cat([layer[number] for layer in seen])[:, begin : begin + len(text), :frames].softmax(dim=-1)
        attention.append(weights.mean(dim=0).cpu().numpy())
        costs.append(-_smooth(weights).mean(dim=0).cpu().numpy())
    facts = zip(rows, attention, warping.starts(costs), windows, strict=True)
    return [_times(row, weights, starts, window, vocabulary.end_of_text) for row, weights, starts, window in facts]


def _times(
    row: Sequence[int], weights: Weights, starts: Sequence[int], window: Samples, end_of_text: int
) -> tuple[Span, ...]:
    """Return the times of a row's ids; a timestamp stands where the text behind it begins."""
    begins = [*_onsets(weights, starts), weights.shape[1]]
    audible = _audible(window, weights.shape[1])
    spans: list[Span] = []
    for begin, after in itertools.pairwise(begins):
        heard = np.flatnonzero(audible[begin:after])
        # what nothing is heard of, such as a mark in a pause, belongs to the word before it
        end = begin + int(heard[-1]) + 1 if len(heard) else begin
        spans.append((_seconds(begin), _seconds(end) if len(heard) or not spans else spans[-1][1]))
    places = itertools.accumulate((token < end_of_text for token in row), initial=0)
    return tuple(
        spans[place] if token < end_of_text else (spans[place][0],) * 2
        for token, place in zip(row, places, strict=False)
    )


def _onsets(weights: Weights, starts: Sequence[int]) -> list[int]:
    """Return where attention to each token rises: its part of the way begins as soon as the token before has ended."""
    found = []
    for line, (begin, after) in zip(weights, itertools.pairwise([*starts, weights.shape[1]]), strict=True):
        part = line[begin : max(after, begin + 1)]
        found.append(begin + int((part >= ONSET * part.max()).argmax()))
    return found


def _audible(window: Samples, frames: int) -> npt.NDArray[np.bool_]:
    """Tell for each frame whether it is heard beside what is loud around it: words don't go on in pauses."""
    padded = np.zeros(frames * FRAME, np.float32)
    padded[: len(window)] = window[: len(padded)]
    power = np.square(padded.reshape(frames, FRAME)).mean(axis=1)
    around = np.pad(power, AROUND, mode="edge")
    loudest = np.lib.stride_tricks.sliding_window_view(around, 2 * AROUND + 1).max(axis=1)
    heard: npt.NDArray[np.bool_] = power > QUIET * loudest
    return heard


def _seconds(frame: int) -> float:
    return round(frame * FRAME / SAMPLE_RATE, 2)


@contextmanager
def watched(model: WhisperForConditionalGeneration, heads: Heads) -> Iterator[list[torch.Tensor]]:
    """Collect the cross-attention of heads while it runs: float32 scores [rows, heads, ids, positions] by layer."""
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


def _smooth(weights: torch.Tensor) -> torch.Tensor:
    """Return attention [heads, ids, positions] that is even over the ids and has no single peaks."""
    deviation, mean = torch.std_mean(weights, dim=-2, keepdim=True, correction=0)
    even = (weights - mean) / deviation.clamp(min=1e-6)
    half = MEDIAN // 2
    if even.shape[-1] <= half:
        return even
    padded = functional.pad(even, (half, half), mode="reflect")
    return padded.unfold(-1, MEDIAN, 1).median(dim=-1).values
