"""Beam search as openai/whisper does it: patience, and beams compared by their mean or by a length penalty.

transformers' own knows no patience, compares by another penalty, and doesn't tell the log-probability of each token.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from transformers import EncoderDecoderCache
from transformers.cache_utils import DynamicCache
from transformers.generation.logits_process import (
    LogitsProcessor,
    LogitsProcessorList,
    SuppressTokensAtBeginLogitsProcessor,
    WhisperTimeStampLogitsProcessor,
)

from run_transcription.engines.rows import Beam

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import WhisperForConditionalGeneration
    from transformers.modeling_outputs import BaseModelOutput


@dataclass(frozen=True, slots=True)
class Plan:
    """How many beams, for how many finished ones a row waits, and how they are compared."""

    beams: int
    patience: float
    length_penalty: float | None

    @property
    def wanted(self) -> int:
        """Finished beams at which a row is done."""
        return max(1, round(self.beams * self.patience))


@dataclass(slots=True)
class _Row:
    """The beams of one row: those that go on, and those that have ended, the best first."""

    live: list[Beam]
    finished: list[Beam] = field(default_factory=list)


class _Suppressing(LogitsProcessor):  # type: ignore[misc] # transformers is not typed
    """Leaves tokens out; transformers' own sorts the whole vocabulary for it at each step."""

    def __init__(self, ids: torch.Tensor) -> None:
        """Take the ids that are never written."""
        self._ids = ids

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:  # noqa: ARG002 - its signature
        """Return scores in which they are impossible."""
        return scores.index_fill(1, self._ids, -torch.inf)


def processors(model: WhisperForConditionalGeneration, suppressed: Sequence[int], begin: int) -> LogitsProcessorList:
    """Return the rules of Whisper's text for ids that begin at a place: what is suppressed, and where times stand."""
    settings, device = model.generation_config, model.device
    rules = LogitsProcessorList()
    if settings.begin_suppress_tokens:
        rules.append(SuppressTokensAtBeginLogitsProcessor(settings.begin_suppress_tokens, begin, device=device))
    if suppressed:
        rules.append(_Suppressing(torch.tensor(suppressed, device=device)))
    rules.append(WhisperTimeStampLogitsProcessor(settings, begin_index=begin))
    return rules


def search(  # noqa: PLR0913 - the model, what it has heard, and how it is to write
    model: WhisperForConditionalGeneration,
    encoded: BaseModelOutput,
    prompts: torch.Tensor,
    rules: LogitsProcessorList,
    plan: Plan,
    *,
    end: int,
) -> list[Beam]:
    """Return the best text of each row, of prompts [rows, ids] and what the encoder made of their windows.

    `end` is the id of the end of text.
    """
    count = plan.beams
    states = type(encoded)(last_hidden_state=encoded.last_hidden_state.repeat_interleave(count, dim=0))
    ids = prompts.repeat_interleave(count, dim=0)
    cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
    rows = [_Row([Beam()] * count) for _ in prompts]
    following = ids
    while ids.shape[1] < model.config.max_target_positions and any(len(row.finished) < plan.wanted for row in rows):
        out = model(encoder_outputs=states, decoder_input_ids=following, past_key_values=cache, use_cache=True)
        logprobs = rules(ids, out.logits[:, -1].float()).log_softmax(dim=-1)
        chosen = _step(rows, logprobs, plan, end)
        sources = torch.tensor([source for source, _ in chosen], device=ids.device)
        following = torch.tensor([[token] for _, token in chosen], device=ids.device)
        ids = torch.cat([ids[sources], following], dim=1)
        cache.self_attention_cache.reorder_cache(sources)  # what was heard is the same for all beams of a row
    return [max(_candidates(row, plan), key=lambda beam: beam.rank(plan.length_penalty)) for row in rows]


def _step(rows: Sequence[_Row], logprobs: torch.Tensor, plan: Plan, end: int) -> list[tuple[int, int]]:
    """Let each row's beams go on by a token; return for each where it comes from among all beams, and its token."""
    count, words = plan.beams, logprobs.shape[1]
    totals = torch.tensor([[beam.total for beam in row.live] for row in rows], device=logprobs.device)
    gained = logprobs.view(len(rows), count, words)
    if not rows[0].live[0].tokens:
        gained[:, 1:] = -torch.inf  # all beams are still one and the same
    places = (totals[:, :, None] + gained).flatten(1).topk(2 * count).indices
    steps = gained.flatten(1).gather(1, places).tolist()
    chosen = []
    for number, (row, candidates, gains) in enumerate(zip(rows, places.tolist(), steps, strict=True)):
        live: list[Beam] = []
        for place, gain in zip(candidates, gains, strict=True):
            source, token = divmod(place, words)
            before = row.live[source]
            if token == end:
                if gain > -torch.inf and len(row.finished) < plan.wanted:
                    row.finished.append(Beam(before.tokens, (*before.logprobs, gain), complete=True))
            else:
                live.append(Beam((*before.tokens, token), (*before.logprobs, gain)))
                chosen.append((number * count + source, token))
            if len(live) == count:
                break
        row.live = live
    return chosen


def _candidates(row: _Row, plan: Plan) -> list[Beam]:
    """Return the finished beams, and where they are too few the best of those that the longest text has cut off."""
    lacking = max(0, plan.beams - len(row.finished))
    return [*row.finished, *sorted(row.live, key=lambda beam: -beam.total)[:lacking]]
