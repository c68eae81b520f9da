"""Which token comes next: the likeliest, or one drawn by chance that is the same at every run."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np
import torch
from transformers import LogitsProcessor

if TYPE_CHECKING:
    from collections.abc import Sequence

    from run_transcription.records import Samples


class Chooser(LogitsProcessor):  # type: ignore[misc] # transformers is not typed
    """Chooses the next token of each row, and keeps its log-probability; standing last, it sees final scores.

    `output_scores` would keep every step's scores until the end: tokens × vocabulary floats for each row. Here it is
    one float for each token, in memory taken beforehand. As the choice is made here and not by `generate`, the
    log-probabilities are those without the temperature, and a row's chance depends on no other row of its batch.
    """

    def __init__(self, rows: int, end_of_text: int, limit: int, device: torch.device) -> None:
        """Begin with no token chosen; `limit` is the length at which generation stops."""
        self.logprobs = torch.zeros(rows, limit, device=device)  # [rows, steps]
        self._alive = torch.ones(rows, dtype=torch.bool, device=device)
        self.chosen = torch.empty(0, dtype=torch.long)  # the last token of each row
        self.end_of_text = end_of_text
        self._limit = limit
        self._step = 0
        self._temperature = 0.0
        self._chances = torch.empty(0)

    def heat(self, temperature: float, windows: Sequence[Samples], candidates: int = 1) -> None:
        """Draw tokens at a temperature; the chance of each row is seeded by its window's samples.

        Each window has so many rows in a row, of which the first is the same whatever their number.
        """
        if temperature > 0:
            drawn = [(window, number) for window in windows for number in range(candidates)]
            chances = np.stack([_chances(window, temperature, self._limit, number) for window, number in drawn])
            self._temperature, self._chances = temperature, torch.from_numpy(chances).to(self.logprobs.device)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Choose, add this step to rows that have not ended, end of text included, and return what leads to it."""
        if input_ids.shape[1] >= self._limit:  # on a GPU, generate takes one step more and undoes it
            return scores
        token = self._drawn(scores) if self._temperature else scores.argmax(dim=-1)
        logprobs = scores.log_softmax(dim=-1).gather(1, token[:, None])[:, 0]
        self.logprobs[:, self._step] = torch.where(self._alive, logprobs, 0.0)
        self._alive &= token != self.end_of_text
        self.chosen = token
        self._step += 1
        return torch.full_like(scores, -torch.inf).scatter(1, token[:, None], 0.0) if self._temperature else scores

    def _drawn(self, scores: torch.Tensor) -> torch.Tensor:
        """Return the token in whose share of the probabilities the row's number between 0 and 1 falls."""
        shares = (scores.double() / self._temperature).softmax(dim=-1).cumsum(dim=-1)
        places = self._chances[:, self._step, None] * shares[:, -1:]
        return torch.searchsorted(shares, places, right=True)[:, 0].clamp(max=scores.shape[1] - 1)


def _chances(
    window: Samples, temperature: float, steps: int, number: int
) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Return a number between 0 and 1 for each step, by what the window holds and by the candidate's number."""
    digest = hashlib.blake2b(np.ascontiguousarray(window).data, digest_size=8).digest()
    seed = [int.from_bytes(digest), round(1000 * temperature), *([number] if number else [])]
    return np.random.default_rng(seed).random(steps)
